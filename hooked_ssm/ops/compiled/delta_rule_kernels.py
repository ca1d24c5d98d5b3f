"""The delta rule one position at a time: the equations and letters of `ops.delta_rule_path`.

Memory: q, k [batch, pos, head, key], v, o, errors, writes [batch, pos, head, value], beta, decay [batch, pos,
head], states [batch, pos, head, key, value]. Parts are (document, head). Masks and values of edits, and
gradients that nothing sends, are empty arrays.
"""

import numpy as np

from .arithmetic import REASSOCIATED, fma, kernel


@kernel
def forward(
    first, last, q, k, v, beta, decay, S, w_values, w_cut, s_values, s_cut, o, errors, writes, states
):
    """S [batch, head, key, value]: from the state before the first position to that after the last."""
    _, pos, heads, d_key = q.shape
    d_value = v.shape[3]
    for part in range(first, last):
        b, head = part // heads, part % heads
        state = S[b, head]
        for t in range(pos):
            error, w, out = errors[b, t, head], writes[b, t, head], o[b, t, head]
            v_t, kept = v[b, t, head], states[b, t, head]
            if decay.size:
                a = decay[b, t, head]
                for i in range(d_key):
                    row = state[i]
                    for j in range(d_value):
                        row[j] *= a
            out[:] = 0  # holds what is recalled so far
            for i in range(d_key):
                row, k_i = state[i], k[b, t, head, i]
                for j in range(d_value):
                    out[j] = fma(row[j], k_i, out[j])
            beta_t = beta[b, t, head]
            for j in range(d_value):
                error[j] = v_t[j] - out[j]
                w[j] = beta_t * error[j]
            if w_cut.size:
                value, cut = w_values[b, t, head], w_cut[b, t, head]
                for j in range(d_value):
                    w[j] = value[j] if cut[j] else w[j]
            out[:] = 0
            for i in range(d_key):
                row, k_i, q_i = state[i], k[b, t, head, i], q[b, t, head, i]
                for j in range(d_value):
                    row[j] = fma(k_i, w[j], row[j])
                if s_cut.size:
                    value, cut = s_values[b, t, head, i], s_cut[b, t, head, i]
                    for j in range(d_value):
                        row[j] = value[j] if cut[j] else row[j]
                for j in range(d_value):
                    out[j] = fma(row[j], q_i, out[j])
                kept[i] = row


@kernel(fastmath=REASSOCIATED)
def backward(
    first,
    last,
    q,
    k,
    beta,
    decay,
    initial,
    errors,
    writes,
    states,
    w_cut,
    w_stop,
    s_cut,
    s_stop,
    do,
    dwrites,
    dstates,
    lam,
    dq,
    dk,
    dv,
    dbeta,
    ddecay,
    mu_total,
    lam_total,
):
    """lam [batch, head, key, value]: from the gradient at the last state to that at the initial one.
    mu_total and lam_total: what reaches writes and states, the latter left out if it is empty."""
    _, pos, heads, d_key = q.shape
    d_value = writes.shape[3]
    zero = q.dtype.type(0)
    mu = np.empty(d_value, q.dtype)
    for part in range(first, last):
        b, head = part // heads, part % heads
        total = lam[b, head]
        for t in range(pos - 1, -1, -1):
            w, dv_t, mu_t, error = (
                writes[b, t, head],
                dv[b, t, head],
                mu_total[b, t, head],
                errors[b, t, head],
            )
            before = states[b, t - 1, head] if t else initial[b, head]
            a = decay[b, t, head] if decay.size else zero + 1
            mu_t[:] = 0
            if dwrites.size:
                mu_t[:] = dwrites[b, t, head]
            for i in range(d_key):
                row, k_i, q_i = total[i], k[b, t, head, i], q[b, t, head, i]
                if do.size:
                    do_t, state = do[b, t, head], states[b, t, head, i]
                    read = zero
                    for j in range(d_value):
                        row[j] += q_i * do_t[j]
                        read += state[j] * do_t[j]
                    dq[b, t, head, i] = read
                if dstates.size:
                    d = dstates[b, t, head, i]
                    for j in range(d_value):
                        row[j] += d[j]
                if lam_total.size:
                    lam_total[b, t, head, i] = row
                if s_stop:
                    row[:] = 0
                elif s_cut.size:
                    cut = s_cut[b, t, head, i]
                    for j in range(d_value):
                        row[j] = zero if cut[j] else row[j]
                written = zero
                for j in range(d_value):
                    mu_t[j] += k_i * row[j]
                    written += row[j] * w[j]
                dk[b, t, head, i] = written
            for j in range(d_value):
                mu[j] = mu_t[j]
            if w_stop:
                mu[:] = 0
            elif w_cut.size:
                cut = w_cut[b, t, head]
                for j in range(d_value):
                    mu[j] = zero if cut[j] else mu[j]
            beta_t, corrected = beta[b, t, head], zero
            for j in range(d_value):
                dv_t[j] = beta_t * mu[j]
                corrected += mu[j] * error[j]
            dbeta[b, t, head] = corrected
            kept = zero
            for i in range(d_key):
                row, earlier, k_i = total[i], before[i], k[b, t, head, i]
                taken = zero
                for j in range(d_value):
                    left = row[j] - k_i * dv_t[j]
                    taken += earlier[j] * dv_t[j]
                    kept += left * earlier[j]
                    row[j] = a * left
                dk[b, t, head, i] -= a * taken
            if decay.size:
                ddecay[b, t, head] = kept
