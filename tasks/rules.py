"""What simple rules answer: the pieces that the heuristics of a task are made of.

A rule says the token at one place of the document, or a uniform one of several. A place is one position a
document, -1 where the rule finds none; a mask is true where the rule may look.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks.documents import Documents


def first_place(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """The first position at which the mask is true, or -1."""
    return torch.where(mask.any(1), mask.int().argmax(1), -1)


def last_place(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """The last position at which the mask is true, or -1."""
    return torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)


def beside(place: Int[Tensor, " batch"], step: int) -> Int[Tensor, " batch"]:
    """The place `step` positions on; of no place, none."""
    return torch.where(place < 0, -1, place + step)


def says(docs: Documents, place: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """1 where the token at the place is the answer, 0 where it is another or there is no place."""
    token = docs.tokens.gather(1, place.clamp(min=0)[:, None])[:, 0]
    return ((token == docs.answer) & (place >= 0)).float()


def says_one_of(docs: Documents, mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
    """The probability that a uniform one of the tokens under the mask is the answer; 0 if it is empty."""
    right = mask & (docs.tokens == docs.answer[:, None])
    return right.sum(1) / mask.sum(1).clamp(min=1)


def says_any_token(docs: Documents, d_vocab: int) -> Float[Tensor, " batch"]:
    """The probability that a uniform one of all token ids is the answer."""
    return torch.full_like(docs.answer, 1 / d_vocab, dtype=torch.float32)


def occurrences(docs: Documents, name: str, within: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Where, under the mask, the token of the named position occurs."""
    return within & (docs.tokens == docs.tokens.gather(1, docs.positions[name][:, None]))


def between(docs: Documents, first: int, last: int) -> Bool[Tensor, "batch pos"]:
    """The mask of the positions first .. last of every document."""
    index = torch.arange(docs.tokens.shape[1], device=docs.tokens.device)
    return ((index >= first) & (index <= last)).expand(len(docs), -1)
