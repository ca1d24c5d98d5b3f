"""Associative recall is the task its definition says, document by document and in distribution."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import BOS, EOS, IGNORE, AssociativeRecall, is_held_out


def body_pairs(task, document):
    """The (key number, value number) pairs of a list of tokens."""
    body = document[1 : 1 + 2 * task.n_pairs]
    return [(k - 3, v - 3 - task.n_keys) for k, v in zip(body[::2], body[1::2], strict=True)]


def check_document(task, docs, b):
    """Document b obeys the definition, read token by token."""
    tokens, labels = docs.tokens[b].tolist(), docs.labels[b].tolist()
    where = {name: int(pos[b]) for name, pos in docs.positions.items()}
    n, n_queries = task.n_pairs, task.n_queries
    assert len(tokens) == task.n_ctx == 3 + 2 * n + 2 * n_queries
    assert (tokens[0], tokens[1 + 2 * n], tokens[-1]) == (BOS, EOS, EOS)

    pairs = body_pairs(task, tokens)
    keys, values = zip(*pairs, strict=True)
    assert set(keys) <= set(range(task.n_keys)) and len(set(keys)) == n
    assert set(values) <= set(range(task.n_values)) and len(set(values)) == n

    body = tokens[1 : 1 + 2 * n]
    step = 1 if task.query == "key" else -1
    queries, answers = tokens[2 + 2 * n : -1 : 2], tokens[3 + 2 * n : -1 : 2]
    assert len(queries) == len(set(queries)) == n_queries
    for query, answer in zip(queries, answers, strict=True):
        assert (query < 3 + task.n_keys) == (task.query == "key")
        assert body[body.index(query) + step] == answer

    supervised = {p: label for p, label in enumerate(labels) if label != IGNORE}
    assert supervised == {2 + 2 * n + 2 * j: answer for j, answer in enumerate(answers)}
    assert docs.answer[b] == answers[0] and docs.answer_pos[b] == where["query_item"] == 2 + 2 * n
    assert where == {
        "query_item_orig": 1 + body.index(queries[0]),
        "target_item_orig": 1 + body.index(answers[0]),
        "divider": 1 + 2 * n,
        "query_item": 2 + 2 * n,
        "target_item": 3 + 2 * n,
        "key": where["query_item_orig"],
        "value": where["target_item_orig"],
        "query": where["query_item"],
    }


@settings(max_examples=60, deadline=None)
@given(
    n_pairs=st.integers(1, 6),
    spare=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    n_queries=st.integers(1, 6),
    query=st.sampled_from(["key", "value"]),
    seed=st.integers(0, 2**32),
    split=st.sampled_from(["train", "test"]),
)
def test_every_document_obeys_the_definition(n_pairs, spare, n_queries, query, seed, split):
    task = AssociativeRecall(n_pairs + spare[0], n_pairs + spare[1], n_pairs, min(n_queries, n_pairs), query)
    docs = task.sample(5, seed, split)
    assert int(docs.tokens.max()) < task.d_vocab
    for b in range(5):
        check_document(task, docs, b)


@pytest.mark.parametrize("query", ["key", "value"])
def test_the_defaults_are_the_published_setting(query):
    task = AssociativeRecall(query=query)
    docs = task.sample(300, 0)
    assert (task.n_ctx, task.d_vocab, task.first_key, task.first_value) == (37, 8195, 3, 4099)
    for b in range(300):
        check_document(task, docs, b)
    distance = docs.positions["value"] - docs.positions["key"]
    assert bool((distance == (1 if query == "key" else -1)).all())


def assert_equally_likely(outcomes, n_outcomes):
    """Pearson's statistic is within 5 standard deviations of its mean, df."""
    counts = torch.tensor([outcomes.count(outcome) for outcome in set(outcomes)])
    assert len(counts) == n_outcomes
    expected, df = len(outcomes) / n_outcomes, n_outcomes - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - df) < 5 * math.sqrt(2 * df)


@pytest.mark.parametrize("query", ["key", "value"])
def test_the_queried_pair_is_uniform(query):
    docs = AssociativeRecall(query=query).sample(20_000, 0)
    assert_equally_likely(((docs.positions["key"] - 1) // 2).tolist(), 16)


@pytest.mark.parametrize("n_keys, n_values", [(5, 4), (4, 4)])
def test_keys_and_values_are_uniform_and_independent(n_keys, n_values):
    task = AssociativeRecall(n_keys=n_keys, n_values=n_values, n_pairs=2)
    pairs = [tuple(body_pairs(task, tokens)) for tokens in task.sample(6000, 0).tokens.tolist()]
    assert_equally_likely(pairs, n_keys * (n_keys - 1) * n_values * (n_values - 1))


def test_further_queries_are_uniform_orderings():
    task = AssociativeRecall(n_keys=9, n_values=9, n_pairs=4, n_queries=3)
    tokens = task.sample(4800, 0).tokens
    order = [tuple(row.index(query) for query in row[10:-1:2]) for row in tokens.tolist()]
    assert_equally_likely(order, 4 * 3 * 2)


def test_one_query_and_several_share_their_beginning():
    # same law, and the same numbers of the stream are spent before the queries
    one, many = (AssociativeRecall(n_pairs=4, n_queries=n).sample(50, 3) for n in (1, 4))
    assert torch.equal(one.tokens[:, :10], many.tokens[:, :10])
    assert one.tokens.shape[1] + 6 == many.tokens.shape[1]


# Held out 0.2: training documents are found among whole documents, test documents from single pairs; at 0.6
# it is the other way round. (The shares of documents without repetition are 0.44 and 0.56.)
@pytest.mark.parametrize("n_items, n_pairs, held_out, split_seed", [(3, 2, 0.2, 2), (4, 2, 0.6, 0)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_is_uniform_over_its_documents(n_items, n_pairs, held_out, split_seed, split):
    task = AssociativeRecall(n_items, n_items, n_pairs, held_out=held_out, split_seed=split_seed)
    numbers = range(n_items)
    held = {
        pair
        for pair in itertools.product(numbers, numbers)
        if is_held_out(torch.tensor(pair[0]), torch.tensor(pair[1]), held_out, split_seed)
    }
    bodies = [
        tuple(zip(keys, values, strict=True))
        for keys in itertools.permutations(numbers, n_pairs)
        for values in itertools.permutations(numbers, n_pairs)
    ]
    if split == "train":
        possible = {(body, q) for body in bodies for q in range(n_pairs) if not held & set(body)}
    else:
        possible = {(body, q) for body in bodies for q in range(n_pairs) if body[q] in held}
    assert 5 < len(possible) < len(bodies) * n_pairs

    docs = task.sample(200 * len(possible), 0, split)
    queried = ((docs.positions["key"] - 1) // 2).tolist()
    got = [(tuple(body_pairs(task, t)), q) for t, q in zip(docs.tokens.tolist(), queried, strict=True)]
    assert set(got) == possible
    assert_equally_likely(got, len(possible))


@pytest.mark.parametrize("query", ["key", "value"])
def test_held_out_pairs_are_absent_from_training_and_always_asked_in_test(query):
    task = AssociativeRecall(n_keys=512, n_values=512, n_pairs=8, n_queries=2, query=query, held_out=0.2)

    def held(tokens):
        keys, values = tokens[:, 1:17:2] - task.first_key, tokens[:, 2:17:2] - task.first_value
        return is_held_out(keys, values, 0.2, 0)

    train = task.sample(50_000, 0)
    assert not held(train.tokens).any()
    test = task.sample(5000, 0, "test")
    pair = (test.positions["key"] - 1) // 2
    assert held(test.tokens).gather(1, pair[:, None]).all()
    # the other pairs of a test document are as free as ever: 7 a document, 5 standard deviations
    others = (held(test.tokens).sum() - 5000).item() / (5000 * 7)
    assert abs(others - 0.2) < 5 * (0.16 / (5000 * 7)) ** 0.5
    assert_equally_likely(pair.tolist(), 8)
    for docs in (train, test):
        for b in range(100):
            check_document(task, docs, b)


def test_every_pair_that_is_not_held_out_can_be_trained_on():
    task = AssociativeRecall(n_keys=20, n_values=20, n_pairs=4, held_out=0.3)
    seen = {pair for tokens in task.sample(5000, 0).tokens.tolist() for pair in body_pairs(task, tokens)}
    keys, values = torch.cartesian_prod(torch.arange(20), torch.arange(20)).unbind(-1)
    assert len(seen) == int((~is_held_out(keys, values, 0.3, 0)).sum())


def test_the_same_seed_gives_the_same_documents():
    task = AssociativeRecall(n_pairs=4)
    first = task.sample(100, 7)
    assert torch.equal(first.tokens, task.sample(100, 7).tokens)
    assert not torch.equal(first.tokens, task.sample(100, 8).tokens)
    assert not torch.equal(first.tokens, task.sample(100).tokens)


def test_train_and_test_documents_of_one_seed_differ_also_without_a_held_out_set():
    task = AssociativeRecall(n_pairs=4)
    train, test = (
        set(map(tuple, task.sample(1000, 0, split).tokens.tolist())) for split in ("train", "test")
    )
    assert not train & test


def test_a_generator_moves_on():
    task, generator = AssociativeRecall(n_pairs=4), torch.Generator().manual_seed(0)
    first, second = task.sample(10, generator), task.sample(10, generator)
    assert not torch.equal(first.tokens, second.tokens)
    generator.manual_seed(0)
    assert torch.equal(first.tokens, task.sample(10, generator).tokens)


def test_documents_do_not_depend_on_the_number_of_threads():
    task, threads = AssociativeRecall(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = task.sample(5000, 0).tokens
        torch.set_num_threads(2)
        assert torch.equal(one, task.sample(5000, 0).tokens)
    finally:
        torch.set_num_threads(threads)


SPARSE = dict(n_keys=64, n_values=64, n_pairs=3)
DENSE = dict(n_keys=8, n_values=8, n_pairs=6, n_queries=2, held_out=0.1)
GOLDEN = [
    (
        SPARSE,
        "train",
        [[1, 48, 104, 12, 125, 53, 121, 2, 12, 125, 2], [1, 51, 112, 9, 88, 50, 68, 2, 51, 112, 2]],
    ),
    (
        SPARSE,
        "test",
        [[1, 23, 118, 61, 104, 44, 110, 2, 44, 110, 2], [1, 6, 94, 65, 108, 9, 113, 2, 65, 108, 2]],
    ),
    (
        SPARSE | dict(query="value", held_out=0.2),
        "train",
        [[1, 48, 122, 53, 127, 51, 115, 2, 122, 48, 2], [1, 9, 115, 50, 80, 40, 89, 2, 80, 50, 2]],
    ),
    (
        SPARSE | dict(query="value", held_out=0.2),
        "test",
        [[1, 56, 78, 58, 87, 65, 82, 2, 87, 58, 2], [1, 25, 111, 53, 74, 34, 103, 2, 111, 25, 2]],
    ),
    (DENSE, "train", [[1, 7, 14, 6, 12, 3, 17, 8, 18, 4, 11, 9, 15, 2, 4, 11, 7, 14, 2]]),
    (DENSE, "test", [[1, 10, 13, 4, 11, 3, 18, 6, 15, 8, 16, 9, 12, 2, 8, 16, 4, 11, 2]]),
]


@pytest.mark.parametrize("setting, split, tokens", GOLDEN)
def test_golden_documents(setting, split, tokens):
    """Published numbers rest on the documents of a seed: these never change."""
    assert AssociativeRecall(**setting).sample(len(tokens), 0, split).tokens.tolist() == tokens


def test_no_global_generator_is_touched():
    torch.manual_seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    for task in (AssociativeRecall(n_pairs=3), AssociativeRecall(8, 8, 6, held_out=0.1)):
        for generator in (None, 0, torch.Generator().manual_seed(0)):
            docs = task.sample(20, generator, "test")
            for procedure in ("unambiguous", "original"):
                task.corrupt(docs, "key", generator, procedure)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert all(np.array_equal(was, now) for was, now in zip(numpy_state, np.random.get_state(), strict=True))


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(n_pairs=5000), "n_pairs=5000, n_keys=4096, n_values=4096"),
        (dict(n_values=15), "n_pairs=16, n_keys=4096, n_values=15"),
        (dict(n_queries=17), "n_queries=17, n_pairs=16"),
        (dict(n_pairs=0), "n_pairs must be at least 1, got 0"),
        (dict(query="both"), "query must be one of key, value, got 'both'"),
        (dict(held_out=1.0), r"held_out must be in \[0, 1\), got 1.0"),
        (dict(held_out=-0.1), r"held_out must be in \[0, 1\), got -0.1"),
        (dict(held_out=float("nan")), r"held_out must be in \[0, 1\), got nan"),
        (dict(n_keys=2, n_values=2, n_pairs=1, held_out=0.01), "holds out 0 of 4 pairs"),
        (dict(n_keys=2, n_values=2, n_pairs=1, held_out=0.99), "holds out 4 of 4 pairs"),
        (dict(n_keys=64, n_values=64, n_pairs=64, held_out=0.5), "too rare to find"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        AssociativeRecall(**wrong)


@pytest.mark.parametrize(
    "wrong", [dict(n_keys=64.0), dict(n_pairs=True), dict(held_out="0.1"), dict(split_seed=0.5)]
)
def test_settings_of_the_wrong_type_are_refused(wrong):
    with pytest.raises(TypeError):
        AssociativeRecall(**wrong)


def test_a_split_without_documents_ends_in_an_error():
    # both pairs of key 0 are held out, and a document of two pairs among two keys has one of them
    seed = next(
        s
        for s in range(1000)
        if is_held_out(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), 0.5, s).tolist()
        == [True, True, False, False]
    )
    task = AssociativeRecall(2, 2, 2, held_out=0.5, split_seed=seed)
    with pytest.raises(ValueError, match="gave up looking for documents of the train split: 0 among"):
        task.sample(1, 0)
    assert len(task.sample(10, 0, "test")) == 10


def test_bad_sampling_arguments_are_refused():
    task = AssociativeRecall(n_pairs=2)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        task.sample(0)
    with pytest.raises(ValueError, match="split must be one of train, test, got 'dev'"):
        task.sample(1, 0, "dev")
