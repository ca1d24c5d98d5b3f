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

from experiments.mechanism import SOLVING_RULES, STORES, Mechanism, mechanism
from experiments.runs import Run
from experiments.training import TEST_SEED_OFFSET, evaluate
from hooked_ssm import HookedSSM
from hooked_ssm.interchange import interchange
from hooked_ssm.plotting import fixed
from hooked_ssm.saving import write_atomically
from tasks import Documents

COMPONENTS = ("hook_resid_pre", "hook_mixer_out", "hook_conv")
POSITIONS = ("key", "value", "value+1", "value+2", "divider", "query")
KEY_SITES = ("key", "query_item_orig")  # two names of the token that the mechanism's rule is about


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """accuracy, p_clean, p_corrupted: over `docs` held-out documents. gap: Attrib's denominator.

    heuristics: accuracy of each simple rule on the same documents. table: `Interchange.table()`.
    site, procedure: which token was corrupted, and how.
    """

    accuracy: float
    loss: float
    heuristics: dict[str, float]
    p_clean: float
    p_corrupted: float
    gap: float
    docs: int
    seed: int
    site: str
    procedure: str
    table: pd.DataFrame
    mechanism: Mechanism

    @property
    def best_heuristic(self) -> tuple[str, float]:
        """Name and accuracy of the best simple rule other than the one that solves the task."""
        rivals = {name: value for name, value in self.heuristics.items() if name not in SOLVING_RULES}
        return max(rivals.items(), key=lambda item: item[1])

    def cell(self, hook: str, position: str) -> str:
        """Attrib of one hook at one position, or "-" if the model has no such hook."""
        found = self.table[(self.table.hook == hook) & (self.table.position == position)].attrib
        return fixed(found.iloc[0], 2) if len(found) else "-"

    @property
    def best_conv_cell(self) -> str:
        """The largest Attrib of a convolution's output at one of `STORES`, and which one; or "-"."""
        convs = self.table[self.table.hook.str.endswith("hook_conv") & self.table.position.isin(STORES)]
        if not len(convs):
            return "-"
        best = convs.loc[convs.attrib.idxmax()]
        return f"{fixed(best.attrib, 2)} ({best.position})"

    def save(self, path: Path) -> None:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["table"] = self.table.to_dict("records")
        values["mechanism"] = asdict(self.mechanism)
        write_atomically(path, lambda file: file.write_text(json.dumps(values, indent=1) + "\n"))

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        values: dict[str, Any] = json.loads(path.read_text())
        values["table"] = pd.DataFrame(values["table"])
        values["mechanism"] = Mechanism(**values["mechanism"])
        return cls(**values)


def evaluate_run(
    run: Run,
    *,
    docs: int = 320,
    site: str = "key",
    procedure: str = "unambiguous",
    components: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a finished run on held-out documents and keep the result in its folder, evaluation.json.

    site: "key" or "value", the token of the body that is corrupted. procedure: "unambiguous" or "original"
    (see `tasks.Task.corrupt`). components: block-level hooks beside `COMPONENTS`, which the mechanism's rule
    needs; a layer without a hook is left out.
    """
    cfg, model = run.config(), run.model()
    seed, device = cfg.seed + TEST_SEED_OFFSET, model.W_E.device
    clean = cfg.test_task.sample(docs, generator=seed, split="test")
    corrupted = cfg.test_task.corrupt(clean, site, generator=seed + 1, procedure=procedure).to(device)
    clean = clean.to(device)
    scores = evaluate(model, clean)
    result = interchange(
        model,
        clean.tokens,
        corrupted.tokens,
        answer=clean.answer,
        answer_pos=clean.answer_pos,
        hooks=hooks_of(model, list(dict.fromkeys([*COMPONENTS, *components]))),
        positions=named_positions(clean),
    )
    heuristics = {name: float(p.double().mean()) for name, p in cfg.test_task.heuristics(clean).items()}
    table = result.table()
    if site in KEY_SITES:
        verdict = mechanism(scores["test_accuracy"], heuristics, result.gap, table)
    else:
        verdict = Mechanism("not judged", f"the rule is about a corrupted key, here the {site} was corrupted")
    evaluation = Evaluation(
        accuracy=scores["test_accuracy"],
        loss=scores["test_loss"],
        heuristics=heuristics,
        p_clean=float(result.p_clean.mean()),
        p_corrupted=float(result.p_corrupted.mean()),
        gap=result.gap,
        docs=docs,
        seed=seed,
        site=site,
        procedure=procedure,
        table=table,
        mechanism=verdict,
    )
    evaluation.save(run.folder / "evaluation.json")
    return evaluation


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
