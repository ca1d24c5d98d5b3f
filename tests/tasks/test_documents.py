"""Documents stay consistent under indexing, and read logits where and how they say."""

from dataclasses import replace

import pytest
import torch

from tasks import IGNORE, AssociativeRecall

TASK = AssociativeRecall(n_keys=9, n_values=7, n_pairs=3, n_queries=2)


@pytest.fixture
def docs():
    return TASK.sample(6, 0)


@pytest.fixture
def logits(docs):
    return torch.randn(6, TASK.n_ctx, TASK.d_vocab, generator=torch.Generator().manual_seed(1)).double()


def tensors(docs):
    return [docs.tokens, docs.answer, docs.answer_pos, docs.labels, *docs.positions.values()]


@pytest.mark.parametrize(
    "index",
    [
        slice(1, 5, 2),
        slice(0, 0),
        slice(-2, None),
        torch.tensor([5, 0, 0]),
        torch.tensor([True, False, True, False, False, True]),
    ],
    ids=str,
)
def test_every_field_is_indexed_alike(docs, index):
    some = docs[index]
    rows = torch.arange(6)[index]
    assert len(some) == len(rows)
    assert list(some.positions) == list(docs.positions)
    for part, whole in zip(tensors(some), tensors(docs), strict=True):
        assert torch.equal(part, whole[rows])


def test_one_document_keeps_its_batch_axis(docs):
    assert docs[2:3].tokens.shape == (1, TASK.n_ctx)
    with pytest.raises(TypeError):
        docs[2]


def test_bad_index_tensors_are_refused_with_their_shapes(docs):
    with pytest.raises(ValueError, match=r"one axis, got shape \[2, 2\]"):
        docs[torch.zeros(2, 2, dtype=torch.int64)]
    with pytest.raises(ValueError, match="one entry a document: 6, got 5"):
        docs[torch.ones(5, dtype=torch.bool)]


def test_moving_moves_every_field(docs):
    moved = docs.to("meta")
    assert all(tensor.device.type == "meta" for tensor in tensors(moved))
    assert all(tensor.device.type == "cpu" for tensor in tensors(docs))


def test_answers_are_read_at_answer_pos_from_the_softmax_over_the_vocabulary(docs, logits):
    for b in range(len(docs)):
        row = logits[b, docs.answer_pos[b]]
        answer = docs.answer[b]
        prob = row[answer].exp() / row.exp().sum()
        assert docs.answer_logit(logits)[b] == row[answer]
        torch.testing.assert_close(docs.answer_prob(logits)[b], prob, rtol=1e-12, atol=0)
        torch.testing.assert_close(docs.answer_logprob(logits)[b], prob.log(), rtol=1e-12, atol=0)
        assert docs.is_correct(logits)[b] == (row.argmax() == answer)


def test_a_logit_raised_at_the_answer_makes_it_correct_and_elsewhere_does_not(docs, logits):
    rows = torch.arange(6)
    right, wrong = logits.clone(), logits.clone()
    right[rows, docs.answer_pos, docs.answer] = 99.0
    wrong[rows, docs.answer_pos - 1, docs.answer] = 99.0
    wrong[rows, docs.answer_pos, docs.answer] = -99.0
    assert docs.is_correct(right).all() and not docs.is_correct(wrong).any()


@pytest.mark.parametrize("metric", ["answer_logit", "answer_logprob", "answer_prob", "is_correct"])
def test_logits_already_read_and_logits_of_a_cut_input_give_the_same(docs, logits, metric):
    whole = getattr(docs, metric)(logits)
    at_answer = logits[torch.arange(6), docs.answer_pos]
    assert torch.equal(getattr(docs, metric)(at_answer), whole)
    assert torch.equal(getattr(docs, metric)(logits[:, : int(docs.answer_pos.max()) + 1]), whole)


def test_the_gradient_of_the_logprob_is_one_hot_less_softmax(docs, logits):
    logits.requires_grad_()
    docs.answer_logprob(logits).sum().backward()
    rows = torch.arange(6)
    expected = torch.zeros_like(logits)
    expected[rows, docs.answer_pos] = -logits.detach()[rows, docs.answer_pos].softmax(-1)
    expected[rows, docs.answer_pos, docs.answer] += 1
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-15)


def test_probabilities_of_half_precision_logits_are_single_precision(docs, logits):
    half = logits.bfloat16()
    assert docs.answer_logprob(half).dtype == torch.float32
    assert torch.equal(docs.answer_logprob(half), docs.answer_logprob(half.float()))


def test_labels_and_logits_go_straight_into_cross_entropy(docs, logits):
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), docs.labels.flatten())
    terms = [
        -logits[b, p].log_softmax(-1)[docs.labels[b, p]]
        for b in range(6)
        for p in range(TASK.n_ctx)
        if docs.labels[b, p] != IGNORE
    ]
    assert len(terms) == 6 * TASK.n_queries
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "shape, said",
    [
        (
            (5, 13, 19),
            r"logits must be \[6, pos, d_vocab\] .* tokens of shape \[6, 13\], got shape \[5, 13, 19\]",
        ),
        ((5, 19), r"tokens of shape \[6, 13\], got shape \[5, 19\]"),
        ((6, 13, 1, 19), r"got shape \[6, 13, 1, 19\]"),
        ((6, 8, 19), r"logits must hold 9 to 13 positions .* got shape \[6, 8, 19\]"),
        ((6, 14, 19), r"logits must hold 9 to 13 positions .* got shape \[6, 14, 19\]"),
    ],
)
def test_logits_of_the_wrong_shape_are_refused_with_both_shapes(docs, shape, said):
    with pytest.raises(ValueError, match=said):
        docs.answer_logprob(torch.zeros(shape))


@pytest.mark.parametrize("field", ["answer", "answer_pos", "labels", "positions"])
def test_fields_of_another_batch_are_refused_by_name(docs, field):
    # set behind the constructor's back, whose annotations, where they are checked, refuse it first
    mixed = docs[:]
    object.__setattr__(mixed, field, getattr(docs[:4], field))
    with pytest.raises(ValueError, match=rf"{field}.* must have shape \[6.*\] for tokens of shape \[6, 13\]"):
        mixed.__post_init__()
    with pytest.raises((ValueError, TypeError)):
        replace(docs, **{field: getattr(docs[:4], field)})


def test_tokens_without_a_batch_axis_are_refused(docs):
    mixed = docs[:]
    object.__setattr__(mixed, "tokens", docs.tokens[0])
    with pytest.raises(ValueError, match=r"tokens must be \[batch, pos\], got shape \[13\]"):
        mixed.__post_init__()


def test_no_documents_give_no_answers(docs, logits):
    assert docs[:0].answer_prob(logits[:0]).shape == (0,)
