"""The selective scan, forward; `scan_parts` says how it goes."""

from typing import no_type_check

import triton
import triton.language as tl

from .scan_parts import decay_and_write, states_after


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
            h_start = tl.sum(tl.where(dims == n, carry, 0.0), 0)[None, :]
            h = states_after(h_start, a, w, here, set_slot is not None)
            y_td = tl.fma(h, tl.load(C + t * C_t + d * C_d + n * C_n, mask=ok, other=0.0).to(ACC), y_td)
            if states is not None:
                place = (slot * n_state + n) * channels + d
                tl.store(states + place, h, mask=ok & (slot >= 0))
            end = tl.sum(tl.where(row == T - 1, h, 0.0), 0)[None, :]
            carry = tl.where(dims == n, end, carry)
        tl.store(y + t * channels + d, y_td, mask=ok)
    tl.store(last + (b * channels + d) * n_state + dims, carry, mask=of_state)
