"""Replacement tokens are uniform over exactly the tokens they may be."""

import pytest
import torch

from tasks.corruption import absent_token, original_token


def test_an_absent_token_is_uniform_over_those_not_in_the_document():
    # kind 10 .. 15; repeated tokens, tokens of other kinds, and a different number absent in each document
    documents = [
        [1, 10, 12, 12, 99, 2],
        [9, 9, 9, 9, 16, 3],
        [11, 10, 12, 13, 14, 15],
        [15, 10, 11, 14, 13, 15],
    ]
    documents[2][5] = 14
    tokens = torch.tensor(documents).repeat_interleave(6000, 0)
    drawn = absent_token(tokens, 10, 6, torch.Generator().manual_seed(0), "key").view(4, 6000)
    for document, row in zip(documents, drawn, strict=True):
        absent = set(range(10, 16)) - set(document)
        counts = torch.bincount(row, minlength=100)
        assert set(counts.nonzero().flatten().tolist()) == absent
        expected = 6000 / len(absent)
        # 5 standard deviations of a binomial count, the same for every token
        slack = 5 * (expected * (1 - 1 / len(absent))) ** 0.5
        assert all(abs(counts[token] - expected) <= slack for token in absent)


def test_a_document_with_every_token_of_the_kind_is_named():
    tokens = torch.tensor([[3, 4, 9], [5, 3, 4]])
    with pytest.raises(ValueError, match=r"no key is left .* all 3 of them occur in document 1"):
        absent_token(tokens, 3, 3, torch.Generator(), "key")


@pytest.mark.parametrize(
    "old, possible",
    [
        (12, [10, 11, 13, 14]),
        (10, [11, 12, 13, 14]),
        (14, [10, 11, 12, 13]),
        (20, [10, 11, 12, 13]),
        (4, [11, 12, 13, 14]),
    ],
    ids=["inside", "first", "last", "above", "below"],
)
def test_the_original_draw_skips_the_old_token_or_an_end_of_the_range(old, possible):
    drawn = original_token(torch.full((8000,), old), 10, 5, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=30)
    assert counts.nonzero().flatten().tolist() == possible
    slack = 5 * (2000 * 0.75) ** 0.5  # 5 standard deviations of a binomial count
    assert all(abs(counts[token] - 2000) <= slack for token in possible)


def test_the_original_draw_needs_two_tokens():
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        original_token(torch.tensor([5]), 5, 1, torch.Generator())
