"""What was measured on documents of the original generator, for grammars of three of its seeds, holds here.

Its streams of random numbers are not ours, so its grammars are not, and from one grammar to another most
statistics vary more than from one sample to another. So each is compared as what it is: three values, one a
grammar, against ours over 24 grammars, by their means and one by one.
"""

import numpy as np
import pytest
import torch

from tasks import AssociativeTreecall
from tasks.tree_heuristics import FittedRules, occurrences

GRAMMARS = range(24)
MOST_ALONE, MOST_TOGETHER = 4.0, 3.0  # deviations: of one published value, of the mean of three
SETTINGS = {
    "5, 20": ("pcfg_easy", 4000),
    "5, 8192": ("pcfg_easy_8192", 4000),
    "10, 20": ("pcfg_medium", 1500),
}

# columns: original seeds 42, 0, 1. Shares and heuristics in per cent.
PUBLISHED = {
    "5, 20": {
        "length mean": (14.7, 9.1, 11.3),
        "length sd": (14.4, 9.0, 9.5),
        "length p5": (3, 3, 3),
        "length p50": (9, 6, 8),
        "length p95": (45, 26, 31),
        "length p99": (74, 52, 48),
        "length max": (103, 78, 76),
        "depth mean": (2.99, 2.19, 2.45),
        "depth p50": (3, 2, 2),
        "depth p95": (6, 4, 5),
        "depth max": (9, 7, 6),
        "branching mean": (2.77, 2.44, 2.76),
        "branching max": (4, 4, 4),
        "not unique": (24, 15, 21),
        "unique documents": (91, 81, 85),
        "distance 1": (46, 50, 47),
        "distance 2": (24, 29, 24),
        "distance 3": (10, 8, 14),
        "distance 4": (9, 6, 5),
        "distance 5": (2, 2, 2),
        "distance 6": (4, 2, 2),
        "distance > 6": (5, 3, 5),
        "distance mean": (2.50, 2.07, 2.34),
        "distance p95": (6, 5, 7),
        "distance max": (41, 43, 30),
        "query to value": (5.6, 3.9, 4.7),
        "next_token": (50, 54, 51),
        "second_next_token": (28, 31, 28),
        "previous_token": (5, 5, 5),
        "last_token": (46, 59, 53),
        "most_frequent_last": (39, 54, 44),
        "most_frequent_first": (15, 16, 15),
        "uniform_tokens": (17, 22, 19),
        "uniform_distinct": (16, 20, 17),
        "usual_answer": (6, 5, 6),
        "usual_answer_to_query": (9, 9, 8),
        "usual_answer_to_query_and_last_token": (34, 51, 44),
        "copy_query": (0, 0, 0),
        "query repeated": (26, 14, 21),
        "answer repeated": (41, 28, 35),
        "query heads": (26, 25, 24),
    },
    "5, 8192": {
        "length mean": (13.9, 7.4, 9.5),
        "length sd": (15.2, 5.2, 7.4),
        "length p5": (3, 3, 3),
        "length p50": (9, 5, 7),
        "length p95": (42, 19, 25),
        "length p99": (82, 27, 34),
        "length max": (134, 36, 69),
        "depth mean": (2.64, 1.92, 2.37),
        "depth p50": (2, 2, 2),
        "depth p95": (5, 3, 5),
        "depth max": (9, 5, 7),
        "branching mean": (2.68, 2.53, 2.31),
        "branching max": (4, 4, 4),
        "not unique": (2, 1, 1),
        "unique documents": (99.95, 99.8, 99.95),
        "distance 1": (49, 50, 54),
        "distance 2": (23, 27, 26),
        "distance 3": (13, 12, 7),
        "distance 4": (5, 5, 6),
        "distance 5": (3, 2, 3),
        "distance 6": (2, 2, 1),
        "distance > 6": (5, 2, 3),
        "distance mean": (2.49, 2.04, 2.14),
        "distance p95": (7, 5, 5),
        "distance max": (84, 25, 48),
        "query to value": (6.3, 3.7, 4.4),
        "next_token": (49, 50, 54),
        "second_next_token": (23, 27, 26),
        "previous_token": (0, 0, 0),
        "last_token": (42, 58, 49),
        "most_frequent_last": (41, 56, 47),
        "most_frequent_first": (0, 0, 0),
        "uniform_tokens": (13, 19, 17),
        "uniform_distinct": (13, 19, 17),
        "usual_answer": (0, 0, 0),
        "usual_answer_to_query": (0, 0, 0),
        "usual_answer_to_query_and_last_token": (0, 0, 0),
        "copy_query": (0, 0, 0),
        "query repeated": (2.5, 1.2, 1.6),
        "answer repeated": (0.1, 0.1, 0.1),
        "query heads": (24, 20, 23),
    },
    "10, 20": {
        "length mean": (40.2, 89.5, 39.9),
        "length sd": (48.6, 124, 58.0),
        "length p5": (4, 4, 4),
        "length p50": (22, 27, 23),
        "length p95": (149, 351, 149),
        "length p99": (229, 519, 264),
        "length max": (283, 928, 621),
        "depth mean": (2.99, 3.63, 2.66),
        "depth p50": (3, 3, 2),
        "depth p95": (5, 7, 5),
        "depth max": (7, 9, 7),
        "branching mean": (4.40, 4.34, 4.91),
        "branching max": (9, 8.5, 9),
        "not unique": (41, 50, 39),
        "unique documents": (96, 93, 94),
        "distance 1": (40, 36, 28),
        "distance 2": (18, 23, 19),
        "distance 3": (12, 11, 17),
        "distance 4": (7, 7, 12),
        "distance 5": (7, 4, 6),
        "distance 6": (3, 4, 4),
        "distance > 6": (13, 15, 14),
        "distance mean": (3.79, 4.33, 4.21),
        "distance p95": (13, 14, 13),
        "distance max": (100, 105, 72),
        "query to value": (10.4, 10.7, 9.4),
        "next_token": (43, 41, 32),
        "second_next_token": (23, 26, 24),
        "previous_token": (4, 6, 5),
        "last_token": (43, 43, 47),
        "most_frequent_last": (28, 33, 36),
        "most_frequent_first": (13, 13, 17),
        "uniform_tokens": (13, 13, 13),
        "uniform_distinct": (12, 12, 11),
        "usual_answer": (6, 7, 8),
        "usual_answer_to_query": (9, 8, 10),
        "usual_answer_to_query_and_last_token": (23, 20, 28),
        "copy_query": (0, 0, 0),
        "query repeated": (45, 56, 41),
        "answer repeated": (60, 64, 59),
        "query heads": (21, 22, 15),
    },
}


def at(docs, values, name):
    return values.gather(1, docs.positions[name][:, None])[:, 0]


def n_unique(docs):
    """How many different (body, query), the padding being the same in all."""
    return len(docs.tokens.scatter(1, docs.positions["target_item"][:, None], 0).unique(dim=0))


def is_head(docs):
    return docs.span[..., 1] - docs.span[..., 0] > 1


def statistics(task, docs):
    """What is published. Fitted rules are fitted to half of the documents, and score on the others."""
    length, distance = docs.length.double(), docs.distance.double()
    counts = occurrences(docs.tokens, docs.body)
    n_distinct = torch.where(docs.body, 1 / counts.clamp(min=1), 0.0).sum(1)
    branching = (length - 1) / is_head(docs).sum(1)
    depth = docs.tree_depth.double()
    found = {"length mean": length.mean(), "length sd": length.std(), "length max": length.max()}
    found |= {f"length p{p}": length.quantile(p / 100) for p in (5, 50, 95, 99)}
    found |= {"depth mean": depth.mean(), "depth max": depth.max()}
    found |= {f"depth p{p}": depth.quantile(p / 100) for p in (50, 95)}
    found |= {"branching mean": branching.mean(), "branching max": branching.max()}
    found |= {"not unique": 100 * (1 - n_distinct / length).mean()}
    found |= {"unique documents": 100 * n_unique(docs) / len(docs)}
    found |= {f"distance {d}": 100 * (distance == d).double().mean() for d in range(1, 7)}
    found |= {"distance > 6": 100 * (distance > 6).double().mean(), "distance mean": distance.mean()}
    found |= {"distance p95": distance.quantile(0.95), "distance max": distance.max()}
    found |= {
        "query to value": (docs.positions["query"] - docs.positions["value"]).double().mean(),
        "query repeated": 100 * (at(docs, counts, "key") > 1).double().mean(),
        "answer repeated": 100 * (at(docs, counts, "value") > 1).double().mean(),
        "query heads": 100 * at(docs, is_head(docs), "key").double().mean(),
    }
    half = len(docs) // 2
    fitted = FittedRules(docs[:half])(docs[half:])
    for name, scores in (task.heuristics(docs) | fitted).items():
        found[name] = 100 * scores.double().mean()
    return {name: float(value) for name, value in found.items()}


def over_grammars(preset, n, measure, grammars=GRAMMARS, **changes):
    """Each statistic of n documents, a value a grammar: measure(task, docs)."""
    found = []
    for seed in grammars:
        task = AssociativeTreecall.preset(preset, grammar_seed=seed, **({"test_share": 0.0} | changes))
        found.append(measure(task, task.sample(n, 0)))
    return {name: np.array([of_grammar[name] for of_grammar in found]) for name in found[0]}


def assert_as_published(name, published, ours):
    """Lengths and maxima are compared by their logarithms, since a few grammars have very long sentences."""
    theirs = np.array(published, dtype=float)
    rounding = 0.3  # published without decimals, mostly: the deviation of what was rounded away
    if name.startswith("length") or name.endswith("max"):
        theirs, ours, rounding = np.log(theirs), np.log(ours), 0.3 / theirs.max()
    spread = np.hypot(ours.std(ddof=1), rounding)
    alone = np.abs(theirs - ours.mean()).max() / spread
    together = abs(theirs.mean() - ours.mean()) / spread * len(theirs) ** 0.5 if len(theirs) > 1 else 0.0
    said = f"{name}: published {published}, ours {ours.mean():.2f} with deviation {spread:.2f}"
    assert alone < MOST_ALONE and together < MOST_TOGETHER, said


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_statistics_over_grammars_are_the_published_ones(setting):
    preset, n = SETTINGS[setting]
    ours = over_grammars(preset, n, statistics)
    assert set(PUBLISHED[setting]) <= set(ours)
    for name, published in PUBLISHED[setting].items():
        assert_as_published(name, published, ours[name])


def test_sibling_queries_mostly_ask_for_themselves():
    def measure(task, docs):
        half = len(docs) // 2
        scores = task.heuristics(docs) | FittedRules(docs[:half])(docs[half:])
        names = ("copy_query", "last_token", "usual_answer_to_query")
        shares = {name: 100 * float(scores[name].mean()) for name in names}
        return shares | {f"distance {d}": 100 * float((docs.distance == d).float().mean()) for d in range(4)}

    # of one seed, 1500 documents; the mean distance is over the 1024 documents of the test set
    published = {"copy_query": 67.5, "usual_answer_to_query": 68.5, "last_token": 29}
    published |= {"distance 0": 67.5, "distance 1": 13, "distance 2": 6, "distance 3": 5}
    ours = over_grammars("multihop_no_parent", 1500, measure)
    assert np.array_equal(ours["copy_query"] >= ours["distance 0"], np.ones(len(GRAMMARS), dtype=bool))
    for name, value in published.items():
        assert_as_published(name, (value,), ours[name])


def test_held_out_pairs_make_test_sentences_longer_and_their_answers_few():
    def measure(split):
        def of_split(task, docs):
            docs = task.sample(1000, 0, split)
            half = len(docs) // 2
            fitted = FittedRules(docs[:half])(docs[half:])
            return {
                "length mean": float(docs.length.double().mean()),
                "distance 1": 100 * float((docs.distance == 1).double().mean()),
                "usual_answer_to_query": 100 * float(fitted["usual_answer_to_query"].mean()),
            }

        return over_grammars("pcfg_train_test_split", 1, of_split, grammars=range(12))

    train, test = measure("train"), measure("test")
    assert (test["length mean"] > train["length mean"]).all()
    assert_as_published("ratio of lengths", (11.3 / 8.8,), test["length mean"] / train["length mean"])
    for name, published, ours in (
        ("length mean", 8.8, train),
        ("length mean", 11.3, test),
        ("distance 1", 53, train),
        ("distance 1", 49, test),
    ):
        assert_as_published(name, (published,), ours[name])
    # few pairs are held out, so a rule fitted to test answers guesses them well: 64 % where it may also look
    # at which of them are in the document, which ours may not
    assert (test["usual_answer_to_query"] > 2 * train["usual_answer_to_query"]).all()


@pytest.mark.parametrize(
    "preset, seed, length, whole, body",
    [("pcfg_easy", 212, 15.3, 32.5, 40.0), ("pcfg_medium", 79, 39.3, 26.6, 31.0)],
)
def test_without_a_split_of_bodies_the_test_set_is_contaminated_as_published(
    preset, seed, length, whole, body
):
    """Of one grammar, over 100,032 training documents; here of one whose sentences are as long."""
    task = AssociativeTreecall.preset(preset, grammar_seed=seed, test_share=0.0)
    test, generator = task.sample(1000, 0, "test"), torch.Generator().manual_seed(0)
    assert abs(task.sample(4000, 1).length.double().mean() / length - 1) < 0.1
    known = set()
    for _ in range(16):  # not all at once: they are padded to the longest
        known |= set(bodies_and_documents(task.sample(6252, generator)))
    shares = np.array([row in known for row in bodies_and_documents(test)]).reshape(2, -1).mean(1) * 100
    # grammars of one mean length differ still, by some 5 points
    assert shares == pytest.approx([body, whole], abs=12)
    assert shares[1] < shares[0]


def bodies_and_documents(docs):
    """Bodies, then what comes before the last EOS, as bytes."""
    return [
        row[:end].tobytes()
        for name in ("divider", "target_item")
        for row, end in zip(docs.tokens.to(torch.int16).numpy(), (docs.positions[name] + 1).tolist())
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_degenerate_setting_is_solved_by_saying_the_last_word(seed):
    task = AssociativeTreecall.preset("pcfg_5_8192", grammar_seed=seed)
    docs = task.sample(2000, 0)
    assert float((docs.tree_depth == 1).double().mean()) > 0.95
    assert float(task.heuristics(docs)["last_token"].mean()) > 0.95
