"""Mamba, one position at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from hooked_ssm.mixers import Mamba


def mamba(
    mixer: Mamba, u: Tensor, set_state: Callable[[int, Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `set_state(t, h)` is handed the state that the recurrence has reached at position t, and returns the state
    that is there instead.
    """
    batch, length, _ = u.shape
    e, n = mixer.A_log.shape
    rank = mixer.dt_rank
    heads = mixer.cfg.n_heads
    A = -torch.exp(mixer.A_log)
    d_conv = 0 if mixer.conv1d is None else mixer.conv1d.d_conv

    x_in = u @ mixer.in_proj.weight[:e].T
    gate = u @ mixer.in_proj.weight[e:].T
    h = u.new_zeros(batch, e, n)
    found: dict[str, list[Tensor]] = {}
    for t in range(length):
        now = {"hook_gate": gate[:, t]}
        c = x_in[:, t]
        if mixer.conv1d is not None:
            now["hook_conv_in"] = c
            taps = []
            for tau in range(d_conv):
                before = x_in[:, t - tau] if tau <= t else torch.zeros_like(c)
                taps.append(mixer.conv1d.weight[:, 0, d_conv - 1 - tau] * before)
            now["hook_conv_taps"] = torch.stack(taps, dim=1)
            c = mixer.conv1d.bias + sum(taps)
            now["hook_conv"] = c
        x = c * torch.sigmoid(c)
        low = x @ mixer.x_proj.weight.T
        dt = torch.log1p(torch.exp(low[:, :rank] @ mixer.dt_proj.weight.T + mixer.dt_proj.bias))
        B, C = low[:, rank : rank + n], low[:, rank + n :]
        decay = torch.exp(dt[:, :, None] * A)
        write = (dt * x)[:, :, None] * B[:, None, :]
        h = decay * h + write
        if set_state is not None:
            h = set_state(t, h)
        y = (h * C[:, None, :]).sum(-1) + mixer.D * x
        z = (y * gate[:, t] * torch.sigmoid(gate[:, t])).reshape(batch, heads, -1)
        W_O = mixer.out_proj.weight.reshape(-1, heads, e // heads)
        result = torch.stack([z[:, i] @ W_O[:, i].T for i in range(heads)], dim=1)
        now |= {
            "hook_x": x,
            "hook_ssm_dt": dt,
            "hook_ssm_B": B,
            "hook_ssm_C": C,
            "hook_ssm_decay": decay,
            "hook_ssm_write": write,
            "hook_ssm_state": h,
            "hook_q": torch.stack([C] * heads, dim=1),
            "hook_k": torch.stack([B] * heads, dim=1),
            "hook_v": x.reshape(batch, heads, -1),
            "hook_y": y,
            "hook_z": z,
            "hook_result": result,
            "out": z.reshape(batch, e) @ mixer.out_proj.weight.T,
        }
        for name, value in now.items():
            found.setdefault(name, []).append(value)
    stacked = {name: torch.stack(values, dim=1) for name, values in found.items()}
    if heads == e:
        stacked["hook_pattern"] = pattern(stacked["hook_ssm_dt"], A, stacked["hook_ssm_B"], stacked["hook_ssm_C"])
    return stacked


def pattern(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """M_ij = sum_n C_in exp(A_n sum_{l=j+1..i} dt_l) B_jn dt_j for every channel: [batch, channel, dest, src]."""
    batch, length, e = dt.shape
    M = dt.new_zeros(batch, e, length, length)
    for i in range(length):
        for j in range(i + 1):
            kept = torch.exp(A * dt[:, j + 1 : i + 1].sum(1)[:, :, None])
            M[:, :, i, j] = (C[:, None, i] * kept * B[:, None, j]).sum(-1) * dt[:, j]
    return M
