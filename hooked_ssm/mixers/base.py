"""What every mixer is: a causal map over positions, with hooks, that can be continued step by step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import ActivationCache

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.hooks import Hook
from hooked_ssm.layers import write_heads
from hooked_ssm.ops.memory import matrix_product

Activations = Mapping[str, Tensor]  # of one mixer in a run, by hook name: "hook_x"


class Mixer(nn.Module, ABC):
    """Base of all mixers.

    A mixer reads the normalised residual stream and writes to it. It has `cfg.n_heads` heads: real ones,
    or groups of channels. Its last step is linear, z W_O + b_O, summed over heads: every mixer has
    `W_O` [head, d_head, d_model] and `b_O` [d_model], as parameters or properties.

    Every hook of a mixer is known under three names: `blocks.{l}.mixer.hook_x`, `blocks.{l}.hook_x` (which
    TransformerLens's generic sweep can reach) and `blocks.{l}.attn.hook_x` (where its head tools look).
    """

    # The hooks of the values and of the read that `effective_attention` takes them to.
    matrix_hooks: tuple[str, str] = ("hook_v", "hook_z")

    has_b_O: ClassVar[bool] = True  # without, b_O is 0

    W_O: Tensor
    b_O: Tensor
    hook_q_input: Hook
    hook_k_input: Hook
    hook_v_input: Hook

    def __init__(self, cfg: HookedSSMConfig):
        super().__init__()
        self.cfg = cfg
        for letter, reads in (("q", "what it asks"), ("k", "what it is found by"), ("v", "what it carries")):
            meaning = f"residual read for {letter} ({reads}), one copy a head"
            setattr(self, f"hook_{letter}_input", Hook("batch pos head d_model", meaning, copy=True))
        self.hook_z = Hook("batch pos head d_head", "what each head reads out, before W_O")
        self.hook_result = Hook("batch pos head d_model", "what each head writes to the residual stream")

    @abstractmethod
    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: Any = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], Any]:
        """Outputs at the given positions, which follow those already in `state`, and the state after them.

        `state=None` is the start of a document. The state of a recurrent mixer has constant size.
        """

    def forward(self, u: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.extend(u)[0]

    @abstractmethod
    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """The output when each head has inputs of its own, as edge and path patching need."""

    @abstractmethod
    def effective_attention(self, activations: Activations) -> Float[Tensor, "batch head dest src"]:
        """The causal matrix that takes the mixer's values to what it reads, exactly.

        `activations` are the mixer's own in a run, as `cache.of_mixer(layer)` gives them. `matrix_hooks`
        names the values and the read. The head axis is one of channels where channels differ.
        """

    def write(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """z W_O + b_O, through `hook_result` where results by head are asked for."""
        if self.cfg.use_attn_result:
            return self.hook_result(write_heads(z, self.W_O)).sum(2) + self.b_O
        flat = z.flatten(2).flatten(0, 1)
        bias = self.b_O if self.has_b_O else None
        return matrix_product(flat, self.W_O.flatten(0, 1), bias).unflatten(0, z.shape[:2])

    def unavailable_hooks(self) -> dict[str, str]:
        """Hooks that cannot fire as things are set, each with what would make it fire."""
        reasons = {}
        if not self.cfg.use_attn_result:
            reasons["hook_result"] = "it fires after model.set_use_attn_result(True)"
        if not self.cfg.use_split_qkv_input:
            for letter in "qkv":
                reasons[f"hook_{letter}_input"] = "it fires after model.set_use_split_qkv_input(True)"
        return reasons


class AttentionFreeMixer(Mixer):
    """A mixer without softmax, with the methods that TransformerLens's cache looks for in such a one."""

    hook_pattern: Hook

    def through_pattern(
        self,
        read: Float[Tensor, "batch pos head d_head"],
        values: Float[Tensor, "batch pos head d_head"],
        state: Any,
        pattern: Callable[..., Tensor],
        *inputs: Tensor,
    ) -> Float[Tensor, "batch pos head d_head"]:
        """`read`, and what the matrix pattern(*inputs) as `hook_pattern` edits it reads beyond that."""
        if not self.hook_pattern.attached:
            return read
        if state is not None:
            name = type(self).__name__
            raise ValueError(
                f"hook_pattern of {name} fires on whole documents, not when continuing from a state."
            )
        change = self.hook_pattern.change_of(pattern, *inputs)
        return read if change is None else read + torch.einsum("bhij,bjhd->bihd", change, values)

    def compute_effective_attention(
        self, cache: ActivationCache, layer_idx: int, **options: Any
    ) -> Float[Tensor, "batch head dest src"]:
        """`effective_attention` of one layer of a cached run."""
        return self.effective_attention(MixerActivations(cache, layer_idx), **options)

    def compute_ssm_state(
        self, cache: ActivationCache, layer_idx: int, time_step: int | None = None
    ) -> Float[Tensor, "batch ..."]:
        """`states` of one layer of a cached run; one position of them, without the axis, if it is given."""
        states = self.states(MixerActivations(cache, layer_idx))
        return states if time_step is None else states[:, time_step]

    def states(self, activations: Activations) -> Float[Tensor, "batch pos ..."]:
        """The trajectory of the recurrent state, from the cached inputs of the recurrence."""
        raise TypeError(f"{type(self).__name__} has no recurrent state.")


class MixerActivations(Mapping[str, Tensor]):
    """The activations of one layer's mixer in a cached run, by hook name."""

    def __init__(self, cache: ActivationCache, layer: int):
        self.cache, self.prefix = cache, f"blocks.{layer}.mixer."

    def __getitem__(self, hook: str) -> Tensor:
        return self.cache[self.prefix + hook]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in self.cache if name.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
