"""A batch of documents: what a model reads, what it is asked, and where.

    pos      0    1   2   3   4   5    6   7   8
    tokens  BOS  k1  v1  k2  v2  EOS  k2  v2  EOS
    labels   .    .   .   .   .   .   v2   .   .        . is IGNORE
                                       ^ answer_pos; answer = v2

Labels are already shifted: labels[b, p] is the token to be predicted AT p, so that cross-entropy takes
logits and labels as they are, and labels[b, answer_pos[b]] == answer[b].
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = -100  # the default ignore_index of torch.nn.functional.cross_entropy
Self = TypeVar("Self", bound="Documents")  # a subclass's documents stay of that subclass


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents, their answers and their named positions, as tensors; `len`, slices and index tensors work.

    `positions` maps a name to one position a document (0 is the first token):

    - `query_item_orig` or `key`: the queried item inside the body;
    - `target_item_orig` or `value`: the answer inside the body;
    - `divider`: the token that ends the body;
    - `query_item` or `query`: the query after the divider;
    - `target_item`: the answer token after the query, in tasks that feed it in.
    """

    tokens: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"]
    answer_pos: Int[Tensor, " batch"]
    labels: Int[Tensor, "batch pos"]
    positions: dict[str, Int[Tensor, " batch"]]

    def __post_init__(self):
        if self.tokens.ndim != 2:
            raise ValueError(f"tokens must be [batch, pos], got shape {list(self.tokens.shape)}.")
        batch = [self.tokens.shape[0]]
        wanted = [("labels", self.labels, list(self.tokens.shape))]
        wanted += [("answer", self.answer, batch), ("answer_pos", self.answer_pos, batch)]
        wanted += [(f"positions[{name!r}]", where, batch) for name, where in self.positions.items()]
        for name, tensor, shape in wanted:
            if list(tensor.shape) != shape:
                raise ValueError(
                    f"{name} must have shape {shape} for tokens of shape {list(self.tokens.shape)}, "
                    f"got {list(tensor.shape)}."
                )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self: Self, index: slice | Tensor) -> Self:
        """The documents at a slice, at a 1-D tensor of indices, or where a 1-D bool tensor is true."""
        if isinstance(index, Tensor):
            if index.ndim != 1:
                raise ValueError(f"an index tensor must have one axis, got shape {list(index.shape)}.")
            if index.dtype == torch.bool and len(index) != len(self):
                raise ValueError(f"a bool index needs one entry a document: {len(self)}, got {len(index)}.")
        elif not isinstance(index, slice):
            raise TypeError(
                f"index documents by a slice or a tensor, got {index!r}; one document i is docs[i : i + 1]."
            )
        return self._map(lambda tensor: tensor[index])

    def to(self: Self, device: torch.device | str) -> Self:
        """The same documents on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def answer_logit(self, logits: Float[Tensor, "batch *pos d_vocab"]) -> Float[Tensor, " batch"]:
        """The logit of the answer, from logits [batch, pos, d_vocab], or [batch, d_vocab] at answer_pos."""
        at_answer = self._at_answer_pos(logits)
        return at_answer.gather(-1, self.answer.to(logits.device)[:, None]).squeeze(-1)

    def answer_logprob(self, logits: Float[Tensor, "batch *pos d_vocab"]) -> Float[Tensor, " batch"]:
        """The log-probability of the answer among the whole vocabulary; logits as in `answer_logit`."""
        at_answer = self._at_answer_pos(logits)
        # half-precision logits would lose the small differences that patching is about
        at_answer = at_answer.to(torch.promote_types(at_answer.dtype, torch.float32))
        return self.answer_logit(at_answer) - at_answer.logsumexp(-1)

    def answer_prob(self, logits: Float[Tensor, "batch *pos d_vocab"]) -> Float[Tensor, " batch"]:
        """The probability of the answer among the whole vocabulary; logits as in `answer_logit`."""
        return self.answer_logprob(logits).exp()

    def is_correct(self, logits: Float[Tensor, "batch *pos d_vocab"]) -> Bool[Tensor, " batch"]:
        """Whether the answer has the largest logit of the vocabulary; logits as in `answer_logit`."""
        return self._at_answer_pos(logits).argmax(-1) == self.answer.to(logits.device)

    @cached_property
    def _last_answer_pos(self) -> int:
        return int(self.answer_pos.max()) if len(self) else -1

    def _at_answer_pos(self, logits: Float[Tensor, "batch *pos d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        got, (batch, n_pos) = list(logits.shape), self.tokens.shape
        if logits.ndim not in (2, 3) or got[0] != batch:
            raise ValueError(
                f"logits must be [{batch}, pos, d_vocab] or [{batch}, d_vocab] for tokens of shape "
                f"{[batch, n_pos]}, got shape {got}."
            )
        if logits.ndim == 2:
            return logits
        if not self._last_answer_pos < got[1] <= n_pos:
            raise ValueError(
                f"logits must hold {self._last_answer_pos + 1} to {n_pos} positions (tokens are "
                f"{[batch, n_pos]}, the last answer_pos is {self._last_answer_pos}), got shape {got}."
            )
        return logits[torch.arange(batch, device=logits.device), self.answer_pos.to(logits.device)]

    def _map(self: Self, change) -> Self:
        tensors = {f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "positions"}
        positions = {name: change(where) for name, where in self.positions.items()}
        return type(self)(**tensors, positions=positions)
