"""Mamba, one position at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import Mamba, MambaConfig

from .case import NO_MLP, Case

Edit = Callable[[str, int, Tensor], Tensor]


def mamba(mixer: Mamba, u: Tensor, edit: Edit = lambda name, t, value: value) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position t.
    """
    batch, length, _ = u.shape
    e, n = mixer.A_log.shape
    rank, heads = mixer.dt_rank, mixer.cfg.n_heads
    A = -torch.exp(mixer.A_log)
    W_O = mixer.out_proj.weight.reshape(-1, heads, e // heads)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    def per_channel(by_head: Tensor) -> Tensor:
        return torch.stack([by_head[:, channel // (e // heads)] for channel in range(e)], dim=1)

    conv_in = []
    h = u.new_zeros(batch, e, n)
    for t in range(length):
        gate = note("hook_gate", t, u[:, t] @ mixer.in_proj.weight[e:].T)
        c = u[:, t] @ mixer.in_proj.weight[:e].T
        if mixer.conv1d is not None:
            width = mixer.conv1d.d_conv
            conv_in.append(note("hook_conv_in", t, c))
            taps = []
            for tau in range(width):
                before = conv_in[t - tau] if tau <= t else torch.zeros_like(c)
                taps.append(mixer.conv1d.weight[:, 0, width - 1 - tau] * before)
            taps = note("hook_conv_taps", t, torch.stack(taps, dim=1))
            c = note("hook_conv", t, taps.sum(1) + mixer.conv1d.bias)
        x = note("hook_x", t, c * torch.sigmoid(c))

        low = x @ mixer.x_proj.weight.T
        eps = mixer.mixer_cfg.inner_norm_eps
        if eps is not None:
            parts = low[:, :rank], low[:, rank : rank + n], low[:, rank + n :]
            low = torch.cat(
                [part / (part.square().mean(-1, keepdim=True) + eps).sqrt() for part in parts], -1
            )
        dt_before = low[:, :rank] @ mixer.dt_proj.weight.T + mixer.dt_proj.bias
        dt = note("hook_ssm_dt", t, torch.log1p(torch.exp(dt_before)))
        B = note("hook_ssm_B", t, low[:, rank : rank + n])
        C = note("hook_ssm_C", t, low[:, rank + n :])
        x = note("hook_v", t, x.reshape(batch, heads, -1)).reshape(batch, e)
        B = per_channel(note("hook_k", t, torch.stack([B] * heads, dim=1)))
        C = per_channel(note("hook_q", t, torch.stack([C] * heads, dim=1)))

        decay = note("hook_ssm_decay", t, torch.exp(dt[:, :, None] * A))
        write = note("hook_ssm_write", t, (dt * x)[:, :, None] * B)
        h = note("hook_ssm_state", t, decay * h + write)
        read = (h * C).sum(-1)
        if heads == e:
            now = {"dt": dt, "B": B, "C": C, "x": x}
            for name, value in now.items():
                found.setdefault(name, []).append(value)
            row = pattern_row(A, found, t, length)
            change = note("hook_pattern", t, row) - row
            read = read + sum(change[:, :, j] * found["x"][j] for j in range(t + 1))
        y = note("hook_y", t, read + mixer.D * x)

        z = note("hook_z", t, (y * gate * torch.sigmoid(gate)).reshape(batch, heads, -1))
        result = note("hook_result", t, torch.stack([z[:, i] @ W_O[:, i].T for i in range(heads)], dim=1))
        note("out", t, result.sum(1))
    by_position = {name: each for name, each in found.items() if name not in ("dt", "B", "C", "x")}
    return {
        name: torch.stack(each, dim=2 if name == "hook_pattern" else 1) for name, each in by_position.items()
    }


def pattern_row(A: Tensor, past: dict[str, list[Tensor]], i: int, length: int) -> Tensor:
    """M_ij = sum_n C_in exp(A_n sum_{l=j+1..i} dt_l) B_jn dt_j of row i, [batch, channel, src]."""
    row = []
    for j in range(length):
        if j > i:
            row.append(torch.zeros_like(past["x"][0]))
            continue
        kept = torch.exp(A * sum(past["dt"][j + 1 : i + 1], start=torch.zeros_like(past["x"][0]))[:, :, None])
        row.append((past["C"][i] * kept * past["B"][j]).sum(-1) * past["dt"][j])
    return torch.stack(row, dim=-1)


def mamba_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    by_matrix = torch.einsum("bcij,bjc->bic", matrix, cache["hook_x"])
    return by_matrix + mixer.D * cache["hook_x"], cache["hook_y"]


def mamba_case(
    name: str,
    *,
    n_heads: int = 1,
    expand: int = 2,
    d_conv: int = 4,
    inner_norm_eps: float | None = None,
    **options: Any,
) -> Case:
    mixer = MambaConfig(d_state=3, d_conv=d_conv, expand=expand, inner_norm_eps=inner_norm_eps)
    return Case(
        name=name, mixer=mixer, naive=mamba, read=mamba_read, options=NO_MLP | {"n_heads": n_heads} | options
    )


CASES = [
    mamba_case("mamba"),
    mamba_case("mamba-conv-three", d_conv=3, n_heads=2),
    mamba_case("mamba-conv-one", d_conv=1, d_mlp=12),
    mamba_case("mamba-no-conv", d_conv=0, n_heads=2),
    mamba_case("mamba-head-per-channel", expand=1, n_heads=8),
    mamba_case("mamba-inner-norms", inner_norm_eps=0.1, n_heads=2),
]
