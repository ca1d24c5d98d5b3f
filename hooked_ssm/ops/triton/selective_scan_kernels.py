"""The kernels of the selective scan; see `selective_scan` for the function around them.

    a_t = exp(dt_t A)    w_t = dt_t x_t B_t    h_t = a_t h_{t-1} + w_t    y_t = sum_n h_t C_t     [d_inner, n]

One program has one document and D channels, and goes through the positions in chunks of T. Within a chunk it
takes the n dimensions of the state in turn: of each, a tile [T, D] of decays and writes is made, scanned
along T in the processor's registers, read into y, and left behind. So no state is written to memory but the
one before each chunk, from which the backward pass makes the chunk's again. A state that is set has decay 0
and its value as write, and is chosen whatever the one before was. Decays or writes that are given at some
positions are loaded there instead of made.

What has a value at some positions only lies in memory as [batch, slot, n, d_inner]; slot[t] is where position
t's is, -1 where it has none.
"""

from typing import no_type_check

import triton
import triton.language as tl

from .common import then, then_unless_set


@triton.jit
@no_type_check
def decay_and_write(
    t,
    d,
    n,
    length,
    channels,
    n_state,
    A_n,
    dt_td,
    u_td,
    B_base,
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
    ACC: tl.constexpr,
    STOP: tl.constexpr,
):
    """a and w of state dimension n at positions t [T, 1], channels d [1, D]; where the state is set; where
    gradients do not reach h_{t-1}.

    Beyond the document's end, and before its start, a is 1 and w is 0: the state stays. `STOP` cuts gradients
    off at all of a position with a slot, set or not.
    """
    inside = (t >= 0) & (t < length)
    ok = inside & (d < channels)
    a = tl.exp(dt_td * A_n)
    if decay is not None:
        slot = tl.load(decay_slot + t, mask=inside, other=-1).to(tl.int64)
        given = tl.load(decay + (slot * n_state + n) * channels + d, mask=ok & (slot >= 0), other=0.0)
        a = tl.where(slot >= 0, given.to(ACC), a)
    w = u_td * tl.load(B_base + t * B_t + d * B_d + n * B_n, mask=ok, other=0.0).to(ACC)
    if write is not None:
        slot = tl.load(write_slot + t, mask=inside, other=-1).to(tl.int64)
        given = tl.load(write + (slot * n_state + n) * channels + d, mask=ok & (slot >= 0), other=0.0)
        w = tl.where(slot >= 0, given.to(ACC), w)
    here = (t < -1) & (d < channels)  # nowhere
    cut = here
    if set_slot is not None:
        slot = tl.load(set_slot + t, mask=inside, other=-1).to(tl.int64)
        place = (slot * n_state + n) * channels + d
        cut = ok & (slot >= 0)
        here = tl.load(is_set + place, mask=cut, other=0) != 0
        w = tl.where(here, tl.load(values + place, mask=cut & here, other=0.0).to(ACC), w)
        a = tl.where(here, 0.0, a)
        if not STOP:
            cut = here
    return a, w, here, cut


@triton.jit
@no_type_check
def states_after(start, a, w, here, SET: tl.constexpr):
    """h [T, D] of a chunk after the state `start` [1, D]; `SET`: whether it is w where `here`."""
    if SET:
        product, h, cut_off = tl.associative_scan((a, w, here.to(a.dtype)), 0, then_unless_set)
        h = tl.where(cut_off != 0, h, tl.fma(product, start, h))
    else:
        product, h = tl.associative_scan((a, w), 0, then)
        h = tl.fma(product, start, h)
    return h


@triton.jit
@no_type_check
def forward(
    x,
    dt,
    A,
    B,
    C,
    initial,
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
    y,
    last,
    starts,
    states,
    state_slot,
    n_states,
    length,
    channels,
    n_state,
    first,
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
    initial_b,
    initial_d,
    initial_n,
    T: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    ACC: tl.constexpr,
):
    """y from chunk `first` on, the last state, the state before each chunk, and states at the slots given."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * D + tl.arange(0, D)[None, :]
    row = tl.arange(0, T)[:, None]
    dims = tl.arange(0, N)[:, None]
    x += b * x_b
    dt += b * dt_b
    B += b * B_b
    C += b * C_b
    y += b * length * channels
    if decay is not None:
        decay += b * n_decays * n_state * channels
    if write is not None:
        write += b * n_writes * n_state * channels
    if set_slot is not None:
        values += b * n_set * n_state * channels
        is_set += b * n_set * n_state * channels
    if states is not None:
        states += b * n_states * n_state * channels

    of_state = (dims < n_state) & (d < channels)
    carry = tl.zeros([N, D], dtype=ACC)  # the state before the chunk
    if initial is not None:
        carry = tl.load(initial + b * initial_b + d * initial_d + dims * initial_n, mask=of_state, other=0.0)
        carry = carry.to(ACC)
    for k in range(first, tl.cdiv(length, T)):
        if starts is not None:
            start = ((k * tl.num_programs(0) + b) * n_state + dims) * channels + d
            tl.store(starts + start, carry, mask=of_state)
        t = k * T + row
        ok = (t < length) & (d < channels)
        dt_td = tl.load(dt + t * dt_t + d * dt_d, mask=ok, other=0.0).to(ACC)
        u_td = dt_td * tl.load(x + t * x_t + d * x_d, mask=ok, other=0.0).to(ACC)
        y_td = tl.zeros([T, D], dtype=ACC)
        slot = tl.full([T, 1], -1, dtype=tl.int64)
        if states is not None:
            slot = tl.load(state_slot + t, mask=t < length, other=-1).to(tl.int64)
        for n in range(0, n_state):
            A_1d = tl.load(A + d * A_d + n * A_n, mask=d < channels, other=0.0).to(ACC)
            a, w, here, _ = decay_and_write(
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
                False,
            )
            start = tl.sum(tl.where(dims == n, carry, 0.0), 0)[None, :]
            h = states_after(start, a, w, here, set_slot is not None)
            y_td = tl.fma(h, tl.load(C + t * C_t + d * C_d + n * C_n, mask=ok, other=0.0).to(ACC), y_td)
            if states is not None:
                place = (slot * n_state + n) * channels + d
                tl.store(states + place, h, mask=ok & (slot >= 0))
            end = tl.sum(tl.where(row == T - 1, h, 0.0), 0)[None, :]
            carry = tl.where(dims == n, end, carry)
        tl.store(y + t * channels + d, y_td, mask=ok)
    tl.store(last + (b * channels + d) * n_state + dims, carry, mask=of_state)


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


@triton.jit
@no_type_check
def make_decay(dt, A, decay, rows, channels, n_state, R: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr):
    """exp(dt A) for dt [rows, channels], A [channels, n_state]: decay [rows, n_state, channels]."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None]
    d = tl.program_id(1) * D + tl.arange(0, D)[None, :]
    ok = (r < rows) & (d < channels)
    dt_rd = tl.load(dt + r * channels + d, mask=ok, other=0.0).to(ACC)
    for n in range(0, n_state):
        A_1d = tl.load(A + d * n_state + n, mask=d < channels, other=0.0).to(ACC)
        tl.store(decay + (r * n_state + n) * channels + d, tl.exp(dt_rd * A_1d), mask=ok)


@triton.jit
@no_type_check
def make_write(
    dt,
    x,
    B,
    write,
    rows,
    channels,
    n_state,
    EACH: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
):
    """dt x B for dt, x [rows, channels], B [rows, (channels,) n_state]: write [rows, n_state, channels]."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None]
    d = tl.program_id(1) * D + tl.arange(0, D)[None, :]
    ok = (r < rows) & (d < channels)
    dt_rd = tl.load(dt + r * channels + d, mask=ok, other=0.0).to(ACC)
    u_rd = dt_rd * tl.load(x + r * channels + d, mask=ok, other=0.0).to(ACC)
    for n in range(0, n_state):
        if EACH:
            B_rd = tl.load(B + (r * channels + d) * n_state + n, mask=ok, other=0.0).to(ACC)
        else:
            B_rd = tl.load(B + r * n_state + n, mask=r < rows, other=0.0).to(ACC)
        tl.store(write + (r * n_state + n) * channels + d, u_rd * B_rd, mask=ok)
