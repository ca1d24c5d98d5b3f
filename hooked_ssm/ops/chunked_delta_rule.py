"""The delta rule without a loop over positions (Yang et al. 2024, arXiv:2406.06484; with decay 2412.06464).

Within a chunk of C positions that starts from the state S, with D_ij = a_{j+1} ... a_i (0 above the
diagonal), from_i = a_1 ... a_i, to_j = a_{j+1} ... a_C, and the q, k, v, o of its positions as the rows of
Q, K, V, O,

    A = stril(diag(beta) (K K^T (.) D)),   T = (I + A)^-1          stril: the strictly lower triangle
    P = Q K^T (.) D
    R = V - from (.) K S,   U = T diag(beta) R                     U: what is written, a row a position
    O = P U + from (.) Q S
    S' = from_C S + (to (.) K)^T U                                 the state that the next chunk starts from

T is a triangular solve, with the identity: at these sizes cheaper than with R, and the backward pass, which
would have to solve with the transposed system, then has nothing to solve. With Y = T^T dU,

    dR = beta (.) Y,      dA = -stril(Y U^T),      dbeta_i = Y_i . R_i + dA_i . A_i / beta_i.

The gradient of a logarithm log a_l has a term from every product that a_l is in: for dD (.) D, those with
j < l <= i, which are sums from l on of what the rows of dD (.) D add up to less what its columns do.

The matrices of all chunks are made at once. Only S, and its gradient, goes from chunk to chunk.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST_CHUNK = 100  # a document up to this is one chunk
CHUNK = 32  # of longer ones, at most


def chunked_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial: Tensor | None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The reads [batch, pos, head, d_value] and the last state; all arguments in one dtype.

    `chunk`, the most positions that a chunk has, changes rounding only.
    """
    batch, pos, heads, _ = q.shape
    if pos == 1 and initial is not None:
        return one_position(q, k, v, beta, log_decay, initial)
    n_chunks = math.ceil(pos / (chunk or (pos if pos <= LONGEST_CHUNK else CHUNK)))
    length = math.ceil(pos / n_chunks)
    missing = n_chunks * length - pos  # filled up with positions that write nothing and keep everything

    def in_chunks(x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        if missing:
            x = F.pad(x, (0, missing) if x.ndim == 3 else (0, 0, 0, missing))
        return x.reshape(batch * heads * n_chunks, length, *x.shape[3:])

    o, last = _ChunkedDeltaRule.apply(  # pyright: ignore[reportGeneralTypeIssues]
        n_chunks,
        *map(in_chunks, (q, k, v, beta)),
        None if log_decay is None else in_chunks(log_decay),
        None if initial is None else initial.flatten(0, 1),
    )
    o = o.reshape(batch, heads, n_chunks * length, -1)[:, :, :pos].transpose(1, 2)
    return o.contiguous(), last.unflatten(0, (batch, heads))


def one_position(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """S = a S + k (beta (v - (a S)^T k))^T and its read, for documents that are continued token by token."""
    q, k, v, beta = (x[:, 0].unsqueeze(2) for x in (q, k, v, beta))
    S = initial if log_decay is None else initial * log_decay[:, 0, :, None, None].exp()
    S = torch.addcmul(S, k.mT, beta.unsqueeze(2) * (v - k @ S))
    return (q @ S).transpose(1, 2), S


class _Decays(NamedTuple):
    """Products of the decays over spans of a chunk, by the names of the module docstring."""

    D: Tensor
    start: Tensor  # from
    end: Tensor  # to

    @classmethod
    def of(cls, log_decay: Tensor) -> "_Decays":
        """Every product over its own span: no quotient overflows, and a decay of 0 is no special case."""
        decay = log_decay.exp()
        rows = decay.unsqueeze(-1).expand(*decay.shape, decay.shape[-1])
        spans = rows.clone(memory_format=torch.contiguous_format).tril_(-1)
        spans += torch.ones_like(spans[0]).triu_()
        D = spans.cumprod(1).tril_()
        return cls(D, decay.cumprod(1).unsqueeze(-1), D[:, -1, :, None])


class _ChunkedDeltaRule(torch.autograd.Function):
    """q, k, v [n * chunk, pos, d], beta, log_decay [n * chunk, pos], initial [n, d_key, d_value]."""

    @staticmethod
    def forward(ctx, n_chunks, q, k, v, beta, log_decay, initial):
        a = None if log_decay is None else _Decays.of(log_decay)
        kk, P = torch.bmm(k, k.mT), torch.bmm(q, k.mT)
        if a is None:
            P.tril_()
        else:
            kk.mul_(a.D)
            P.mul_(a.D)
        # T (I + A) = 1 is solved, and not (I + A) T = 1: from this side it takes half the time on a CPU. The
        # solver reads the strictly lower triangle and nothing else.
        A = beta.unsqueeze(-1) * kk
        one = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)
        T = torch.linalg.solve_triangular(A, one, upper=False, left=False, unitriangular=True)
        T_beta = T * beta.unsqueeze(-2)
        k_end = k if a is None else k * a.end
        if initial is None and n_chunks == 1:
            starts, R = None, v
            U = torch.bmm(T_beta, R)
            O = torch.bmm(P, U)
            S = torch.bmm(k_end.mT, U)
        else:
            q_start, k_start, total = (
                (q, k, None) if a is None else (q * a.start, k * a.start, a.start[:, -1:])
            )
            S = k.new_zeros(len(k) // n_chunks, k.shape[-1], v.shape[-1]) if initial is None else initial
            parts = []
            for v_c, T_c, start_c, end_c, total_c in _chunks(n_chunks, v, T_beta, k_start, k_end, total):
                R_c = torch.baddbmm(v_c, start_c, S, alpha=-1)
                U_c = torch.bmm(T_c, R_c)
                parts.append((S, R_c, U_c))
                S = torch.baddbmm(S if a is None else total_c * S, end_c.mT, U_c)
            starts, R, U = (torch.stack(part, dim=1).flatten(0, 1) for part in zip(*parts, strict=True))
            O = torch.bmm(P, U)
            O.baddbmm_(q_start, starts)
        ctx.save_for_backward(q, k, beta, *(a or ()), kk, P, T, R, U, starts)
        ctx.n_chunks, ctx.with_decay, ctx.with_initial = n_chunks, a is not None, initial is not None
        ctx.set_materialize_grads(False)
        return O, S

    @staticmethod
    @once_differentiable
    def backward(ctx, dO, dS):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, beta, *decays, kk, P, T, R, U, starts = ctx.saved_tensors
        a = _Decays(*decays) if ctx.with_decay else None
        q_start, k_start, total = q, k, None
        dO = torch.zeros_like(U) if dO is None else dO
        k_end = k if a is None else k * a.end
        dU = torch.bmm(P.mT, dO)
        if starts is None:
            lams = dS
            Y = torch.bmm(T.mT, dU if lams is None else dU.baddbmm_(k_end, lams))
            dS = None
        else:
            if a is not None:
                q_start, k_start, total = q * a.start, k * a.start, a.start[:, -1:]
            read = torch.bmm(q_start.mT, dO)
            lam = torch.zeros_like(read[:: ctx.n_chunks]) if dS is None else dS
            parts = []
            steps = _chunks(ctx.n_chunks, dU, T, k_start, k_end, total, beta.unsqueeze(-1), read)
            for dU_c, T_c, start_c, end_c, total_c, beta_c, read_c in reversed(steps):
                Y_c = torch.bmm(T_c.mT, torch.baddbmm(dU_c, end_c, lam))
                parts.append((lam, Y_c))
                kept = read_c + (lam if a is None else total_c * lam)
                lam = kept.baddbmm_(start_c.mT, beta_c * Y_c, alpha=-1)
            lams, Y = (torch.stack(part[::-1], dim=1).flatten(0, 1) for part in zip(*parts, strict=True))
            dS = lam if ctx.with_initial else None

        dR = beta.unsqueeze(-1) * Y
        dA = torch.bmm(Y, U.mT).neg_().tril_(-1)
        dbeta = (Y * R).sum(-1) + (dA * kk).sum(-1)
        dkk, dP = dA.mul_(beta.unsqueeze(-1)), torch.bmm(dO, U.mT).tril_()
        dlog = None
        if a is not None:
            # Without the diagonal, which no decay is in: where they are strong, its rounding would prevail.
            spans = (dkk * kk).addcmul_(dP, P).tril_(-1)
            dlog = spans.sum(-1) - spans.sum(-2)
            dkk.mul_(a.D)
            dP.mul_(a.D)
        dq = torch.bmm(dP, k)
        dk = torch.bmm(dP.mT, q).baddbmm_(dkk + dkk.mT, k)
        if starts is not None:
            dq_start, dk_start = torch.bmm(dO, starts.mT), torch.bmm(dR, starts.mT).neg_()
            if a is None:
                dq += dq_start
                dk += dk_start
            else:
                dq.addcmul_(dq_start, a.start)
                dk.addcmul_(dk_start, a.start)
                dlog += (dq_start * q_start).sum(-1) + (dk_start * k_start).sum(-1)
                dlog[:, -1] += (lams * starts).sum((-1, -2)) * a.start[:, -1, 0]
        if lams is not None:
            dk_end = torch.bmm(U, lams.mT)
            if a is None or dlog is None:
                dk += dk_end
            else:
                dk.addcmul_(dk_end, a.end)
                after = (dk_end * k_end).sum(-1)[:, :-1]  # the last key is not decayed
                dlog[:, :-1] -= after
                dlog[:, -1] += after.sum(-1)
        if dlog is not None:
            dlog = dlog.flip(-1).cumsum(-1).flip(-1)
        return None, dq, dk, dR, dbeta, dlog, dS


def _chunks(n_chunks: int, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """One after the other, the chunks of each [n * chunk, ...]; of None, None."""
    by_chunk = ([None] * n_chunks if x is None else x.unflatten(0, (-1, n_chunks)).unbind(1) for x in tensors)
    return list(zip(*by_chunk, strict=True))
