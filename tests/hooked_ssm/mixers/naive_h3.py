"""H3, one position at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.mixers import H3, H3Config

from .case import Case

Edit = Callable[[str, int, Tensor], Tensor]


def h3(mixer: H3, u: Tensor, edit: Edit = lambda name, t, value: value) -> dict[str, Tensor]:
    """Every quantity that the mixer has a hook for, by the hook's name, and its output, "out".

    `edit(name, t, value)` gives what is computed with instead of a quantity's value at position, or lag, t.
    """
    batch, length, _ = u.shape
    heads, width = mixer.cfg.n_heads, mixer.cfg.d_head
    N = mixer.d_state
    W_O = mixer.output_linear.weight
    if mixer.mixer_cfg.output_order == "head d_head":
        W_O = torch.stack([W_O[:, i * width : (i + 1) * width] for i in range(heads)])
    else:
        W_O = torch.stack([W_O[:, i::heads] for i in range(heads)])
    found: dict[str, list[Tensor]] = {}

    def note(name: str, t: int, value: Tensor) -> Tensor:
        value = edit(name, t, value)
        found.setdefault(name, []).append(value)
        return value

    def note_complex(name: str, t: int, value: Tensor) -> Tensor:
        parts = note(name, t, torch.stack([value.real, value.imag], dim=-1))
        return torch.complex(parts[..., 0], parts[..., 1])

    # The continuous system, and one step of the bilinear rule: (1 - dt A / 2) h' = (1 + dt A / 2) h + dt B x.
    kernel = mixer.kernel
    A = torch.complex(-kernel.inv_A_real.exp(), kernel.A_imag)
    B, C = (torch.complex(pair[..., 0], pair[..., 1]) for pair in (kernel.B, kernel.C[0]))
    dt = kernel.log_dt.exp()[:, None]
    decay_of_all, B = (1 + dt * A / 2) / (1 - dt * A / 2), dt * B / (1 - dt * A / 2)

    shift_B, shift_C = mixer.ssm_k_kernel.B, mixer.ssm_k_kernel.C[0]
    kappas, Ks, K_edits = [], [], []
    for lag in range(length):
        kappa = torch.zeros_like(mixer.ssm_k_D)
        for n in range(N - lag):
            kappa = kappa + shift_B[:, n] * shift_C[:, n + lag]
        if lag == 0:
            kappa = kappa + mixer.ssm_k_D
        kappas.append(note("hook_conv_filter", lag, kappa.expand(batch, -1)))
        K = 2 * (C * decay_of_all**lag * B).sum(-1).real
        K = (K + mixer.D if lag == 0 else K).expand(batch, -1)
        Ks.append(note("hook_filter", lag, K))
        K_edits.append(Ks[-1] - K)

    past: dict[str, list[Tensor]] = {"k in": [], "k": [], "v": [], "kv": []}
    h = u.new_zeros(batch, heads, width, width, N // 2) + 0j
    for t in range(length):
        q, k, v = (u[:, t] @ each.weight.T + each.bias for each in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        past["k in"].append(note("hook_conv_in", t, k))
        reached = [
            kappas[lag] * past["k in"][t - lag] if lag <= t else torch.zeros_like(k) for lag in range(length)
        ]
        taps = note("hook_conv_taps", t, torch.stack(reached[:N], dim=1))
        # Beyond d_state a filter is 0, unless it was edited.
        k = note("hook_conv", t, taps.sum(1) + sum(reached[N:], start=torch.zeros_like(k)))
        q, k, v = (
            note(name, t, x.reshape(batch, heads, width))
            for name, x in (("hook_q", q), ("hook_k", k), ("hook_v", v))
        )
        kv = note("hook_kv", t, k[:, :, :, None] * v[:, :, None, :])
        for name, x in (("k", k), ("v", v), ("kv", kv)):
            past[name].append(x)

        decay = note_complex("hook_ssm_decay", t, decay_of_all.expand(batch, -1, -1))
        write = note_complex("hook_ssm_write", t, B[:, None, None] * kv[..., None])
        h = note_complex("hook_ssm_state", t, decay[:, :, None, None] * h + write)
        y = 2 * (C[:, None, None] * h).sum(-1).real + mixer.D[:, None, None] * kv
        y = y + sum(K_edits[lag][:, :, None, None] * past["kv"][t - lag] for lag in range(t + 1))
        y = note("hook_long_conv", t, y)
        z = (q[:, :, :, None] * y).sum(2)

        row = [
            Ks[t - j] * (q * past["k"][j]).sum(-1) if j <= t else torch.zeros_like(Ks[0])
            for j in range(length)
        ]
        row = torch.stack(row, dim=-1)
        change = note("hook_pattern", t, row) - row
        z = z + sum(change[:, :, j, None] * past["v"][j] for j in range(t + 1))
        z = note("hook_z", t, z)
        result = note("hook_result", t, torch.stack([z[:, i] @ W_O[i].T for i in range(heads)], dim=1))
        note("out", t, result.sum(1) + mixer.output_linear.bias)
    return {name: torch.stack(each, dim=2 if name == "hook_pattern" else 1) for name, each in found.items()}


def h3_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("bhij,bjhd->bihd", matrix, cache["hook_v"]), cache["hook_z"]


def h3_case(name: str, *, n_heads: int, d_state: int, d_head: int = -1, d_mlp: int | None = None, **config):
    return Case(
        name=name,
        mixer=H3Config(d_state=d_state, **config),
        naive=h3,
        read=h3_read,
        options={"n_heads": n_heads, "d_head": d_head, "d_mlp": d_mlp},
    )


CASES = [
    h3_case("h3", n_heads=8, d_state=4),
    h3_case("h3-pairs", n_heads=4, d_state=12, output_order="d_head head", d_mlp=12),
    h3_case("h3-one-head", n_heads=1, d_state=2),
    h3_case("h3-narrow", n_heads=2, d_head=3, d_state=10, output_order="d_head head"),
]
