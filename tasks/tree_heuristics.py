"""What simple rules score on tree documents, without knowing anything of trees.

All read the document as it is, corrupted or not; "key" is the rightmost word that equals the query, by
its position in the clean document.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks import rules
from tasks.tree_documents import TreeDocuments


def heuristics(docs: TreeDocuments, d_vocab: int) -> dict[str, Float[Tensor, " batch"]]:
    """For each rule, the probability that it gives the right answer to each document."""
    body, key = docs.body, docs.positions["key"]
    index = torch.arange(docs.tokens.shape[1], device=docs.tokens.device)
    counts = occurrences(docs.tokens, body)
    rank_last, rank_first = (
        torch.where(body, counts * len(index) + order, -1).argmax(1) for order in (index, index.flip(0))
    )
    right = body & (docs.tokens == docs.answer[:, None])
    n_distinct = torch.where(body, 1 / counts.clamp(min=1), 0.0).sum(1)
    return {
        "uniform_vocabulary": rules.says_any_token(docs, d_vocab),
        "uniform_tokens": rules.says_one_of(docs, body),
        "uniform_distinct": right.any(1) / n_distinct.round(),
        "first_token": rules.says(docs, rules.first_place(body)),
        "last_token": rules.says(docs, rules.last_place(body)),
        "most_frequent_first": rules.says(docs, rank_first),
        "most_frequent_last": rules.says(docs, rank_last),
        "next_token": rules.says(docs, key + 1),
        "second_next_token": rules.says(docs, key + 2),
        "previous_token": rules.says(docs, key - 1),
        "copy_query": rules.says(docs, docs.positions["query"]),
    }


def occurrences(
    tokens: Int[Tensor, "batch pos"], body: Bool[Tensor, "batch pos"]
) -> Int[Tensor, "batch pos"]:
    """How often each word of a body occurs in it; 0 elsewhere."""
    row = torch.arange(len(tokens), device=tokens.device)[:, None]
    width = int(tokens.max()) + 1 if tokens.numel() else 1
    group = torch.where(body, tokens, 0) + row * width
    _, which, counts = group.unique(return_inverse=True, return_counts=True)
    return torch.where(body, counts[which], 0)


class FittedRules:
    """Rules that have seen training documents: the most frequent answer, given what they look at.

    Looking at nothing, at the query token, and at the query token and the last word of the body. Where what
    they look at did not occur in training, they are wrong.
    """

    def __init__(self, train: TreeDocuments):
        self.tables = {name: most_frequent(seen, train.answer) for name, seen in looked_at(train).items()}

    def __call__(self, docs: TreeDocuments) -> dict[str, Float[Tensor, " batch"]]:
        """For each rule, whether it is right about each document: 0 or 1."""
        scores = {}
        for name, seen in looked_at(docs).items():
            known, says = (table.to(seen.device) for table in self.tables[name])
            place = torch.searchsorted(known, seen).clamp(max=len(known) - 1)
            scores[name] = ((known[place] == seen) & (says[place] == docs.answer)).float()
        return scores


def looked_at(docs: TreeDocuments) -> dict[str, Int[Tensor, " batch"]]:
    """What each fitted rule looks at, as one number a document."""
    query = docs.tokens.gather(1, docs.positions["query"][:, None])[:, 0]
    last = docs.tokens.gather(1, docs.positions["divider"][:, None] - 1)[:, 0]
    return {
        "usual_answer": torch.zeros_like(query),
        "usual_answer_to_query": query,
        "usual_answer_to_query_and_last_token": (query << 32) + last,
    }


def most_frequent(
    seen: Int[Tensor, " batch"], answer: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, " known"], Int[Tensor, " known"]]:
    """Each number seen, ascending, and the answer most frequent with it (the smallest of several)."""
    known, which = seen.unique(return_inverse=True)
    width = int(answer.max()) + 1
    pairs, counts = (which * width + answer).unique(return_counts=True)
    # by what was seen, then by falling count; the sort is stable, so that smaller answers stay first
    order = torch.argsort(pairs // width * (len(seen) + 1) + (len(seen) - counts), stable=True)
    pairs = pairs[order]
    first = torch.cat((torch.ones(1, dtype=torch.bool), (pairs // width).diff() > 0))
    return known, pairs[first] % width
