"""From attributions to the name of a mechanism, by a rule that is stated and shows its evidence.

The interchange corrupts the key in the body. Whatever then restores the answer carried the key, or the
association of key and value, past that point. With n layers and Attrib as in `hooked_ssm.interchange`:

1. not learned: accuracy is not above every heuristic's by 0.1 (the rule that solves the task aside), or the
   corruption costs less than 0.1 of probability, so that there is nothing to attribute.
2. induction across layers: the input of some block l >= 1 has Attrib >= 0.5 at the value, or at one of the
   two tokens after it. An earlier layer has stored the association there, and a later one finds it.
3. induction inside one layer: otherwise, some layer's convolution output has Attrib >= 0.5 at the value, or
   at one of the two tokens after it. The short convolution joins key and value on their way into the
   recurrence of the same layer. A convolution of width 4 sees both from any of these positions, and where it
   joins them is the model's choice.
4. direct retrieval: otherwise, every block input restores at key or query (Attrib >= 0.5): the key is looked
   up from the query without having been joined to the value at one position.
5. mixed: none of these; the attributions are spread over positions.
6. not judged: the rule is about a corrupted key, and another token was corrupted; or key and value are one
   token, as in selective copying.

A convolution of a block before l may also be how rule 2's association came to be at the value: the evidence
lists both. Attrib at these positions need not sum to 1, so the evidence also has the rest of the positions,
replaced together.
"""

from dataclasses import dataclass

import pandas as pd

from hooked_ssm.plotting import fixed

NOT_LEARNED = "not learned"
MECHANISMS = (
    NOT_LEARNED,
    "induction across layers",
    "induction inside one layer",
    "direct retrieval",
    "mixed",
    "not judged",
)
STORES = ("value", "value+1", "value+2")
STRONG = 0.5
MARGIN = 0.1


@dataclass(frozen=True)
class Mechanism:
    """name: one of `MECHANISMS`. evidence: the numbers that the rule used, in words."""

    name: str
    evidence: str


def mechanism(accuracy: float, rivals: dict[str, float], gap: float, table: pd.DataFrame) -> Mechanism:
    """The mechanism of a model with this accuracy and `Interchange.table()`.

    rivals: the accuracy of each heuristic but the one that solves the task.
    gap: the denominator of Attrib. The table needs each block's `hook_resid_pre`, and each `hook_conv` that
    the model has, at the positions key, query and as many of `STORES` as there are. Raises ValueError if it
    has no `hook_resid_pre`.
    """
    best = max(rivals, key=lambda name: rivals[name])
    if accuracy < rivals[best] + MARGIN:
        return Mechanism(NOT_LEARNED, f"accuracy {accuracy:.1%}, heuristic {best} {rivals[best]:.1%}")
    if gap < MARGIN:
        return Mechanism(NOT_LEARNED, f"corrupting the key costs only {gap:.3f} of probability")

    cells = table.set_index(["hook", "position"])
    inputs = [hook for hook in cells.index.unique("hook") if hook.endswith("hook_resid_pre")]
    inner = [hook for hook in inputs if not hook.startswith("blocks.0.")]
    convs = [hook for hook in cells.index.unique("hook") if hook.endswith("hook_conv")]
    if not inputs:
        raise ValueError(f"the rule needs every block's hook_resid_pre, got {sorted(set(table.hook))}.")

    def reaches(hooks: list[str], *positions: str) -> bool:
        places = [
            (hook, position) for hook in hooks for position in positions if (hook, position) in cells.index
        ]
        return any(cells.loc[place, "attrib"] >= STRONG for place in places)

    if reaches(inner, *STORES):
        name = "induction across layers"
    elif reaches(convs, *STORES):
        name = "induction inside one layer"
    elif all(reaches([hook], "key", "query") for hook in inputs):
        name = "direct retrieval"
    else:
        name = "mixed"
    return Mechanism(name, "; ".join(describe(cells, hook) for hook in [*(inner or inputs), *convs]))


def describe(cells: pd.DataFrame, hook: str) -> str:
    """One hook's attributions with their intervals, in words."""
    parts = []
    for position in ("key", *STORES, "query", "rest"):
        if (hook, position) not in cells.index:
            continue
        attrib, low, high = (
            fixed(cells.loc[(hook, position), name], 2) for name in ("attrib", "low", "high")
        )
        parts.append(f"{position} {attrib} [{low}, {high}]")
    return f"{short_name(hook)}: {', '.join(parts)}"


def short_name(hook: str) -> str:
    """'blocks.1.hook_resid_pre' as 'block 1 input', and the like."""
    match hook.split("."):
        case ["blocks", layer, "hook_resid_pre"]:
            return f"block {layer} input"
        case ["blocks", layer, *_, last]:
            return f"block {layer} {last.removeprefix('hook_').replace('_', ' ')}"
        case _:
            return hook
