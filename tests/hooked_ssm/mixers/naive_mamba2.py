"""Mamba-2, one position and one head at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import Mamba2, Mamba2Config

from .case import NO_MLP, Case

Edit = Callable[[str, int, Tensor], Tensor]


def mamba2(mixer: Mamba2, u: Tensor, edit: Edit = lambda name, t, value: value) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position t.
    """
    batch, length, _ = u.shape
    c, heads, e = mixer.mixer_cfg, mixer.cfg.n_heads, mixer.out_proj.weight.shape[1]
    n, groups, p = c.d_state, c.n_groups, e // heads
    group_of = [head * groups // heads for head in range(heads)]
    A = -torch.exp(mixer.A_log)
    D = mixer.D.reshape(heads, p) if c.D_has_hdim else torch.stack([mixer.D] * p, dim=1)
    W_O = mixer.out_proj.weight.reshape(-1, heads, p)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    def silu(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def normed(t: int, x: Tensor) -> Tensor:
        x = x.reshape(batch, groups, e // groups)
        scale = note("hook_norm_scale", t, torch.sqrt((x * x).mean(-1, keepdim=True) + mixer.cfg.eps))
        return note("hook_normalized", t, x / scale * mixer.norm.w).reshape(batch, e)

    S = u.new_zeros(batch, heads, n, p)
    for t in range(length):
        projected = u[:, t] @ mixer.in_proj.weight.T
        gate = note("hook_gate", t, projected[:, :e])
        xBC = projected[:, e : 2 * e + 2 * groups * n]
        if mixer.conv1d is not None:
            width = mixer.conv1d.d_conv
            before = found.get("hook_conv_in", [])
            seen = [*before, note("hook_conv_in", t, xBC)]
            taps = [
                mixer.conv1d.weight[:, 0, width - 1 - tau] * (seen[t - tau] if tau <= t else 0 * xBC)
                for tau in range(width)
            ]
            taps = note("hook_conv_taps", t, torch.stack(taps, dim=1))
            xBC = note("hook_conv", t, taps.sum(1) + mixer.conv1d.bias)
        xBC = silu(xBC)
        x = note("hook_x", t, xBC[:, :e])
        B = note("hook_ssm_B", t, xBC[:, e : e + groups * n].reshape(batch, groups, n))
        C = note("hook_ssm_C", t, xBC[:, e + groups * n :].reshape(batch, groups, n))
        dt_low = projected[:, 2 * e + 2 * groups * n :]
        dt = note("hook_ssm_dt", t, torch.log1p(torch.exp(dt_low + mixer.dt_bias)))

        v = note("hook_v", t, x.reshape(batch, heads, p))
        k = note("hook_k", t, torch.stack([B[:, group] for group in group_of], dim=1))
        q = note("hook_q", t, torch.stack([C[:, group] for group in group_of], dim=1))
        decay = note("hook_ssm_decay", t, torch.exp(dt * A))
        write = note("hook_ssm_write", t, k[:, :, :, None] * (dt[:, :, None] * v)[:, :, None, :])
        S = note("hook_ssm_state", t, decay[:, :, None, None] * S + write)
        read = (S * q[:, :, :, None]).sum(2)

        found.setdefault("dt", []).append(dt)
        row = pattern_row(A, found, t, length)
        change = note("hook_pattern", t, row) - row
        read = read + sum(change[:, :, j, None] * found["hook_v"][j] for j in range(t + 1))
        y = note("hook_y", t, (read + D * v).reshape(batch, e))

        z = normed(t, y) * silu(gate) if c.norm_before_gate else normed(t, y * silu(gate))
        z = note("hook_z", t, z.reshape(batch, heads, p))
        result = note("hook_result", t, torch.stack([z[:, h] @ W_O[:, h].T for h in range(heads)], dim=1))
        note("out", t, result.sum(1))
    del found["dt"]
    return {name: torch.stack(each, dim=2 if name == "hook_pattern" else 1) for name, each in found.items()}


def pattern_row(A: Tensor, past: dict[str, list[Tensor]], i: int, length: int) -> Tensor:
    """M_ij = q_i . k_j exp(A sum_{l=j+1..i} dt_l) dt_j of row i, [batch, head, src]."""
    q, k, dt = past["hook_q"], past["hook_k"], past["dt"]
    row = []
    for j in range(length):
        if j > i:
            row.append(torch.zeros_like(dt[0]))
            continue
        kept = torch.exp(A * sum(dt[j + 1 : i + 1], start=torch.zeros_like(dt[0])))
        row.append((q[i] * k[j]).sum(-1) * kept * dt[j])
    return torch.stack(row, dim=-1)


def mamba2_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    x = cache["hook_x"].reshape(*cache["hook_v"].shape)
    by_matrix = torch.einsum("bhij,bjhd->bihd", matrix, x)
    heads = x.shape[2]
    return by_matrix + mixer.D.reshape(heads, -1) * x, cache["hook_y"].reshape(*x.shape)


def mamba2_case(name: str, *, n_heads: int = 1, d_mlp: int | None = None, **mixer: Any) -> Case:
    return Case(
        name=name,
        mixer=Mamba2Config(**({"d_state": 3} | mixer)),
        naive=mamba2,
        read=mamba2_read,
        options=NO_MLP | {"n_heads": n_heads, "d_mlp": d_mlp},
    )


# With one D a head and one head a group, the norm undoes what D does at the first position.
CASES = [
    mamba2_case("mamba2", D_has_hdim=True),
    mamba2_case("mamba2-heads", n_heads=4, d_state=5),
    mamba2_case("mamba2-groups", n_heads=4, n_groups=2, d_conv=3),
    mamba2_case("mamba2-group-per-head", n_heads=2, n_groups=2, d_mlp=12, D_has_hdim=True),
    mamba2_case("mamba2-no-conv", n_heads=2, d_conv=0),
    mamba2_case("mamba2-norm-before-gate", n_heads=2, d_conv=1, norm_before_gate=True),
]
