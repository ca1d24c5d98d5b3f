"""Grids that several claims look at: a claim about mechanism needs no runs beyond those about accuracy."""

from collections.abc import Sequence
from dataclasses import replace

from experiments.atr_small import reproduce as atr_small
from experiments.claims.recipes import (
    MORE_RATES,
    PAPER_RATES,
    PAPER_WIDTHS,
    PRESETS,
    Cell,
    cells,
    model,
    paper,
    small,
    tiny,
)
from experiments.runs import TrainConfig
from tasks import AssociativeRecall, AssociativeTreecall

SMALL_WIDTHS = (16, 32, 64)
SMALL_RATES = {
    "Attention": (1e-3, 3e-3),
    "Based": (3e-3, 1e-2),
    "Mamba": (3e-3, 1e-2),
    "DeltaNet": (3e-3, 1e-2),
    "H3": (1e-3, 3e-3),
    "Hyena": (3e-3, 1e-2),
    "BaseConv": (3e-3, 1e-2),
}
PUBLISHED = [name for name in PRESETS if name != "DeltaNet"]  # whose sweeps are in the paper's code
NO_CONVOLUTION = "Mamba without convolution"
SMALL_TREES = "L_max 5, 20 words, at most 64 long"
TREES = {
    "L_max 5, 20 words": "pcfg_easy",
    "L_max 5, 8192 words": "pcfg_easy_8192",
    "L_max 10, 20 words": "pcfg_medium",
}


def recall(size: str) -> list[Cell]:
    """Associative recall by architecture and width, two layers."""
    found = []
    for architecture in PRESETS:
        for width in {"tiny": (8, 16), "small": SMALL_WIDTHS, "paper": PAPER_WIDTHS}[size]:
            found += cells(recall_runs(size, architecture, width), architecture=architecture, width=width)
    return found


def recall_runs(size: str, architecture: str, width: int, **options):
    """One condition on associative recall."""
    if size == "tiny":
        return tiny(architecture, d_model=width, **options)
    if size == "small":
        return small(architecture, d_model=width, rates=SMALL_RATES[architecture], **options)
    rates = PAPER_RATES + MORE_RATES
    return paper(architecture, AssociativeRecall(), d_model=width, epochs=16, rates=rates, **options)


def treecall(size: str) -> list[Cell]:
    """Associative treecall by setting, architecture and width, two layers."""
    if size == "tiny":
        task = AssociativeTreecall(n_terminals=20, n_nonterminals=10, max_length=20)
        return [
            one
            for architecture in ("Attention", "Mamba")
            for one in cells(tiny(architecture, task), setting="tiny", architecture=architecture, width=8)
        ]
    if size == "small":
        return small_treecall(("Attention", "Based", "Mamba", "H3", "Hyena"))
    found = []
    for setting, name in TREES.items():
        task = AssociativeTreecall.preset(name, test_share=0.0)
        for architecture in PUBLISHED:
            if (name, architecture) == ("pcfg_medium", "H3"):  # left out of the published sweep
                continue
            for width in PAPER_WIDTHS:
                runs = paper(architecture, task, d_model=width, epochs=32)
                found += cells(runs, setting=setting, architecture=architecture, width=width)
    return found


def small_treecall(models: Sequence[str]) -> list[Cell]:
    """One setting and one width of associative treecall."""
    return [
        one
        for name in models
        for one in cells(small_treecall_runs(name), setting=SMALL_TREES, architecture=name, width=64)
    ]


def small_treecall_runs(name: str, task: AssociativeTreecall = atr_small.TASK) -> list[TrainConfig]:
    """One condition: trained as `experiments.atr_small` trains, which has two of these runs; two seeds."""
    like = atr_small.configs()["mamba"]
    options = {"d_conv": 0} if name == NO_CONVOLUTION else {}
    net = model("Mamba" if options else name, task, 64, n_ctx=128, **options)
    rate = 1e-3 if name == "Attention" else 3e-3
    return [replace(like, task=task, model=net, lr=rate, seed=seed) for seed in (0, 1)]
