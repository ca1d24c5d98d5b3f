"""A circuit: some edges of a model's graph, with what they were found for; it tests and draws itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_ssm.circuits import drawing, files
from hooked_ssm.circuits.edges import EdgeIndex
from hooked_ssm.circuits.question import Question, RecallTask, Trial, questions
from hooked_ssm.patching.checks import check_eval
from hooked_ssm.plotting import Picture


@dataclass(frozen=True, eq=False)
class Circuit:
    """index: all edges. kept: those of the circuit. scores: of all edges, by what corruptions cost.

    sites, metric, ablation: what the circuit was found for. found: `test` on the documents that it was found
    on. n_graph: edges of the graph with those that lead from no embedding or to no logit that is read; the
    index has no such edges. model, task: what `test` runs; None for a circuit read from a file without them.
    """

    index: EdgeIndex
    kept: Bool[Tensor, " edge"]
    scores: Float[Tensor, " edge"]
    sites: tuple[str, ...]
    metric: Any
    ablation: str
    found: pd.DataFrame
    n_graph: int
    model: Any = field(default=None, repr=False)
    task: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return int(self.kept.sum())

    @property
    def roles(self) -> list[str]:
        """The positions that are told apart, the last one being all others."""
        return self.index.roles

    @property
    def share(self) -> float:
        """Edges of the circuit, of those of the graph."""
        return len(self) / self.n_graph

    def __repr__(self) -> str:
        found = zip(self.found["site"], self.found["faithfulness"], strict=True)
        faithfulness = ", ".join(f"{site} {share:.1%}" for site, share in found)
        return (
            f"Circuit({len(self)} of {self.n_graph} edges ({self.share:.1%}), of which {len(self.index)} "
            f"lead from the embeddings to the answer; faithfulness: {faithfulness})"
        )

    def edges(self) -> pd.DataFrame:
        """One row an edge: writer, writer_at (a role), writer_part (tap or head), and the reader's; score."""
        return edge_frame(self.index, self.kept, self.scores)

    def test(
        self,
        n: int = 128,
        *,
        seed: int = 1,
        split: str = "test",
        ablation: str | None = None,
        sites: Sequence[str] | None = None,
        docs: Any = None,
    ) -> pd.DataFrame:
        """The circuit on fresh documents, one row a site: see `tested`.

        n, seed, split: of the documents that are drawn, unless `docs` are given.
        ablation, sites: what the circuit was found for, unless others are asked for.
        """
        asked = self._questions(n, seed, split, sites, docs)
        return tested(Trial(asked, self.index, ablation or self.ablation), self.kept)

    def minimality(
        self, n: int = 64, *, seed: int = 2, split: str = "test", ablation: str | None = None
    ) -> pd.DataFrame:
        """`edges`, and by how much the faithfulness falls without each of them, site by site; `hurts` is the
        largest of these."""
        trial = Trial(self._questions(n, seed, split, None, None), self.index, ablation or self.ablation)
        numbers = self.kept.nonzero()[:, 0]
        without = self.kept.repeat(len(numbers), 1)
        without[torch.arange(len(numbers)), numbers] = False
        falls = trial.faithfulness(self.kept[None]) - trial.faithfulness(without)
        frame = self.edges()
        for site, fall in zip(self.sites, falls.T.tolist(), strict=True):
            frame[f"hurts_{site}"] = fall
        frame["hurts"] = falls.max(1).values.tolist()
        return frame

    def _questions(
        self, n: int, seed: int, split: str, sites: Sequence[str] | None, docs: Any
    ) -> list[Question]:
        if self.model is None or self.task is None:
            raise ValueError(
                "this circuit was read from a file: give Circuit.load a model and a task to test it with."
            )
        check_eval(self.model)
        docs = self.task.sample(n, seed, split) if docs is None else docs
        return questions(self.model, self.task, docs, sites or self.sites, self.roles[:-1], self.metric, seed)

    # Pictures -----------------------------------------------------------------------------------------

    def draw(self, title: str = "") -> Picture:
        """The graph: positions from left to right, layers from bottom to top."""
        return drawing.draw(self.edges(), self.index, title)

    def html(self, title: str = "") -> str:
        """The drawing as a page of its own, which tells an edge's name and score, and shows what a node reads
        and is read by, under the pointer."""
        return drawing.page(self.edges(), self.index, title or repr(self))

    def _repr_png_(self) -> bytes:
        return self.draw().png()

    def _repr_html_(self) -> str:
        return drawing.framed(self.html())

    # Files --------------------------------------------------------------------------------------------

    def save(self, path: str | Path, title: str = "") -> None:
        """Into a file, in one step: .json (`load` reads it again), or a picture: .png, .svg or .html."""
        files.save(self, Path(path), title)

    @classmethod
    def load(cls, path: str | Path, model: Any = None, task: RecallTask | None = None) -> "Circuit":
        """The circuit saved as JSON. With its model and task it can test itself.

        Raises FileNotFoundError or ValueError if the file is not one, or not of this model.
        """
        return files.load(cls, Path(path), model, task)


def tested(trial: Trial, kept: Bool[Tensor, " edge"]) -> pd.DataFrame:
    """One row a site, of means over documents:

    clean, floor: the metric with no edge and with every edge ablated (of the corrupted run, for "corrupt").
    circuit, faithfulness: with all other edges ablated, and (circuit - floor) / (clean - floor).
    complement, completeness: with the circuit's edges ablated, and (clean - complement) / (clean - floor): 1
        where nothing outside the circuit does anything without it.
    accuracy, accuracy_circuit, accuracy_floor: how often the right answer has the largest logit.
    """
    rows = []
    for number, question in enumerate(trial.asked):
        value = question.problem.value
        circuits = torch.stack([kept, ~kept, torch.zeros_like(kept)])
        logits = trial.runs[number].logits(circuits)
        with torch.no_grad():
            at = question.docs.answer_pos.to(logits.device)
            right = question.docs.is_correct(question.problem.model(question.clean, logit_positions=at))
            circuit, complement, floor = (float(value(each).mean()) for each in logits)
        clean = float(question.m_clean.mean())
        rows.append(
            {
                "site": question.site,
                "clean": clean,
                "floor": floor,
                "circuit": circuit,
                "faithfulness": (circuit - floor) / (clean - floor),
                "complement": complement,
                "completeness": (clean - complement) / (clean - floor),
                "accuracy": float(right.double().mean()),
                "accuracy_circuit": float(question.docs.is_correct(logits[0]).double().mean()),
                "accuracy_floor": float(question.docs.is_correct(logits[2]).double().mean()),
            }
        )
    return pd.DataFrame(rows)


def edge_frame(
    index: EdgeIndex, edges: Bool[Tensor, " edge"], scores: Float[Tensor, " edge"]
) -> pd.DataFrame:
    rows = []
    for number in edges.nonzero()[:, 0].tolist():
        a, i, s, b, j, t = index.ends[number].tolist()
        writer = index.hooks[a], index.roles[i], index.part_name(a, s)
        last = b == len(index.hooks) - 1
        reader = (index.hooks[b], "", "") if last else (index.hooks[b], index.roles[j], index.part_name(b, t))
        rows.append((*writer, *reader, float(scores[number])))
    columns = ["writer", "writer_at", "writer_part", "reader", "reader_at", "reader_part", "score"]
    return pd.DataFrame(rows, columns=columns)
