"""A model of Mamba 130M's shape: ours against transformers and TransformerLens.

    python -m benchmarks.pretrained

Random weights, batch 1, 256 tokens. One thread, process CPU time, interleaved in one process, medians.
transformers runs without its CUDA kernels; TransformerLens on the eager scan, where alone it has states.
"All hooks" are more here: decays, and the taps of the convolution, are large. "States" are the same tensors.
Ours computes these when they are read; "all read" are rows in which all are, and are kept. TransformerLens's
cache, in all rows the same, holds them all.
Peak memory is of a process of its own, above what it held with the model in it (loading: before it).
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.timing import cpu_ms
from hooked_ssm import HookedSSM

LENGTH, D_VOCAB = 256, 50280
NEW = 8  # tokens a turn of generation
PROMPT, GENERATED = 16, 24  # tokens of a call of `generate`
MIB = 2**20


def random_checkpoint(folder: str) -> int:
    """Write random weights of the 130M shape; their size in bytes."""
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=768, num_hidden_layers=24, vocab_size=D_VOCAB)
    model = MambaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(p.nbytes for p in model.parameters())


def bridge_of(theirs: MambaForCausalLM):
    """A bridge on the model, whose states are hooked: that takes the eager scan, and no generation cache."""
    bridge = build_bridge_from_module(theirs, "MambaForCausalLM", hf_config=theirs.config)
    for block in bridge.blocks:
        block.mixer.eager_scan = True
    return bridge


def all_states(name: str) -> bool:
    return name.endswith("mixer.hook_ssm_state")


def tokens_of() -> torch.Tensor:
    return torch.randint(D_VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(0))


def their_steps(theirs: MambaForCausalLM, tokens: torch.Tensor, after):
    """Greedy tokens through their cache, which is written in place."""
    for _ in range(NEW):
        after = theirs(tokens, cache_params=after, use_cache=True).cache_params
    return after


def our_steps(ours: HookedSSM, tokens: torch.Tensor, state):
    for _ in range(NEW):
        state = ours.step(tokens, state)[1]
    return state


def their_generation(theirs: MambaForCausalLM, prompt: torch.Tensor):
    return theirs.generate(  # pyright: ignore[reportAttributeAccessIssue]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=GENERATED,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )


@torch.no_grad()
def times(folder: str, rounds: int = 3) -> dict[str, float]:
    """Median CPU ms by call."""
    theirs = MambaForCausalLM.from_pretrained(folder).eval()
    ours, tokens = HookedSSM.from_pretrained(folder), tokens_of()
    # Random layers amplify rounding: both are 0.004 from the float64 logits, which go up to 14.
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0.0, atol=0.02)
    their_cache, our_state = theirs(tokens, use_cache=True).cache_params, ours.step(tokens)[1]
    token, prompt = tokens[:, :1], tokens[:, :PROMPT]
    for generated in (their_generation(theirs, prompt), ours.generate(prompt, GENERATED)):
        assert generated.shape == (1, PROMPT + GENERATED)
    medians = cpu_ms(
        {
            "transformers forward": lambda: theirs(tokens, use_cache=False),
            "ours forward": lambda: ours(tokens),
        },
        rounds=rounds,
    )
    medians |= cpu_ms(
        {
            "transformers token": lambda: their_steps(theirs, token, their_cache),
            "ours token": lambda: our_steps(ours, token, our_state),
            "transformers generate": lambda: their_generation(theirs, prompt),
            "ours generate": lambda: ours.generate(prompt, GENERATED),
        },
        rounds=4 * rounds,
    )
    bridge = bridge_of(theirs)
    cached = {
        "TransformerLens all hooks": lambda: bridge.run_with_cache(tokens, use_cache=False)[1],
        "ours all hooks": lambda: ours.run_with_cache(tokens)[1],
        "TransformerLens states": lambda: bridge.run_with_cache(
            tokens, use_cache=False, names_filter=all_states
        )[1],
        "ours states": lambda: ours.run_with_cache(tokens, names_filter=all_states)[1],
        "ours all hooks, all read": lambda: dict(ours.run_with_cache(tokens)[1].items()),
        "ours states, all read": lambda: dict(
            ours.run_with_cache(tokens, names_filter=all_states)[1].items()
        ),
    }
    for call in cached.values():
        assert sum(t.numel() for name, t in call().items() if all_states(name)) == 24 * LENGTH * 1536 * 16
    medians |= cpu_ms(cached, rounds=rounds)
    a_call = {"token": NEW, "generate": GENERATED}
    return {name: ms / a_call.get(name.split()[-1], 1) for name, ms in medians.items()}


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (at most since it was cleared) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")


@torch.no_grad()
def peak(what: str, folder: str) -> float:
    """Peak memory, in bytes, of one thing done in this process, which has done nothing else."""
    torch.set_num_threads(1)
    tokens = tokens_of()
    if what == "load":
        with tempfile.TemporaryDirectory() as tiny:  # what is imported on the first use is no part of it
            MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=8)).save_pretrained(
                tiny
            )
            HookedSSM.from_pretrained(tiny)

        def run() -> object:
            return HookedSSM.from_pretrained(folder)
    else:
        who, which = what.split(" ", 1)
        wanted: dict[str, Any] = {"names_filter": all_states} if which.startswith("states") else {}
        if who == "ours":
            ours = HookedSSM.from_pretrained(folder)
            ours(tokens[:, :4])

            def run() -> object:
                _, cache = ours.run_with_cache(tokens, **wanted)
                return dict(cache.items()) if which.endswith("all read") else cache
        else:
            theirs = MambaForCausalLM.from_pretrained(folder).eval()
            for p in theirs.parameters():
                p.data = p.data.clone()  # in memory, and not in a file that is read when needed
            bridge = bridge_of(theirs)
            bridge(tokens[:, :4], use_cache=False)

            def run() -> object:
                return bridge.run_with_cache(tokens, use_cache=False, **wanted)

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept = run()
    assert kept is not None
    return resident("VmHWM") - before


def peak_apart(what: str, folder: str) -> float:
    command = [sys.executable, "-m", "benchmarks.pretrained", what, folder]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    torch.set_num_threads(1)
    console = Console()
    console.print(
        f"torch {torch.__version__}, transformers {version('transformers')}, "
        f"transformer-lens {version('transformer-lens')}; 1 thread, median CPU ms, interleaved"
    )
    with tempfile.TemporaryDirectory() as folder:
        size = random_checkpoint(folder)
        ms = times(folder)
        table = Table("what", "ours", "theirs", "theirs / ours")
        rows = {
            "forward": "forward",
            "token": "token through the state",
            "generate": f"generate, greedy, {GENERATED} tokens after {PROMPT}, a token",
        }
        for what, label in rows.items():
            a, b = ms[f"ours {what}"], ms[f"transformers {what}"]
            table.add_row(f"{label}, ms (theirs: transformers)", f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}")
        for what in ("all hooks", "all hooks, all read", "states", "states, all read"):
            a, b = ms[f"ours {what}"], ms[f"TransformerLens {what.removesuffix(', all read')}"]
            label = f"run_with_cache, {what} (theirs: TransformerLens)"
            table.add_row(f"{label}, ms", f"{a:.0f}", f"{b:.0f}", f"{b / a:.2f}")
            a, b = (peak_apart(f"{who} {what}", folder) / MIB for who in ("ours", "TransformerLens"))
            table.add_row(f"{label}, peak MiB", f"{a:.0f}", f"{b:.0f}", f"{b / a:.2f}")
        loaded = peak_apart("load", folder)
        console.print(table)
        console.print(f"loading: peak {loaded / MIB:.0f} MiB, {loaded / size:.2f} times the weights")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(peak(sys.argv[1], sys.argv[2]))
    else:
        main()
