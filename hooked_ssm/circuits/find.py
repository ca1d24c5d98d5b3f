"""From a model and a task to a circuit."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from hooked_ssm.attribution import Graph, edge_attribution
from hooked_ssm.circuits.circuit import Circuit, tested
from hooked_ssm.circuits.edges import check_graph, circuit_graph, edges_of, scores_of
from hooked_ssm.circuits.question import Metric, RecallTask, Trial, questions
from hooked_ssm.circuits.roles import default_roles
from hooked_ssm.circuits.runs import ABLATIONS
from hooked_ssm.circuits.search import METHODS, order_of, shortest, thinned
from hooked_ssm.patching.checks import check_eval
from hooked_ssm.patching.sweep import BAR_DELAY

SITES = ("key", "value", "query")


def find_circuit(
    model: Any,
    task: RecallTask,
    *,
    sites: Sequence[str] | str = SITES,
    roles: Sequence[str] | None = None,
    graph: Graph | None = None,
    metric: Metric = "logprob",
    ablation: str = "corrupt",
    target: float = 0.95,
    method: str = "threshold",
    steps: int | None = 5,
    n_docs: int = 48,
    seed: int = 0,
    verbose: bool = True,
) -> Circuit:
    """Few edges between positions and hooks that do what the model does.

    Documents are drawn from the task and corrupted at every site. All edges are scored by integrated
    gradients (EAP-IG) on the way from the corrupted to the clean embeddings; as many of the first as it takes
    are kept, and thinned out one by one (`circuits.search`). A circuit is run with every other edge ablated
    (`circuits.runs` says what that means, kind by kind).

    sites: positions whose corruption the circuit has to undo, each by itself: ("key",) gives the path of the
        key, all three the whole mechanism.
    roles: the positions that are told apart, names with offsets ("value+1") or numbers; by default key, value
        and the two after it, and query, as far as the documents have them. All others are one.
    graph: `circuit_graph(model)`, with every part of every mixer, if not another one.
    metric: of the answer: "logprob", "prob" or "logit", or a function of documents and their logits
        [doc, d_vocab], giving one number a document.
    ablation: what goes along an edge outside the circuit: "corrupt", "mean" or "zero".
    target: the faithfulness to reach at every site, on the documents that are searched with:
        (m(circuit) - m(corrupted)) / (m(clean) - m(corrupted)).
    method: the order of the edges, "threshold" or "greedy". steps: of integrated gradients; None for the
        gradient of the corrupted run alone.
    n_docs: documents a site. The same seed gives the same circuit.

    Raises ValueError for unknown names, a site that costs the model nothing, wrong metrics and models in
    training mode; TypeError for a model that cannot start at a layer, as TransformerLens's bridges cannot.
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    check_eval(model)
    if not hasattr(model, "blocks") or not hasattr(model, "unavailable_hooks"):
        raise TypeError(
            f"circuits are for a HookedSSM, whose layers can be run one by one, got {type(model).__name__}."
        )
    if not 0 < target <= 1 or n_docs < 1:
        raise ValueError(
            f"target must be in (0, 1] and n_docs at least 1, got target={target}, n_docs={n_docs}."
        )
    for what, got, choices in (("method", method, METHODS), ("ablation", ablation, ABLATIONS)):
        if got not in choices:
            raise ValueError(f"{what} must be one of {', '.join(choices)}, got {got!r}.")
    graph = check_graph(model, graph or circuit_graph(model))
    docs = task.sample(n_docs, seed)
    roles = tuple(roles or default_roles(docs.positions))
    asked = questions(model, task, docs, sites, roles, metric, seed)
    index, n_graph = edges_of(model, graph, roles, asked[0].role_of, docs.answer_pos)
    each = torch.zeros(len(asked), len(index))
    bar = tqdm(asked, desc="scores of edges", delay=BAR_DELAY, disable=not verbose)
    for number, question in enumerate(bar):
        found = edge_attribution(
            model,
            question.clean,
            question.corrupted,
            question.problem.metric,
            graph,
            steps=steps,
            logit_positions=question.answer_pos.to(question.clean.device),
        )
        each[number] = scores_of(index, found, question.role_of, docs.answer_pos) / question.gap
    sizes, largest = each.abs().max(0)
    trial = Trial(asked, index, ablation)
    kept = shortest(trial, order_of(index, sizes, method), target)
    kept = thinned(trial, kept, sizes, target, verbose=verbose)
    scores = each.gather(0, largest[None])[0]
    return Circuit(
        index, kept, scores, sites, metric, ablation, tested(trial, kept), n_graph, model=model, task=task
    )
