"""Hook points that say what they carry."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformer_lens.hook_points import HookPoint

from hooked_ssm.ops.at import At


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
        self.positions: tuple[int, ...] | None = None
        axes = shape.split()
        self.pos_dim = next(axes.index(axis) for axis in ("dest", "lag", "pos") if axis in axes)

    @property
    def attached(self) -> bool:
        """Whether anything would see this hook fire."""
        return bool(self._forward_hooks or self._backward_hooks or self._forward_pre_hooks)

    @contextmanager
    def only(self, positions: Sequence[int]) -> Iterator[None]:
        """Inside, the hook carries these positions alone, increasing: [batch, len(positions), ...].

        For what a recurrence otherwise holds for every position: decays, writes, states (but not H3's). A
        back end that can do it forms no others. At any other hook a run raises ValueError.
        """
        before, self.positions = self.positions, At(positions, self).positions
        try:
            yield
        finally:
            self.positions = before

    def __call__(self, x: Tensor) -> Any:
        """At once where nothing would see it: a token that is generated passes hundreds of idle hooks."""
        if not (self.attached or _has_any_global_hook()):
            return x
        edits = _edits.get()
        if edits is None:
            return super().__call__(x)
        before = x.detach().clone()
        after = super().__call__(x)
        if not (
            isinstance(after, Tensor) and after.dtype == before.dtype and torch.equal(after.detach(), before)
        ):
            edits.append(self)
        return after

    def forward(self, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        if self.positions is not None and self.attached and x.shape[self.pos_dim] != len(self.positions):
            raise ValueError(
                f"this hook ({self.meaning}) cannot carry positions {list(self.positions)} alone: "
                f"it was handed {x.shape[self.pos_dim]}."
            )
        return x.clone(memory_format=torch.contiguous_format) if self.copy and self.attached else x

    def if_attached(self) -> "Callable[[Tensor], object] | None":
        """This hook if anything is attached to it, else None: for operators that take optional edits."""
        if not self.attached:
            return None
        return self if self.positions is None else At(self.positions, self)


_edits: ContextVar[list[Hook] | None] = ContextVar("the hooks that edited", default=None)


@contextmanager
def noting_edits() -> Iterator[list[Hook]]:
    """Inside, the list gets every hook that hands on anything but the values that it was handed."""
    edits: list[Hook] = []
    token = _edits.set(edits)
    try:
        yield edits
    finally:
        _edits.reset(token)


def idle(modules: Iterable[nn.Module | None]) -> bool:
    """Whether nothing would see any of them run."""
    for m in modules:
        if m is not None and (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks):
            return False
    return not _has_any_global_hook()
