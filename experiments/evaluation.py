"""What a trained model knows and how: accuracy beside heuristics, interchange, mechanism."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from experiments.mechanism import STORES, Mechanism, mechanism
from experiments.runs import Run
from experiments.training import TEST_SEED_OFFSET, evaluate
from hooked_ssm import HookedSSM
from hooked_ssm.interchange import Interchange, interchange
from hooked_ssm.plotting import fixed
from hooked_ssm.saving import write_atomically
from tasks import Documents, Task, TreeDocuments

COMPONENTS = ("hook_resid_pre", "hook_mixer_out", "hook_conv")
POSITIONS = ("key", "value", "value+1", "value+2", "divider", "query")
FAR = 4  # distances and depths from here on are one group
KEY_SITES = ("key", "query_item_orig")  # two names of the token that the mechanism's rule is about


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What some documents say: accuracy beside the heuristics', and attributions.

    heuristics: accuracy of each simple rule on these documents; solving_rule: the one of them that is always
    right, if one is. gap: Attrib's denominator. table: `Interchange.table()`.
    """

    docs: int
    accuracy: float
    heuristics: dict[str, float]
    solving_rule: str | None
    gap: float
    table: pd.DataFrame

    @property
    def rivals(self) -> dict[str, float]:
        """The heuristics that a model has to beat."""
        return rivals(self.heuristics, self.solving_rule)

    @property
    def best_heuristic(self) -> tuple[str, float]:
        """Name and accuracy of the best simple rule other than the one that solves the task."""
        return max(self.rivals.items(), key=lambda item: item[1])

    def cell(self, hook: str, position: str) -> str:
        """Attrib of one hook at one position, or "-" if the model has no such hook."""
        found = self.table[(self.table.hook == hook) & (self.table.position == position)].attrib
        return fixed(found.iloc[0], 2) if len(found) else "-"

    @property
    def last_input(self) -> str:
        """The input of the last block."""
        return [hook for hook in self.table.hook.unique() if hook.endswith("hook_resid_pre")][-1]

    @property
    def best_conv_cell(self) -> str:
        """The largest Attrib of a convolution's output at one of `STORES`, and which one; or "-"."""
        convs = self.table[self.table.hook.str.endswith("hook_conv") & self.table.position.isin(STORES)]
        if not len(convs):
            return "-"
        best = convs.loc[convs.attrib.idxmax()]
        return f"{fixed(best.attrib, 2)} ({best.position})"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "table": self.table.to_dict("records")}


@dataclass(frozen=True, kw_only=True)
class Part(Scores):
    """The documents of one group: by "distance", "depth" or "place", its value."""

    by: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Evaluation(Scores):
    """All documents: loss, p_clean and p_corrupted are means over them.

    site, procedure: which token was corrupted, and how. parts: the documents by distance from key to value,
    by depth and by place (`groups_of`), where these differ between them.
    """

    loss: float
    p_clean: float
    p_corrupted: float
    seed: int
    site: str
    procedure: str
    mechanism: Mechanism
    parts: list[Part]

    def save(self, path: Path) -> None:
        values = self.to_json() | {
            "mechanism": asdict(self.mechanism),
            "parts": [part.to_json() for part in self.parts],
        }
        write_atomically(path, lambda file: file.write_text(json.dumps(values, indent=1) + "\n"))

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        values: dict[str, Any] = json.loads(path.read_text())
        values["mechanism"] = Mechanism(**values["mechanism"])
        values["parts"] = [Part(**part | {"table": pd.DataFrame(part["table"])}) for part in values["parts"]]
        values["table"] = pd.DataFrame(values["table"])
        return cls(**values)


def evaluate_run(
    run: Run,
    *,
    docs: int = 320,
    site: str = "key",
    procedure: str = "unambiguous",
    components: Sequence[str] = (),
    seed: int | None = None,
    keep_as: str = "evaluation.json",
) -> Evaluation:
    """Evaluate a finished run on held-out documents and keep the result in its folder, as `keep_as`.

    seed: of the documents; by default they begin with those that were tested during training. site: "key" or
    "value", the token of the body that is corrupted. procedure: "unambiguous" or "original" (see
    `tasks.Task.corrupt`). components: block-level hooks beside `COMPONENTS`, which the mechanism's rule
    needs; a layer without a hook is left out.
    """
    cfg, model = run.config(), run.model()
    seed = cfg.seed + TEST_SEED_OFFSET if seed is None else seed
    device = model.W_E.device
    clean = cfg.test_task.sample(docs, generator=seed, split="test")
    corrupted = cfg.test_task.corrupt(clean, site, generator=seed + 1, procedure=procedure).to(device)
    clean = clean.to(device)
    result = interchange(
        model,
        clean.tokens,
        corrupted.tokens,
        answer=clean.answer,
        answer_pos=clean.answer_pos,
        hooks=hooks_of(model, list(dict.fromkeys([*COMPONENTS, *components]))),
        positions=named_positions(clean),
    )
    parts = [
        Part(by=by, value=value, **scores_of(model, cfg.test_task, clean[which], result.select(which)))
        for by, value, which in groups_of(clean)
    ]
    scores = scores_of(model, cfg.test_task, clean, result)
    if site not in KEY_SITES:
        verdict = Mechanism("not judged", f"the rule is about a corrupted key, here the {site} was corrupted")
    elif torch.equal(clean.positions["key"], clean.positions["value"]):
        verdict = Mechanism("not judged", "key and value are one token of this task")
    else:
        beaten = rivals(scores["heuristics"], scores["solving_rule"])
        verdict = mechanism(scores["accuracy"], beaten, result.gap, scores["table"])
    evaluation = Evaluation(
        **scores,
        loss=evaluate(model, clean)["test_loss"],
        p_clean=float(result.p_clean.mean()),
        p_corrupted=float(result.p_corrupted.mean()),
        seed=seed,
        site=site,
        procedure=procedure,
        mechanism=verdict,
        parts=parts,
    )
    evaluation.save(run.folder / keep_as)
    return evaluation


def scores_of(model: HookedSSM, task: Task, docs: Documents, result: Interchange) -> dict[str, Any]:
    """The fields of `Scores`."""
    return {
        "docs": len(docs),
        "accuracy": evaluate(model, docs)["test_accuracy"],
        "heuristics": {name: float(p.double().mean()) for name, p in task.heuristics(docs).items()},
        "solving_rule": task.solving_rule,
        "gap": result.gap,
        "table": result.table(),
    }


def groups_of(docs: Documents) -> list[tuple[str, str, Bool[Tensor, " batch"]]]:
    """The documents by distance from key to value, by depth of the key where they are trees, and by place.

    What is `FAR` or more is one group. Place: "end" where the value is so late in the body that value+1 or
    value+2 is the divider or the query itself, else "inside". Nothing where all documents are alike.
    """
    quantities = {"distance": docs.positions["value"] - docs.positions["key"]}
    if isinstance(docs, TreeDocuments):
        quantities["depth"] = docs.query_depth
    groups = []
    for by, quantity in quantities.items():
        near = quantity.clamp(max=FAR)
        for value in near.unique().tolist():
            groups.append((by, f"{value} or more" if value == FAR else str(value), near == value))
    end = docs.positions["value"] + 2 >= docs.positions["divider"]
    groups += [("place", "inside", ~end), ("place", "end", end)]
    return [(by, value, which) for by, value, which in groups if which.any() and not which.all()]


def rivals(heuristics: dict[str, float], solving_rule: str | None) -> dict[str, float]:
    """The heuristics that a model has to beat."""
    return {name: value for name, value in heuristics.items() if name != solving_rule}


def hooks_of(model: HookedSSM, components: Sequence[str]) -> list[str]:
    """Every layer's hook of each component. Raises KeyError for a component that no layer has."""
    names = [f"blocks.{layer}.{component}" for component in components for layer in range(model.cfg.n_layers)]
    for component in components:
        own = [name for name in names if name.endswith(f".{component}")]
        if component not in COMPONENTS and not any(name in model.hook_dict for name in own):
            model.canonical_name(own[0])
    return [name for name in names if name in model.hook_dict]


def named_positions(docs: Documents) -> dict[str, Int[Tensor, " batch"] | Bool[Tensor, "batch pos"]]:
    """The positions of an evaluation: `POSITIONS` ("value+1" follows the value), and all others as "rest"."""
    named = {}
    for name in POSITIONS:
        place, _, after = name.partition("+")
        named[name] = docs.positions[place] + int(after or 0)
    rest = torch.ones_like(docs.tokens, dtype=torch.bool)
    for where in named.values():
        rest.scatter_(1, where[:, None], False)
    return {**named, "rest": rest}
