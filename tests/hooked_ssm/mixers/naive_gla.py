"""Gated linear attention, one position and one head at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import GLA, GLAConfig

from .case import TRANSFORMER, Case

Edit = Callable[[str, int, Tensor], Tensor]


def gla(mixer: GLA, u: Tensor, edit: Edit = lambda name, t, value: value) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position t.
    """
    batch, length, _ = u.shape
    heads, d_key, d_value = mixer.cfg.n_heads, mixer.d_key, mixer.d_value
    W_O = mixer.o_proj.weight.reshape(-1, heads, d_value)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    S = u.new_zeros(batch, heads, d_key, d_value)
    for t in range(length):
        x = u[:, t]
        q = note("hook_q", t, (x @ mixer.q_proj.weight.T).reshape(batch, heads, d_key))
        k = note("hook_k", t, (x @ mixer.k_proj.weight.T).reshape(batch, heads, d_key))
        v = note("hook_v", t, (x @ mixer.v_proj.weight.T).reshape(batch, heads, d_value))
        logit = (x @ mixer.gk_low.weight.T) @ mixer.gk_proj.weight.T + mixer.gk_proj.bias
        root = 1 / mixer.mixer_cfg.gate_logit_normalizer
        decay = (1 / (1 + torch.exp(-logit))) ** root
        decay = note("hook_ssm_decay", t, decay.reshape(batch, heads, d_key))
        write = note("hook_ssm_write", t, torch.einsum("bhk,bhv->bhkv", k, v))
        S = note("hook_ssm_state", t, torch.einsum("bhk,bhkv->bhkv", decay, S) + write)
        y = torch.einsum("bhkv,bhk->bhv", S, q) / d_key**0.5
        row = pattern_row(q / d_key**0.5, found["hook_k"], found["hook_ssm_decay"], length)
        change = note("hook_pattern", t, row) - row
        y = y + sum(change[:, :, j, None] * found["hook_v"][j] for j in range(t + 1))
        y = note("hook_y", t, y)

        scale = note("hook_norm_scale", t, torch.sqrt((y * y).mean(-1, keepdim=True) + mixer.norm.eps))
        y = note("hook_normalized", t, y / scale * mixer.norm.w)
        gate = note("hook_gate", t, (x @ mixer.g_proj.weight.T).reshape(batch, heads, d_value))
        z = note("hook_z", t, y * gate / (1 + torch.exp(-gate)))
        result = note("hook_result", t, torch.stack([z[:, h] @ W_O[:, h].T for h in range(heads)], dim=1))
        note("out", t, result.sum(1))
    return {name: torch.stack(each, dim=2 if name == "hook_pattern" else 1) for name, each in found.items()}


def pattern_row(q: Tensor, k: list[Tensor], decay: list[Tensor], length: int) -> Tensor:
    """M_ij = sum_c q_ic (a_{j+1} ... a_i)_c k_jc of the last position so far, [batch, head, src]."""
    row = [torch.zeros_like(q[..., 0])] * (length - len(k))
    kept = torch.ones_like(q)
    for k_j, a_j in zip(reversed(k), reversed(decay), strict=True):
        row.insert(0, (q * kept * k_j).sum(-1))
        kept = kept * a_j
    return torch.stack(row, dim=-1)


def gla_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("bhij,bjhd->bihd", matrix, cache["hook_v"]), cache["hook_y"]


def gla_case(name: str, *, options: dict[str, Any] | None = None, **mixer: Any) -> Case:
    return Case(
        name=name,
        mixer=GLAConfig(**mixer),
        naive=gla,
        read=gla_read,
        # With a small eps the norm would divide out how far a lone position's q and k agree.
        options=TRANSFORMER | {"eps": 0.1} | (options or {}),
    )


CASES = [
    gla_case("gla"),
    gla_case("gla-heads", options={"n_heads": 2}, gate_low_rank=3, gate_logit_normalizer=0.5),
    gla_case("gla-wide", options={"n_heads": 2, "d_head": 3, "d_mlp": None}, expand_k=1.0, expand_v=2.0),
]
