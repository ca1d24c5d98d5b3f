"""The selective scan's arithmetic (see `ops.selective_scan`), a tile of channels at a time.

Memory: x, dt, y [batch, pos, channel]; A [state, channel]; decays, writes, states [batch, pos, state,
channel]; B and C the same where channels have their own, else [batch, pos, state, 1]. The state of a tile,
[state, channel], stays in the first cache while it goes through all positions. States that are looked at are
written to memory on the way, which changes nothing: h = fma(decay, h, write), y = fma(h, C, y), in the order
of states.

The backward pass, with the equations and letters of `ops.blocked_scan`, computes a chunk of positions again
from the state before it, and goes back through it.
"""

import numpy as np

from .arithmetic import REASSOCIATED, exp, fma, kernel

CHUNK = 32  # positions
FORWARD_TILE, BACKWARD_TILE = 512, 128  # channels; long runs for memory, and chunks that stay in the cache


@kernel
def forward(first, last, x, dt, A, B, C, h, starts, states, y):
    """Parts are (document, tile). h: from the state before the first position to that after the last. starts
    [chunk, batch, state, channel] and states: filled unless they are empty."""
    _, pos, channels = x.shape
    n_states = A.shape[0]
    tiles = -(-channels // FORWARD_TILE)
    B_own, C_own = B.shape[3] > 1, C.shape[3] > 1
    width = min(channels, FORWARD_TILE)
    u, decay, write = np.empty(width, x.dtype), np.empty(width, x.dtype), np.empty(width, x.dtype)
    for part in range(first, last):
        b, begin = part // tiles, part % tiles * FORWARD_TILE
        end = min(begin + FORWARD_TILE, channels)
        width = end - begin
        for t in range(pos):
            if len(starts) and t % CHUNK == 0:
                starts[t // CHUNK, b, :, begin:end] = h[b, :, begin:end]
            x_t, dt_t, y_t = x[b, t, begin:end], dt[b, t, begin:end], y[b, t, begin:end]
            for c in range(width):
                u[c] = dt_t[c] * x_t[c]
                y_t[c] = 0
            for n in range(n_states):
                A_n, h_n = A[n, begin:end], h[b, n, begin:end]
                if B_own:
                    B_n = B[b, t, n, begin:end]
                    for c in range(width):
                        write[c] = u[c] * B_n[c]
                else:
                    B_all = B[b, t, n, 0]
                    for c in range(width):
                        write[c] = u[c] * B_all
                if C_own:
                    C_n = C[b, t, n, begin:end]
                    for c in range(width):
                        decay[c] = exp(dt_t[c] * A_n[c])
                        h_n[c] = fma(decay[c], h_n[c], write[c])
                        y_t[c] = fma(h_n[c], C_n[c], y_t[c])
                else:
                    C_all = C[b, t, n, 0]
                    for c in range(width):
                        decay[c] = exp(dt_t[c] * A_n[c])
                        h_n[c] = fma(decay[c], h_n[c], write[c])
                        y_t[c] = fma(h_n[c], C_all, y_t[c])
                if states.size:
                    states[b, t, n, begin:end] = h_n


@kernel(fastmath=REASSOCIATED)
def backward(first, last, x, dt, A, B, C, starts, gy, lam, gx, gdt, gA, gB, gC):
    """Parts are (document, tile). lam: from the gradient at the last state to that at the initial one. gA
    [batch, state, channel]; gB and gC like B and C, or [tile, batch, pos, state] to be summed."""
    _, pos, channels = x.shape
    n_states = A.shape[0]
    tiles = -(-channels // BACKWARD_TILE)
    B_own, C_own = B.shape[3] > 1, C.shape[3] > 1
    most = min(channels, BACKWARD_TILE)
    u = np.empty((CHUNK, most), x.dtype)
    decay = np.empty((CHUNK, n_states, most), x.dtype)
    h = np.empty((CHUNK + 1, n_states, most), x.dtype)
    B_row, C_row = np.empty(most, x.dtype), np.empty(most, x.dtype)
    zero = x.dtype.type(0)
    for part in range(first, last):
        b, tile = part // tiles, part % tiles
        begin = tile * BACKWARD_TILE
        end = min(begin + BACKWARD_TILE, channels)
        width = end - begin
        gA[b, :, begin:end] = zero
        for chunk in range(-(-pos // CHUNK) - 1, -1, -1):
            begun = chunk * CHUNK
            length = min(CHUNK, pos - begun)
            h[0, :, :width] = starts[chunk, b, :, begin:end]
            for s in range(length):
                t = begun + s
                x_t, dt_t, u_t = x[b, t, begin:end], dt[b, t, begin:end], u[s, :width]
                for c in range(width):
                    u_t[c] = dt_t[c] * x_t[c]
                for n in range(n_states):
                    A_n, a, before, after = A[n, begin:end], decay[s, n], h[s, n], h[s + 1, n]
                    if B_own:
                        B_n = B[b, t, n, begin:end]
                        for c in range(width):
                            a[c] = exp(dt_t[c] * A_n[c])
                            after[c] = fma(a[c], before[c], u_t[c] * B_n[c])
                    else:
                        B_all = B[b, t, n, 0]
                        for c in range(width):
                            a[c] = exp(dt_t[c] * A_n[c])
                            after[c] = fma(a[c], before[c], u_t[c] * B_all)
            for s in range(length - 1, -1, -1):
                t = begun + s
                u_t, dt_t, gy_t = u[s, :width], dt[b, t, begin:end], gy[b, t, begin:end]
                gu, gd = gx[b, t, begin:end], gdt[b, t, begin:end]
                for c in range(width):
                    gu[c] = zero
                    gd[c] = zero
                for n in range(n_states):
                    A_n, a, before, after = A[n, begin:end], decay[s, n], h[s, n], h[s + 1, n]
                    l_n, gA_n = lam[b, n, begin:end], gA[b, n, begin:end]
                    B_n, C_n = B_row[:width], C_row[:width]
                    if B_own:
                        B_n = B[b, t, n, begin:end]
                    else:
                        B_n[:] = B[b, t, n, 0]
                    if C_own:
                        C_n = C[b, t, n, begin:end]
                    else:
                        C_n[:] = C[b, t, n, 0]
                    sum_B, sum_C = zero, zero
                    for c in range(width):
                        total = l_n[c] + gy_t[c] * C_n[c]
                        l_n[c] = total
                        sum_B += total * u_t[c]
                        sum_C += after[c] * gy_t[c]
                        gu[c] += total * B_n[c]
                    if B_own:
                        gB_n = gB[b, t, n, begin:end]
                        for c in range(width):
                            gB_n[c] = l_n[c] * u_t[c]
                    else:
                        gB[tile, b, t, n] = sum_B
                    if C_own:
                        gC_n = gC[b, t, n, begin:end]
                        for c in range(width):
                            gC_n[c] = after[c] * gy_t[c]
                    else:
                        gC[tile, b, t, n] = sum_C
                    for c in range(width):
                        carried = a[c] * l_n[c]
                        p = carried * before[c]
                        l_n[c] = carried
                        gd[c] += p * A_n[c]
                        gA_n[c] += p * dt_t[c]
                x_t = x[b, t, begin:end]
                for c in range(width):
                    gd[c] += gu[c] * x_t[c]
                    gu[c] *= dt_t[c]


@kernel
def decay_forward(first, last, dt, A, decays):
    """Parts are documents."""
    _, pos, channels = dt.shape
    for b in range(first, last):
        for t in range(pos):
            for n in range(A.shape[0]):
                dt_t, A_n, out = dt[b, t], A[n], decays[b, t, n]
                for c in range(channels):
                    out[c] = exp(dt_t[c] * A_n[c])


@kernel(fastmath=REASSOCIATED)
def decay_backward(first, last, dt, A, grad, gdt, gA):
    """Parts are documents; gA [batch, state, channel]."""
    _, pos, channels = dt.shape
    for b in range(first, last):
        gA[b] = 0
        for t in range(pos):
            gdt[b, t] = 0
            for n in range(A.shape[0]):
                dt_t, A_n, g, gd, gA_n = dt[b, t], A[n], grad[b, t, n], gdt[b, t], gA[b, n]
                for c in range(channels):
                    p = exp(dt_t[c] * A_n[c]) * g[c]
                    gd[c] += p * A_n[c]
                    gA_n[c] += p * dt_t[c]


@kernel
def read_forward(first, last, states, C, y):
    """Parts are documents."""
    _, pos, n_states, channels = states.shape
    own = C.shape[3] > 1
    for b in range(first, last):
        for t in range(pos):
            out = y[b, t]
            out[:] = 0
            for n in range(n_states):
                h = states[b, t, n]
                if own:
                    C_n = C[b, t, n]
                    for c in range(channels):
                        out[c] = fma(h[c], C_n[c], out[c])
                else:
                    C_all = C[b, t, n, 0]
                    for c in range(channels):
                        out[c] = fma(h[c], C_all, out[c])
