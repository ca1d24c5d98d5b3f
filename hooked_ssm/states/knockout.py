"""Knocking out the flow of information from some positions to others, within mixers.

With S the sources and D the positions that read, at i in D and j in S:

    attention   scores_ij = -inf: the other sources share what is left (where none is left the read is 0)
    matrix      the read at i loses M_ij v_j, M the mixer's exact causal matrix, v its values
    state       the state as it is read at i loses what its writes w_j have become, (prod a) w_j

Matrix and state are the same where a mixer's matrix is of what it writes (Mamba, linear attention), and not
for delta rules: there M_ij v_j is the whole effect of the value v_j, later corrections included, and w_j what
was written at j, whatever later writes were in answer to it. Other paths, convolutions above all, stay open.

The hooks are for whole documents, and go last among hooks on the same mixer, as they read what those leave.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hooked_ssm.mixers.base import Mixer
from hooked_ssm.ops.linear_scan import linear_scan
from hooked_ssm.ops.state_edit import StateEdit
from hooked_ssm.states.editing import Hooks
from hooked_ssm.states.places import STATE, Positions, mask_of, over_state

Through = Literal["auto", "attention", "matrix", "state"]


def knock_out_flow(
    model: Any,
    *,
    source: Positions,
    dest: Positions,
    layers: Sequence[int] | None = None,
    through: Through = "auto",
) -> Hooks:
    """Hooks that stop what `dest` reads from `source` in these layers (None: all).

    "auto" is attention where a mixer has scores, and the matrix elsewhere. Raises ValueError for a layer that
    does not have what is asked for.
    """
    if layers is None:
        layers = range(model.cfg.n_layers)
    wrong = [layer for layer in layers if not 0 <= layer < model.cfg.n_layers]
    if wrong:
        raise ValueError(f"layers must lie in 0..{model.cfg.n_layers - 1}, got {wrong}.")
    ways = {"attention": _attention, "matrix": _matrix, "state": _state}
    if through not in ("auto", *ways):
        raise ValueError(f"through must be one of {['auto', *ways]}, got {through!r}.")
    hooks: Hooks = []
    for layer in layers:
        mixer = model.blocks[layer].mixer
        has_scores = hasattr(mixer, "hook_attn_scores")
        way = ("attention" if has_scores else "matrix") if through == "auto" else through
        if (way == "attention" and not has_scores) or (way == "state" and not hasattr(mixer, STATE)):
            needed = "attention scores" if way == "attention" else "recurrent state"
            raise ValueError(f"layer {layer} has no {needed}, through={through!r} is not for it.")
        prefix = f"blocks.{layer}.mixer."
        hooks += [(prefix + name, hook) for name, hook in ways[way](mixer, source, dest)]
    return hooks


def _attention(mixer: Mixer, source: Positions, dest: Positions) -> Hooks:
    def cut(scores: Tensor, hook: Any) -> Tensor:
        return scores.masked_fill(_pairs(source, dest, scores, scores.shape[2]), -torch.inf)

    def nothing_left(pattern: Tensor, hook: Any) -> Tensor:
        emptied = _pairs(source, dest, pattern, pattern.shape[2]) & pattern.isnan()
        return pattern.masked_fill(emptied.any(-1, keepdim=True), 0.0)

    return [("hook_attn_scores", cut), ("hook_pattern", nothing_left)]


def _matrix(mixer: Mixer, source: Positions, dest: Positions) -> Hooks:
    values_name, read_name = mixer.matrix_hooks
    seen: dict[str, Tensor] = {}

    def subtract(read: Tensor, hook: Any) -> Tensor:
        values = seen[values_name].flatten(2)
        matrix = mixer.effective_attention(seen)
        matrix = matrix * _pairs(source, dest, matrix, read.shape[1])
        by_head = values.unflatten(2, (matrix.shape[1], -1))
        lost = torch.einsum("bhij,bjhd->bihd", matrix, by_head)
        seen.clear()
        return read - lost.reshape(read.shape)

    names = dict.fromkeys([*_names_read(mixer), values_name])
    return [*((name, partial(_keep, seen=seen, name=name)) for name in names), (read_name, subtract)]


def _state(mixer: Mixer, source: Positions, dest: Positions) -> Hooks:
    axes: dict[str, list[str]] = {
        name: getattr(mixer, name).shape.split()
        for name in ("hook_ssm_decay", "hook_ssm_write", STATE, "hook_k")
        if hasattr(mixer, name)
    }
    seen: dict[str, Tensor] = {}
    # A delta rule's write is what goes under the key k: k w^T is what is added to the state.
    under_key = axes["hook_ssm_write"] != axes[STATE]
    wanted = ["hook_ssm_decay", "hook_ssm_write", *(["hook_k"] if under_key else [])]

    def aligned(name: str, states: Tensor) -> Tensor:
        """What the hook carried, with an axis of 1 for each axis that only the state has."""
        sizes = iter(seen[name].shape)
        return seen[name].reshape([next(sizes) if axis in axes[name] else 1 for axis in axes[STATE]])

    def subtract(states: Tensor | StateEdit, hook: Any) -> StateEdit:
        if isinstance(states, StateEdit):
            raise TypeError("a knock-out through the state cannot follow another edit of the same states.")
        write = aligned("hook_ssm_write", states)
        if under_key:
            write = write * aligned("hook_k", states)
        there = mask_of(source, states.shape[:2], states.device, "source")
        here = over_state(mask_of(dest, states.shape[:2], states.device, "dest"), states)
        write = write.to(states) * over_state(there, states)
        decay = torch.ones_like(write)
        if "hook_ssm_decay" in seen:
            decay = aligned("hook_ssm_decay", states).to(states).expand_as(write)
        if axes[STATE][-1] == "part":  # real and imaginary
            write, decay = (torch.view_as_complex(each.contiguous()) for each in (write, decay))
            left = torch.view_as_real(linear_scan(decay, write))
        else:
            left = linear_scan(decay, write)
        seen.clear()
        # All are set: those read elsewhere to what they are.
        return StateEdit(torch.where(here, states - left, states), torch.ones_like(here))

    keep = [(name, partial(_keep, seen=seen, name=name)) for name in wanted if name in axes]
    return [*keep, (STATE, subtract)]


def _keep(activation: Tensor, hook: Any, seen: dict[str, Tensor], name: str) -> None:
    seen[name] = activation


def _pairs(source: Positions, dest: Positions, matrix: Tensor, length: int) -> Tensor:
    """[batch, 1, dest, src]: whether this is a source and a reader, in documents of this length."""
    shape = torch.Size((matrix.shape[0], length))
    there = mask_of(source, shape, matrix.device, "source")
    here = mask_of(dest, shape, matrix.device, "dest")
    return (here[:, :, None] & there[:, None, :])[:, None]


def _names_read(mixer: Mixer) -> list[str]:
    """The hooks of a mixer whose activations its `effective_attention` asks for."""
    names = _Recording(mixer)
    mixer.effective_attention(names)
    return list(names.asked)


class _Recording(Mapping[str, Tensor]):
    """The activations of a mixer on one short document of zeros, which remember who was asked for."""

    def __init__(self, mixer: Mixer):
        self.mixer, self.asked = mixer, dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.asked:
            if not hasattr(self.mixer, name):
                raise KeyError(name)
            weight = next(self.mixer.parameters())
            handle = getattr(self.mixer, name).register_forward_hook(
                lambda point, _, output: self.asked.__setitem__(name, output.detach().clone())
            )
            try:
                with torch.no_grad():
                    self.mixer.extend(weight.new_zeros(1, 2, self.mixer.cfg.d_model))
            finally:
                handle.remove()
        return self.asked[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.asked)

    def __len__(self) -> int:
        return len(self.asked)
