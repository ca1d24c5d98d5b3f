"""The pieces of heuristics point where they say, and score what is there."""

import pytest
import torch

from tasks import IGNORE, Documents, rules

T, F = True, False


@pytest.fixture
def docs():
    tokens = torch.tensor([[1, 7, 8, 7, 2, 7], [1, 9, 9, 8, 2, 8], [1, 5, 5, 5, 2, 6]])
    query = torch.full((3,), 5)
    answer = torch.tensor([8, 9, 5])
    return Documents(tokens, answer, query, torch.full_like(tokens, IGNORE), {"query": query})


def test_first_and_last_place_of_a_mask():
    mask = torch.tensor([[F, T, F, T], [F, F, F, T], [F, F, F, F], [T, T, T, T]])
    assert rules.first_place(mask).tolist() == [1, 3, -1, 0]
    assert rules.last_place(mask).tolist() == [3, 3, -1, 3]


def test_beside_no_place_is_no_place():
    assert rules.beside(torch.tensor([3, -1, 0]), 1).tolist() == [4, -1, 1]
    assert rules.beside(torch.tensor([3, -1, 1]), -1).tolist() == [2, -1, 0]


def test_the_token_at_a_place_is_right_or_not(docs):
    assert rules.says(docs, torch.tensor([2, 2, 3])).tolist() == [1, 1, 1]
    assert rules.says(docs, torch.tensor([1, 3, 5])).tolist() == [0, 0, 0]
    assert rules.says(docs, torch.tensor([-1, -1, -1])).tolist() == [0, 0, 0]


def test_no_place_is_wrong_even_where_the_first_token_is_the_answer(docs):
    docs.tokens[:, 0] = docs.answer
    assert rules.says(docs, torch.tensor([-1, 0, -1])).tolist() == [0, 1, 0]


def test_a_uniform_one_under_a_mask(docs):
    body = rules.between(docs, 1, 3)
    assert body.tolist() == [[F, T, T, T, F, F]] * 3
    third = pytest.approx(1 / 3)
    assert rules.says_one_of(docs, body).tolist() == [third, pytest.approx(2 / 3), 1]
    assert rules.says_one_of(docs, torch.zeros_like(body)).tolist() == [0, 0, 0]
    assert rules.says_any_token(docs, 10).tolist() == [pytest.approx(0.1)] * 3


def test_occurrences_of_a_named_token_are_found_under_the_mask_alone(docs):
    found = rules.occurrences(docs, "query", rules.between(docs, 1, 3))
    assert found.tolist() == [[F, T, F, T, F, F], [F, F, F, T, F, F], [F] * 6]
