"""Documents whose bodies are sentences with their trees.

    position   0   1   2   3   4    5    6   7   8    9
    tokens    BOS  a   b   c   d   EOS   b   c  EOS  PAD
    parent     .   3   3   4   .    .    .   .   .    .      . is -1
    depth      0   2   2   2   1    0    0   0   0    0
    span       .  1:2 2:3 1:4 1:5   .    .   .   .    .      . is 0:0

Here c heads the constituent a b c, and d, the root, the whole sentence.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tasks.documents import IGNORE, Documents
from tasks.relations import RELATIONS
from tasks.task import BOS, EOS, FIRST_CONTENT_TOKEN, PAD
from tasks.trees import Trees


@dataclass(frozen=True, eq=False)
class TreeDocuments(Documents):
    """Documents of different lengths, padded on the right, that keep the tree of each body.

    parent: the position of each word's head; -1 for the root and outside the body. depth: the number of
    constituents around the word, its own included; 0 outside the body. span: first position of the word's
    constituent (of the word itself, where it heads none), and the one after its last. relation: what is
    asked, as the number of one of `tasks.relations.RELATIONS`.
    """

    parent: Int[Tensor, "batch pos"]
    depth: Int[Tensor, "batch pos"]
    span: Int[Tensor, "batch pos 2"]
    relation: Int[Tensor, " batch"]

    def __post_init__(self):
        super().__post_init__()
        shape = list(self.tokens.shape)
        wanted = [("parent", self.parent, shape), ("depth", self.depth, shape)]
        wanted += [("span", self.span, [*shape, 2]), ("relation", self.relation, shape[:1])]
        for name, tensor, size in wanted:
            if list(tensor.shape) != size:
                raise ValueError(
                    f"{name} must have shape {size} for tokens of shape {shape}, got {list(tensor.shape)}."
                )

    @property
    def body(self) -> Bool[Tensor, "batch pos"]:
        """Where the words of the bodies are."""
        return self.depth > 0

    @property
    def length(self) -> Int[Tensor, " batch"]:
        """The number of words of each body."""
        return self.positions["divider"] - 1

    @property
    def distance(self) -> Int[Tensor, " batch"]:
        """From the key to the value, in positions: above 0 where the value comes later."""
        return self.positions["value"] - self.positions["key"]

    @property
    def query_depth(self) -> Int[Tensor, " batch"]:
        """The depth of the key."""
        return self.depth.gather(1, self.positions["key"][:, None])[:, 0].long()

    @property
    def tree_depth(self) -> Int[Tensor, " batch"]:
        """The depth of the deepest word."""
        return self.depth.amax(1).long()

    def pairs(self) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Query and target position of all pairs in the relation that is asked, and which entries are pairs.

        One entry a word. For "child" it is the word that is the target, else the one that is the query.
        """
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        parent = self.parent.long()
        has_parent = parent >= 0
        above = torch.where(has_parent, parent, index)
        # the root is scattered to itself, where no child of it is further to the right than its last child
        last_child = torch.full_like(index, -1).scatter_reduce(
            1, above, torch.where(has_parent, index, -1), "amax"
        )
        sibling = torch.where(has_parent, last_child.gather(1, above), index)

        asked = self.relation[:, None]
        is_child, is_sibling = asked == RELATIONS.index("child"), asked == RELATIONS.index("sibling")
        query = torch.where(is_child, above, index)
        target = torch.where(is_child, index, torch.where(is_sibling, sibling, above))
        return query, target, torch.where(is_sibling, self.body, has_parent)

    @property
    def targets(self) -> Bool[Tensor, "batch pos"]:
        """All words that stand to the key as is asked: one, but for "child", where each child is."""
        query, target, is_pair = self.pairs()
        of_key = is_pair & (query == self.positions["key"][:, None])
        found = torch.zeros_like(self.tokens).scatter_reduce(1, target, of_key.long(), "amax")
        return found.bool()


def as_documents(
    trees: Trees, questions: Int[np.ndarray, "asked 3"], first_relation_token: int | None
) -> TreeDocuments:
    """Documents that ask these questions (relation, query word, target word) about these trees.

        BOS  body  EOS  query  answer  EOS        or, where first_relation_token is not None,
        BOS  body  EOS  query  relation  answer  EOS

    The width is that of the longest of them.
    """
    n, extra = len(trees), 0 if first_relation_token is None else 1
    relation, key, value = torch.from_numpy(np.ascontiguousarray(questions.T))
    key, value = key + 1, value + 1
    length = torch.from_numpy(trees.length)
    width = int(length.max()) + 5 + extra
    where = torch.from_numpy(
        np.repeat(np.arange(n) * width + 1 - trees.first, trees.length) + np.arange(len(trees.label))
    )

    def spread(words: np.ndarray, shift: int, fill: int, dtype: torch.dtype) -> Tensor:
        out = torch.full((n * width,), fill, dtype=dtype)
        out[where] = torch.from_numpy(words + shift).to(dtype)
        return out.view(n, width)

    tokens = spread(trees.label, FIRST_CONTENT_TOKEN, PAD, torch.int64)
    parent = spread(np.where(trees.parent < 0, -2, trees.parent), 1, -1, torch.int32)
    spans = [spread(edge, 1, 0, torch.int32) for edge in (trees.start, trees.stop)]

    rows, divider = torch.arange(n), length + 1
    answer = tokens[rows, value]
    answer_pos = divider + 1 + extra
    tokens[:, 0] = BOS
    tokens[rows, divider] = EOS
    tokens[rows, divider + 1] = tokens[rows, key]
    if first_relation_token is not None:
        tokens[rows, divider + 2] = first_relation_token + relation
    tokens[rows, answer_pos + 1] = answer
    tokens[rows, answer_pos + 2] = EOS
    labels = torch.full_like(tokens, IGNORE)
    labels[rows, answer_pos] = answer
    positions = {
        "query_item_orig": key,
        "target_item_orig": value,
        "divider": divider,
        "query_item": divider + 1,
        "target_item": answer_pos + 1,
        "key": key,
        "value": value,
        "query": divider + 1,
    }
    if first_relation_token is not None:
        positions["query_type"] = answer_pos
    return TreeDocuments(
        tokens,
        answer,
        answer_pos,
        labels,
        positions,
        parent=parent,
        depth=spread(trees.depth, 0, 0, torch.int32),
        span=torch.stack(spans, -1),
        relation=relation,
    )
