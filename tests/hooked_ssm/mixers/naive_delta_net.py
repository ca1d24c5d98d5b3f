"""DeltaNet and Gated DeltaNet, one position at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import DeltaNet, DeltaNetConfig, GatedDeltaNet, GatedDeltaNetConfig

from .case import TRANSFORMER, Case

Edit = Callable[[str, int, Tensor], Tensor]


def delta_net(
    mixer: DeltaNet | GatedDeltaNet, u: Tensor, edit: Edit = lambda name, t, value: value
) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position t.
    """
    batch, length, _ = u.shape
    heads, d_key, d_value = mixer.cfg.n_heads, mixer.d_key, mixer.d_value
    options = mixer.mixer_cfg
    W_O = mixer.o_proj.weight.reshape(-1, heads, d_value)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    conv_in = []
    S = u.new_zeros(batch, heads, d_key, d_value)
    for t in range(length):
        x = u[:, t]
        parts = []
        for letter, width in (("q", d_key), ("k", d_key), ("v", d_value)):
            W = getattr(mixer, f"{letter}_proj").weight
            parts.append(note(f"hook_{letter}_pre", t, (x @ W.T).reshape(batch, heads, width)))
        c = torch.cat([part.flatten(1) for part in parts], dim=1)
        if mixer.conv1d is not None:
            width = mixer.conv1d.d_conv
            conv_in.append(note("hook_conv_in", t, c))
            taps = []
            for tau in range(width):
                before = conv_in[t - tau] if tau <= t else torch.zeros_like(c)
                taps.append(mixer.conv1d.weight[:, 0, width - 1 - tau] * before)
            taps = note("hook_conv_taps", t, torch.stack(taps, dim=1))
            c = note("hook_conv", t, taps.sum(1))
        c = silu(c)
        q = c[:, : heads * d_key].reshape(batch, heads, d_key)
        k = c[:, heads * d_key : 2 * heads * d_key].reshape(batch, heads, d_key)
        q = note("hook_q", t, q / torch.sqrt((q * q).sum(-1, keepdim=True) + 1e-6))
        k = note("hook_k", t, k / torch.sqrt((k * k).sum(-1, keepdim=True) + 1e-6))
        v = note("hook_v", t, c[:, 2 * heads * d_key :].reshape(batch, heads, d_value))

        beta = u.new_ones(batch, heads)
        if options.use_beta:
            beta = 1 / (1 + torch.exp(-(x @ mixer.b_proj.weight.T)))
            beta = note("hook_beta", t, 2 * beta if options.allow_neg_eigval else beta)
        a = u.new_ones(batch, heads)
        if isinstance(mixer, GatedDeltaNet):
            dt = torch.log1p(torch.exp(x @ mixer.a_proj.weight.T + mixer.dt_bias))
            a = note("hook_ssm_decay", t, torch.exp(-torch.exp(mixer.A_log) * dt))
        kept = a[:, :, None, None] * S
        recalled = torch.einsum("bhkv,bhk->bhv", kept, k)
        w = note("hook_ssm_write", t, beta[:, :, None] * (v - recalled))
        S = note("hook_ssm_state", t, kept + torch.einsum("bhk,bhv->bhkv", k, w))
        y = torch.einsum("bhkv,bhk->bhv", S, q) / d_key**0.5

        found.setdefault("a", []).append(a)
        found.setdefault("beta", []).append(beta)
        row = pattern_row(q / d_key**0.5, found["hook_k"], found["beta"], found["a"], length)
        change = note("hook_pattern", t, row) - row
        y = note("hook_y", t, y + sum(change[:, :, j, None] * found["hook_v"][j] for j in range(t + 1)))

        scale = note("hook_norm_scale", t, torch.sqrt((y * y).mean(-1, keepdim=True) + mixer.norm.eps))
        z = note("hook_normalized", t, y / scale * mixer.norm.w)
        if options.use_gate:
            z = z * silu(note("hook_gate", t, (x @ mixer.g_proj.weight.T).reshape(batch, heads, d_value)))
        z = note("hook_z", t, z)
        result = note("hook_result", t, torch.stack([z[:, h] @ W_O[:, h].T for h in range(heads)], dim=1))
        note("out", t, result.sum(1))
    return {
        name: torch.stack(each, dim=2 if name == "hook_pattern" else 1)
        for name, each in found.items()
        if name not in ("a", "beta")
    }


def pattern_row(q: Tensor, k: list[Tensor], beta: list[Tensor], a: list[Tensor], length: int) -> Tensor:
    """M_ij = q_i^T A_i ... A_{j+1} beta_j k_j with A_l = a_l (1 - beta_l k_l k_l^T), [batch, head, src]."""
    row = [torch.zeros_like(q[..., 0])] * (length - len(k))
    reader = q
    for k_j, beta_j, a_j in zip(reversed(k), reversed(beta), reversed(a), strict=True):
        entry = beta_j * (reader * k_j).sum(-1)
        row.insert(0, entry)
        reader = a_j[:, :, None] * (reader - entry[:, :, None] * k_j)
    return torch.stack(row, dim=-1)


def delta_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("bhij,bjhd->bihd", matrix, cache["hook_v"]), cache["hook_y"]


def delta_case(name: str, mixer: DeltaNetConfig | GatedDeltaNetConfig, **options: Any) -> Case:
    return Case(
        name=name,
        mixer=mixer,
        naive=delta_net,
        read=delta_read,
        # With a small eps the norm would divide out how far a lone position's q and k agree.
        options=TRANSFORMER | {"eps": 0.1} | options,
        carried=frozenset({"hook_ssm_state", "hook_ssm_write"}),
    )


CASES = [
    delta_case("delta-net", DeltaNetConfig()),
    delta_case("delta-net-gate", DeltaNetConfig(use_gate=True, expand_k=0.5, d_conv=2), n_heads=2),
    delta_case(
        "delta-net-reflecting", DeltaNetConfig(allow_neg_eigval=True, d_conv=0, expand_v=1.5), n_heads=2
    ),
    delta_case(
        "delta-net-beta-one", DeltaNetConfig(use_beta=False, d_conv=1), n_heads=2, d_head=3, d_mlp=None
    ),
    delta_case("gated-delta-net", GatedDeltaNetConfig()),
    delta_case(
        "gated-delta-net-heads",
        GatedDeltaNetConfig(use_gate=False, expand_v=1.0, allow_neg_eigval=True, d_conv=0),
        n_heads=4,
    ),
]
