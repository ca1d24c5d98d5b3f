"""How the runs of the grids are trained, at each size.

tiny    to see that all of it works: two widths, 150 steps a run, nothing is learned.
small   a task that one core learns in a minute or two. Documents never repeat; initial embeddings have unit
        norm and linear maps PyTorch's scale (with the paper's small ones attention takes longer to leave the
        plateau where it answers any value of the document); a run ends once 99 % are right.
paper   the paper's, to the letter: see `paper`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experiments.runs import TrainConfig
from experiments.sweeps.naming import run_name
from hooked_ssm import zoo
from tasks import AssociativeRecall, Task

DOCS = {"tiny": 40, "small": 1000, "paper": 1000}  # of the evaluation that selects nothing
SIZES = tuple(DOCS)
PRESETS = {
    "Attention": "attention",
    "Based": "based",
    "Mamba": "mamba",
    "DeltaNet": "delta_net",
    "H3": "h3",
    "Hyena": "hyena",
    "BaseConv": "base_conv",
}
PAPER_WIDTHS = (16, 32, 64, 128, 256)
PAPER_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
MORE_RATES = (1e-2, 3e-2)
PAPER_SEEDS = (0,)
EPOCH = 3126  # steps of 32 documents: 100,032 of them
SMALL_RECALL = AssociativeRecall(n_keys=32, n_values=32, n_pairs=4)
TINY_RECALL = AssociativeRecall(n_keys=8, n_values=8, n_pairs=2)
SOLVED = 0.99


@dataclass(frozen=True)
class Cell:
    """A run of a grid. condition: what is compared, by name; its runs differ in rate and seed alone."""

    condition: tuple[tuple[str, Any], ...]
    config: TrainConfig

    @cached_property
    def name(self) -> str:
        """Of the run's folder."""
        return run_name(self.config)


def cells(configs: Sequence[TrainConfig], **condition: Any) -> list[Cell]:
    return [Cell(tuple(condition.items()), config) for config in configs]


def paper(
    architecture: str,
    task: Task,
    *,
    d_model: int,
    epochs: int,
    rates: Sequence[float] = PAPER_RATES,
    decay: str = "cosine",
    **options: Any,
) -> list[TrainConfig]:
    """One run a rate. Batches of 32 from 100,032 fixed documents, AdamW without weight decay, warm-up over a
    tenth of the steps. Attention has learned positions, but not at 1e-2 and 3e-2, which the paper swept
    without any positions and pooled with the rest."""
    preset = zoo.paper.PRESETS[PRESETS[architecture]]
    configs = []
    for rate in rates:
        bare = (
            {"positional_embedding_type": "none"}
            if rate in MORE_RATES and architecture == "Attention"
            else {}
        )
        net = preset(d_model=d_model, d_vocab=task.d_vocab, n_ctx=max(1024, task.n_ctx), **bare, **options)
        configs += [
            TrainConfig(task=task, model=net, steps=epochs * EPOCH, lr=rate, decay=decay, seed=seed)
            for seed in PAPER_SEEDS
        ]
    return configs


def small(
    architecture: str,
    recall: AssociativeRecall = SMALL_RECALL,
    *,
    d_model: int,
    rates: Sequence[float],
    seeds: Sequence[int] = (0, 1),
    steps: int = 1500,
    **options: Any,
) -> list[TrainConfig]:
    """Associative recall, one run a rate and seed."""
    net = model(architecture, recall, d_model, **options)
    return [
        TrainConfig(
            task=recall, model=net, steps=steps, lr=rate, seed=seed, batch_size=128, n_train=None,
            eval_every=50, checkpoint_every=250, stop_at_accuracy=SOLVED,
        )
        for rate in rates
        for seed in seeds
    ]  # fmt: skip


def tiny(
    architecture: str, task: Task = TINY_RECALL, *, d_model: int = 8, **options: Any
) -> list[TrainConfig]:
    net = model(architecture, task, d_model, **options)
    return [
        TrainConfig(
            task=task, model=net, steps=150, lr=1e-2, batch_size=16, n_train=None, n_test=64, eval_every=50,
            checkpoint_every=50,
        )
    ]  # fmt: skip


def model(architecture: str, task: Task, d_model: int, **options: Any):
    """The paper's architecture with initial weights that leave the plateau sooner."""
    preset = zoo.paper.PRESETS[PRESETS[architecture]]
    start = {"linear_std": None, "embed_std": d_model**-0.5, "n_ctx": max(64, task.n_ctx)}
    return preset(d_model=d_model, d_vocab=task.d_vocab, **(start | options))
