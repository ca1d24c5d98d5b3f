"""Hook points that say what they carry."""

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformer_lens.hook_points import HookPoint


class Hook(HookPoint):
    """A TransformerLens `HookPoint` with a declared shape and one line of meaning.

    shape: axis names, such as "batch pos d_inner d_state". The axis named `pos` (or `dest`) is the one
        that `pos_slice` cuts. (A filter has an axis `lag` instead: entry t is what reaches t places on.)
    meaning: one line for `HookedSSM.hook_table()`.
    copy: hand attached hooks a contiguous copy. For tensors that something else still reads under
        another name: TransformerLens's patch setters write in place.
    """

    pos_dim: int

    def __init__(self, shape: str, meaning: str, *, copy: bool = False):
        super().__init__()
        self.shape = shape
        self.meaning = meaning
        self.copy = copy
        axes = shape.split()
        self.pos_dim = next(axes.index(axis) for axis in ("dest", "lag", "pos") if axis in axes)

    @property
    def attached(self) -> bool:
        """Whether anything would see this hook fire."""
        return bool(self._forward_hooks or self._backward_hooks or self._forward_pre_hooks)

    def forward(self, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        return x.clone(memory_format=torch.contiguous_format) if self.copy and self.attached else x

    def if_attached(self) -> "Hook | None":
        """This hook if anything is attached to it, else None: for operators that take optional edits."""
        return self if self.attached else None
