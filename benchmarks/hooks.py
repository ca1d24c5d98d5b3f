"""What hooks cost: ours against TransformerLens's Mamba bridge, and against our own modules without hooks.

    python -m benchmarks.hooks

One thread, process CPU time, interleaved in one process, medians. The toy Mamba: d_model 64, 2 layers,
d_state 16, batch 32, 36 tokens.
"""

from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.timing import cpu_ms
from hooked_ssm import HookedSSM, zoo
from hooked_ssm.hooks import Hook

BATCH, LENGTH, D_MODEL, LAYERS = 32, 36, 64, 2


def bridge_of(d_vocab: int):
    """A TransformerLens bridge on a random Mamba, and the transformers model in it."""
    torch.manual_seed(0)
    config = MambaConfig(
        hidden_size=D_MODEL, num_hidden_layers=LAYERS, vocab_size=d_vocab, state_size=16, use_cache=False
    )
    theirs = MambaForCausalLM(config).eval()
    bridge = build_bridge_from_module(theirs, "MambaForCausalLM", hf_config=config)
    for block in bridge.blocks:
        block.mixer.eager_scan = True
    return bridge


def ours_of(d_vocab: int) -> HookedSSM:
    return HookedSSM(zoo.mamba(d_model=D_MODEL, n_layers=LAYERS, d_vocab=d_vocab, final_norm="RMS", seed=0))


def without_hooks(model: HookedSSM) -> HookedSSM:
    """The same modules with every hook point replaced by a plain function that returns its argument."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, Hook):
                del module._modules[name]
                object.__setattr__(module, name, Passing())
    return model


class Passing:
    """A plain callable in a hook point's place."""

    attached = False

    def __call__(self, x):
        return x

    def put_off(self, *_) -> bool:
        return True

    def change_of(self, *_) -> None:
        return None


def against_transformerlens(d_vocab: int, rounds: int = 15) -> list[tuple[str, str, str, str, str]]:
    """Rows of the table: what, d_vocab, our ms, TransformerLens's ms, their ratio."""
    bridge, ours = bridge_of(d_vocab), ours_of(d_vocab)
    tokens = torch.randint(d_vocab, (BATCH, LENGTH))
    with torch.no_grad():
        # Its state hooks fire on the eager scan alone, and that only without a generation cache.
        for cache in (bridge.run_with_cache(tokens, use_cache=False)[1], ours.run_with_cache(tokens)[1]):
            assert cache["blocks.0.mixer.hook_ssm_state"].numel() == BATCH * LENGTH * 2 * D_MODEL * 16
        medians = cpu_ms(
            {
                "ours forward": lambda: ours(tokens),
                "theirs forward": lambda: bridge(tokens, use_cache=False),
                "ours cached": lambda: ours.run_with_cache(tokens),
                "theirs cached": lambda: bridge.run_with_cache(tokens, use_cache=False),
                "ours, all read": lambda: dict(ours.run_with_cache(tokens)[1].items()),
                "ours without logits": lambda: ours.run_with_cache(tokens, return_type=None),
            },
            rounds=rounds,
        )

    def row(what: str, ours_ms: float, theirs_ms: float | None) -> tuple[str, str, str, str, str]:
        theirs, ratio = (
            ("-", "-") if theirs_ms is None else (f"{theirs_ms:.1f}", f"{theirs_ms / ours_ms:.1f}x")
        )
        return what, str(d_vocab), f"{ours_ms:.1f}", theirs, ratio

    return [
        row("forward", medians["ours forward"], medians["theirs forward"]),
        row("run_with_cache, every hook, states too", medians["ours cached"], medians["theirs cached"]),
        row("the same, and every activation read", medians["ours, all read"], medians["theirs cached"]),
        row("run_with_cache without logits", medians["ours without logits"], None),
    ]


def idle_hooks(rounds: int = 60) -> tuple[float, float]:
    """Milliseconds of a forward with hook points that nobody uses, and without hook points."""
    hooked, bare = ours_of(64), without_hooks(ours_of(64))
    tokens = torch.randint(64, (BATCH, LENGTH))
    with torch.no_grad():
        assert torch.equal(hooked(tokens), bare(tokens))
        medians = cpu_ms({"idle": lambda: hooked(tokens), "none": lambda: bare(tokens)}, rounds=rounds)
    return medians["idle"], medians["none"]


def main() -> None:
    torch.set_num_threads(1)
    console = Console()
    console.print(
        f"torch {torch.__version__}, transformers {version('transformers')}, "
        f"transformer-lens {version('transformer-lens')}; 1 thread, median CPU ms, interleaved"
    )
    table = Table("what", "d_vocab", "ours", "TransformerLens, eager scan", "ratio")
    for d_vocab in (8192, 64):
        for row in against_transformerlens(d_vocab):
            table.add_row(*row)
    console.print(table)
    idle, none = idle_hooks()
    console.print(
        f"forward, d_vocab 64: idle hooks {idle:.2f} ms, no hook points {none:.2f} ms, {idle / none - 1:+.1%}"
    )


if __name__ == "__main__":
    main()
