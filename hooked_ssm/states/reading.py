"""States at chosen positions, and runs that go on from a state."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_ssm.model import ModelState
from hooked_ssm.patching.base_run import attached
from hooked_ssm.states.places import STATE, Positions, mask_of, recurrent_layers


@torch.no_grad()
def states_at(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    positions: Positions,
    *,
    layers: Sequence[int] | None = None,
    hook: str = STATE,
) -> dict[int, Tensor]:
    """The states [batch, position, ...] of each layer at some positions, without holding any others.

    The documents are run in pieces, and states (or what else `hook` carries) are looked at in those pieces
    alone that are wanted. Positions are in increasing order; a tensor [batch] gives one a document, and then
    the result is [batch, ...]; masks must have as many positions in every document.
    """
    layers = recurrent_layers(model, layers)
    length = tokens.shape[1]
    mask = mask_of(positions, tokens.shape, tokens.device, "positions")
    counts = mask.sum(1)
    if (counts != counts[0]).any() or counts[0] == 0:
        raise ValueError(f"every document needs as many positions, at least one, got {counts.tolist()}.")
    anywhere = mask.any(0).tolist()
    # Pieces of neighbouring positions that are all wanted, or none of them.
    edges = [i for i in range(length) if i == 0 or anywhere[i] != anywhere[i - 1]]
    pieces = list(zip(edges, [*edges[1:], length], strict=True))
    while not anywhere[pieces[-1][0]]:
        pieces.pop()
    last = pieces[-1][1]

    found: dict[int, Tensor] = {}
    resid = model(tokens[:, :last], stop_at_layer=0)
    picked = mask[:, torch.tensor(anywhere, device=mask.device)]
    for layer in range(max(layers) + 1):
        seen: list[Tensor] = []
        outs, state = [], None
        for start, stop in pieces:
            piece = resid[:, start:stop]
            if layer in layers and anywhere[start]:
                name = f"blocks.{layer}.mixer.{hook}"
                with attached(model, name, lambda states, _, seen=seen: seen.append(states.clone())):
                    out, state = model.blocks[layer].extend(piece, state)
            else:
                out, state = model.blocks[layer].extend(piece, state)
            outs.append(out)
        resid = torch.cat(outs, dim=1)
        if layer in layers:
            states = torch.cat(seen, dim=1)[picked].unflatten(0, (len(tokens), -1))
            one_each = isinstance(positions, Tensor) and positions.dtype != torch.bool
            found[layer] = states[:, 0] if one_each else states
    return found


def state_after(model: Any, tokens: Int[Tensor, "batch pos"], state: ModelState | None = None) -> ModelState:
    """Where the documents stand after these tokens, which follow `state`. Computes no logits."""
    return model.step(tokens, state, torch.zeros_like(tokens, dtype=torch.bool))[1]


def resume(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    state: ModelState,
    *,
    fwd_hooks: Sequence[tuple[Any, Any]] = (),
    logit_positions: Int[Tensor, " batch"] | Bool[Tensor, "batch pos"] | None = None,
) -> tuple[Tensor, ModelState]:
    """Logits at tokens that follow a state, and the state after them, under hooks that see these tokens."""
    with model.hooks(fwd_hooks=list(fwd_hooks)):
        return model.step(tokens, state, logit_positions)


def graft(state: ModelState, other: ModelState, layers: Sequence[int]) -> ModelState:
    """The state with these layers' from another one, of documents of the same length."""
    if state.length != other.length:
        raise ValueError(f"states must be of the same length, got {state.length} and {other.length}.")
    wrong = [layer for layer in layers if not 0 <= layer < len(state.layers)]
    if wrong:
        raise ValueError(f"layers must lie in 0..{len(state.layers) - 1}, got {wrong}.")
    mixed = [(other if i in set(layers) else state).layers[i] for i in range(len(state.layers))]
    return ModelState(mixed, state.length)
