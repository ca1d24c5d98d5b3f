"""A matrix as memory, a chunk of positions at a time: the kernels of the backward pass.

With the names of `chunk_forward`; lambda' is the total gradient at the state after a chunk, through all that
follows (0 where that entry is set), and dO and dU are those of the chunk's O and, within it, U.

`chunk_write_gradients`, a program a chunk and block of columns: P^T dO, for P = Q K^T (.) D, and what
    comes to writes from outside.

`chunk_state_gradients`, a program a block of columns of a head's state, which goes from the last chunk to the
    first. It adds what comes to the state from outside, stores lambda' (before entries that are set are taken
    out, too, if there are any); then

        dU = P^T dO + (to (.) K) lambda'
        lambda' <- (from (.) Q)^T dO + from_C lambda' - W^T dU         the last term for the delta rule

`chunk_input_gradients`, a program a chunk. With Y = T^T dU, dV = diag(beta) Y (linear attention: dV = dU),

        dP = tril(dO U^T),     dA = -stril(Y U^T),     B = diag(beta) dA (.) D
        dQ = (dP (.) D) K + from (.) (dO S^T)
        dK = (dP (.) D)^T Q + (B + B^T) K + to (.) (U lambda'^T) - from (.) (dV S^T)
        dbeta_i = Y_i . (V - from (.) K S)_i + (dA (.) K K^T (.) D)_i . 1

    and, for a decay, the sums over all spans that it lies in of the product of the others in it times what
    the span multiplies: for D, dO U^T (.) Q K^T - diag(beta) Y U^T (.) K K^T.

`emit_gradients`, a program a run: the total gradients at the states asked for, one position after the other
    from the run's last on, lambda_{t-1} = q_{t-1} do_{t-1}^T + a_t (lambda_t - k_t dV_t^T), the last term
    for the delta rule.
"""

from typing import no_type_check

import triton
import triton.language as tl

from .tiles import block_of, from_start, last_of, load_rows, rows_of, spans, spans_before, store_rows, to_end


@triton.jit
@no_type_check
def chunk_write_gradients(
    q,
    k,
    do,
    direct,
    decay,
    bounds,
    du,
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
    for first in range(0, DK, BK):
        Q = load_rows(q, row_k, there, first, DK, BK, DT)
        K = load_rows(k, row_k, there, first, DK, BK, DT)
        P += tl.dot(Q, tl.trans(K), input_precision=PRECISION, out_dtype=DT)
    if decay is not None:
        P *= spans(decay, row, there, C, DT)
    else:
        P = tl.where(i[:, None] >= i[None, :], P, 0.0)
    dO = load_rows(do, row, there, first_v, DV, BV, DT)
    dU = tl.dot(tl.trans(P), dO, input_precision=PRECISION, out_dtype=DT)
    if direct is not None:
        dU += load_rows(direct, row, there, first_v, DV, BV, DT)
    store_rows(du, row, there, first_v, dU, DV, BV)


@triton.jit
@no_type_check
def chunk_state_gradients(
    q,
    k,
    do,
    W_in,
    decay,
    dlast,
    bounds,
    state_slot,
    state_mask,
    added,
    set_total,
    n_states,
    write_slot,
    write_mask,
    write_total,
    n_writes,
    du,
    lams,
    dinitial,
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
    if dlast is not None:
        lam = tl.load(dlast + offsets, mask=inside, other=0).to(DT)
    else:
        lam = tl.zeros((BK, BV), dtype=DT)
    for back in range(n_chunks):
        c = n_chunks - 1 - back
        row, there = rows_of(bounds, c, b, h, L, H, C)
        row_k, there_k = rows_of(bounds, c, b, h // (H // G), L, G, C)
        if state_slot is not None:
            slot = tl.load(state_slot + c).to(tl.int64)
            offsets, inside_it = block_of((b * n_states + slot) * H + h, first_k, first_v, DK, DV, BK, BV)
            at = inside & (tl.zeros_like(offsets) + slot >= 0)
            lam += tl.load(added + offsets, mask=at, other=0)
            tl.store(set_total + offsets, lam, mask=at)
            lam = tl.where(tl.load(state_mask + offsets, mask=at, other=0) > 0, 0.0, lam)
        offsets, inside_it = block_of(bh * n_chunks + c, first_k, first_v, DK, DV, BK, BV)
        tl.store(lams + offsets, lam, mask=inside)
        Q = load_rows(q, row_k, there, first_k, DK, BK, DT)
        dO = load_rows(do, row, there, first_v, DV, BV, DT)
        if decay is not None:
            start = from_start(decay, row, there, DT)
            Q *= start[:, None]
        if W_in is not None:
            K = load_rows(k, row_k, there, first_k, DK, BK, DT)
            W = load_rows(W_in, row, there, first_k, DK, BK, DT)
            dU = load_rows(du, row, there, first_v, DV, BV, DT)
            if decay is not None:
                next_there = tl.load(bounds + c) + tl.arange(0, C) + 1 < tl.load(bounds + c + 1)
                K *= to_end(decay, row, next_there, H, DT)[:, None]
            dU += tl.dot(K, lam, input_precision=PRECISION, out_dtype=DT)
            if write_slot is not None:
                slot = tl.load(write_slot + c).to(tl.int64)
                row_set = (b * n_writes + slot) * H + h + tl.zeros_like(row)
                at = there & (tl.zeros_like(row) + slot >= 0)
                store_rows(write_total, row_set, at, first_v, dU, DV, BV)
                dU = tl.where(load_rows(write_mask, row_set, at, first_v, DV, BV, DT) > 0, 0.0, dU)
            store_rows(du, row, there, first_v, dU, DV, BV)
        if decay is not None:
            lam *= last_of(start, C)
        lam += tl.dot(tl.trans(Q), dO, input_precision=PRECISION, out_dtype=DT)
        if W_in is not None:
            lam -= tl.dot(tl.trans(W), dU, input_precision=PRECISION, out_dtype=DT)
    offsets, inside_it = block_of(bh, first_k, first_v, DK, DV, BK, BV)
    tl.store(dinitial + offsets, lam, mask=inside)


@triton.jit
@no_type_check
def chunk_input_gradients(
    q,
    k,
    v,
    u,
    beta,
    decay,
    T_in,
    do,
    du,
    bounds,
    starts,
    lams,
    dq,
    dk,
    dv,
    Y_out,
    dbeta,
    ddecay,
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
    bh, c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = bh // H, bh % H
    i = tl.arange(0, C)
    below = i[:, None] > i[None, :]
    row, there = rows_of(bounds, c, b, h, L, H, C)
    row_k, there_k = rows_of(bounds, c, b, h // (H // G), L, G, C)
    if decay is not None:
        next_there = tl.load(bounds + c) + i + 1 < tl.load(bounds + c + 1)
        start, end = from_start(decay, row, there, DT), to_end(decay, row, next_there, H, DT)
        D = spans(decay, row, there, C, DT)
        # The same up to the position before, none for the first.
        start_before = from_start(decay, row - H, there & (i > 0), DT)
    else:
        D = tl.where(i[:, None] >= i[None, :], 1.0, 0.0).to(DT)

    # What the chunk's positions do to each other: gradients of P and of A.
    dP = tl.zeros((C, C), dtype=DT)
    if beta is not None:
        bt = tl.load(beta + row, mask=there, other=0).to(DT)
        T = tl.load(T_in + ((bh * n_chunks + c) * C + i[:, None]) * C + i[None, :])
        dA = tl.zeros((C, C), dtype=DT)
        db = tl.zeros((C,), dtype=DT)
    for first_v in range(0, DV, BV):
        U = load_rows(u, row, there, first_v, DV, BV, DT)
        dO = load_rows(do, row, there, first_v, DV, BV, DT)
        dU = load_rows(du, row, there, first_v, DV, BV, DT)
        dP += tl.dot(dO, tl.trans(U), input_precision=PRECISION, out_dtype=DT)
        if beta is not None:
            Y = tl.dot(tl.trans(T), dU, input_precision=PRECISION, out_dtype=DT)
            dA -= tl.dot(Y, tl.trans(U), input_precision=PRECISION, out_dtype=DT)
            recalled = tl.zeros((C, BV), dtype=DT)
            for first_k in range(0, DK, BK):
                K = load_rows(k, row_k, there, first_k, DK, BK, DT)
                offsets, inside = block_of(bh * (n_chunks + 1) + c, first_k, first_v, DK, DV, BK, BV)
                S = tl.load(starts + offsets, mask=inside, other=0)
                recalled += tl.dot(K, S, input_precision=PRECISION, out_dtype=DT)
            if decay is not None:
                recalled *= start[:, None]
            V = load_rows(v, row, there, first_v, DV, BV, DT)
            db += tl.sum(Y * (V - recalled), axis=1)
            if Y_out is not None:
                store_rows(Y_out, row, there, first_v, Y, DV, BV)
            store_rows(dv, row, there, first_v, Y * bt[:, None], DV, BV)
        else:
            for first_k in range(0, DK, BK):
                K = load_rows(k, row_k, there, first_k, DK, BK, DT)
                if decay is not None:
                    K *= end[:, None]
                offsets, inside = block_of(bh * n_chunks + c, first_k, first_v, DK, DV, BK, BV)
                lam = tl.load(lams + offsets, mask=inside, other=0)
                dU += tl.dot(K, lam, input_precision=PRECISION, out_dtype=DT)
            store_rows(dv, row, there, first_v, dU, DV, BV)
    if beta is not None or decay is not None:
        QK = tl.zeros((C, C), dtype=DT)
        KK = tl.zeros((C, C), dtype=DT)
        for first_k in range(0, DK, BK):
            K = load_rows(k, row_k, there, first_k, DK, BK, DT)
            if decay is not None:
                Q = load_rows(q, row_k, there, first_k, DK, BK, DT)
                QK += tl.dot(Q, tl.trans(K), input_precision=PRECISION, out_dtype=DT)
            if beta is not None:
                KK += tl.dot(K, tl.trans(K), input_precision=PRECISION, out_dtype=DT)
        if decay is not None:
            dD = dP * QK
            if beta is not None:
                dD += dA * bt[:, None] * KK
            # D_it dD_ij D_{t-1,j} summed over i >= t and j < t, which are those whose span t is in.
            D_before = spans_before(decay, row, there, H, C, DT)
            across = tl.dot(tl.trans(D), dD, input_precision=PRECISION, out_dtype=DT)
            da = tl.sum(across * D_before, axis=1)
            of_start = tl.zeros((C,), dtype=DT)
            of_end = tl.zeros((C,), dtype=DT)
            of_whole = tl.zeros((C,), dtype=DT)
        if beta is not None:
            dA = tl.where(below, dA * D, 0.0)
            db += tl.sum(dA * KK, axis=1)
            tl.store(dbeta + row, db.to(dbeta.dtype.element_ty), mask=there)
            dA *= bt[:, None]
    dP *= D

    # What they do with the state before the chunk and to the one after it.
    for first_k in range(0, DK, BK):
        Q = load_rows(q, row_k, there, first_k, DK, BK, DT)
        K = load_rows(k, row_k, there, first_k, DK, BK, DT)
        dQ = tl.zeros((C, BK), dtype=DT)
        dK_start = tl.zeros((C, BK), dtype=DT)
        dK_end = tl.zeros((C, BK), dtype=DT)
        for first_v in range(0, DV, BV):
            offsets, inside = block_of(bh * (n_chunks + 1) + c, first_k, first_v, DK, DV, BK, BV)
            S = tl.load(starts + offsets, mask=inside, other=0)
            offsets, inside = block_of(bh * n_chunks + c, first_k, first_v, DK, DV, BK, BV)
            lam = tl.load(lams + offsets, mask=inside, other=0)
            U = load_rows(u, row, there, first_v, DV, BV, DT)
            dO = load_rows(do, row, there, first_v, DV, BV, DT)
            dQ += tl.dot(dO, tl.trans(S), input_precision=PRECISION, out_dtype=DT)
            dK_end += tl.dot(U, tl.trans(lam), input_precision=PRECISION, out_dtype=DT)
            if beta is not None:
                dU = load_rows(du, row, there, first_v, DV, BV, DT)
                dV = tl.dot(tl.trans(T), dU, input_precision=PRECISION, out_dtype=DT) * bt[:, None]
                dK_start -= tl.dot(dV, tl.trans(S), input_precision=PRECISION, out_dtype=DT)
            if decay is not None:
                of_whole += tl.sum(S * lam)
        if decay is not None:
            of_start += tl.sum(dQ * Q + dK_start * K, axis=1)
            of_end += tl.sum(dK_end * K, axis=1)
            dQ *= start[:, None]
            dK_start *= start[:, None]
            dK_end *= end[:, None]
        dQ += tl.dot(dP, K, input_precision=PRECISION, out_dtype=DT)
        dK = dK_start + dK_end + tl.dot(tl.trans(dP), Q, input_precision=PRECISION, out_dtype=DT)
        if beta is not None:
            dK += tl.dot(dA + tl.trans(dA), K, input_precision=PRECISION, out_dtype=DT)
        store_rows(dq, row, there, first_k, dQ, DK, BK)
        store_rows(dk, row, there, first_k, dK, DK, BK)
    if decay is not None:
        da += start_before * tl.sum(D * of_start[:, None], axis=0)
        da += end * (tl.sum(D_before * of_end[None, :], axis=1) + start_before * of_whole)
        tl.store(ddecay + row, da.to(ddecay.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def emit_gradients(
    q,
    k,
    do,
    dv,
    decay,
    bounds,
    lams,
    run_chunk,
    run_first,
    run_last,
    slots,
    totals,
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
    there &= tl.load(bounds + c) + tl.arange(0, C) > last
    offsets, inside = block_of(bh * n_chunks + c, first_k, first_v, DK, DV, BK, BV)
    lam = tl.load(lams + offsets, mask=inside, other=0)
    Q = load_rows(q, row_k, there, first_k, DK, BK, DT)
    dO = load_rows(do, row, there, first_v, DV, BV, DT)
    if decay is not None:
        start = from_start(decay, row, there, DT)
        lam *= last_of(start, C)
        Q *= start[:, None]
    lam += tl.dot(tl.trans(Q), dO, input_precision=PRECISION, out_dtype=DT)
    if dv is not None:
        K = load_rows(k, row_k, there, first_k, DK, BK, DT)
        dV = load_rows(dv, row, there, first_v, DV, BV, DT)
        if decay is not None:
            K *= start[:, None]
        lam -= tl.dot(tl.trans(K), dV, input_precision=PRECISION, out_dtype=DT)
    at_k, at_v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    for back in range(last - first + 1):
        t = last - back
        row_t = (b * L + t) * H + h
        row_kt = (b * L + t) * G + h // (H // G)
        q_t = tl.load(q + row_kt * DK + at_k, mask=at_k < DK, other=0).to(DT)
        do_t = tl.load(do + row_t * DV + at_v, mask=at_v < DV, other=0).to(DT)
        lam += q_t[:, None] * do_t[None, :]
        slot = tl.load(slots + t).to(tl.int64)
        if slot >= 0:
            offsets, inside_it = block_of((b * n_slots + slot) * H + h, first_k, first_v, DK, DV, BK, BV)
            tl.store(totals + offsets, lam, mask=inside)
        if dv is not None:
            k_t = tl.load(k + row_kt * DK + at_k, mask=at_k < DK, other=0).to(DT)
            dv_t = tl.load(dv + row_t * DV + at_v, mask=at_v < DV, other=0).to(DT)
            lam -= k_t[:, None] * dv_t[None, :]
        if decay is not None:
            lam *= tl.load(decay + row_t).to(DT)
