"""What holds of every task. A test of a task of your own calls `check_task` on a few settings of it.

Each check raises AssertionError, and says what does not hold and of which document.
"""

import json
from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tasks.documents import IGNORE, Documents
from tasks.task import BOS, EOS, PROCEDURES, SPLITS, Task

SYNONYMS = {"key": "query_item_orig", "value": "target_item_orig", "query": "query_item"}


def check_task(task: Task, n: int = 20, seed: int = 0) -> None:
    """All of the checks below, on n documents of each split, at every site and by every procedure."""
    check_settings(task)
    for split in SPLITS:
        docs = task.sample(n, seed, split)
        check_sampling(task, docs, seed, split)
        check_tokens(task, docs)
        check_positions(docs)
        check_answers(task, docs)
        for site in task.sites:
            for procedure in PROCEDURES:
                check_corruption(task, docs, site, seed, procedure)


def check_settings(task: Task) -> None:
    """The class is registered, and the settings survive JSON."""
    found = Task.registry.get(task.name)
    require(found is type(task), f"{task.name!r} is registered as {found}, not {type(task)}")
    again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    require(again == task, f"{task} came back from JSON as {again}")


def check_sampling(task: Task, docs: Documents, seed: int, split: str) -> None:
    """The same seed gives the same documents, and torch's global generator is left alone."""
    before = torch.get_rng_state()
    again = task.sample(len(docs), seed, split)
    require(same(docs, again), f"{split} documents of seed {seed} differ when they are drawn again")
    task.sample(len(docs), None, split)
    require(torch.equal(before, torch.get_rng_state()), "sampling moves torch's global generator")


def check_tokens(task: Task, docs: Documents) -> None:
    """Tokens and labels are token ids, and no document is longer than it may be."""
    n_pos, ids = docs.tokens.shape[1], f"0 .. {task.d_vocab - 1}"
    require(docs.tokens.dtype == torch.int64, f"tokens must be int64, got {docs.tokens.dtype}")
    require(n_pos <= task.n_ctx, f"documents have {n_pos} tokens, n_ctx is {task.n_ctx}")
    require_all(is_id(docs.tokens, task), f"a token is not in {ids}")
    require_all((docs.labels == IGNORE) | is_id(docs.labels, task), f"a label is not {IGNORE} nor in {ids}")
    require_all(docs.tokens[:, 0] == BOS, "the first token is not BOS")


def check_positions(docs: Documents) -> None:
    """Named positions point where they say, and those that an evaluation reads are there.

    Key and value are in the body, the divider is the EOS after it, then comes the query: two positions at
    least follow the value. The value is the answer; unless it is the key itself, the query repeats the key.
    """
    n_pos = docs.tokens.shape[1]
    for name in (*SYNONYMS, *SYNONYMS.values(), "divider"):
        require(name in docs.positions, f"there is no position {name!r} among {', '.join(docs.positions)}")
    for name, where in docs.positions.items():
        require_all((where >= 0) & (where < n_pos), f"position {name!r} is not in 0 .. {n_pos - 1}")
    for short, long in SYNONYMS.items():
        require_all(docs.positions[short] == docs.positions[long], f"{short!r} and {long!r} differ")

    key, value, divider, query = (docs.positions[name] for name in ("key", "value", "divider", "query"))
    require_all((0 < key) & (key < divider), "the key is not in the body")
    require_all((0 < value) & (value < divider), "the value is not in the body")
    require_all(divider < query, "the query does not follow the divider")
    require_all(token_at(docs, divider) == EOS, "the divider is not EOS")
    require_all(token_at(docs, value) == docs.answer, "the value is not the answer")
    repeated = token_at(docs, query) == token_at(docs, key)
    require_all(repeated | (key == value), "the query does not repeat the key")
    if "target_item" in docs.positions:
        target = docs.positions["target_item"]
        require_all(target == docs.answer_pos + 1, "the target item does not follow the prediction")
        require_all(token_at(docs, target) == docs.answer, "the target item is not the answer")


def check_answers(task: Task, docs: Documents) -> None:
    """The answer is the label where it is predicted, and the rule that solves the task finds it."""
    n_pos = docs.tokens.shape[1]
    require_all((docs.answer_pos >= 0) & (docs.answer_pos < n_pos), f"answer_pos is not in 0 .. {n_pos - 1}")
    require_all(docs.positions["query"] <= docs.answer_pos, "the answer is predicted before the query")
    label = docs.labels.gather(1, docs.answer_pos[:, None])[:, 0]
    require_all(label == docs.answer, "the label at answer_pos is not the answer")
    scores, rule = task.heuristics(docs), task.solving_rule
    for name, score in scores.items():
        shapes = f"{list(score.shape)} for {len(docs)} documents"
        require(score.shape == docs.answer.shape, f"the scores of {name!r} have shape {shapes}")
        require_all((score >= 0) & (score <= 1), f"the score of {name!r} is no probability")
    if rule is not None:
        require(rule in scores, f"the rule that solves the task, {rule!r}, is not among {', '.join(scores)}")
        require_all(scores[rule] == 1, f"the rule that solves the task, {rule!r}, does not")


def check_corruption(task: Task, docs: Documents, site: str, seed: int, procedure: str) -> None:
    """The token at the site changes; the same seed changes it alike; the clean documents stay.

    "original" changes that token alone. "unambiguous" may replace further copies of it in the body, alike,
    and leaves the rule that solves the task without the answer.
    """
    said = f"corrupting {site!r} ({procedure})"
    before = docs[torch.arange(len(docs))]  # a copy
    corrupted = task.corrupt(docs, site, seed, procedure)
    require(same(docs, before), f"{said} changes the clean documents")
    require_all(is_id(corrupted.tokens, task), f"{said} gives a token not in 0 .. {task.d_vocab - 1}")
    require(same(replace(corrupted, tokens=docs.tokens), docs), f"{said} changes more than tokens")
    require(
        same(corrupted, task.corrupt(docs, site, seed, procedure)), f"{said} again changes something else"
    )

    where, changed = docs.positions[site], corrupted.tokens != docs.tokens
    at_site = torch.zeros_like(changed).scatter(1, where[:, None], True)
    require_all(changed | ~at_site, f"{said} does not change the token there")
    if procedure == "original":
        require_all(at_site | ~changed, f"{said} changes another token, too")
        return
    in_body = torch.arange(docs.tokens.shape[1], device=where.device) < docs.positions["divider"][:, None]
    copies = in_body & (docs.tokens == token_at(docs, where)[:, None])
    require_all(at_site | copies | ~changed, f"{said} changes a token that is no copy of the one there")
    alike = corrupted.tokens == token_at(corrupted, where)[:, None]
    require_all(alike | ~changed, f"{said} replaces copies of one token by several")
    if task.solving_rule is not None:
        score = task.heuristics(corrupted)[task.solving_rule]
        require_all(score == 0, f"{said} leaves {task.solving_rule!r} right")


def is_id(tokens: Int[Tensor, "batch pos"], task: Task) -> Bool[Tensor, "batch pos"]:
    return (tokens >= 0) & (tokens < task.d_vocab)


def token_at(docs: Documents, where: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    return docs.tokens.gather(1, where[:, None])[:, 0]


def same(docs: Documents, other: Documents) -> bool:
    """Whether all fields are equal."""
    names = [field.name for field in fields(docs) if field.name != "positions"]
    return (
        all(torch.equal(getattr(docs, name), getattr(other, name)) for name in names)
        and docs.positions.keys() == other.positions.keys()
        and all(torch.equal(where, other.positions[name]) for name, where in docs.positions.items())
    )


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise + ".")


def require_all(holds: Bool[Tensor, "batch *rest"], otherwise: str) -> None:
    """AssertionError that names the first document of which it does not hold."""
    each = holds.flatten(1).all(1) if holds.ndim > 1 else holds
    if not bool(each.all()):
        raise AssertionError(f"{otherwise}, in document {int((~each).nonzero()[0])}.")
