"""The selective scan, backward; `scan_parts` says how it goes."""

from typing import no_type_check

import triton
import triton.language as tl

from .common import then
from .scan_parts import decay_and_write, states_after


@triton.jit
@no_type_check
def backward(
    x,
    dt,
    A,
    B,
    C,
    decay,
    decay_slot,
    n_decays,
    write,
    write_slot,
    n_writes,
    values,
    is_set,
    set_slot,
    n_set,
    starts,
    grad_y,
    grad_last,
    grad_states,
    state_slot,
    n_states,
    grad_x,
    grad_dt,
    grad_A,
    grad_B,
    grad_C,
    grad_initial,
    grad_decay,
    grad_write,
    totals,
    total_slot,
    n_totals,
    length,
    channels,
    n_state,
    x_b,
    x_t,
    x_d,
    dt_b,
    dt_t,
    dt_d,
    A_d,
    A_n,
    B_b,
    B_t,
    B_d,
    B_n,
    C_b,
    C_t,
    C_d,
    C_n,
    T: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    B_EACH: tl.constexpr,
    C_EACH: tl.constexpr,
    STOP: tl.constexpr,
    ACC: tl.constexpr,
):
    """Chunks from the last to the first. Of each, the states again from the one before it; then

        lambda_t = g_t + a_{t+1} lambda_{t+1}        g_t = C_t grad_y_t, and what came to h_t directly

    by a scan from the chunk's end, which begins with what the later chunks send to the state they begin with;
    a_{t+1} = 0 where h_{t+1} is set. And from lambda everything:

        dw_t = lambda_t where h_t is not set      p_t = a_t lambda_t h_{t-1} = dw_t (h_t - w_t)
        du_t = sum_n dw_t B_t     dB_t = sum_d dw_t u_t     dC_t = sum_d grad_y_t h_t
        dx_t = du_t dt_t          ddt_t = sum_n p_t A + du_t x_t          dA = sum_t p_t dt_t

    Where decays or writes were given they get lambda_t h_{t-1} and dw_t instead. `totals` gets lambda_t at
    the positions asked for. Sums over d and t are of this program's part; whoever called adds up the parts.
    """
    b = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    d = block * D + tl.arange(0, D)[None, :]
    row = tl.arange(0, T)[:, None]
    dims = tl.arange(0, N)[:, None]
    x += b * x_b
    dt += b * dt_b
    B += b * B_b
    C += b * C_b
    grad_x += b * length * channels
    grad_dt += b * length * channels
    if grad_y is not None:
        grad_y += b * length * channels
    part = (block * tl.num_programs(0) + b) * length * n_state
    each = b * length * n_state * channels
    grad_B += each if B_EACH else part
    grad_C += each if C_EACH else part
    if decay is not None:
        decay += b * n_decays * n_state * channels
        grad_decay += b * n_decays * n_state * channels
    if write is not None:
        write += b * n_writes * n_state * channels
        grad_write += b * n_writes * n_state * channels
    if set_slot is not None:
        values += b * n_set * n_state * channels
        is_set += b * n_set * n_state * channels
    if totals is not None:
        totals += b * n_totals * n_state * channels
    if grad_states is not None:
        grad_states += b * n_states * n_state * channels

    of_state = (dims < n_state) & (d < channels)
    sum_A = tl.zeros([N, D], dtype=ACC)
    carry = tl.zeros([N, D], dtype=ACC)  # what later positions send to the last state of the chunk
    if grad_last is not None:
        carry = tl.load(grad_last + (b * channels + d) * n_state + dims, mask=of_state, other=0.0).to(ACC)
    chunks = tl.cdiv(length, T)
    for i in range(0, chunks):
        k = chunks - 1 - i
        t = k * T + row
        inside = t < length
        ok = inside & (d < channels)
        dt_td = tl.load(dt + t * dt_t + d * dt_d, mask=ok, other=0.0).to(ACC)
        x_td = tl.load(x + t * x_t + d * x_d, mask=ok, other=0.0).to(ACC)
        u_td = dt_td * x_td
        next_ok = (t + 1 < length) & (d < channels)
        dt_next = tl.load(dt + (t + 1) * dt_t + d * dt_d, mask=next_ok, other=0.0).to(ACC)
        gy_td = tl.zeros([T, D], dtype=ACC)
        if grad_y is not None:
            gy_td = tl.load(grad_y + t * channels + d, mask=ok, other=0.0).to(ACC)
        du_td = tl.zeros([T, D], dtype=ACC)
        ddt_td = tl.zeros([T, D], dtype=ACC)
        for n in range(0, n_state):
            A_1d = tl.load(A + d * A_d + n * A_n, mask=d < channels, other=0.0).to(ACC)
            a, w, here, cut = decay_and_write(
                t,
                d,
                n,
                length,
                channels,
                n_state,
                A_1d,
                dt_td,
                u_td,
                B,
                B_t,
                B_d,
                B_n,
                decay,
                decay_slot,
                write,
                write_slot,
                values,
                is_set,
                set_slot,
                ACC,
                STOP,
            )
            start = ((k * tl.num_programs(0) + b) * n_state + n) * channels + d
            h_start = tl.load(starts + start, mask=d < channels, other=0.0)
            h = states_after(h_start, a, w, here, set_slot is not None)

            a_next, _, _, cut_next = decay_and_write(
                t + 1,
                d,
                n,
                length,
                channels,
                n_state,
                A_1d,
                dt_next,
                dt_next,  # for u: its write is not used
                B,
                B_t,
                B_d,
                B_n,
                decay,
                decay_slot,
                None,
                None,
                values,
                is_set,
                set_slot,
                ACC,
                STOP,
            )
            a_next = tl.where(cut_next, 0.0, a_next)
            a_next = tl.where(row == T - 1, 1.0, a_next)
            g = gy_td * tl.load(C + t * C_t + d * C_d + n * C_n, mask=ok, other=0.0).to(ACC)
            if grad_states is not None:
                slot = tl.load(state_slot + t, mask=inside, other=-1).to(tl.int64)
                place = (slot * n_state + n) * channels + d
                g += tl.load(grad_states + place, mask=ok & (slot >= 0), other=0.0).to(ACC)
            product, lam = tl.associative_scan((a_next, g), 0, then, reverse=True)
            lam = tl.fma(product, tl.sum(tl.where(dims == n, carry, 0.0), 0)[None, :], lam)

            dw = tl.where(cut, 0.0, lam)
            before = tl.sum(tl.where(row == 0, a * dw, 0.0), 0)[None, :]
            carry = tl.where(dims == n, before, carry)
            p = dw * (h - w)
            if totals is not None:
                slot = tl.load(total_slot + t, mask=inside, other=-1).to(tl.int64)
                tl.store(totals + (slot * n_state + n) * channels + d, lam, mask=ok & (slot >= 0))
            if decay is not None:
                # The states one position earlier: the same scan of what lies one position earlier.
                prev_ok = (t > 0) & (t - 1 < length) & (d < channels) & (row > 0)
                dt_prev = tl.load(dt + (t - 1) * dt_t + d * dt_d, mask=prev_ok, other=0.0).to(ACC)
                x_prev = tl.load(x + (t - 1) * x_t + d * x_d, mask=prev_ok, other=0.0).to(ACC)
                a_prev, w_prev, prev_here, _ = decay_and_write(
                    t - 1,
                    d,
                    n,
                    length,
                    channels,
                    n_state,
                    A_1d,
                    dt_prev,
                    dt_prev * x_prev,
                    B,
                    B_t,
                    B_d,
                    B_n,
                    decay,
                    decay_slot,
                    write,
                    write_slot,
                    values,
                    is_set,
                    set_slot,
                    ACC,
                    STOP,
                )
                a_prev = tl.where(row == 0, 1.0, a_prev)
                w_prev = tl.where(row == 0, 0.0, w_prev)
                h_prev = states_after(h_start, a_prev, w_prev, prev_here & (row > 0), set_slot is not None)
                slot = tl.load(decay_slot + t, mask=inside, other=-1).to(tl.int64)
                place = (slot * n_state + n) * channels + d
                tl.store(grad_decay + place, dw * h_prev, mask=ok & (slot >= 0))
                p = tl.where(slot >= 0, 0.0, p)
            if write is not None:
                slot = tl.load(write_slot + t, mask=inside, other=-1).to(tl.int64)
                tl.store(grad_write + (slot * n_state + n) * channels + d, dw, mask=ok & (slot >= 0))
                dw = tl.where(slot >= 0, 0.0, dw)

            B_td = tl.load(B + t * B_t + d * B_d + n * B_n, mask=ok, other=0.0).to(ACC)
            du_td = tl.fma(dw, B_td, du_td)
            ddt_td = tl.fma(p, A_1d, ddt_td)
            sum_A = tl.where(dims == n, sum_A + tl.sum(p * dt_td, 0)[None, :], sum_A)
            if B_EACH:
                tl.store(grad_B + (t * channels + d) * n_state + n, dw * u_td, mask=ok)
            else:
                tl.store(grad_B + t * n_state + n, tl.sum(dw * u_td, 1)[:, None], mask=inside)
            if C_EACH:
                tl.store(grad_C + (t * channels + d) * n_state + n, gy_td * h, mask=ok)
            else:
                tl.store(grad_C + t * n_state + n, tl.sum(gy_td * h, 1)[:, None], mask=inside)
        tl.store(grad_x + t * channels + d, du_td * dt_td, mask=ok)
        tl.store(grad_dt + t * channels + d, tl.fma(du_td, x_td, ddt_td), mask=ok)
    tl.store(grad_A + (b * channels + d) * n_state + dims, sum_A, mask=of_state)
    if grad_initial is not None:
        tl.store(grad_initial + (b * channels + d) * n_state + dims, carry, mask=of_state)
