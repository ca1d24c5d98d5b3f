"""Treecall documents a second: ours, and one document at a time as the original generator works.

The original is not an installable package, so the peer restates its way of working: depth first with a stack
of named tuples, numpy's legacy `choice` for rules and for heads (which sums up all head probabilities at
each draw), every pair of words looked at for eligible ones, a schema of dictionaries, lists padded into a
batch. It draws from our grammar, so that both make the same documents in law.
"""

from collections import namedtuple

import numpy as np
import torch

from tasks import BOS, EOS, FIRST_CONTENT_TOKEN, IGNORE, PAD, AssociativeTreecall

SETTINGS = ("pcfg_easy", "pcfg_easy_8192", "pcfg_medium")
BAR = 10

Node = namedtuple("Node", ["label", "id", "head_id", "depth"])


class OneAtATime:
    """The original's way: `documents(n)` gives n of them, padded, with labels and schemas."""

    def __init__(self, task: AssociativeTreecall, seed: int):
        self.task, self.random = task, np.random.RandomState(seed)
        self.rule_probs = [[rule.probability for rule in rules] for rules in task.grammar.rules]

    def sentence(self) -> list[Node]:
        grammar = self.task.grammar
        start = grammar.n_terminals + self.random.choice(grammar.n_nonterminals)
        stack, words, next_id = [Node(start, None, -1, 0)], [], 0
        while stack:
            node = stack.pop()
            if node.id is not None or node.label < grammar.n_terminals:
                words.append(node if node.id is not None else node._replace(id=next_id))
                next_id += node.id is None
                continue
            x, own, next_id = node.label - grammar.n_terminals, next_id, next_id + 1
            rule = grammar.rules[x][self.random.choice(len(self.rule_probs[x]), p=self.rule_probs[x])]
            head = self.random.choice(grammar.n_terminals, p=grammar.heads[x])
            stack.append(Node(head, own, node.head_id, node.depth + 1))  # said after all below it
            for symbol in reversed(rule.symbols):
                stack.append(Node(symbol, None, own, node.depth + 1))
        return words

    def document(self) -> tuple[list[int], dict]:
        while True:
            words = self.sentence()
            n = len(words)
            if not 3 <= n <= self.task.max_length:
                continue
            last = {node.label: i for i, node in enumerate(words)}
            eligible: dict[int, list[int]] = {}
            for i in range(n):
                for j in range(n):
                    if words[i].head_id == words[j].id and last[words[i].label] == i:
                        eligible.setdefault(j, []).append(i)
            if eligible:
                break
        target = int(self.random.choice(list(eligible)))
        query = int(self.random.choice(eligible[target]))
        labels = [int(node.label) + FIRST_CONTENT_TOKEN for node in words]
        tokens = [BOS, *labels, EOS, labels[query], labels[target], EOS]
        schema = {
            "type": "PARENT",
            "positions": {
                "query_item_orig": 1 + query,
                "target_item_orig": 1 + target,
                "divider": n + 1,
                "query_item": n + 2,
                "target_item": n + 3,
            },
        }
        return tokens, schema

    def documents(self, n: int) -> dict:
        documents, schemas = zip(*(self.document() for _ in range(n)), strict=True)
        tokens = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(document) for document in documents], batch_first=True, padding_value=PAD
        )
        labels = tokens.clone()
        for row, schema in enumerate(schemas):
            target = schema["positions"]["target_item"]
            labels[row, :target] = IGNORE
            labels[row, target + 1 :] = IGNORE
        return {"tokens": tokens, "labels": labels, "schemas": schemas}


def check_same_law(task: AssociativeTreecall, peer: OneAtATime, n: int = 1500) -> None:
    """Mean length and mean distance of both sides agree within 5 deviations; RuntimeError otherwise."""
    ours = task.sample(n, 0)
    where = [schema["positions"] for schema in peer.documents(n)["schemas"]]
    for name, own, other in (
        ("length", ours.length.double().numpy(), np.array([p["divider"] - 1 for p in where])),
        (
            "distance",
            ours.distance.double().numpy(),
            np.array([p["target_item_orig"] - p["query_item_orig"] for p in where]),
        ),
    ):
        slack = 5 * np.hypot(own.std(), other.std()) / n**0.5
        if abs(own.mean() - other.mean()) > slack:
            raise RuntimeError(f"the {name} of documents is {own.mean():.2f} here, {other.mean():.2f} there.")
