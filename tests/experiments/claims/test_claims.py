"""The paper's claims: their grids, their verdicts from made-up numbers, their pages from committed ones."""

import re
from collections import Counter
from pathlib import Path

import pytest

from experiments.claims.checks import FAILS, LABELS
from experiments.claims.definition import VERDICTS, Check, all_claims, load_claim, verdict
from experiments.claims.pages import (
    BEGIN,
    COLUMNS,
    END,
    FULL,
    Measured,
    claim_block,
    kept_tables,
    summary_table,
    with_block,
)
from experiments.claims.published import QUANTITIES, labels_of, published_beside, published_numbers
from experiments.claims.recipes import MORE_RATES, PAPER_RATES, PAPER_WIDTHS, SIZES
from experiments.sweeps.tables import Tables
from hooked_ssm.mixers import AttentionConfig

from .made_up import tables

ROOT = Path(__file__).parents[3]
CLAIMS = {claim.name: claim for claim in all_claims()}
by_name = pytest.mark.parametrize("name", CLAIMS)


def test_there_are_eight_claims_in_order():
    assert [claim.number for claim in all_claims()] == list(range(1, 9))


@by_name
@pytest.mark.parametrize("size", SIZES)
def test_runs_of_a_condition_differ_in_rate_and_seed_alone(name, size):
    cells = CLAIMS[name].cells(size)
    assert len({(one.condition, one.name) for one in cells}) == len(cells)
    for condition in {one.condition for one in cells}:
        configs = [one.config for one in cells if one.condition == condition]
        fixed = {
            (c.task, c.steps, c.batch_size, c.n_train, c.decay, c.model.d_model, c.model.n_layers)
            for c in configs
        }
        assert len(fixed) == 1
        assert len({(c.lr, c.seed) for c in configs}) == len(configs)


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="size must be one of tiny, small, paper, got 'huge'"):
        CLAIMS["ar_depth"].cells("huge")


def test_the_papers_grid_of_associative_recall_is_the_published_one():
    cells = CLAIMS["ar_accuracy"].cells("paper")
    assert len(cells) == 7 * 5 * 7  # architectures, widths, rates
    for one in cells:
        cfg = one.config
        assert (cfg.task.n_keys, cfg.task.n_values, cfg.task.n_pairs) == (4096, 4096, 16)
        assert (cfg.steps, cfg.batch_size, cfg.n_train, cfg.warmup) == (50_016, 32, 100_032, 0.1)
        assert (cfg.weight_decay, cfg.decay, cfg.stop_at_accuracy, cfg.n_test) == (0.0, "cosine", None, 320)
        assert cfg.model.n_layers == 2 and cfg.model.embed_std == 0.02
        learned = cfg.model.mixer_list[0] == AttentionConfig() and cfg.lr not in MORE_RATES
        assert (cfg.model.positional_embedding_type == "standard") == learned
    assert {one.config.lr for one in cells} == {*PAPER_RATES, *MORE_RATES}
    assert {one.config.model.d_model for one in cells} == set(PAPER_WIDTHS) == {16, 32, 64, 128, 256}


def test_the_papers_grids_of_trees_are_the_published_ones():
    cells = CLAIMS["atr_accuracy"].cells("paper")
    settings = Counter(dict(one.condition)["setting"] for one in cells)
    # six architectures, five widths, five rates; H3 was left out of the longest sentences
    assert list(settings.values()) == [150, 150, 125]
    assert {(one.config.steps, one.config.decay) for one in cells} == {(100_032, "cosine")}
    held_out = [one.config for one in CLAIMS["held_out_pairs"].cells("paper")]
    assert {cfg.decay for cfg in held_out} == {"linear"}
    assert {(cfg.task.name, cfg.task.held_out, cfg.model.n_layers) for cfg in held_out} == {
        *(("associative_treecall", 0.2, layers) for layers in (1, 2, 3)),
        ("associative_recall", 0.2, 2),
    }


def test_claims_share_runs():
    names = {name: {one.name for one in claim.cells("small")} for name, claim in CLAIMS.items()}
    assert names["ar_mechanism"] == names["ar_accuracy"]
    assert names["ar_convolution"] & names["ar_accuracy"] and names["ar_depth"] & names["ar_accuracy"]
    assert (
        names["atr_mechanism"] == names["atr_accuracy"] and names["atr_accuracy"] & names["atr_convolution"]
    )


def test_a_verdict_follows_its_rule():
    def of(*holds: bool | None) -> str:
        return verdict([Check("", each) for each in holds])

    assert (
        verdict([Check("", True, complete=False)])
        == verdict([Check("", True, False), Check("", None)])
        == "partly"
    )

    assert of(True, True) == "reproduced" and of(False, False) == "not reproduced"
    assert of(True, False) == of(True, None) == of(True, False, None) == "partly"
    assert of(None, None) == of() == "not yet run"
    assert {of(True), of(False), of(True, None), of(None)} == set(VERDICTS)


def accuracies(fails: float, close: float, good: float):
    by = {"Attention": good, "Based": good, "Mamba": close, "DeltaNet": close, "H3": fails, "Hyena": fails}

    def accuracy(one):
        found = by.get(dict(one.condition)["architecture"], 0.0)
        return found, found

    return accuracy


def judged(name: str, size: str, *made, **options) -> Measured:
    claim = CLAIMS[name]
    return Measured.of(claim, size, tables(claim.cells(size), *made, **options))


@pytest.mark.parametrize("size", ["small", "paper"])
def test_accuracies_as_published_reproduce_the_first_claim_and_others_do_not(size):
    assert judged("ar_accuracy", size, accuracies(0.3, 0.9, 1.0)).verdict == "reproduced"
    assert judged("ar_accuracy", size, accuracies(0.8, 0.9, 1.0)).verdict == "partly"
    found = judged("ar_accuracy", size, accuracies(FAILS, 0.1, 0.2))
    assert found.verdict == "not reproduced"
    assert "Attention" in found.checks[0].evidence and "20.0%" in found.checks[0].evidence


def test_nothing_is_said_at_full_size_before_every_condition_has_a_run():
    def only_attention(one):
        return (1.0, 1.0) if dict(one.condition)["architecture"] == "Attention" else None

    assert judged("ar_accuracy", "paper", only_attention).verdict == FULL
    found = judged("ar_accuracy", "small", only_attention)
    assert found.verdict == "partly" and found.checks[0].said == "holds as far as measured"
    assert judged("ar_accuracy", "small", lambda one: None).verdict == "not yet run"


def test_the_second_claim_is_about_what_is_learned():
    stored = {"key": 0.0, "value": 1.0, "query": 0.0}
    found = judged("ar_mechanism", "small", accuracies(0.2, 0.2, 1.0), attribs=stored)
    assert [check.holds for check in found.checks] == [True, None, None], "the others learn nothing"
    found = judged("ar_mechanism", "small", accuracies(0.8, 0.9, 1.0), attribs=stored)
    assert [check.holds for check in found.checks] == [True, False, False]
    direct = {"key": 0.6, "value": 0.0, "query": 0.4}
    found = judged("ar_mechanism", "small", accuracies(0.8, 0.9, 1.0), attribs=direct)
    assert [check.holds for check in found.checks] == [False, True, True]


def test_the_third_claim_wants_accuracy_the_convolution_and_one_tap_of_it():
    def accuracy(one):
        labels = dict(one.condition)
        good = 0.9 if labels["convolution"] in (2, 3, 4) else 0.2
        return good, good

    convs, taps = (
        {"value": 0.2, "value+1": 0.9},
        {(2, "value+1"): 0.8, (1, "value"): 0.1, (1, "value+1"): 0.0},
    )
    options = {"attribs": {"key": 0.0, "value": 0.0, "query": 1.0}, "convs": convs}
    assert judged("ar_convolution", "small", accuracy, taps=taps, **options).verdict == "reproduced"
    elsewhere = judged("ar_convolution", "small", accuracy, taps=dict.fromkeys(taps, 0.0), **options)
    assert [check.holds for check in elsewhere.checks] == [True] * 5 + [False]


def test_the_fourth_claim_compares_depths():
    def accuracy(one):
        labels = dict(one.condition)
        good = 0.2 if labels == labels | {"architecture": "Attention", "layers": 1} else 0.97
        return good, good

    assert judged("ar_depth", "small", accuracy).verdict == "reproduced"
    assert judged("ar_depth", "small", lambda one: (0.97, 0.97)).verdict == "partly"


def test_architectures_that_were_not_run_leave_a_claim_about_trees_open():
    def without_based(one):
        return None if dict(one.condition)["architecture"] == "Based" else accuracies(0.6, 0.95, 0.95)(one)

    found = judged("atr_accuracy", "small", without_based)
    assert found.verdict == "partly" and found.checks[0].said == "holds as far as measured"
    for size in ("small", "paper"):
        everyone = judged("atr_accuracy", size, accuracies(0.6, 0.95, 0.95))
        assert everyone.verdict == "reproduced"


def test_the_last_claim_wants_held_out_pairs_answered_but_not_as_well_over_trees():
    def held_out(cost: float):
        return lambda one: (0.9, 0.9 - (cost if dict(one.condition)["setting"] == "treecall" else 0.01))

    def of(cost: float) -> list[bool | None]:
        return [check.holds for check in judged("held_out_pairs", "small", held_out(cost)).checks]

    assert (
        of(0.2) == [True, True, True] and of(0.01) == [True, True, False] and of(0.6) == [True, False, True]
    )


@by_name
def test_every_claim_has_a_page_of_any_numbers(name):
    """With numbers, its table has a row a condition; without, it says so."""
    claim = CLAIMS[name]
    options = {"attribs": {"key": 0.0, "value": 0.7, "query": 1.0}, "convs": {"value": 0.4}}
    options["taps"] = {(1, "value"): 0.3, (0, "value"): 0.1}
    made = tables(claim.cells("small"), lambda one: (0.7, 0.65), **options)
    text = claim_block(claim, {"small": made, "paper": Tables.empty()})
    conditions = {one.condition for one in claim.cells("small")}
    numbers, published = text.split("## Published")
    assert len(re.findall(r"^\| (?!setting|architecture)", numbers, re.MULTILINE)) == len(conditions)
    assert published.count("\n|") == 2 + len(published_numbers(claim)) and claim.published in published
    for check in Measured.of(claim, "small", made).checks:
        assert f"{check.said}** ({check.evidence}). Published: {check.published}" in numbers
    assert text.count("![") == len(claim.figures(Measured.of(claim, "small", made).table))
    assert f"Size paper: {FULL}" in text and "65.0%" in text
    for chart in Measured.of(claim, "small", made).figures:
        assert chart.png().startswith(b"\x89PNG") and chart.plotly().data


@by_name
def test_the_readme_of_a_claim_is_what_its_run_tables_say(name):
    text = (CLAIMS[name].folder / "README.md").read_text()
    assert text == with_block(text, claim_block(CLAIMS[name], kept_tables())), (
        "run python -m experiments.claims"
    )


def test_the_claims_of_the_projects_readme_are_what_the_run_tables_say():
    text = (ROOT / "README.md").read_text()
    block = summary_table(list(CLAIMS.values()), kept_tables())
    assert text == with_block(text, block), "run python -m experiments.claims"


def test_committed_runs_belong_to_grids():
    for size, found in kept_tables().items():
        asked = {one.name for claim in CLAIMS.values() for one in claim.cells(size)}
        assert len(found.runs) and set(found.runs.run) <= asked


def test_markers_must_be_there_once():
    assert with_block(f"a {BEGIN} b {END} c", "new") == f"a {BEGIN}\n\nnew\n{END} c"
    for page in ("", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{END}" * 2):
        with pytest.raises(ValueError, match="once each"):
            with_block(page, "new")


def test_a_folder_without_a_claim_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no claim.py in"):
        load_claim(tmp_path)
    (tmp_path / "claim.py").write_text("CLAIM = 3\n")
    with pytest.raises(ValueError, match="must define CLAIM, a Claim, got 3"):
        load_claim(tmp_path)


@by_name
def test_what_was_published_of_a_claim_has_a_source(name):
    """Of its conditions, in numbers or words, and of each of its statements."""
    claim = CLAIMS[name]
    published = published_numbers(claim)
    assert len(published) and set(labels_of(published)) <= set(LABELS)
    assert published.source.str.match(
        r"paper, (section|appendix|abstract) |authors' repository, \S+ at [0-9a-f]{7}"
    ).all()
    told = [name for name in published if name in (*QUANTITIES, "says")]
    assert (published[told] != "").sum(axis=1).ge(1).all() and claim.published
    beside = [published_beside(published, dict(one.condition)) for one in claim.cells("small")]
    assert any(beside), "nothing stands beside any row"
    made = tables(claim.cells("small"), lambda one: (0.9, 0.9))
    for check in (
        *Measured.of(claim, "small", made).checks,
        *Measured.of(claim, "paper", Tables.empty()).checks,
    ):
        assert re.search(r"section|appendix|abstract|repository|not found", check.published)


def test_published_numbers_are_found_by_labels_and_words_stand_in_for_them():
    depth = published_numbers(CLAIMS["ar_depth"])
    one = {"architecture": "Mamba", "layers": 1, "width": 256}
    assert published_beside(depth, one) == {"paper_accuracy": 0.9625, "paper_says": "as with two layers"}
    assert published_beside(depth, one | {"width": 64}) == {"paper_says": "as with two layers"}
    assert published_beside(depth, one | {"architecture": "DeltaNet"}) == {}
    shown = COLUMNS["paper_accuracy"][1]
    assert shown(published_beside(depth, one)) == "96.2%"
    assert shown(published_beside(depth, one | {"width": 64})) == "as with two layers"
    assert shown({}) == "-"
    convolution = published_numbers(CLAIMS["ar_convolution"])
    based = {"architecture": "Based", "convolution": "long", "width": 64}
    assert published_beside(convolution, based) == {"paper_says": "harmed"}
