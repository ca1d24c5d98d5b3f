"""The delta rule one position at a time, every state in memory, with writes and states that can be set.

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


@torch.no_grad()
def walk(inputs: Inputs, writes: Setting, states: Setting) -> Path:
    """The reference form of `Walk`: a loop over positions, in Python."""
    heads = inputs.q.shape[2]
    q, k, v, beta = (time_major(x) for x in (inputs.q, inputs.k, inputs.v, inputs.beta))
    decay = None if inputs.decay is None else time_major(inputs.decay)
    empty = torch.empty_like
    path = Path(empty(v), empty(v), empty(v), v.new_empty(*k.shape, v.shape[-1]))
    S = torch.zeros_like(path.states[0]) if inputs.initial is None else inputs.initial.flatten(0, 1)
    for t, (o, error, write, state) in enumerate(zip(*(x.unbind(0) for x in path), strict=True)):
        if decay is None:
            state.copy_(S)
        else:
            torch.mul(S, decay[t, :, None, None], out=state)
        torch.sub(v[t], torch.bmm(k[t].unsqueeze(1), state).squeeze(1), out=error)
        torch.mul(error, beta[t].unsqueeze(-1), out=write)
        _set(write, t, writes)
        state.addcmul_(k[t].unsqueeze(2), write.unsqueeze(1))
        _set(state, t, states)
        torch.bmm(q[t].unsqueeze(1), state, out=o.unsqueeze(1))
        S = state
    return Path(*(batch_major(x, heads) for x in path))


def back(
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
    """The reference form of `Back`: a loop over positions, in Python."""
    heads = inputs.q.shape[2]
    q, k, beta, errors, w, S = (
        time_major(x) for x in (inputs.q, inputs.k, inputs.beta, path.errors, path.writes, path.states)
    )
    decay, do, dwrites, dstates = (
        None if x is None else time_major(x) for x in (inputs.decay, do, dwrites, dstates)
    )
    first = torch.zeros_like(S[0]) if inputs.initial is None else inputs.initial.flatten(0, 1)
    lam = torch.zeros_like(first) if dlast is None else dlast.flatten(0, 1).clone()
    mu_total, mu, dv = (torch.empty_like(w) for _ in range(3))
    lam_total = torch.empty_like(S) if to_states else None
    dk, ddecay = torch.empty_like(k), None if decay is None else torch.empty_like(decay)
    for t in reversed(range(len(S))):
        if do is not None:
            lam.addcmul_(q[t].unsqueeze(2), do[t].unsqueeze(1))
        if dstates is not None:
            lam += dstates[t]
        if lam_total is not None:
            lam_total[t] = lam
        _cut(lam, t, states)
        torch.bmm(k[t].unsqueeze(1), lam, out=mu_total[t].unsqueeze(1))
        if dwrites is not None:
            mu_total[t] += dwrites[t]
        torch.bmm(lam, w[t].unsqueeze(2), out=dk[t].unsqueeze(2))
        _cut(mu[t].copy_(mu_total[t]), t, writes)
        torch.mul(mu[t], beta[t].unsqueeze(-1), out=dv[t])
        lam.addcmul_(k[t].unsqueeze(2), dv[t].unsqueeze(1), value=-1)
        if decay is not None and ddecay is not None:
            ddecay[t] = (lam * (S[t - 1] if t else first)).sum((-1, -2))
            lam *= decay[t, :, None, None]

    before = torch.cat([first.unsqueeze(0), S[:-1]])
    taken = (before @ dv.unsqueeze(-1)).squeeze(-1)
    dk -= taken if decay is None else decay.unsqueeze(-1) * taken
    dq = None if do is None else batch_major((S @ do.unsqueeze(-1)).squeeze(-1), heads)
    dk, dv, dbeta = (batch_major(x, heads) for x in (dk, dv, (mu * errors).sum(-1)))
    return PathGradients(
        dq,
        dk,
        dv,
        dbeta,
        None if ddecay is None else batch_major(ddecay, heads),
        lam.unflatten(0, (-1, heads)),
        batch_major(mu_total, heads),
        None if lam_total is None else batch_major(lam_total, heads),
    )


TORCH = Walker(walk, back)


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


def _set(x: Tensor, t: int, edit: Setting) -> None:
    if t in edit.cuts:
        assert edit.values is not None
        torch.where(edit.cuts[t].flatten(0, 1), edit.values[:, t].flatten(0, 1), x, out=x)


def _cut(grad: Tensor, t: int, edit: Setting) -> None:
    if edit.stop:
        grad.zero_()
    elif t in edit.cuts:
        grad.masked_fill_(edit.cuts[t].flatten(0, 1), 0)


def _to_edit(total: Tensor | None, edit: Setting) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of an edit's `values` and `carried`."""
    if total is None:
        return None, None
    carried = total.clone() if edit.cuts else total
    for t, cut in edit.cuts.items():
        carried[:, t].masked_fill_(cut, 0)
    return total, carried


def time_major(x: Tensor) -> Tensor:
    """[batch, pos, head, ...] -> [pos, batch * head, ...]"""
    return x.transpose(0, 1).flatten(1, 2)


def batch_major(x: Tensor, heads: int) -> Tensor:
    """[pos, batch * head, ...] -> [batch, pos, head, ...]"""
    return x.unflatten(1, (-1, heads)).transpose(0, 1)
