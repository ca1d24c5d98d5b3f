"""The delta rule with every state in memory, and with writes and states that can be set.

    P_t = a_t S_{t-1},   e_t = v_t - P_t^T k_t,   w_t = beta_t e_t or what it is set to
    S_t = P_t + k_t w_t^T or what it is set to,   o_t = S_t^T q_t

With lambda_t the gradient at S_t and mu_t the one at w_t, both total (through everything later), and both 0
where that entry is set when they are passed on to what it would have been computed from,

    lambda_t = q_t do_t^T + a_{t+1} dP_{t+1},   mu_t = lambda_t^T k_t,   dP_t = lambda_t - k_t dv_t^T
    dv_t = beta_t mu_t,   dbeta_t = mu_t . e_t,   dk_t = lambda_t w_t - P_t dv_t
    da_t = <dP_t, S_{t-1}>,   dq_t = S_t do_t
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .trajectory_edit import Setting


class Path(NamedTuple):
    """All that is computed on the way, without graph, [batch, pos, head, ...]."""

    o: Tensor
    errors: Tensor
    writes: Tensor
    states: Tensor


class Inputs(NamedTuple):
    """decay are factors, of any sign, or None for 1."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    decay: Tensor | None
    initial: Tensor | None


class PathGradients(NamedTuple):
    """Of the inputs; and mu and lambda, which reach writes and states. None where nothing does, or nothing
    is asked for."""

    q: Tensor | None
    k: Tensor
    v: Tensor
    beta: Tensor
    decay: Tensor | None
    initial: Tensor
    writes: Tensor
    states: Tensor | None


class Walk(Protocol):
    def __call__(self, inputs: Inputs, writes: Setting, states: Setting) -> Path: ...


class Back(Protocol):
    def __call__(
        self,
        inputs: Inputs,
        writes: Setting,
        states: Setting,
        path: Path,
        do: Tensor | None,
        dlast: Tensor | None,
        dwrites: Tensor | None,
        dstates: Tensor | None,
        to_states: bool,
    ) -> PathGradients:
        """The gradients, from those at what `with_graph` gives. `to_states`: whether lambda is wanted."""
        ...


class Walker(NamedTuple):
    """What a back end has to compute: numbers, without a graph."""

    walk: Walk
    back: Back


def with_graph(
    inputs: Inputs, writes: Setting, states: Setting, path: Path, walker: Walker
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o, last state, writes and states of the path, [batch, (pos,) head, ...], as functions of the rest."""
    edits = writes.values, writes.carried, states.values, states.carried
    rest = writes, states, path, walker
    return _Path.apply(*inputs, *edits, *rest)  # pyright: ignore[reportReturnType]


class _Path(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, beta, decay, initial, w_values, w_carried, s_values, s_carried, *rest):
        writes, states, path, ctx.walker = rest
        ctx.writes, ctx.states = (edit._replace(values=None, carried=None) for edit in (writes, states))
        ctx.save_for_backward(q, k, v, beta, decay, initial, *path)
        ctx.set_materialize_grads(False)
        last = path.states[:, -1].clone(memory_format=torch.contiguous_format)
        return path.o.contiguous(), last, path.writes.view_as(path.writes), path.states.view_as(path.states)

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dlast, dwrites, dstates):  # pyright: ignore[reportIncompatibleMethodOverride]
        if do is None and dlast is None and dwrites is None and dstates is None:
            return (None,) * 14
        inputs, path = Inputs(*ctx.saved_tensors[:6]), Path(*ctx.saved_tensors[6:])
        edits, arriving = (ctx.writes, ctx.states), (do, dlast, dwrites, dstates)
        *grads, first, mu, lam = ctx.walker.back(inputs, *edits, path, *arriving, ctx.needs_input_grad[8])
        return (
            *grads,
            first if ctx.needs_input_grad[5] else None,
            *_to_edit(mu if ctx.needs_input_grad[6] else None, ctx.writes),
            *_to_edit(lam, ctx.states),
            *[None] * 4,
        )


def _to_edit(total: Tensor | None, edit: Setting) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of an edit's `values` and `carried`."""
    if total is None:
        return None, None
    return total, total if edit.set_at is None else total.masked_fill(edit.set_at, 0)
