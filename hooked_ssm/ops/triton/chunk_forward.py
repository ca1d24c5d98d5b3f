"""A matrix as memory, a chunk of positions at a time: the kernels of the forward pass.

    S_t = a_t S_{t-1} + k_t u_t^T,     o_t = S_t^T q_t

where u is given (linear attention: the values), or is beta_t (v_t - a_t S_{t-1}^T k_t) (the delta rule). In
the names of `hooked_ssm.ops.chunked_delta_rule`, for a chunk that starts from S:

`writes_alone` (delta rule only), a program a chunk. With A = stril(diag(beta) (K K^T (.) D)) and
    T = (I + A)^-1, what is written if S is 0, and by how much S lessens it:

        U_0 = T diag(beta) V,     W = T diag(beta) (from (.) K).

`chunk_states`, a program a block of a head's state, which goes from chunk to chunk. It stores S; then

        U = U_0 - W S  (delta rule),      S <- from_C S + (to (.) K)^T U.

    U_0 is overwritten with U. At the end of a chunk it adds to S what it was told to, and sets entries of S;
    in a chunk of one position it sets entries of U.

`chunk_reads`, a program a chunk and block of columns: O = (Q K^T (.) D) U + from (.) (Q S).

`emit_states`, a program a run and block of the state, a run being a few neighbouring positions of a chunk:
    the state before the run, from S by one product as in `chunk_states`, and from there one position after
    the other; those asked for are stored, the others never leave the registers.

`inverse` gives T. Products have operands in DT, float32 (or float64), and accumulate in it.
"""

from typing import no_type_check

import triton
import triton.language as tl

from .tiles import block_of, from_start, last_of, load_rows, rows_of, spans, store_rows, to_end


@triton.jit
@no_type_check
def inverse(A, C: tl.constexpr, LOG: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr):
    """(I + A)^-1 for a strictly lower triangular A [C, C], C = 2^LOG.

    Blocks of a size on the diagonal are inverted, then pairs of them: [[X, 0], [B, Y]]^-1 is
    [[X^-1, 0], [-Y^-1 B X^-1, Y^-1]]. No power of A, which might grow without bound, is formed.
    """
    i = tl.arange(0, C)
    T = tl.where(i[:, None] == i[None, :], 1.0, 0.0).to(DT)
    for level in tl.static_range(LOG):
        row, column = i[:, None] >> level, i[None, :] >> level
        corners = tl.where((row % 2 == 1) & (column == row - 1), A, 0.0)
        right = tl.dot(corners, T, input_precision=PRECISION, out_dtype=DT)
        T -= tl.dot(T, right, input_precision=PRECISION, out_dtype=DT)
    return T


@triton.jit
@no_type_check
def writes_alone(
    k,
    v,
    beta,
    decay,
    bounds,
    T_out,
    W_out,
    U_out,
    L,
    H,
    G,
    n_chunks,
    DK: tl.constexpr,
    DV: tl.constexpr,
    C: tl.constexpr,
    LOG: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DT: tl.constexpr,
    PRECISION: tl.constexpr,
    SOLVE: tl.constexpr,
):
    bh, c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = bh // H, bh % H
    i = tl.arange(0, C)
    row, there = rows_of(bounds, c, b, h, L, H, C)
    row_k, there_k = rows_of(bounds, c, b, h // (H // G), L, G, C)
    A = tl.zeros((C, C), dtype=DT)
    for first in range(0, DK, BK):
        K = load_rows(k, row_k, there, first, DK, BK, DT)
        A += tl.dot(K, tl.trans(K), input_precision=PRECISION, out_dtype=DT)
    bt = tl.load(beta + row, mask=there, other=0).to(DT)
    A = tl.where(i[:, None] > i[None, :], A * bt[:, None], 0.0)
    if decay is not None:
        A *= spans(decay, row, there, C, DT)
    T = inverse(A, C, LOG, DT, SOLVE)
    tl.store(T_out + ((bh * n_chunks + c) * C + i[:, None]) * C + i[None, :], T)
    T *= bt[None, :]
    for first in range(0, DV, BV):
        V = load_rows(v, row, there, first, DV, BV, DT)
        store_rows(U_out, row, there, first, tl.dot(T, V, input_precision=PRECISION, out_dtype=DT), DV, BV)
    if decay is not None:
        T *= from_start(decay, row, there, DT)[None, :]
    for first in range(0, DK, BK):
        K = load_rows(k, row_k, there, first, DK, BK, DT)
        store_rows(W_out, row, there, first, tl.dot(T, K, input_precision=PRECISION, out_dtype=DT), DK, BK)


@triton.jit
@no_type_check
def chunk_states(
    k,
    u,
    W_in,
    decay,
    initial,
    bounds,
    state_slot,
    state_values,
    state_mask,
    state_added,
    n_states,
    write_slot,
    write_values,
    write_mask,
    n_writes,
    starts,
    L,
    H,
    G,
    n_chunks,
    DK: tl.constexpr,
    DV: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    bh, first_v, first_k = tl.program_id(0).to(tl.int64), tl.program_id(1) * BV, tl.program_id(2) * BK
    b, h = bh // H, bh % H
    offsets, inside = block_of(bh, first_k, first_v, DK, DV, BK, BV)
    if initial is not None:
        S = tl.load(initial + offsets, mask=inside, other=0).to(DT)
    else:
        S = tl.zeros((BK, BV), dtype=DT)
    for c in range(n_chunks):
        offsets, inside_it = block_of(bh * (n_chunks + 1) + c, first_k, first_v, DK, DV, BK, BV)
        tl.store(starts + offsets, S, mask=inside)
        row, there = rows_of(bounds, c, b, h, L, H, C)
        next_there = tl.load(bounds + c) + tl.arange(0, C) + 1 < tl.load(bounds + c + 1)
        row_k, there_k = rows_of(bounds, c, b, h // (H // G), L, G, C)
        K = load_rows(k, row_k, there, first_k, DK, BK, DT)
        U = load_rows(u, row, there, first_v, DV, BV, DT)
        if W_in is not None:
            W = load_rows(W_in, row, there, first_k, DK, BK, DT)
            U -= tl.dot(W, S, input_precision=PRECISION, out_dtype=DT)
            if write_slot is not None:
                slot = tl.load(write_slot + c).to(tl.int64)
                row_set = (b * n_writes + slot) * H + h + tl.zeros_like(row)
                at = there & (tl.zeros_like(row) + slot >= 0)
                is_set = load_rows(write_mask, row_set, at, first_v, DV, BV, DT) > 0
                U = tl.where(is_set, load_rows(write_values, row_set, at, first_v, DV, BV, DT), U)
            store_rows(u, row, there, first_v, U, DV, BV)
        if decay is not None:
            S *= last_of(from_start(decay, row, there, DT), C)
            K *= to_end(decay, row, next_there, H, DT)[:, None]
        S += tl.dot(tl.trans(K), U, input_precision=PRECISION, out_dtype=DT)
        if state_slot is not None:
            slot = tl.load(state_slot + c).to(tl.int64)
            offsets, inside_it = block_of((b * n_states + slot) * H + h, first_k, first_v, DK, DV, BK, BV)
            at = inside & (tl.zeros_like(offsets) + slot >= 0)
            S += tl.load(state_added + offsets, mask=at, other=0)
            is_set = tl.load(state_mask + offsets, mask=at, other=0) > 0
            S = tl.where(is_set, tl.load(state_values + offsets, mask=at, other=0), S)
            S = tl.where(inside, S, 0.0)  # past its end too 0 times infinity was no number
    offsets, inside_it = block_of(bh * (n_chunks + 1) + n_chunks, first_k, first_v, DK, DV, BK, BV)
    tl.store(starts + offsets, S, mask=inside)


@triton.jit
@no_type_check
def chunk_reads(
    q,
    k,
    u,
    decay,
    bounds,
    starts,
    o,
    L,
    H,
    G,
    n_chunks,
    DK: tl.constexpr,
    DV: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    bh, c, first_v = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * BV
    b, h = bh // H, bh % H
    i = tl.arange(0, C)
    row, there = rows_of(bounds, c, b, h, L, H, C)
    row_k, there_k = rows_of(bounds, c, b, h // (H // G), L, G, C)
    P = tl.zeros((C, C), dtype=DT)
    O = tl.zeros((C, BV), dtype=DT)
    for first in range(0, DK, BK):
        Q = load_rows(q, row_k, there, first, DK, BK, DT)
        K = load_rows(k, row_k, there, first, DK, BK, DT)
        offsets, inside = block_of(bh * (n_chunks + 1) + c, first, first_v, DK, DV, BK, BV)
        S = tl.load(starts + offsets, mask=inside, other=0)
        P += tl.dot(Q, tl.trans(K), input_precision=PRECISION, out_dtype=DT)
        O += tl.dot(Q, S, input_precision=PRECISION, out_dtype=DT)
    if decay is not None:
        P *= spans(decay, row, there, C, DT)
        O *= from_start(decay, row, there, DT)[:, None]
    else:
        P = tl.where(i[:, None] >= i[None, :], P, 0.0)
    U = load_rows(u, row, there, first_v, DV, BV, DT)
    O += tl.dot(P, U, input_precision=PRECISION, out_dtype=DT)
    store_rows(o, row, there, first_v, O, DV, BV)


@triton.jit
@no_type_check
def emit_states(
    k,
    u,
    decay,
    bounds,
    starts,
    run_chunk,
    run_first,
    run_last,
    slots,
    states,
    n_slots,
    L,
    H,
    G,
    n_chunks,
    DK: tl.constexpr,
    DV: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    bh, run = tl.program_id(0).to(tl.int64), tl.program_id(1)
    blocks_v = tl.cdiv(DV, BV)
    first_k, first_v = tl.program_id(2) // blocks_v * BK, tl.program_id(2) % blocks_v * BV
    b, h = bh // H, bh % H
    c = tl.load(run_chunk + run)
    first, last = tl.load(run_first + run), tl.load(run_last + run)
    row, there = rows_of(bounds, c, b, h, L, H, C)
    row_k, there_k = rows_of(bounds, c, b, h // (H // G), L, G, C)
    there &= tl.load(bounds + c) + tl.arange(0, C) < first
    next_there = tl.load(bounds + c) + tl.arange(0, C) + 1 < first
    offsets, inside = block_of(bh * (n_chunks + 1) + c, first_k, first_v, DK, DV, BK, BV)
    S = tl.load(starts + offsets, mask=inside, other=0)
    K = load_rows(k, row_k, there, first_k, DK, BK, DT)
    U = load_rows(u, row, there, first_v, DV, BV, DT)
    if decay is not None:
        S *= last_of(from_start(decay, row, there, DT), C)
        K *= to_end(decay, row, next_there, H, DT)[:, None]
    S += tl.dot(tl.trans(K), U, input_precision=PRECISION, out_dtype=DT)
    at_k, at_v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    for t in range(first, last + 1):
        row_t = (b * L + t) * H + h
        k_t = tl.load(k + ((b * L + t) * G + h // (H // G)) * DK + at_k, mask=at_k < DK, other=0).to(DT)
        u_t = tl.load(u + row_t * DV + at_v, mask=at_v < DV, other=0).to(DT)
        if decay is not None:
            S *= tl.load(decay + row_t).to(DT)
        S += k_t[:, None] * u_t[None, :]
        slot = tl.load(slots + t).to(tl.int64)
        if slot >= 0:
            offsets, inside_it = block_of((b * n_slots + slot) * H + h, first_k, first_v, DK, DV, BK, BV)
            tl.store(states + offsets, S, mask=inside)
