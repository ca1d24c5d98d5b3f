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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .causal_matrix import linear_attention_matrix
from .delta_rule_path import Inputs, Path, PathGradients, Walker
from .grouped_scan import positions_set, scan_after
from .memory import empty
from .trajectory_edit import Setting

CHUNK = 32  # positions, at most


class _Sets(NamedTuple):
    """What is set in a chunk. cut: which entries [batch, pos, ...]; where: the positions that have any."""

    cut: Tensor
    values: Any
    where: list[int]

    def columns(self, columns: Any) -> "_Sets":
        values = None if self.values is None else self.values[..., columns]
        return _Sets(self.cut[..., columns], values, self.where)

    def alike(self) -> Tensor:
        """`cut` [..., column], with one column if all are alike."""
        some, first = self.cut[:, self.where], self.cut[..., :1]
        return first if torch.equal(some, first[:, self.where].expand_as(some)) else self.cut


@torch.no_grad()
def walk(inputs: Inputs, writes: Setting, states: Setting) -> Path:
    k, v = inputs.k, inputs.v
    o, errors, w = (v.new_empty(v.shape) for _ in range(3))
    path = Path(o, errors, w, empty((*k.shape, v.shape[-1]), v))
    for span, w_sets, s_sets in _chunks(k.shape[1], writes, states):
        _fill(path, span, inputs, w_sets, s_sets)
        if s_sets is not None and not path.states[:, span].sum().isfinite():
            # 0 times infinity is no number: what is set ends chunks, instead of being a decay of 0 in them.
            for piece in _ending_where_set(span, s_sets):
                _fill(path, piece, inputs, *(_sets(piece, edit) for edit in (writes, states)))
    return path


def _fill(path: Path, span: slice, inputs: Inputs, w_sets: _Sets | None, s_sets: _Sets | None) -> None:
    q, k, v, beta, decay = _at(span, *inputs[:5])
    S, before, factors = path.states[:, span], _before(span, path, inputs), _factors(decay, k)
    kept = k if decay is None else k * decay.cumprod(1).unsqueeze(-1)
    recalled = (kept.transpose(1, 2) @ before).transpose(1, 2)
    w = _solve(_system(k, beta, decay), beta.unsqueeze(-1) * (v - recalled))
    if w_sets is not None or s_sets is not None:
        touched = _set_columns(w, w_sets, s_sets).cumsum(1) > 0
        columns = _some(touched)
        mine = (None if sets is None else sets.columns(columns) for sets in (w_sets, s_sets))
        again = _edited_writes(k, v[..., columns], beta, decay, before[..., columns], *mine)
        w[..., columns] = torch.where(touched[..., columns], again, w[..., columns])
    torch.mul(k.unsqueeze(-1), w.unsqueeze(-2), out=S)
    scan_after(before, factors, S, S, *(() if s_sets is None else s_sets[:2]))
    path.writes[:, span] = w
    path.errors[:, span] = v - _recalled(k, decay, _earlier(before, S))
    path.o[:, span] = (q.unsqueeze(-2) @ S).squeeze(-2)


def _edited_writes(
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None,
    before: Tensor,
    w_sets: _Sets | None,
    s_sets: _Sets | None,
) -> Tensor:
    B = k.new_empty(*k.shape, v.shape[-1])
    nothing = k.new_zeros(()).expand(B.shape)
    scan_after(before, _factors(decay, k), nothing, B, *(() if s_sets is None else s_sets[:2]))
    wanted = beta.unsqueeze(-1) * (v - _recalled(k, decay, _earlier(before, B)))
    if w_sets is None:
        return _solve(_system(k, beta, decay, w_sets, s_sets), wanted)
    wanted = torch.where(w_sets.cut, w_sets.values, wanted)
    w = _solve(_system(k, beta, decay, w_sets, s_sets), wanted)
    return torch.where(w_sets.cut, w_sets.values, w)


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
    for span, w_sets, s_sets in reversed([*_chunks(inputs.k.shape[1], writes, states)]):
        q, k, beta, decay, errors, w, S = _at(span, *(inputs[i] for i in (0, 1, 3, 4)), *path[1:])
        do_c, dw, dS, kept_lams = _at(span, do, dwrites, dstates, lams)
        w_sets, s_sets = _stopping(w, w_sets, writes), _stopping(S, s_sets, states)
        earlier, factors = _earlier(_before(span, path, inputs), S), _factors(decay, k)

        lam = torch.zeros_like(S) if kept_lams is None else kept_lams.zero_()  # g, to begin with
        if do_c is not None:
            torch.mul(q.unsqueeze(-1), do_c.unsqueeze(-2), out=lam)
        if dS is not None:
            lam += dS
        lam[:, -1] += total
        B = lam.clone()
        _scan_back(factors, B, s_sets)
        wanted = (k.unsqueeze(-2) @ _without(B, s_sets)).squeeze(-2)
        wanted = wanted if dw is None else wanted + dw
        mu = _solve(_system(k, beta, decay), wanted, transposed=True)
        if w_sets is not None or s_sets is not None:
            columns = _some(_set_columns(w, w_sets, s_sets))
            mine = (None if sets is None else sets.columns(columns) for sets in (w_sets, s_sets))
            mu[..., columns] = _solve(_system(k, beta, decay, *mine), wanted[..., columns], transposed=True)
        kept_mu = _without(mu, w_sets)
        dv = beta.unsqueeze(-1) * kept_mu

        lam[:, :-1].addcmul_((factors * k.unsqueeze(-1))[:, 1:], dv[:, 1:].unsqueeze(-2), value=-1)
        _scan_back(factors, lam, s_sets)
        kept_lam = _without(lam, s_sets)
        dk = (kept_lam @ w.unsqueeze(-1) - factors * (earlier @ dv.unsqueeze(-1))).squeeze(-1)
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


def _chunks(
    length: int, writes: Setting, states: Setting
) -> Iterator[tuple[slice, _Sets | None, _Sets | None]]:
    """Chunks of at most CHUNK positions, of one length but for the last, and what is set in them."""
    chunk = math.ceil(length / math.ceil(length / CHUNK))
    there = [None if edit.set_at is None else positions_set(edit.set_at) for edit in (writes, states)]
    for begin in range(0, length, chunk):
        span = slice(begin, min(begin + chunk, length))
        yield span, _sets(span, writes, there[0]), _sets(span, states, there[1])


def _sets(span: slice, edit: Setting, there: list[bool] | None = None) -> _Sets | None:
    if edit.set_at is None:
        return None
    cut, values = _at(span, edit.set_at, edit.values)
    where = [t for t, anything in enumerate(positions_set(cut) if there is None else there[span]) if anything]
    return _Sets(cut, values, where) if where else None


def _ending_where_set(span: slice, sets: _Sets) -> Iterator[slice]:
    """The chunk in pieces, of which only last positions have entries that are set."""
    borders = sorted({span.start, *(span.start + t + 1 for t in sets.where), span.stop})
    return map(slice, borders, borders[1:])


def _stopping(x: Tensor, sets: _Sets | None, edit: Setting) -> _Sets | None:
    """Where no gradient goes back through what x was computed from."""
    if not edit.stop:
        return sets
    everywhere = torch.ones((), dtype=torch.bool, device=x.device).expand(x.shape)
    return _Sets(everywhere, None, [*range(x.shape[1])])


def _set_columns(w: Tensor, w_sets: _Sets | None, s_sets: _Sets | None) -> Tensor:
    """The entries of writes [batch, pos, head, column] that are set, or of whose states some are."""
    found = torch.zeros(w.shape, dtype=torch.bool, device=w.device)
    if w_sets is not None:
        found |= w_sets.cut
    if s_sets is not None:
        found[:, s_sets.where] |= s_sets.cut[:, s_sets.where].any(3)
    return found


def _some(mask: Tensor) -> Any:
    """The columns [..., column] in which anything is true."""
    columns = mask.flatten(0, -2).any(0).nonzero()[:, 0]
    return slice(None) if len(columns) == mask.shape[-1] else columns


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


def _scan_back(factors: Tensor, g: Tensor, sets: _Sets | None) -> None:
    """From what reaches every state directly to B', in place."""
    direct = g[:, :-1]
    cuts = () if sets is None else (sets.cut[:, 1:], direct)
    scan_after(g[:, -1], factors[:, 1:], direct, direct, *cuts, backwards=True)


def _without(x: Tensor, sets: _Sets | None) -> Tensor:
    return x if sets is None else x.masked_fill(sets.cut, 0)


def _system(
    k: Tensor,
    beta: Tensor,
    decay: Tensor | None,
    w_sets: _Sets | None = None,
    s_sets: _Sets | None = None,
) -> Tensor:
    """diag(beta) G [batch, head, column, dest, src], with one column if all are alike; triangular, with a
    diagonal that nobody reads."""
    beta = beta.unsqueeze(-1)
    if w_sets is not None:
        beta = beta.masked_fill(w_sets.alike(), 0)
    if s_sets is None:
        G = linear_attention_matrix(k, k, decay).unsqueeze(2)
    else:
        kept = ~s_sets.alike().transpose(3, 4)  # [batch, pos, head, column, key]
        kept = torch.cat([torch.ones_like(kept[:, :1]), kept[:, :-1]], dim=1) * _factors(decay, k)
        heads, columns = kept.shape[2:4]
        k = k.unsqueeze(3).expand_as(kept).flatten(2, 3)
        G = linear_attention_matrix(k, k, kept.flatten(2, 3)).unflatten(1, (heads, columns))
    return beta.permute(0, 2, 3, 1).unsqueeze(-1) * G


def _solve(A: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
    """y of (1 + A) y = x, or of (1 + A^T) y = x, for x [batch, pos, head, column]."""
    alike = A.shape[2] == 1
    x = x.permute(0, 2, 1, 3).unsqueeze(2) if alike else x.permute(0, 2, 3, 1).unsqueeze(4)
    y = torch.linalg.solve_triangular(A.mT if transposed else A, x, upper=transposed, unitriangular=True)
    return y.squeeze(2).permute(0, 2, 1, 3) if alike else y.squeeze(4).permute(0, 3, 1, 2)
