"""The delta rule with every state in memory, a chunk of positions at a time: the equations and letters of
`delta_rule_path`.

A column of the state meets one entry of each write, and no other column. For one column, S before the chunk,
and c_t [key], 1 where the state's entries are set at t, else 0:

    B_t = a_t B_{t-1}, or what is set,  from B_0 = S               the states, if nothing else were written
    G_ts = k_t . (a_t (1 - c_{t-1})) ... (a_{s+1} (1 - c_s)) k_s   for s < t, else 0; products entry by entry
    w_t = beta_t (v_t - a_t B_{t-1} . k_t - sum_s G_ts w_s), or what is set

The writes solve a triangular system, in which beta counts as 0 where a write is set. All columns of a head
share it, unless different entries are set in them. Then all states follow by one scan, in which k_t w_t^T is
written. (Values that are set are given: none of them waits for another.) For the gradients,

    B'_t = g_t + a_{t+1} (1 - c_{t+1}) B'_{t+1}                    g_t: what reaches S_t directly
    mu_s = dw_s + k_s . (1 - c_s) B'_s - sum_t G_ts beta_t mu_t    the transposed system

and lambda is B' with -a_{t+1} k_{t+1} dv_{t+1}^T added to g_t.

In a column, what comes before anything is set is computed as if nothing were, to the last bit.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .causal_matrix import linear_attention_matrix
from .delta_rule_path import Inputs, Path, PathGradients, Walker
from .grouped_scan import scan_after
from .memory import empty
from .trajectory_edit import Setting

CHUNK = 32  # positions, at most


@torch.no_grad()
def walk(inputs: Inputs, writes: Setting, states: Setting) -> Path:
    k, v = inputs.k, inputs.v
    o, errors, w = (v.new_empty(v.shape) for _ in range(3))
    path = Path(o, errors, w, empty((*k.shape, v.shape[-1]), v))
    for span in _spans(k.shape[1]):
        _fill(path, span, inputs, writes, states)
        if states.set_at is not None and not path.states[:, span].isfinite().all():
            # 0 times infinity is no number: what is set ends chunks, instead of being a decay of 0 in them.
            for piece in _ending_where_set(span, states.set_at):
                _fill(path, piece, inputs, writes, states)
    return path


def _fill(path: Path, span: slice, inputs: Inputs, writes: Setting, states: Setting) -> None:
    q, k, v, beta, decay = _at(span, *inputs[:5])
    w_cut, w_values = _at(span, writes.set_at, writes.values)
    s_cut, s_values = _at(span, states.set_at, states.values)
    S, before, factors = path.states[:, span], _before(span, path, inputs), _factors(decay, k)

    kept = k if decay is None else k * decay.cumprod(1).unsqueeze(-1)
    recalled = (kept.transpose(1, 2) @ before).transpose(1, 2)
    w = _solve(_system(k, beta, decay), beta.unsqueeze(-1) * (v - recalled))
    if w_cut is not None or s_cut is not None:
        if s_cut is not None:
            scan_after(before, factors, S.new_zeros(()).expand(S.shape), S, s_cut, s_values)
            recalled = _recalled(k, decay, _earlier(before, S))
        wanted = beta.unsqueeze(-1) * (v - recalled)
        if w_cut is not None:
            wanted = torch.where(w_cut, w_values, wanted)
        cuts = [cut for cut in (w_cut, None if s_cut is None else s_cut.any(3)) if cut is not None]
        touched = torch.stack(cuts).any(0).cumsum(1) > 0
        w = torch.where(touched, _solve(_system(k, beta, decay, w_cut, s_cut), wanted), w)
        if w_cut is not None:
            w = torch.where(w_cut, w_values, w)
    torch.mul(k.unsqueeze(-1), w.unsqueeze(-2), out=S)
    scan_after(before, factors, S, S, s_cut, s_values)
    path.writes[:, span] = w
    path.errors[:, span] = v - _recalled(k, decay, _earlier(before, S))
    path.o[:, span] = (q.unsqueeze(-2) @ S).squeeze(-2)


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
    total = torch.zeros_like(path.states[:, 0]) if dlast is None else dlast
    lams = empty(path.states.shape, inputs.v) if to_states else None
    parts = []
    for span in reversed([*_spans(inputs.k.shape[1])]):
        q, k, beta, decay, errors, w, S = _at(span, *(inputs[i] for i in (0, 1, 3, 4)), *path[1:])
        do_c, dw, dS, kept_lams = _at(span, do, dwrites, dstates, lams)
        w_cut, s_cut = (_cut(span, edit, x) for edit, x in ((writes, w), (states, S)))
        earlier, factors = _earlier(_before(span, path, inputs), S), _factors(decay, k)

        lam = torch.zeros_like(S) if kept_lams is None else kept_lams.zero_()  # g, to begin with
        if do_c is not None:
            torch.mul(q.unsqueeze(-1), do_c.unsqueeze(-2), out=lam)
        if dS is not None:
            lam += dS
        lam[:, -1] += total
        B = lam.clone()
        _scan_back(factors, B, s_cut)
        mu = (k.unsqueeze(-2) @ _without(B, s_cut)).squeeze(-2)
        mu = _solve(_system(k, beta, decay, w_cut, s_cut), mu if dw is None else mu + dw, transposed=True)
        kept_mu = _without(mu, w_cut)
        dv = beta.unsqueeze(-1) * kept_mu

        lam[:, :-1].addcmul_((factors * k.unsqueeze(-1))[:, 1:], dv[:, 1:].unsqueeze(-2), value=-1)
        _scan_back(factors, lam, s_cut)
        kept_lam = _without(lam, s_cut)
        taken = (factors * earlier @ dv.unsqueeze(-1)).squeeze(-1)
        dk = (kept_lam @ w.unsqueeze(-1)).squeeze(-1) - taken
        dP = torch.addcmul(kept_lam, k.unsqueeze(-1), dv.unsqueeze(-2), value=-1, out=B)
        total = dP[:, 0] * factors[:, 0]
        parts.append(
            (
                None if do_c is None else (S @ do_c.unsqueeze(-1)).squeeze(-1),
                dk,
                dv,
                (kept_mu * errors).sum(-1),
                None if decay is None else (dP * earlier).sum((-1, -2)),
                mu,
            )
        )
    dq, dk, dv, dbeta, ddecay, mu = (
        None if part[0] is None else torch.cat(part[::-1], dim=1) for part in zip(*parts, strict=True)
    )
    return PathGradients(dq, dk, dv, dbeta, ddecay, total, mu, lams)  # pyright: ignore[reportArgumentType]


TORCH = Walker(walk, back)


def _spans(length: int) -> Iterator[slice]:
    """Chunks of at most CHUNK positions, of one length but for the last."""
    chunk = math.ceil(length / math.ceil(length / CHUNK))
    return (slice(begin, min(begin + chunk, length)) for begin in range(0, length, chunk))


def _ending_where_set(span: slice, set_at: Tensor) -> Iterator[slice]:
    """The chunk in pieces, of which only last positions have entries that are set."""
    somewhere = set_at[:, span].transpose(0, 1).flatten(1).any(1).nonzero()[:, 0].tolist()
    borders = sorted({span.start, *(span.start + t + 1 for t in somewhere), span.stop})
    return map(slice, borders, borders[1:])


def _at(span: slice, *tensors: Tensor | None) -> Iterator[Any]:
    return (None if x is None else x[:, span] for x in tensors)


def _before(span: slice, path: Path, inputs: Inputs) -> Tensor:
    """The state before the chunk."""
    if span.start:
        return path.states[:, span.start - 1]
    return torch.zeros_like(path.states[:, 0]) if inputs.initial is None else inputs.initial


def _earlier(before: Tensor, S: Tensor) -> Tensor:
    """The states one position earlier."""
    return torch.cat([before.unsqueeze(1), S[:, :-1]], dim=1)


def _factors(decay: Tensor | None, k: Tensor) -> Tensor:
    """a, as it broadcasts to states."""
    return k.new_ones(1, k.shape[1], 1, 1, 1) if decay is None else decay[..., None, None]


def _recalled(k: Tensor, decay: Tensor | None, earlier: Tensor) -> Tensor:
    """P^T k."""
    recalled = (k.unsqueeze(-2) @ earlier).squeeze(-2)
    return recalled if decay is None else decay.unsqueeze(-1) * recalled


def _scan_back(factors: Tensor, g: Tensor, cut: Tensor | None) -> None:
    """From what reaches every state directly to B', in place."""
    cut = None if cut is None else cut[:, 1:]
    direct = g[:, :-1]
    scan_after(g[:, -1], factors[:, 1:], direct, direct, cut, direct, backwards=True)


def _cut(span: slice, edit: Setting, like: Tensor) -> Tensor | None:
    """Where no gradient goes back through what was computed."""
    if edit.stop:
        return torch.ones((), dtype=torch.bool, device=like.device).expand(like.shape)
    return None if edit.set_at is None else edit.set_at[:, span]


def _without(x: Tensor, cut: Tensor | None) -> Tensor:
    return x if cut is None else x.masked_fill(cut, 0)


def _system(
    k: Tensor,
    beta: Tensor,
    decay: Tensor | None,
    w_cut: Tensor | None = None,
    s_cut: Tensor | None = None,
) -> Tensor:
    """diag(beta) G [batch, head, column, dest, src], with one column if all are alike; triangular, with a
    diagonal that nobody reads."""
    beta = beta.unsqueeze(-1)
    if w_cut is not None:
        beta = beta.masked_fill(_by_column(w_cut), 0)
    if s_cut is None:
        G = linear_attention_matrix(k, k, decay).unsqueeze(2)
    else:
        kept = ~_by_column(s_cut).transpose(3, 4)  # [batch, pos, head, column, key]
        kept = torch.cat([torch.ones_like(kept[:, :1]), kept[:, :-1]], dim=1) * _factors(decay, k)
        heads, columns = kept.shape[2:4]
        k = k.unsqueeze(3).expand_as(kept).flatten(2, 3)
        G = linear_attention_matrix(k, k, kept.flatten(2, 3)).unflatten(1, (heads, columns))
    return beta.permute(0, 2, 3, 1).unsqueeze(-1) * G


def _by_column(cut: Tensor) -> Tensor:
    """The mask [..., column], with one column if all are alike."""
    first = cut[..., :1]
    return first if torch.equal(first.expand_as(cut), cut) else cut


def _solve(A: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
    """y of (1 + A) y = x, or of (1 + A^T) y = x, for x [batch, pos, head, column]."""
    alike = A.shape[2] == 1
    x = x.permute(0, 2, 1, 3).unsqueeze(2) if alike else x.permute(0, 2, 3, 1).unsqueeze(4)
    y = torch.linalg.solve_triangular(A.mT if transposed else A, x, upper=transposed, unitriangular=True)
    return y.squeeze(2).permute(0, 2, 1, 3) if alike else y.squeeze(4).permute(0, 3, 1, 2)
