"""Documents a second: ours, and one document at a time. `python -m benchmarks.tasks`

The original generator is not an installable package, so the peers restate its way of working: a Python list
of tokens and a schema of dictionaries for each document, then lists padded into a batch with its labels.
One draws as the original does (numpy's legacy `choice`, which permutes the whole vocabulary), the other with
`random.sample`, the quickest way there is to draw a few of many in plain Python.

All make the same documents in law: 4096 keys, 4096 values, 16 pairs, 37 tokens, with labels and positions.
Treecall's peer is that of `benchmarks.treecall`; the further tasks have none here.

Times are process CPU time on one thread, the ways taken in turn, the median over the rounds.
"""

import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import treecall
from tasks import (
    BOS,
    EOS,
    IGNORE,
    PAD,
    AssociativeRecall,
    AssociativeTreecall,
    Induction,
    MultiQueryAssociativeRecall,
    SelectiveCopying,
)

ROUNDS = 7
BULK, BATCH = 100_032, 32
PEER_DOCUMENTS = 3200  # a round; their cost a document does not depend on how many are asked for
BAR = 500_000
TREECALL_BULK, TREECALL_PEER = 8192, 256
TREECALL_GRAMMARS = (0, 1)

Draw = Callable[[int, int], list[int]]  # how many there are, how many to draw without replacement


def one_document(task: AssociativeRecall, draw: Draw, choose: random.Random) -> tuple[list[int], dict]:
    """Tokens and schema of one document, built in Python."""
    n_pairs = choose.randint(task.n_pairs, task.n_pairs)  # the original draws a length, here of one choice
    keys, values = draw(task.n_keys, n_pairs), draw(task.n_values, n_pairs)
    tokens = [BOS]
    for key, value in zip(keys, values, strict=True):
        tokens.append(int(key) + task.first_key)
        tokens.append(int(value) + task.first_value)
    tokens.append(EOS)
    eligible = [pair for pair in range(n_pairs)]  # all of them, where no pair is held out
    asked = choose.choice(eligible)
    tokens += [tokens[1 + 2 * asked], tokens[2 + 2 * asked], EOS]
    schema = {
        "type": "KEY",
        "positions": {
            "query_item_orig": 1 + 2 * asked,
            "target_item_orig": 2 + 2 * asked,
            "divider": len(tokens) - 4,
            "query_item": len(tokens) - 3,
            "target_item": len(tokens) - 2,
        },
    }
    return tokens, schema


def one_at_a_time(task: AssociativeRecall, n: int, draw: Draw, choose: random.Random) -> dict:
    """n documents built one by one, then padded, with labels at the answer alone (not yet shifted)."""
    documents, schemas = zip(*(one_document(task, draw, choose) for _ in range(n)), strict=True)
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(document) for document in documents], batch_first=True, padding_value=PAD
    )
    labels = tokens.clone()
    for row, schema in enumerate(schemas):
        target = schema["positions"]["target_item"]
        labels[row, :target] = IGNORE
        labels[row, target + 1 :] = IGNORE
    return {"tokens": tokens, "labels": labels, "schemas": schemas}


def check_law(task: AssociativeRecall, tokens: torch.Tensor) -> None:
    """The documents have the structure both sides claim; RuntimeError otherwise."""
    body, asked, answer = tokens[:, 1:33], tokens[:, 34:35], tokens[:, 35:36]
    follows = ((body[:, :-1] == asked) & (body[:, 1:] == answer)).sum(1)
    distinct = (body.sort(1).values.diff(dim=1) > 0).all(1)
    if tokens.shape[1] != task.n_ctx or not bool(((follows == 1) & distinct).all()):
        raise RuntimeError("a generator makes documents that are not of the task.")


def rates(ways: dict[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
    """Documents a second of each way (a call, and the number it makes): the median over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for call, _ in ways.values():
        call()
    for _ in range(ROUNDS):
        for name, (call, _) in ways.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: n / statistics.median(times[name]) for name, (_, n) in ways.items()}


def further_tasks(console: Console) -> None:
    """Documents of about 64 tokens a second, of the tasks without a peer here."""
    further = (
        MultiQueryAssociativeRecall(length=62),
        Induction(length=32, n_repeated=30),
        SelectiveCopying(length=46, n_copied=16),
    )
    found = rates({task.name: (partial(task.sample, BULK, 0), BULK) for task in further})
    table = Table("further tasks", "tokens", "documents a second")
    for task in further:
        table.add_row(task.name, str(task.n_ctx), f"{found[task.name]:,.0f}")
    console.print(table)


def recall_table(console: Console) -> None:
    task, generator = AssociativeRecall(), torch.Generator().manual_seed(0)
    choose, legacy = random.Random(0), np.random.RandomState(0)

    def numpy_choice(n_choices: int, size: int) -> list[int]:
        return legacy.choice(n_choices, size=size, replace=False)  # type: ignore[return-value]

    def python_sample(n_choices: int, size: int) -> list[int]:
        return choose.sample(range(n_choices), size)

    def batches(make: Callable[[int], object], n: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(n // BATCH):
                make(BATCH)

        return call

    def ours(n: int) -> torch.Tensor:
        return task.sample(n, generator).tokens

    def original(n: int) -> torch.Tensor:
        return one_at_a_time(task, n, numpy_choice, choose)["tokens"]

    def sampled(n: int) -> torch.Tensor:
        return one_at_a_time(task, n, python_sample, choose)["tokens"]

    ways = {"ours": ours, "one at a time, numpy choice": original, "one at a time, random.sample": sampled}
    for make in ways.values():
        check_law(task, make(100))
    sizes = {name: BULK if name == "ours" else PEER_DOCUMENTS for name in ways}
    bulk = rates({name: (partial(make, sizes[name]), sizes[name]) for name, make in ways.items()})
    small = rates({name: (batches(make, PEER_DOCUMENTS), PEER_DOCUMENTS) for name, make in ways.items()})

    table = Table(
        "associative recall, documents a second", "at once", "ours is", f"batches of {BATCH}", "ours is"
    )
    for name in ways:
        table.add_row(
            name,
            f"{bulk[name]:,.0f}",
            f"{bulk['ours'] / bulk[name]:.1f}x",
            f"{small[name]:,.0f}",
            f"{small['ours'] / small[name]:.1f}x",
        )
    console.print(table)
    console.print(f"Bar: {BAR:,} documents a second at once; {'met' if bulk['ours'] >= BAR else 'NOT met'}.")


def treecall_table(console: Console) -> None:
    table = Table(
        "treecall, documents a second", "one at a time", "ours", "ours is", "with new test bodies", "is"
    )
    least = float("inf")
    for name in treecall.SETTINGS:
        for seed in TREECALL_GRAMMARS:
            task = AssociativeTreecall.preset(name, grammar_seed=seed, test_share=0.0)
            split, peer = replace(task, test_share=0.2), treecall.OneAtATime(task, 0)
            treecall.check_same_law(task, peer)
            generator = torch.Generator().manual_seed(0)
            found = rates(
                {
                    "ours": (partial(task.sample, TREECALL_BULK, generator), TREECALL_BULK),
                    "split": (partial(split.sample, TREECALL_BULK, generator), TREECALL_BULK),
                    "peer": (partial(peer.documents, TREECALL_PEER), TREECALL_PEER),
                }
            )
            ratios = {way: found[way] / found["peer"] for way in ("ours", "split")}
            least = min(least, *ratios.values())
            setting = f"{name}, grammar {seed}: {task.grammar.mean_length:.1f} words a sentence"
            row = (setting, f"{found['peer']:,.0f}")
            for way in ("ours", "split"):
                row += (f"{found[way]:,.0f}", f"{ratios[way]:.0f}x")
            table.add_row(*row)
    console.print(table)
    verdict = "met" if least >= treecall.BAR else "NOT met"
    console.print(f"Bar: {treecall.BAR} times as fast at each setting; least {least:.0f}; {verdict}.")


def main() -> None:
    torch.set_num_threads(1)
    console = Console()
    console.print(
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, one thread, "
        f"{platform.machine()}; medians of {ROUNDS} interleaved rounds of CPU time. At once: ours {BULK:,}, "
        f"of treecall {TREECALL_BULK:,}; the others {PEER_DOCUMENTS:,} and {TREECALL_PEER:,}, one by one."
    )
    recall_table(console)
    treecall_table(console)
    further_tasks(console)


if __name__ == "__main__":
    main()
