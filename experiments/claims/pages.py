"""The README of a claim: what the committed run tables say, between two markers; the rest is by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.claims.checks import LABELS
from experiments.claims.definition import Check, Claim, verdict
from experiments.claims.figures import Chart
from experiments.claims.published import PLACES, published_beside, published_numbers, published_rows
from experiments.claims.recipes import Cell
from experiments.claims.selection import conditions
from experiments.mechanism import NOT_LEARNED
from experiments.sweeps.naming import essentials
from experiments.sweeps.tables import Tables
from hooked_ssm.plotting import fixed

RESULTS = Path(__file__).parents[1] / "results"
BEGIN, END = "<!-- from the run tables: python -m experiments.claims -->", "<!-- end -->"
MEASURED = ("small", "paper")  # sizes of which results are kept
FULL = "not yet run at full size"
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Measured:
    """A claim at one size: what its tables say."""

    claim: Claim
    size: str
    cells: list[Cell]
    table: pd.DataFrame
    checks: Sequence[Check]
    seeds: list[int]  # of the runs that are there

    @classmethod
    def of(cls, claim: Claim, size: str, tables: Tables) -> "Measured":
        cells = claim.cells(size)
        table, there = conditions(cells, tables), set(tables.runs.run)
        seeds = sorted({cell.config.seed for cell in cells if cell.name in there})
        return cls(claim, size, cells, table, claim.checks(table), seeds)

    @property
    def runs(self) -> tuple[int, int]:
        """There, and asked for."""
        return int(self.table.runs.sum()), int(self.table.asked.sum())

    @property
    def verdict(self) -> str:
        """`definition.verdict`; at the paper's size only once every condition has a run."""
        if self.size == "paper" and not self.table.runs.all():
            return FULL
        return verdict(self.checks)

    @property
    def figures(self) -> list[Chart]:
        """Those on which there is something to see."""
        return [chart for chart in self.claim.figures(self.table) if not chart.empty]


def measured(claim: Claim, tables: dict[str, Tables]) -> dict[str, Measured]:
    return {size: Measured.of(claim, size, tables[size]) for size in tables}


def kept_tables() -> dict[str, Tables]:
    """The committed tables of each size."""
    return {size: Tables.load(RESULTS / size) for size in MEASURED}


def claim_block(claim: Claim, tables: dict[str, Tables]) -> str:
    """All of the README that is generated."""
    parts = [f"{claim.statement}\n", command(claim)]
    for found in measured(claim, tables).values():
        there, asked = found.runs
        parts.append(f"## Size {found.size}: {found.verdict}\n")
        parts.append(f"{there} of {asked} runs. {described(found.cells)}\n")
        if there:
            parts.append("".join(f"- {said(check)}\n" for check in found.checks))
            parts.append(markdown(number_rows(found)) + "\n")
            names = figure_names(found)
            parts.append("".join(f"![{found.claim.title}, size {found.size}]({name})\n" for name in names))
    rows = published_rows(published_numbers(claim))
    parts.append(f"## Published\n\n{claim.published} {PLACES}\n\n{markdown(rows)}")
    return "\n".join(parts)


def command(claim: Claim) -> str:
    return (
        "```sh\n"
        f"hooked-ssm sweep experiments/{claim.name} --size small   # or tiny, or paper\n"
        "hooked-ssm report   # one page with every run of every claim\n"
        "```\n"
    )


def said(check: Check) -> str:
    evidence = f" ({check.evidence})" if check.evidence else ""
    return f"{check.statement}: **{check.said}**{evidence}. Published: {check.published}"


def described(cells: Sequence[Cell]) -> str:
    """Task, widths, rates, seeds and steps of a grid, from its configs."""
    configs = [one.config for one in cells]
    tasks = dict.fromkeys(", ".join(f"{k} {v}" for k, v in essentials(c)["task"].items()) for c in configs)
    steps = sorted({config.steps for config in configs})
    batches = sorted({config.batch_size for config in configs})
    documents = {"never repeat" if c.n_train is None else f"are {c.n_train:,} fixed ones" for c in configs}
    stop = [c.stop_at_accuracy for c in configs if c.stop_at_accuracy is not None]
    ends = f", fewer once {max(stop):.0%} are right" if stop else ""
    return (
        f"{'; '.join(tasks).replace('task ', '').replace('_', ' ')}. "
        f"Widths {listed({c.model.d_model for c in configs})}; rates {listed({c.lr for c in configs})}; "
        f"seeds {listed({c.seed for c in configs})}; at most {' or '.join(f'{s:,}' for s in steps)} steps of "
        f"{listed(batches)} documents, which {' or '.join(sorted(documents))}{ends}."
    )


def listed(values: set | list) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def number_rows(found: Measured) -> list[dict[str, str]]:
    """A row a condition that has runs: its labels, and what the claim's columns show. What was published of
    none of them has no column."""
    published = published_numbers(found.claim)
    rows = []
    for row in found.table.to_dict("records"):
        if row["runs"]:
            labels = {name: row[name] for name in LABELS if name in row}
            row |= published_beside(published, labels)
            shown = {name: COLUMNS[name][1](row) for name in found.claim.columns}
            rows.append({name: str(value) for name, value in labels.items()} | shown)
    empty = {
        name
        for name in found.claim.columns
        if name.startswith("paper_") and all(row[name] == "-" for row in rows)
    }
    return [
        {
            COLUMNS[name][0] if name in COLUMNS else name: text
            for name, text in row.items()
            if name not in empty
        }
        for row in rows
    ]


def percent(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:.1%}" if present(row, name) else "-"


def or_words(shown: Callable[[Row], str]) -> Callable[[Row], str]:
    """What was published in words, where no number was."""
    return lambda row: row.get("paper_says", "-") if (found := shown(row)) == "-" else found


def number(name: str) -> Callable[[Row], str]:
    return lambda row: fixed(row[name], 2) if present(row, name) else "-"


def attrib(name: str) -> Callable[[Row], str]:
    """Attrib with its interval and place, where they are known; nothing where nothing is learned."""

    def shown(row: Row) -> str:
        if not present(row, name) or row["mechanism"] == NOT_LEARNED:
            return "-"
        text = fixed(row[name], 2)
        if present(row, f"{name}_low"):
            text += f" [{fixed(row[f'{name}_low'], 2)}, {fixed(row[f'{name}_high'], 2)}]"
        return text + (f" ({row[f'{name}_at']})" if present(row, f"{name}_at") else "")

    return shown


def accuracy(row: Row) -> str:
    if not present(row, "accuracy"):
        return "-"
    return f"{row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"


# name: title, and what is shown of a condition
COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "accuracy": ("accuracy [95 %]", accuracy),
    "published_accuracy": ("by the paper's procedure", percent("published_accuracy")),
    "paper_accuracy": ("published, full size", or_words(percent("paper_accuracy"))),
    "paper_dev_accuracy": ("published, pairs of training, full size", percent("paper_dev_accuracy")),
    "dev_accuracy": ("accuracy, pairs of training", percent("dev_accuracy")),
    "heuristic": ("best simple rule", percent("heuristic")),
    "key": ("@ key", attrib("key")),
    "value": ("@ value [95 %]", attrib("value")),
    "query": ("@ query", attrib("query")),
    "published_value": ("@ value, by the paper's procedure", attrib("published_value")),
    "paper_value": ("@ value, published, full size", or_words(number("paper_value"))),
    "paper_conv": ("convolution output, published, full size", number("paper_conv")),
    "conv": ("best convolution output", attrib("conv")),
    "tap": ("best tap that reaches the key", attrib("tap")),
    "other_tap": ("best other tap", attrib("other_tap")),
    "mechanism": ("mechanism", lambda row: str(row["mechanism"])),
    "rate": ("rate", lambda row: f"{row['lr']:g}"),
    "steps": ("steps", lambda row: f"{row['steps']:.0f}"),
    "seeds": ("seeds", lambda row: str(int(row["seeds"]))),
    "runs": ("runs", lambda row: f"{row['runs']} of {row['asked']}"),
}


def present(row: Row, name: str) -> bool:
    return name in row and not pd.isna(row[name])


def markdown(rows: Sequence[dict[str, str]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(row.get(name, '-') for name in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


def figure_names(found: Measured) -> list[str]:
    """The files of the claim's pictures at this size."""
    count = len(found.figures)
    return [f"{found.size}.png" if count == 1 else f"{found.size}-{n + 1}.png" for n in range(count)]


def summary_table(claims: Sequence[Claim], tables: dict[str, Tables]) -> str:
    """A row a claim, for the project's README."""
    rows = []
    for claim in claims:
        found = measured(claim, tables)
        small, paper = found["small"], found["paper"]
        there, asked = small.runs
        evidence = "; ".join(f"{check.evidence}" for check in small.checks if check.evidence)
        published = "; ".join(dict.fromkeys(check.published for check in small.checks))
        rows.append(
            {
                "claim": f"{claim.number}. [{claim.statement}](experiments/{claim.name}/README.md)",
                "small": f"**{small.verdict}**",
                "measured, small": evidence or "-",
                "published, full size": published,
                "runs, seeds": f"{there} of {asked}, seeds {listed(small.seeds)}" if there else "-",
                "at the paper's size": f"{paper.verdict}, {paper.runs[0]} of {paper.runs[1]} runs",
            }
        )
    return markdown(rows)


def with_block(page: str, block: str) -> str:
    """The page with what is between the markers replaced. Raises ValueError where they are not there once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page must have {BEGIN!r} and then {END!r}, once each.")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n{END}{rest.partition(END)[2]}"
