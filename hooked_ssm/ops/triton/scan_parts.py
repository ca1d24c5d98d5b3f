"""What the kernels of the selective scan share; see `selective_scan` for the function around them.

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
