"""Small models with scattered weights, documents of associative recall, and all edges between their roles."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.circuits.edges import EdgeIndex, check_graph, circuit_graph, edges_of
from hooked_ssm.circuits.roles import role_map
from hooked_ssm.circuits.runs import CircuitRuns
from tasks import AssociativeRecall

from ..models import D_VOCAB, scattered

TASK = AssociativeRecall(n_keys=4, n_values=4, n_pairs=2)
ROLES = ("key", "value", "query")
DOCS, SEED = 2, 3
# Fewer nodes, as every one of them is a run of its own in the naive circuit.
OPTIONS = {
    "mamba": {"d_conv": 2},
    "delta_net": {"d_conv": 2, "n_heads": 1},
    "based": {"n_heads": 1, "feature_dim": 2},
}


@dataclass(frozen=True)
class Case:
    model: Any
    docs: Any
    clean: Tensor
    corrupted: Tensor
    role_of: Tensor
    index: EdgeIndex

    def runs(self, ablation="corrupt"):
        return CircuitRuns(
            self.model,
            self.index,
            self.clean,
            self.corrupted,
            self.role_of,
            self.docs.answer_pos,
            ablation,
        )

    def some(self, share, seed=0):
        """A random circuit with about this share of the edges."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(self.index), generator=generator) < share


@cache
def case_of(kind):
    assert TASK.d_vocab == D_VOCAB
    model, docs = scattered(kind, **OPTIONS.get(kind, {})), TASK.sample(DOCS, SEED)
    # One document each that asks for the first pair and for the last, whose next token is the divider.
    assert len(docs.positions["key"].unique()) == 2
    length = int(docs.answer_pos.max()) + 1
    clean, corrupted = (each.tokens[:, :length] for each in (docs, TASK.corrupt(docs, "key", 2)))
    role_of = role_map(ROLES, docs.positions, clean.shape)
    index, _ = edges_of(model, check_graph(model, circuit_graph(model)), ROLES, role_of, docs.answer_pos)
    return Case(model, docs, clean, corrupted, role_of, index)
