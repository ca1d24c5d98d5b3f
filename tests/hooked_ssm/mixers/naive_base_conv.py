"""BaseConv, one position at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import BaseConv, BaseConvConfig

from .case import TRANSFORMER, Case

Edit = Callable[[str, int, Tensor], Tensor]


def base_conv(mixer: BaseConv, u: Tensor, edit: Edit = lambda name, t, value: value) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position (or lag) t.
    """
    batch, length, d_model = u.shape
    heads = mixer.cfg.n_heads
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    xs: list[Tensor] = []
    K: list[Tensor] = []
    for t in range(length):
        gate = note("hook_gate", t, u[:, t] @ mixer.projection.weight.T + mixer.projection.bias)
        if mixer.short_conv is not None:
            width = mixer.short_conv.d_conv
            xs.append(note("hook_conv_in", t, u[:, t]))
            taps = []
            for tau in range(width):
                before = xs[t - tau] if tau <= t else torch.zeros_like(u[:, t])
                taps.append(mixer.short_conv.weight[:, 0, width - 1 - tau] * before)
            taps = note("hook_conv_taps", t, torch.stack(taps, dim=1))
            s = note("hook_conv", t, taps.sum(1) + mixer.short_conv.bias)
        else:
            xs.append(note("hook_x", t, u[:, t]))
            K.append(note("hook_filter", t, filter_at(mixer, t).expand(batch, -1)))
            s = note("hook_long_conv", t, sum(K[t - j] * xs[j] for j in range(t + 1))) + xs[t]
        y = note("hook_y", t, s)
        z = note("hook_z", t, (y * gate + u[:, t]).reshape(batch, heads, -1))
        result = u.new_zeros(batch, heads, d_model)
        for head, channels in enumerate(torch.arange(d_model).chunk(heads)):
            result[:, head, channels] = z[:, head]
        note("out", t, note("hook_result", t, result).sum(1))
    return {name: torch.stack(each, dim=1) for name, each in found.items()}


def filter_at(mixer: BaseConv, t: int) -> Tensor:
    hidden = mixer.filter.hidden.weight @ mixer.filter.positions.z[t] + mixer.filter.hidden.bias
    return mixer.filter.out.weight @ hidden.clamp(min=0) + mixer.filter.out.bias


def base_conv_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    short = mixer.short_conv
    values = cache["hook_x" if short is None else "hook_conv_in"]
    bias = 0 if short is None else cache["hook_gate"] * short.bias
    return torch.einsum("bcij,bjc->bic", matrix, values) + bias, cache["hook_z"].flatten(2)


def base_conv_case(name: str, *, n_heads: int = 1, **options: Any) -> Case:
    return Case(
        name=name,
        mixer=BaseConvConfig(**options),
        naive=base_conv,
        read=base_conv_read,
        options=TRANSFORMER | {"n_heads": n_heads},
    )


CASES = [
    base_conv_case("base-conv"),
    base_conv_case("base-conv-one-heads", d_conv=1, n_heads=4),
    base_conv_case("base-conv-long", d_conv=None),
    base_conv_case(
        "base-conv-long-trained-heads",
        d_conv=None,
        n_heads=2,
        d_pos=5,
        filter_width=7,
        train_positions=True,
        filter_std=0.02,
    ),
]
