"""Based, one position and one head at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import Based, BasedConfig

from .case import TRANSFORMER, Case

Edit = Callable[[str, int, Tensor], Tensor]


def phi(x: Tensor) -> Tensor:
    """1, the entries of x / f^(1/4), and all products of two of them / sqrt(2), [batch, head, feature]."""
    entries = [x[..., i] / x.shape[-1] ** 0.25 for i in range(x.shape[-1])]
    products = [one * other / 2**0.5 for one in entries for other in entries]
    return torch.stack([torch.ones_like(entries[0]), *entries, *products], dim=-1)


def based(mixer: Based, u: Tensor, edit: Edit = lambda name, t, value: value) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position t.
    """
    batch, length, _ = u.shape
    heads, f, d_head = mixer.cfg.n_heads, mixer.mixer_cfg.feature_dim, mixer.cfg.d_head
    W_O = mixer.proj_o.weight.reshape(-1, heads, d_head)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    S = u.new_zeros(batch, heads, 1 + f + f * f, d_head)
    z = u.new_zeros(batch, heads, 1 + f + f * f)
    for t in range(length):
        x = u[:, t]
        q = note("hook_q", t, (x @ mixer.proj_q.weight.T).reshape(batch, heads, f))
        k = note("hook_k", t, (x @ mixer.proj_k.weight.T).reshape(batch, heads, f))
        v = note("hook_v", t, (x @ mixer.proj_v.weight.T).reshape(batch, heads, d_head))
        q_features = note("hook_q_features", t, phi(q))
        k_features = note("hook_k_features", t, phi(k))
        S = note("hook_ssm_state", t, S + note("hook_ssm_write", t, k_features[..., None] * v[:, :, None]))
        z = note("hook_ssm_norm_state", t, z + k_features)
        normalizer = note("hook_normalizer", t, (z * q_features).sum(-1))
        y = note("hook_y", t, (S * q_features[..., None]).sum(2))

        past = [(phi(q) * phi(k_j)).sum(-1) / normalizer for k_j in found["hook_k"]]
        row = torch.stack(past + [torch.zeros_like(normalizer)] * (length - len(past)), dim=-1)
        change = note("hook_pattern", t, row) - row
        out = y / normalizer[..., None] + sum(
            change[:, :, j, None] * found["hook_v"][j] for j in range(t + 1)
        )
        out = note("hook_z", t, out)
        result = note("hook_result", t, torch.stack([out[:, h] @ W_O[:, h].T for h in range(heads)], dim=1))
        note("out", t, result.sum(1))
    return {name: torch.stack(each, dim=2 if name == "hook_pattern" else 1) for name, each in found.items()}


def based_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("bhij,bjhd->bihd", matrix, cache["hook_v"]), cache["hook_z"]


def based_case(name: str, *, feature_dim: int = 3, **options: Any) -> Case:
    return Case(
        name=name,
        mixer=BasedConfig(feature_dim=feature_dim),
        naive=based,
        read=based_read,
        options=TRANSFORMER | options,
        carried=frozenset({"hook_ssm_state", "hook_ssm_norm_state"}),
    )


CASES = [
    based_case("based"),
    based_case("based-heads", feature_dim=2, n_heads=2),
    based_case("based-one-feature", feature_dim=1, n_heads=2, d_head=3, d_mlp=None),
]
