"""Grammars have the law of the definition, are the same from the same seed, and survive JSON to the bit."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tasks.categorical import MAX_ROWS, ONE, Categorical
from tasks.grammar import Grammar, Rule
from tasks.random_grammar import spacings

from .laws import assert_equally_likely, assert_law


def all_rules(grammar):
    return [(x, rule) for x, rules in enumerate(grammar.rules) for rule in rules]


@pytest.mark.parametrize("max_children, factor", [(4, None), (9, None), (3, 5.0)])
def test_rules_lead_upwards_and_have_the_lengths_asked_for(max_children, factor):
    grammar = Grammar.draw(3, max_children=max_children, terminal_factor=factor)
    assert {len(rule.symbols) for _, rule in all_rules(grammar)} == set(range(1, max_children + 1))
    assert set(grammar.levels) <= set(range(1, 11))
    for x, rule in all_rules(grammar):
        for symbol in rule.symbols:
            assert symbol < 20 or grammar.levels[symbol - 20] > grammar.levels[x]
    for rules, heads in zip(grammar.rules, grammar.heads, strict=True):
        assert 1 <= len(rules) <= 5
        assert sum(rule.probability for rule in rules) == 1 == heads.sum() and (heads > 0).all()


def test_levels_numbers_of_rules_and_their_lengths_are_uniform():
    grammars = [Grammar.draw(seed) for seed in range(60)]
    assert_equally_likely([level for g in grammars for level in g.levels], range(1, 11))
    assert_equally_likely([len(rules) for g in grammars for rules in g.rules], range(1, 6))
    assert_equally_likely([len(rule.symbols) for g in grammars for _, rule in all_rules(g)], range(1, 5))


@pytest.mark.parametrize("n_terminals, factor, weight", [(20, None, 20), (20, 3.0, 3), (500, 20.0, 20)])
def test_symbols_have_the_weights_of_the_definition(n_terminals, factor, weight):
    symbols, expected = [], Counter()
    for seed in range(40):
        grammar = Grammar.draw(seed, n_terminals=n_terminals, terminal_factor=factor)
        for x, rule in all_rules(grammar):
            higher = sum(level > grammar.levels[x] for level in grammar.levels)
            for symbol in rule.symbols:
                symbols.append("terminal" if symbol < n_terminals else "nonterminal")
                expected["terminal"] += weight / (weight + higher)
                expected["nonterminal"] += higher / (weight + higher)
    assert_law(symbols, {kind: count / len(symbols) for kind, count in expected.items()})


def test_terminals_of_rules_and_higher_nonterminals_are_uniform():
    grammars = [Grammar.draw(seed) for seed in range(60)]
    terminals = [s for g in grammars for _, rule in all_rules(g) for s in rule.symbols if s < 20]
    assert_equally_likely(terminals, range(20))
    # where the rule's level is 9, the higher nonterminals are those of level 10: their rank is uniform
    ranks = []
    for g in grammars:
        highest = [x for x, level in enumerate(g.levels) if level == 10]
        for x, rule in all_rules(g):
            if g.levels[x] == 9 and len(highest) == 4:
                ranks += [highest.index(s - 20) for s in rule.symbols if s >= 20]
    assert_equally_likely(ranks, range(4))


def test_spacings_are_a_flat_dirichlet_law():
    cuts = np.random.default_rng(0).integers(ONE, size=(20_000, 4))
    drawn = spacings(cuts)
    assert (drawn.sum(1) == 1).all() and (drawn >= 0).all()
    # each of k = 5 pieces is Beta(1, 4): mean 1 / 5, second moment 2 / 30, fourth moment 24 / 1680
    for power, moment, fourth in ((1, 1 / 5, 2 / 30), (2, 2 / 30, 24 / 1680)):
        slack = 5 * ((fourth - moment**2) / 20_000) ** 0.5
        assert np.abs((drawn**power).mean(0) - moment).max() < slack


def test_probabilities_of_rules_and_heads_are_a_flat_dirichlet_law():
    grammars = [Grammar.draw(seed, n_terminals=3) for seed in range(100)]
    heads = np.concatenate([g.heads for g in grammars])
    two = np.array([rules[0].probability for g in grammars for rules in g.rules if len(rules) == 2])
    # Beta(1, 2): mean 1 / 3, variance 1 / 18; Beta(1, 1): 1 / 2, 1 / 12
    assert np.abs(heads.mean(0) - 1 / 3).max() < 5 * (1 / 18 / len(heads)) ** 0.5
    assert abs(two.mean() - 1 / 2) < 5 * (1 / 12 / len(two)) ** 0.5
    assert abs(two.var() / (1 / 12) - 1) < 0.15


def test_the_same_seed_gives_the_same_grammar_and_another_another():
    assert Grammar.draw(7) == Grammar.draw(7) and hash(Grammar.draw(7)) == hash(Grammar.draw(7))
    assert Grammar.draw(7) != Grammar.draw(8) and Grammar.draw(-1) != Grammar.draw(1)


def test_golden_grammar():
    """Published numbers rest on the grammar of a seed: these never change."""
    grammar = Grammar.draw(0)
    assert grammar.levels[:6] == (1, 7, 7, 1, 7, 10)
    names = [" ".join(map(grammar.name, rule.symbols)) for rule in grammar.rules[0]]
    assert names == ["N15 t14", "N6", "t8"]
    assert [rule.probability * 2**53 for rule in grammar.rules[0]] == [
        2492768468352374,
        1385430401534224,
        5129000384854394,
    ]
    assert [head * 2**53 for head in grammar.heads[39, :2]] == [182781841259764, 276459718991036]


def test_grammars_that_differ_in_their_terminals_have_the_same_trees():
    few = Grammar.draw(5)
    many = Grammar.draw(5, n_terminals=8192, terminal_factor=20.0)
    assert few.levels == many.levels and few.mean_length == pytest.approx(many.mean_length, rel=1e-12)
    for (_, one), (_, other) in zip(all_rules(few), all_rules(many), strict=True):
        assert one.probability == other.probability
        kinds = [[s - g.n_terminals for s in r.symbols] for g, r in ((few, one), (many, other))]
        assert [max(s, -1) for s in kinds[0]] == [max(s, -1) for s in kinds[1]]


def test_a_grammar_survives_json_to_the_last_bit(tmp_path):
    grammar = Grammar.draw(1, n_terminals=300, terminal_factor=20.0)
    path = tmp_path / "folder" / "grammar.json"
    grammar.save(path)
    assert Grammar.load(path) == grammar
    assert Grammar.from_dict(json.loads(json.dumps(grammar.to_dict()))) == grammar
    assert [file.name for file in path.parent.iterdir()] == ["grammar.json"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "grammar.json"
    Grammar.draw(1).save(path)

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        Grammar.draw(2).save(path)
    assert Grammar.load(path) == Grammar.draw(1)
    assert list(tmp_path.iterdir()) == [path]


def test_a_grammar_is_shown_rule_by_rule():
    text = str(Grammar.draw(0))
    assert text.splitlines()[0] == "level  1  N0 -> 0.28 N15 t14  |  0.15 N6  |  0.57 t8"
    assert len(text.splitlines()) == 40


SMALL = Grammar((1, 2), ((Rule(1.0, (2 + 1, 0)),), (Rule(0.5, (0,)), Rule(0.5, (1,)))), np.full((2, 2), 0.5))


def test_a_frozen_grammar_stays_as_it_is():
    with pytest.raises(ValueError, match="read-only"):
        SMALL.heads[0, 0] = 1
    with pytest.raises(AttributeError):
        SMALL.levels = (1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(levels=(2, 2)), "a rule of N0, of level 2, has N1, of level 2; only higher levels"),
        (dict(levels=(1,)), "got 1 levels, rules for 2 and heads for 2"),
        (dict(heads=np.zeros((2, 0))), "at least 1 terminal, got 0"),
        (dict(heads=np.full((2, 2), 0.4)), "the heads of N0 must have .* sum to 1, got a sum of 0.8"),
        (dict(heads=np.array([[0.5, 0.5], [1.5, -0.5]])), "the heads of N1 must .* not negative"),
        (dict(rules=(SMALL.rules[0], ())), "the rules of N1 must .* got a sum of 0.0"),
        (dict(rules=(SMALL.rules[0], (Rule(1.0, ()),))), "a rule of N1 has no symbols"),
        (dict(rules=(SMALL.rules[0], (Rule(1.0, (4,)),))), r"a rule of N1 has symbol 4; symbols are 0 .. 3"),
    ],
    ids=str,
)
def test_what_is_no_grammar_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "not a whole JSON file"),
        ("[]", "does not hold a grammar but list"),
        ("{}", "not the description of a grammar: KeyError"),
        ('{"n_terminals": 2, "nonterminals": [{"level": 1, "rules": [], "heads": [1.0]}]}', "shape"),
        (
            '{"n_terminals": 2, "nonterminals": '
            '[{"level": 1, "rules": [{"probability": 1, "symbols": ["t2"]}], "heads": [0.5, 0.5]}]}',
            r"symbols are t0 .. t1 and N0, N1, ..., got 't2'",
        ),
    ],
)
def test_a_file_that_holds_no_grammar_is_refused(text, said, tmp_path):
    path = tmp_path / "grammar.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        Grammar.load(path)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(n_terminals=0), "n_terminals must be at least 1, got 0"),
        (dict(max_children=0), "max_children must be at least 1, got 0"),
        (dict(n_nonterminals=MAX_ROWS + 1), "n_nonterminals must be at most 1024, got 1025"),
        (dict(terminal_factor=0.0), "terminal_factor must be above 0, .* got 0.0"),
        (dict(terminal_factor=float("inf")), "terminal_factor must be above 0, .* got inf"),
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Grammar.draw(0, **wrong)


def test_items_are_drawn_with_their_probabilities_to_the_bit():
    rows = [np.array([0.25, 0.0, 0.75]), np.array([1.0]), np.array([0.5, 0.5, 0.0])]
    table = Categorical(rows)
    u = np.array([0, ONE // 4 - 1, ONE // 4, ONE - 1, 0, ONE - 1, 0, ONE // 2 - 1, ONE // 2, ONE - 1])
    row = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert table.draw(row, u).tolist() == [0, 0, 2, 2, 3, 3, 4, 4, 5, 5]
    with pytest.raises(ValueError, match="at most 1024 distributions fit in a table, got 1025"):
        Categorical([np.ones(1)] * 1025)
