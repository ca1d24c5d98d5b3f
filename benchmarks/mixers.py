"""Every mixer of the zoo, and the delta rule on its own, against peers that run on a CPU.

    python -m benchmarks.mixers

One thread, process CPU time, interleaved in one process, medians, float32. Two sizes of mixer, batch x
positions x d_model: the paper's, and a larger one. A peer has our weights' shapes, not our weights: what is
compared is time, agreement is the tests' business. Backward is that of all weights and the input.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.timing import cpu_ms
from hooked_ssm import HookedSSM, zoo
from hooked_ssm.ops import delta_rule

SIZES = [(32, 36, 64), (4, 256, 256)]
DELTA_SIZES = [(32, 36, 64), (32, 512, 64)]

Forward = Callable[[Tensor], Tensor]


def mamba_peers(d_model: int) -> dict[str, nn.Module]:
    from mambapy.mamba import MambaBlock
    from mambapy.mamba import MambaConfig as MambapyConfig
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    return {
        "transformers, slow path": MambaMixer(MambaConfig(hidden_size=d_model, use_cache=False), layer_idx=0),
        "mambapy": MambaBlock(MambapyConfig(d_model=d_model, n_layers=2)),
    }


def mamba2_peers(d_model: int) -> dict[str, nn.Module]:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    head_dim = min(64, 2 * d_model)
    cfg = Mamba2Config(
        hidden_size=d_model, head_dim=head_dim, num_heads=2 * d_model // head_dim, n_groups=1, use_cache=False
    )
    return {"transformers": Mamba2Mixer(cfg, layer_idx=0)}


class TorchAttention(nn.MultiheadAttention):
    """PyTorch's own attention, one causal head."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return super().forward(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]


def gated_delta_net_peers(d_model: int) -> dict[str, nn.Module]:
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    ours = zoo.gated_delta_net(d_model=d_model, d_vocab=2)
    cfg = Qwen3NextConfig(
        hidden_size=d_model,
        linear_num_key_heads=ours.n_heads,
        linear_num_value_heads=ours.n_heads,
        linear_key_head_dim=d_model // ours.n_heads,
        linear_value_head_dim=2 * d_model // ours.n_heads,
    )
    return {"transformers (Qwen3-Next)": Qwen3NextGatedDeltaNet(cfg, layer_idx=0)}


PEERS: dict[str, Callable[[int], dict[str, nn.Module]]] = {
    "attention": lambda d_model: {
        "torch.nn.MultiheadAttention": TorchAttention(d_model, 1, batch_first=True)
    },
    "mamba": mamba_peers,
    "mamba2": mamba2_peers,
    "gated_delta_net": gated_delta_net_peers,
}


def measure(
    ours: dict[str, Callable[[], Tensor]], weights: dict[str, list[Tensor]]
) -> dict[str, tuple[float, float]]:
    """CPU ms of forward, and of forward and backward, by implementation."""

    def train(name: str) -> None:
        out = ours[name]()
        torch.autograd.grad(out, weights[name], torch.ones_like(out), allow_unused=True)

    with torch.no_grad():
        forward = cpu_ms(ours)
    training = cpu_ms({name: partial(train, name) for name in ours})
    return {name: (forward[name], training[name]) for name in ours}


def mixer_rows(preset: str, batch: int, pos: int, d_model: int) -> list[list[str]]:
    model = HookedSSM(zoo.PRESETS[preset](d_model=d_model, d_vocab=2, seed=0))
    modules: dict[str, nn.Module] = {"ours": model.blocks[-1].mixer}
    if preset in PEERS:
        torch.manual_seed(0)
        modules |= PEERS[preset](d_model)
    u = torch.randn(batch, pos, d_model, generator=torch.Generator().manual_seed(0), requires_grad=True)
    medians = measure(
        {name: partial(module, u) for name, module in modules.items()},
        {name: [u, *module.parameters()] for name, module in modules.items()},
    )
    return rows(preset, f"{batch}x{pos}x{d_model}", medians)


def delta_rule_rows(batch: int, pos: int, d_head: int, *, gated: bool) -> list[list[str]]:
    """The delta rule as a function, as transformers has it too, always with a decay: 0 where we have none."""
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, pos, 1, d_head, generator=g) for _ in range(3))
    q, k = (nn.functional.normalize(x, dim=-1) for x in (q, k))
    beta, log_decay = torch.rand(batch, pos, 1, generator=g), -torch.rand(batch, pos, 1, generator=g)
    log_decay = log_decay if gated else torch.zeros_like(log_decay)
    inputs = [x.requires_grad_() for x in (q, k, v, beta, log_decay)]
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: delta_rule(d_head**-0.5 * q, k, v, beta, log_decay if gated else None)[0],
        "transformers, chunked": lambda: qwen.torch_chunk_gated_delta_rule(q, k, v, log_decay, beta)[0],
        "transformers, recurrent": lambda: qwen.torch_recurrent_gated_delta_rule(
            q, k, v, log_decay, beta, initial_state=None, output_final_state=False
        )[0],
    }
    if pos > 100:  # its backward takes time quadratic in the length
        del calls["transformers, recurrent"]
    with torch.no_grad():
        for name, call in calls.items():
            assert torch.allclose(call(), calls["ours"](), atol=1e-5), name
    medians = measure(calls, dict.fromkeys(calls, inputs))
    return rows(f"{'gated ' if gated else ''}delta rule alone", f"{batch}x{pos}x{d_head}", medians)


def rows(what: str, size: str, medians: dict[str, tuple[float, float]]) -> list[list[str]]:
    """One row a peer; one without if there is none."""
    mine = medians.pop("ours")
    own = [what, size, *(f"{ms:.2f}" for ms in mine)]
    if not medians:
        return [[*own, "-", "", "", "", ""]]
    return [
        [*own, peer, *(f"{ms:.2f}" for ms in theirs), *(f"{b / a:.1f}x" for a, b in zip(mine, theirs))]
        for peer, theirs in medians.items()
    ]


def main() -> None:
    torch.set_num_threads(1)
    console = Console(width=150)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "mambapy"))
    console.print(f"{packages}; 1 thread, median CPU ms, interleaved; ratio: the peer's time over ours")
    table = Table(
        "what", "batch x pos x d_model", "forward", "and backward", "peer", "forward", "and backward"
    )
    table.add_column("ratio")
    table.add_column("ratio")
    for preset in zoo.PRESETS:
        if preset != "hybrid":
            for size in SIZES:
                for row in mixer_rows(preset, *size):
                    table.add_row(*row)
    for gated in (False, True):
        for size in DELTA_SIZES:
            for row in delta_rule_rows(*size, gated=gated):
                table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
