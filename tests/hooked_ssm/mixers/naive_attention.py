"""Causal softmax attention, one position and one head at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from hooked_ssm.mixers import Attention


def attention(
    mixer: Attention, u: Tensor, set_state: Callable[[int, Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out"."""
    assert set_state is None, "attention has no recurrent state"
    batch, length, _ = u.shape
    heads, _, d_head = mixer.W_Q.shape

    def project(W: Tensor, b: Tensor | None) -> Tensor:
        per_head = [u @ W[head] + (0 if b is None else b[head]) for head in range(heads)]
        return torch.stack(per_head, dim=2)

    q, k, v = project(mixer.W_Q, mixer.b_Q), project(mixer.W_K, mixer.b_K), project(mixer.W_V, mixer.b_V)
    scores = u.new_full((batch, heads, length, length), -torch.inf)
    pattern = u.new_zeros(batch, heads, length, length)
    read = []
    for i in range(length):
        for head in range(heads):
            to_past = torch.stack([(q[:, i, head] * k[:, j, head]).sum(-1) for j in range(i + 1)], dim=-1)
            weights = torch.exp(to_past / d_head**0.5)
            weights = weights / weights.sum(-1, keepdim=True)
            read.append(sum(weights[:, j, None] * v[:, j, head] for j in range(i + 1)))
            scores[:, head, i, : i + 1] = to_past.detach() / d_head**0.5
            pattern[:, head, i, : i + 1] = weights.detach()
    z = torch.stack(read, dim=1).unflatten(1, (length, heads))
    result = torch.stack([z[:, :, head] @ mixer.W_O[head] for head in range(heads)], dim=2)
    return {
        "hook_q": q,
        "hook_k": k,
        "hook_v": v,
        "hook_attn_scores": scores,
        "hook_pattern": pattern,
        "hook_z": z,
        "hook_result": result,
        "out": result.sum(2) + mixer.b_O,
    }
