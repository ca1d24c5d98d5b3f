"""What patching costs: sweeps and interchange against one forward a cell, states at a position against all.

    python -m benchmarks.patching

One thread, process CPU time, in one process and in turns. The peer of a sweep is TransformerLens's function
of the same name on the same model and tokens, called in the same way, with two usual metrics: the difference
of two logits at the last position, and the answer's log probability where each document is asked. The
documents are associative recall's, corrupted at the key as the task does it; or random ones that differ in
all tokens: in the first case most cells are those of the unpatched run. Numbers must agree to 1e-5.

Large: Mamba-130M's shape with random weights. Ours is the whole sweep; of TransformerLens's cells, which cost
all the same, a few are timed.
"""

import time
from collections.abc import Callable
from statistics import median

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformer_lens import patching as theirs

from benchmarks.timing import cpu_ms
from hooked_ssm import HookedSSM, patching, zoo
from hooked_ssm.interchange import interchange
from hooked_ssm.states import states_at
from tasks import AssociativeRecall

D_VOCAB, DOCS, LENGTH = 8192, 32, 36
LARGE_VOCAB, LARGE_LENGTH, LARGE_LAYERS, PEER_CELLS = 50280, 64, 24, 8
READS = {
    "last": "at the last position",
    "answers": "at each answer_pos",
}
TINYLANG_MS = (
    115.0  # a cell of 32 documents in tinylang's own evaluator, measured apart on this kind of machine
)
EAGER_MIB = 1494.0  # all states of the large model at 256 tokens, as TransformerLens's eager scan holds them


def quiet(cells: list) -> list:
    return cells


@torch.no_grad()
def toy(kind: str) -> HookedSSM:
    """With weights away from where they start, so that what is patched matters."""
    model = HookedSSM(zoo.PRESETS[kind](d_model=64, n_layers=2, d_vocab=D_VOCAB, n_ctx=64, seed=0))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p += 0.1 * torch.randn(p.shape, generator=generator)
    return model


TASK = AssociativeRecall(n_keys=4094, n_values=4095, n_pairs=16)  # 8192 tokens; 37 of them a document


def documents(differ: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean and corrupted documents, where each is asked, and the answer."""
    if differ == "key":
        docs = TASK.sample(DOCS, 0)
        cut = slice(None, LENGTH)  # nothing after the query is read
        return docs.tokens[:, cut], TASK.corrupt(docs, "key", 1).tokens[:, cut], docs.answer_pos, docs.answer
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(D_VOCAB, (2, DOCS, LENGTH), generator=generator)
    answer = torch.randint(D_VOCAB, (DOCS,), generator=generator)
    return clean, corrupted, torch.full((DOCS,), LENGTH - 1), answer


def logit_diff(logits: Tensor, answer: Tensor) -> Tensor:
    """Of the answer and another token, as in TransformerLens's demonstrations; `logits` [doc, d_vocab]."""
    right, wrong = (logits.gather(1, tokens[:, None]) for tokens in (answer, (answer + 7) % D_VOCAB))
    return (right - wrong).mean()


def logprob(logits: Tensor, answer: Tensor) -> Tensor:
    """Mean log probability of the answer; `logits` [doc, d_vocab]."""
    return logits.log_softmax(-1).gather(1, answer[:, None]).mean()


@torch.no_grad()
def sweep(kind: str, differ: str, reads: str) -> tuple[float, float, float, float]:
    """A resid_pre sweep: TransformerLens's ms, ours called in the same way, ours told where the metric reads,
    and the largest difference."""
    model, (clean, corrupted, read_at, answer) = toy(kind), documents(differ)
    rows = torch.arange(DOCS)
    cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_resid_pre"))[1]
    if reads == "last":
        told: Callable = lambda logits: logit_diff(logits, answer)
        metric = lambda logits: told(logits[:, -1, :])
    else:
        told = lambda logits: logprob(logits, answer)
        metric = lambda logits: told(logits[rows, read_at])
    given = model, corrupted, cache
    options = {"logit_positions": -1 if reads == "last" else read_at, "verbose": False}
    calls: dict[str, Callable] = {
        "theirs": lambda: theirs.get_act_patch_resid_pre(*given, metric),
        "ours": lambda: patching.get_act_patch_resid_pre(*given, metric, verbose=False),
        "told": lambda: patching.get_act_patch_resid_pre(*given, told, **options),
    }
    results = {name: call() for name, call in calls.items()}
    difference = max(float((results["theirs"] - results[name]).abs().max()) for name in ("ours", "told"))
    ms = cpu_ms(calls, rounds=5)
    return ms["theirs"], ms["ours"], ms["told"], difference


@torch.no_grad()
def interchange_cells(docs: int = 320) -> tuple[float, float, float, int]:
    """ms a cell of 32 documents: ours, one hooked forward with all logits, one with the answer's; cells.

    Two layers of attention, five named positions, four hooks a layer: the evaluation of the paper.
    """
    model = toy("attention")
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(D_VOCAB, (docs, LENGTH + 1), generator=generator)
    corrupted, rows = clean.clone(), torch.arange(docs)
    key = torch.randint(0, LENGTH // 2 - 1, (docs,), generator=generator) * 2
    corrupted[rows, key] = 1
    query = torch.full((docs,), LENGTH - 1)
    positions = {
        "key": key,
        "value": key + 1,
        "divider": query - 1,
        "query": query,
        "answer": query + 1,
    }
    names = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_resid_post")
    hooks = [f"blocks.{layer}.{name}" for layer in (0, 1) for name in names]
    answer = torch.randint(D_VOCAB, (docs,), generator=generator)
    cells = len(hooks) * len(positions)
    at = {"answer": answer, "answer_pos": query, "hooks": hooks, "positions": positions}
    cached = model.run_with_cache(clean[:32], names_filter=hooks)[1]

    def replaced(activation: Tensor, hook: object) -> Tensor:
        activation[torch.arange(32), key[:32]] = cached[hooks[2]][torch.arange(32), key[:32]]
        return activation

    def forward(**options) -> Tensor:
        return model.run_with_hooks(corrupted[:32], fwd_hooks=[(hooks[2], replaced)], **options)

    ms = cpu_ms(
        {
            "ours": lambda: interchange(model, clean, corrupted, **at),
            "forward": lambda: forward()[torch.arange(32), query[:32]].softmax(-1),
            "at answer": lambda: forward(logit_positions=query[:32]).softmax(-1),
        },
        rounds=5,
    )
    return ms["ours"] / cells / (docs / 32), ms["forward"], ms["at answer"], cells


def large(d_vocab: int = LARGE_VOCAB) -> HookedSSM:
    return HookedSSM(zoo.mamba(d_model=768, n_layers=LARGE_LAYERS, d_vocab=d_vocab, seed=0))


@torch.no_grad()
def large_sweep(model: HookedSSM) -> tuple[float, float, float]:
    """ms a cell: TransformerLens's (over a few cells between ours), ours over the whole sweep; difference."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(LARGE_VOCAB, (2, 1, LARGE_LENGTH), generator=generator)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(LARGE_LAYERS)]
    cache = model.run_with_cache(clean, names_filter=names)[1]
    picked = [
        (layer, 7 * layer % LARGE_LENGTH) for layer in range(0, LARGE_LAYERS, LARGE_LAYERS // PEER_CELLS)
    ]
    times, wanted, answer = [], [], torch.tensor([5])
    metric = lambda logits: logprob(logits[:, -1], answer)

    def some(cells: list[tuple[int, int]]) -> None:
        for cell in cells:
            frame = pd.DataFrame([cell], columns=["layer", "pos"])
            begin = time.process_time()
            value = theirs.generic_activation_patch(
                model,
                corrupted,
                cache,
                metric,
                theirs.layer_pos_patch_setter,
                "resid_pre",
                index_df=frame,
            )
            times.append((time.process_time() - begin) * 1e3)
            wanted.append(float(value))

    some(picked[: len(picked) // 2])
    begin = time.process_time()
    ours = patching.get_act_patch_resid_pre(model, corrupted, cache, metric, verbose=False)
    spent = (time.process_time() - begin) * 1e3
    some(picked[len(picked) // 2 :])
    difference = max(abs(float(ours[cell]) - value) for cell, value in zip(picked, wanted, strict=True))
    return median(times), spent / ours.numel(), difference


def peak_mib(call: Callable[[], object]) -> float:
    """The most memory of tensors alive at once during the call, beyond what was there before."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = call()
    del kept
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak / 2**20


@torch.no_grad()
def state_memory(model: HookedSSM, length: int = 256) -> tuple[float, float]:
    """Peak MiB for the states of all layers at one position, and for a run that caches all states."""
    tokens = torch.randint(LARGE_VOCAB, (1, length))
    names = [f"blocks.{layer}.mixer.hook_ssm_state" for layer in range(LARGE_LAYERS)]
    one = peak_mib(lambda: states_at(model, tokens, [length - 1]))
    every = peak_mib(lambda: model.run_with_cache(tokens, names_filter=names, return_type=None))
    return one, every


def main() -> None:
    torch.set_num_threads(1)
    theirs.tqdm = quiet
    console = Console(width=110)
    console.print(
        f"torch {torch.__version__}, 1 thread, CPU time; {DOCS} documents of {LENGTH} tokens, toy models"
    )
    table = Table(
        "resid_pre",
        "documents differ",
        "logits read",
        "TransformerLens",
        "the same call",
        "logit_positions=",
        "off by",
    )
    for kind in ("attention", "mamba"):
        for differ in ("key", "everywhere"):
            for reads in ("last", "answers"):
                peer, *ours, difference = sweep(kind, differ, reads)
                cells = [f"{ms:.0f} ({peer / ms:.1f}x)" for ms in ours]
                table.add_row(kind, differ, READS[reads], f"{peer:.0f}", *cells, f"{difference:.0e}")
    console.print(table)

    ms, full, at_answer, cells = interchange_cells()
    console.print(
        f"interchange, attention, 320 documents, {cells} cells: {ms:.2f} ms a cell of 32 documents; "
        f"tinylang {TINYLANG_MS:.0f} ({TINYLANG_MS / ms:.0f}x), one hooked forward {full:.1f} "
        f"({full / ms:.1f}x), the same with the answer's logits alone {at_answer:.1f} ({at_answer / ms:.1f}x)"
    )
    model = large()
    peer, ours, difference = large_sweep(model)
    console.print(
        f"resid_pre, Mamba-130M's shape, {LARGE_LENGTH} positions, all different: TransformerLens "
        f"{peer:.0f} ms a cell (of {PEER_CELLS}), ours {ours:.1f} (of all {LARGE_LAYERS * LARGE_LENGTH}), "
        f"{peer / ours:.1f}x, off by {difference:.0e}"
    )
    one, every = state_memory(model)
    console.print(
        f"states of its {LARGE_LAYERS} layers at one of 256 positions: peak {one:.0f} MiB; all positions, "
        f"our run_with_cache {every:.0f}; TransformerLens's eager scan {EAGER_MIB:.0f} "
        f"({EAGER_MIB / one:.0f}x)"
    )


if __name__ == "__main__":
    main()
