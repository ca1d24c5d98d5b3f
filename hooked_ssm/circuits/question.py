"""What a circuit is asked to do: keep the answer when all else is from a corrupted document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_ssm.attribution.problem import Problem
from hooked_ssm.circuits.edges import EdgeIndex
from hooked_ssm.circuits.roles import role_map
from hooked_ssm.circuits.runs import CircuitRuns

METRICS = ("logprob", "prob", "logit")
Metric = str | Callable[[Any, Tensor], Tensor]
CIRCUITS = 16  # at a time


@runtime_checkable
class RecallTask(Protocol):
    """As `tasks.Task`: documents, and the same with one named position corrupted."""

    def sample(self, n: int, generator: Any = None, split: str = "train") -> Any: ...

    def corrupt(self, docs: Any, site: str, generator: Any = None) -> Any: ...


@dataclass(frozen=True, eq=False)
class Question:
    """Documents, and the same corrupted at one site. Both end with the last position that is asked at."""

    site: str
    docs: Any
    clean: Int[Tensor, "doc pos"]
    corrupted: Int[Tensor, "doc pos"]
    answer_pos: Int[Tensor, " doc"]
    role_of: Int[Tensor, "doc pos"]
    problem: Problem
    m_clean: Float[Tensor, " doc"]
    m_corrupted: Float[Tensor, " doc"]

    @property
    def gap(self) -> float:
        """What the corruption costs, as a mean over documents."""
        return float((self.m_clean - self.m_corrupted).mean())

    def runs(self, index: EdgeIndex, ablation: str) -> CircuitRuns:
        return CircuitRuns(
            self.problem.model,
            index,
            self.clean,
            self.corrupted,
            self.role_of,
            self.answer_pos,
            ablation,
        )


def metric_of(metric: Metric, docs: Any) -> Callable[[Float[Tensor, "doc d_vocab"]], Any]:
    """The metric of the logits of these documents, by name or given as a function of documents and logits."""
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, or a function, got {metric!r}.")
        return getattr(docs, f"answer_{metric}")
    if not callable(metric):
        raise TypeError(
            f"a metric must be a name or a function of documents and logits, got {type(metric).__name__}."
        )
    return lambda logits: metric(docs, logits)


@torch.no_grad()
def questions(
    model: Any,
    task: RecallTask,
    docs: Any,
    sites: Sequence[str],
    roles: Sequence[str],
    metric: Metric,
    seed: int,
) -> list[Question]:
    """One question a site. Raises ValueError where a corruption costs nothing, TypeError or ValueError for a
    metric that does not give one number a document."""
    if not sites:
        raise ValueError("at least one site to corrupt is wanted, got none.")
    device = model.W_E.device
    length = int(docs.answer_pos.max()) + 1
    role_of = role_map(roles, docs.positions, (len(docs.tokens), length))
    found = []
    for number, site in enumerate(sites):
        tokens = task.corrupt(docs, site, seed + number).tokens
        if tokens.shape != docs.tokens.shape:
            raise ValueError(
                "clean and corrupted documents must have one shape [doc, pos], "
                f"got {list(docs.tokens.shape)} and {list(tokens.shape)}."
            )
        clean, corrupted = (each[:, :length].to(device) for each in (docs.tokens, tokens))
        problem = Problem(
            model, clean, corrupted, metric_of(metric, docs), logit_positions=docs.answer_pos.to(device)
        )
        values = []
        for each in (clean, corrupted):
            value = problem.value(model(each, logit_positions=docs.answer_pos.to(device)))
            if value.ndim != 1:
                raise ValueError(
                    f"a circuit's metric gives one value a document, [{len(clean)}], got a scalar."
                )
            values.append(value)
        question = Question(site, docs, clean, corrupted, docs.answer_pos, role_of, problem, *values)
        if not abs(question.gap) > 1e-6:
            raise ValueError(
                f"corrupting {site!r} changes the metric by {question.gap:.2g}: there is nothing for a "
                "circuit to explain."
            )
        found.append(question)
    return found


class Trial:
    """How faithful circuits are to the model, question by question."""

    def __init__(self, asked: Sequence[Question], index: EdgeIndex, ablation: str):
        self.asked, self.index = list(asked), index
        self.runs = [question.runs(index, ablation) for question in asked]
        empty = torch.zeros(1, len(index), dtype=torch.bool)
        # What is left when every edge is ablated: the corrupted run, where ablated values are its own.
        self.floor = [
            question.m_corrupted if ablation == "corrupt" else self.metric(number, empty)[0]
            for number, question in enumerate(self.asked)
        ]

    def metric(self, number: int, circuits: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit doc"]:
        """The metric of one question."""
        value = self.asked[number].problem.value
        parts = [self.runs[number].logits(some) for some in circuits.split(CIRCUITS)]
        return torch.stack([value(logits) for part in parts for logits in part])

    def faithfulness(self, circuits: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit site"]:
        """(m(circuit) - m(nothing)) / (m(clean) - m(nothing)), of means over documents.

        m(nothing): of the corrupted run, or with all edges ablated by means or zeros.
        """
        columns = []
        for number, question in enumerate(self.asked):
            floor = self.floor[number].mean()
            columns.append(
                (self.metric(number, circuits).mean(1) - floor) / (question.m_clean.mean() - floor)
            )
        return torch.stack(columns, 1).cpu()
