"""Corruptions of tree documents that leave no second way to the answer, and make none.

A way to the answer is a pair of body words in the relation asked, the first with the query's label and the
second with the answer's. The document asks for the rightmost key, but a word may occur more than once, so
there can be further ways. New labels are neither the query's nor the answer's, so none comes about.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tasks.corruption import absent_token
from tasks.task import FIRST_CONTENT_TOKEN, PAD
from tasks.tree_documents import TreeDocuments


def without_a_way(
    docs: TreeDocuments, site: str, n_terminals: int, generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    """The tokens with another terminal at the site, "key", "value" or "query": one a document, uniform.

    - key: all keys of the ways are replaced, by one new terminal: there is a way no more.
    - value: all values of the ways are, likewise.
    - query: the query is replaced by a terminal that has no way to the answer. In a long document all may
      have one; then by a terminal whose rightmost occurrence has none.

    Where there is but one way, as mostly, one token changes.
    """
    query, target, is_pair = docs.pairs()
    first, second = docs.tokens.gather(1, query), docs.tokens.gather(1, target)
    asked = docs.tokens.gather(1, docs.positions["query"][:, None])
    to_answer = is_pair & (second == docs.answer[:, None])
    ways = to_answer & (first == asked)

    taken = torch.cat((asked, docs.answer[:, None]), 1)
    replaced = torch.zeros_like(docs.tokens)
    if site == "query":
        leads = torch.cat((taken, torch.where(to_answer, first, PAD)), 1)
        last = is_last_of_its_label(docs).gather(1, query)
        last_leads = torch.cat((taken, torch.where(to_answer & last, first, PAD)), 1)
        taken = torch.where((n_labels(leads) < n_terminals)[:, None], leads, last_leads)
    else:
        ends = query if site == "key" else target
        replaced = replaced.scatter_reduce(1, ends, ways.long(), "amax")
    replaced.scatter_(1, docs.positions[site][:, None], 1)
    new = absent_token(taken, FIRST_CONTENT_TOKEN, n_terminals, generator, "terminal")
    return torch.where(replaced.bool(), new[:, None], docs.tokens)


def is_last_of_its_label(docs: TreeDocuments) -> Bool[Tensor, "batch pos"]:
    """Where a word of the body does not occur again to the right."""
    width = docs.tokens.shape[1]
    index = torch.arange(width, device=docs.tokens.device)
    ordered = (torch.where(docs.body, docs.tokens, PAD) * width + index).sort(1).values
    label, place = ordered // width, ordered % width
    is_last = torch.nn.functional.pad(label[:, 1:] != label[:, :-1], (0, 1), value=True)
    return torch.zeros_like(is_last).scatter(1, place, is_last) & docs.body


def n_labels(tokens: Int[Tensor, "batch entry"]) -> Int[Tensor, " batch"]:
    """How many different terminals there are in each row."""
    ordered = tokens.sort(1).values
    new = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    return (new & (ordered >= FIRST_CONTENT_TOKEN)).sum(1)
