"""Hyena, one position at a time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import Hyena, HyenaConfig

from .case import TRANSFORMER, Case

Edit = Callable[[str, int, Tensor], Tensor]


def hyena(mixer: Hyena, u: Tensor, edit: Edit = lambda name, t, value: value) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position (or lag) t.
    """
    batch, length, d = u.shape
    heads, width = mixer.cfg.n_heads, mixer.short_conv.d_conv
    W, b = mixer.in_proj.weight, mixer.in_proj.bias
    W_O = mixer.out_proj.weight.reshape(d, heads, d // heads)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    before: list[Tensor] = []
    K: list[Tensor] = []
    kvs: list[Tensor] = []
    for t in range(length):
        pre = []
        for part, letter in enumerate("kqv"):
            rows = slice(part * d, (part + 1) * d)
            pre.append(note(f"hook_{letter}_pre", t, u[:, t] @ W[rows].T + b[rows]))
        before.append(note("hook_conv_in", t, torch.cat(pre, dim=1)))
        taps = []
        for tau in range(width):
            x = before[t - tau] if tau <= t else torch.zeros_like(before[t])
            taps.append(mixer.short_conv.weight[:, 0, width - 1 - tau] * x)
        taps = note("hook_conv_taps", t, torch.stack(taps, dim=1))
        c = note("hook_conv", t, taps.sum(1) + mixer.short_conv.bias)
        by_head = c.reshape(batch, 3, heads, d // heads)
        k, q, v = (note(f"hook_{letter}", t, by_head[:, i]) for i, letter in enumerate("kqv"))

        kvs.append(note("hook_kv", t, (k * v).reshape(batch, d)))
        K.append(note("hook_filter", t, filter_at(mixer, t).expand(batch, -1)))
        y = note("hook_long_conv", t, sum(K[t - j] * kvs[j] for j in range(t + 1)))
        y = note("hook_y", t, y if mixer.D is None else y + mixer.D * kvs[t])
        z = note("hook_z", t, q * y.reshape(batch, heads, -1))
        result = note("hook_result", t, torch.stack([z[:, i] @ W_O[:, i].T for i in range(heads)], dim=1))
        note("out", t, result.sum(1) + mixer.out_proj.bias)
    return {name: torch.stack(each, dim=1) for name, each in found.items()}


def filter_at(mixer: Hyena, t: int) -> Tensor:
    cfg, n, d = mixer.mixer_cfg, mixer.cfg.n_ctx, mixer.cfg.d_model
    x = mixer.filter.positions.z[t]
    for layer in mixer.filter.layers:
        x = torch.sin(mixer.filter.freq * (layer.weight @ x + layer.bias))
    slow, fast = (-math.log(cfg.decay_target) / each for each in (cfg.slow_decay, cfg.fast_decay))
    # The window as the model has it, in float32's rates and times.
    rates = torch.linspace(slow, fast, d).double()
    return (mixer.filter.out.weight @ x) * torch.exp(-rates * torch.linspace(0, 1, n).double()[t])


def hyena_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("bcij,bjc->bic", matrix, cache["hook_v"].flatten(2)), cache["hook_z"].flatten(2)


def hyena_case(name: str, *, n_heads: int = 1, **options: Any) -> Case:
    return Case(
        name=name,
        mixer=HyenaConfig(filter_width=6, **options),
        naive=hyena,
        read=hyena_read,
        options=TRANSFORMER | {"n_heads": n_heads},
    )


CASES = [
    hyena_case("hyena"),
    hyena_case("hyena-no-skip-heads", skip=False, n_heads=2, filter_std=0.02, filter_layers=1),
    hyena_case("hyena-fixed-lags", train_positions=False, n_heads=8, d_conv=1, d_pos=5, frequency=2.0),
]
