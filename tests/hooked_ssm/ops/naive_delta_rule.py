"""The delta rule as a plain loop under autograd, and what it means to edit it."""

from collections.abc import Callable

import torch
from torch import Tensor

from hooked_ssm.ops import StateEdit

Edit = Callable[[Tensor], object]


def unchanged(t: int, value: Tensor) -> Tensor:
    return value


def loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    initial: Tensor | None = None,
    write: Callable[[int, Tensor], Tensor] = unchanged,
    state: Callable[[int, Tensor], Tensor] = unchanged,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o, the last state, all writes and all states. `decay` are factors; `write(t, w_t)` and `state(t, S_t)`
    give what is computed with instead."""
    S = q.new_zeros(*q[:, 0].shape, v.shape[-1]) if initial is None else initial
    o, writes, states = [], [], []
    for t in range(q.shape[1]):
        if decay is not None:
            S = decay[:, t, :, None, None] * S
        recalled = (S * k[:, t].unsqueeze(-1)).sum(-2)
        writes.append(write(t, beta[:, t].unsqueeze(-1) * (v[:, t] - recalled)))
        S = state(t, S + k[:, t].unsqueeze(-1) * writes[-1].unsqueeze(-2))
        states.append(S)
        o.append((S * q[:, t].unsqueeze(-1)).sum(-2))
    return torch.stack(o, 1), S, torch.stack(writes, 1), torch.stack(states, 1)


def edited_loop(
    inputs: list[Tensor | None],
    edit_decay: Edit | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
    nudge_write: Tensor | None = None,
    nudge_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """o and the last state. Edits are handed trajectories; what they change, or name, is set on the way.

    The nudges are added to writes and states, set or not, after an edit has seen them.
    """
    q, k, v, beta, log_decay, initial = inputs
    decay = None if log_decay is None else log_decay.exp()
    if edit_decay is not None:
        decay = edit_decay(decay)
    write = state = unchanged
    if edit_write is not None:
        raw = loop(q, k, v, beta, decay, initial)[2]
        write = settled(raw, edit_write, nudge_write)
    if edit_state is not None:
        raw = loop(q, k, v, beta, decay, initial, write)[3]
        state = settled(raw, edit_state, nudge_state)
    return loop(q, k, v, beta, decay, initial, write, state)[:2]


def settled(raw: Tensor, edit: Edit, nudge: Tensor | None) -> Callable[[int, Tensor], Tensor]:
    returned = edit(raw.clone())
    values, mask = (returned.states, returned.mask) if isinstance(returned, StateEdit) else (returned, False)
    set_at = (values != raw) | mask

    def settle(t: int, value: Tensor) -> Tensor:
        value = torch.where(set_at[:, t], values[:, t], value)
        return value if nudge is None else value + nudge[:, t]

    return settle


def sample(
    batch: int,
    pos: int,
    heads: int,
    d_key: int,
    d_value: int,
    *,
    decay: bool = True,
    initial: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor | None]:
    """q, k of length 1, v, beta in 0..2, log_decay or None, initial or None; all with gradients."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    q, k, v = (
        normal(batch, pos, heads, d_key),
        normal(batch, pos, heads, d_key),
        normal(batch, pos, heads, d_value),
    )
    k = k / k.norm(dim=-1, keepdim=True)
    beta = 2 * torch.sigmoid(normal(batch, pos, heads))
    log_decay = -torch.exp(normal(batch, pos, heads)) if decay else None
    first = normal(batch, heads, d_key, d_value) if initial else None
    return [None if x is None else x.to(dtype).requires_grad_() for x in (q, k, v, beta, log_decay, first)]
