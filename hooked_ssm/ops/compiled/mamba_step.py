"""`mamba_step`, compiled: the two large products, and what is between them as one kernel."""

import numpy as np
from torch import Tensor

from hooked_ssm.ops.backends import in_one_dtype
from hooked_ssm.ops.mamba_step import Stepped, StepWeights
from hooked_ssm.ops.memory import FEW_ROWS

from .addresses import ZEROS, addresses, array
from .arithmetic import exp, fma, kernel, silu, softplus
from .matrix_product import STREAMS, dot_columns, multiply_rows
from .threads import split

TILE = 128  # channels whose decays are turned over, to [state, channel], in the first cache
WORK = 16  # multiplications that an entry of the state is worth


def numba_mamba_step(
    u: Tensor, weights: StepWeights, conv: Tensor, ssm: Tensor, eps: float | None
) -> Stepped:
    dtype = u.dtype
    u, conv, ssm, *rest = in_one_dtype(u, conv, ssm, *weights)
    in_proj, *between, out_proj = (weight.contiguous() for weight in rest)
    batch, past, channels = conv.shape
    xz = _product(u, in_proj)
    conv, h = conv.contiguous(), ssm.transpose(1, 2).contiguous()
    z, new_conv, new_h = (xz.new_empty(shape) for shape in ((batch, channels), conv.shape, h.shape))
    split(
        *(_between, batch, WORK * h.numel()),
        *(ZEROS[xz.dtype], batch, channels, h.shape[1], past + 1, weights.dt_w.shape[1]),
        -1.0 if eps is None else eps,
        *addresses(xz, *between, conv, h, z, new_conv, new_h),
    )
    return Stepped(_product(z, out_proj).to(dtype), new_conv.to(dtype), new_h.transpose(1, 2))


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    if len(rows) > FEW_ROWS:
        return rows @ weight.t()
    y = rows.new_empty((len(rows), len(weight)))
    multiply_rows(rows, weight, y)
    return y


@kernel
def _between(
    first, last, zero, batch, channels, n_states, taps, rank, eps,
    xz_at, conv_w_at, conv_b_at, x_proj_at, dt_w_at, dt_b_at, A_log_at, D_at,
    past_at, state_at, z_at, new_past_at, new_state_at,
):  # fmt: skip
    """Parts are documents. state [batch, state, channel]; eps < 0 for none."""
    width = rank + 2 * n_states
    xz = array(xz_at, (batch, 2 * channels), zero)
    conv_w, conv_b = array(conv_w_at, (channels, taps), zero), array(conv_b_at, (channels,), zero)
    x_proj = array(x_proj_at, (width, channels), zero)
    dt_w, dt_b = array(dt_w_at, (channels, rank), zero), array(dt_b_at, (channels,), zero)
    A_log, D = array(A_log_at, (channels, n_states), zero), array(D_at, (channels,), zero)
    past, new_past = (
        array(past_at, (batch, taps - 1, channels), zero),
        array(new_past_at, (batch, taps - 1, channels), zero),
    )
    state, new_state = (
        array(state_at, (batch, n_states, channels), zero),
        array(new_state_at, (batch, n_states, channels), zero),
    )
    z = array(z_at, (batch, channels), zero)
    x, dt, u = np.empty(channels, z.dtype), np.empty(channels, z.dtype), np.empty(channels, z.dtype)
    low = np.empty(width, z.dtype)
    B, C = low[rank : rank + n_states], low[rank + n_states :]
    A_t = np.empty((n_states, TILE), z.dtype)
    for b in range(first, last):
        entering, gate, y = xz[b, :channels], xz[b, channels:], z[b]
        for i in range(taps - 2):
            new_past[b, i] = past[b, i + 1]
        if taps > 1:
            new_past[b, taps - 2] = entering
        for c in range(channels):
            total = fma(entering[c], conv_w[c, taps - 1], conv_b[c])
            for i in range(taps - 1):
                total = fma(past[b, i, c], conv_w[c, i], total)
            x[c] = total
        for c in range(channels):
            x[c] = silu(x[c])
        dot_columns(0, -(-width // STREAMS), x, x_proj, low)
        if eps >= 0:
            for part in (low[:rank], B, C):
                square = zero
                for i in range(len(part)):
                    square += part[i] * part[i]
                scale = 1 / np.sqrt(square / len(part) + z.dtype.type(eps))
                for i in range(len(part)):
                    part[i] *= scale
        dot_columns(0, -(-channels // STREAMS), low[:rank], dt_w, dt)
        for c in range(channels):
            dt[c] = softplus(dt[c] + dt_b[c])
            u[c] = dt[c] * x[c]
            y[c] = zero
        for begin in range(0, channels, TILE):
            end = min(begin + TILE, channels)
            for c in range(begin, end):
                for n in range(n_states):
                    A_t[n, c - begin] = A_log[c, n]
            y_t, dt_t, u_t = y[begin:end], dt[begin:end], u[begin:end]
            for n in range(n_states):
                A_n, before, after = A_t[n], state[b, n, begin:end], new_state[b, n, begin:end]
                B_n, C_n = B[n], C[n]
                for c in range(end - begin):
                    h = fma(exp(-exp(A_n[c]) * dt_t[c]), before[c], u_t[c] * B_n)
                    after[c] = h
                    y_t[c] = fma(h, C_n, y_t[c])
        for c in range(channels):
            y[c] = fma(D[c], x[c], y[c]) * silu(gate[c])
