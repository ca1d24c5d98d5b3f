"""Causal softmax attention, one position and one head at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import Attention, AttentionConfig

from .case import TRANSFORMER, Case

Edit = Callable[[str, int, Tensor], Tensor]


def attention(mixer: Attention, u: Tensor, edit: Edit = lambda name, t, value: value) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position t.
    """
    batch, length, _ = u.shape
    heads, _, d_head = mixer.W_Q.shape
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    def project(u_t: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        return torch.stack([u_t @ W[head] + (0 if b is None else b[head]) for head in range(heads)], dim=1)

    def rotated(x: Tensor, t: int) -> Tensor:
        """Pairs as complex numbers, each times e^(i theta)."""
        half, entries = mixer.rotary_dim // 2, list(x.unbind(-1))
        for j in range(half):
            theta = torch.tensor(t * mixer.rotary_base ** (-2 * j / mixer.rotary_dim), dtype=x.dtype)
            pair = torch.complex(entries[j], entries[j + half]) * torch.polar(torch.ones_like(theta), theta)
            entries[j], entries[j + half] = pair.real, pair.imag
        return torch.stack(entries, dim=-1)

    keys, values = [], []
    for t in range(length):
        q = note("hook_q", t, project(u[:, t], mixer.W_Q, mixer.b_Q))
        k = note("hook_k", t, project(u[:, t], mixer.W_K, mixer.b_K))
        if mixer.rotary_dim:
            q, k = note("hook_rot_q", t, rotated(q, t)), note("hook_rot_k", t, rotated(k, t))
        keys.append(k)
        values.append(note("hook_v", t, project(u[:, t], mixer.W_V, mixer.b_V)))
        to_past = [(q * k).sum(-1) / d_head**0.5 for k in keys]
        to_future = [u.new_full((batch, heads), -torch.inf)] * (length - len(keys))
        scores = note("hook_attn_scores", t, torch.stack(to_past + to_future, dim=-1))
        weights = torch.exp(scores)
        pattern = note("hook_pattern", t, weights / weights.sum(-1, keepdim=True))
        z = note("hook_z", t, sum(pattern[:, :, j, None] * values[j] for j in range(t + 1)))
        by_head = torch.stack([z[:, head] @ mixer.W_O[head] for head in range(heads)], dim=1)
        result = note("hook_result", t, by_head)
        note("out", t, result.sum(1) + mixer.b_O)
    matrices = ("hook_attn_scores", "hook_pattern")
    return {name: torch.stack(each, dim=2 if name in matrices else 1) for name, each in found.items()}


def attention_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    by_pattern = torch.einsum("bhij,bjhd->bihd", matrix, cache["hook_v"])
    return by_pattern, cache["hook_z"]


def attention_case(
    name: str, *, bias: bool = False, rotary_dim: int = 0, rotary_base: float = 10_000.0, **options: Any
) -> Case:
    return Case(
        name=name,
        mixer=AttentionConfig(bias=bias, rotary_dim=rotary_dim, rotary_base=rotary_base),
        naive=attention,
        read=attention_read,
        options=TRANSFORMER | options,
        # One vector added to all keys adds q . b_K to all scores of a position: softmax does not see it.
        # Once rotated, it is another vector at every position.
        no_gradient=frozenset({"mixer.b_K"} if bias and not rotary_dim else ()),
    )


CASES = [
    attention_case("attention"),
    attention_case("attention-heads", n_heads=2),
    attention_case("attention-bias", n_heads=4, bias=True),
    # As in GPT-NeoX: a part of every head rotated, and the MLP beside the attention.
    attention_case(
        "attention-rotary",
        n_heads=2,
        bias=True,
        rotary_dim=2,
        rotary_base=10.0,
        positional_embedding_type="none",
        parallel_attn_mlp=True,
    ),
]
