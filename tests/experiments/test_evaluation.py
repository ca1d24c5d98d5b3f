"""The evaluation of a run: every number against the run's own model and documents."""

import json
from dataclasses import fields, replace

import pandas as pd
import pytest
import torch

from experiments.evaluation import COMPONENTS, Evaluation, Part, evaluate_run, hooks_of, named_positions
from experiments.mechanism import Mechanism, mechanism
from experiments.runs import Run
from experiments.training import TEST_SEED_OFFSET, train
from hooked_ssm import HookedSSM
from hooked_ssm.interchange import interchange
from tasks import AssociativeTreecall

from .small import TASK, config, model

PRESETS = ["attention", "mamba"]


@pytest.mark.parametrize("preset", PRESETS)
def test_an_evaluation_is_of_the_saved_model_on_held_out_documents(evaluated, preset):
    run, found = evaluated[preset]
    net, rows = run.model(), torch.arange(40)
    docs = TASK.sample(40, generator=TEST_SEED_OFFSET, split="test")
    corrupted = TASK.corrupt(docs, "key", generator=TEST_SEED_OFFSET + 1)
    with torch.no_grad():
        clean, broken = (net(d.tokens)[rows, docs.answer_pos].softmax(-1) for d in (docs, corrupted))
    p_clean, p_corrupted = clean[rows, docs.answer].double(), broken[rows, docs.answer].double()
    assert found.accuracy == (clean.argmax(-1) == docs.answer).double().mean()
    assert found.loss == pytest.approx(-p_clean.log().mean().item(), rel=1e-5)
    assert found.p_clean == pytest.approx(p_clean.mean().item(), rel=1e-5)
    assert found.p_corrupted == pytest.approx(p_corrupted.mean().item(), rel=1e-5)
    assert found.gap == pytest.approx((p_clean - p_corrupted).mean().item(), abs=1e-7)
    assert found.solving_rule == "induction" and "induction" not in found.rivals
    assert {part.by for part in found.parts} == {"place"}, "keys and values are all at one distance"
    assert found.heuristics == {k: p.double().mean().item() for k, p in TASK.heuristics(docs).items()}
    assert (found.docs, found.site, found.procedure) == (40, "key", "unambiguous")

    components = COMPONENTS if preset == "mamba" else COMPONENTS[:2]
    hooks = [f"blocks.{layer}.{component}" for component in components for layer in (0, 1)]
    result = interchange(
        net,
        docs.tokens,
        corrupted.tokens,
        answer=docs.answer,
        answer_pos=docs.answer_pos,
        hooks=hooks,
        positions=named_positions(docs),
    )
    pd.testing.assert_frame_equal(found.table, result.table())
    assert found.mechanism == mechanism(found.accuracy, found.rivals, found.gap, found.table)
    cells = found.table.set_index(["hook", "position"])
    assert cells.loc[("blocks.0.hook_resid_pre", "key"), "attrib"] == pytest.approx(1.0, abs=1e-3)
    assert cells.loc[("blocks.0.hook_resid_pre", "rest"), "attrib"] == pytest.approx(0.0, abs=1e-3)


def test_the_rest_is_every_position_without_a_name():
    docs = TASK.sample(20, generator=0)
    positions = named_positions(docs)
    assert list(positions) == ["key", "value", "value+1", "value+2", "divider", "query", "rest"]
    named = torch.zeros_like(docs.tokens, dtype=torch.bool)
    for name in ("key", "value", "value+1", "value+2", "divider", "query"):
        named |= torch.nn.functional.one_hot(positions[name], docs.tokens.shape[1]).bool()
    assert torch.equal(positions["rest"], ~named)


def test_positions_after_the_value_follow_it():
    positions = named_positions(TASK.sample(20, generator=0))
    assert torch.equal(positions["value+1"], positions["value"] + 1)
    assert torch.equal(positions["value+2"], positions["value"] + 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_an_evaluation_survives_its_file(evaluated, preset):
    run, found = evaluated[preset]
    again = Evaluation.load(run.folder / "evaluation.json")
    for field in fields(Evaluation):
        if field.name not in ("table", "parts"):
            assert getattr(again, field.name) == getattr(found, field.name), field.name
    pd.testing.assert_frame_equal(again.table, found.table, check_exact=True)
    for part, before in zip(again.parts, found.parts, strict=True):
        assert {**vars(part), "table": None} == {**vars(before), "table": None}
        pd.testing.assert_frame_equal(part.table, before.table, check_exact=True)
    assert isinstance(again.mechanism, Mechanism)
    json.loads((run.folder / "evaluation.json").read_text(), parse_constant=lambda x: pytest.fail(x))


def test_evaluating_twice_gives_the_same(evaluated, run_of):
    again = evaluate_run(run_of("mamba"), docs=40)
    pd.testing.assert_frame_equal(again.table, evaluated["mamba"][1].table, check_exact=True)


def test_the_original_corruption_is_another_one(evaluated, run_of):
    run = run_of("attention")
    original = evaluate_run(run, docs=40, procedure="original")
    found = evaluated["attention"][1]
    assert original.procedure == "original" and original.p_clean == found.p_clean
    assert original.p_corrupted != found.p_corrupted
    assert Evaluation.load(run.folder / "evaluation.json").procedure == "original"


def test_the_mechanism_is_judged_from_a_corrupted_key_alone(evaluated, run_of):
    run = run_of("attention")
    at_value = evaluate_run(run, docs=40, site="value")
    assert at_value.site == "value" and at_value.mechanism.name == "not judged"
    assert "the value was corrupted" in at_value.mechanism.evidence
    same = evaluate_run(run, docs=40, site="query_item_orig")
    assert same.mechanism == evaluated["attention"][1].mechanism


def test_further_components_do_not_change_the_verdict(evaluated, run_of):
    more = evaluate_run(run_of("mamba"), docs=40, components=["hook_ssm_state", "hook_conv"])
    found = evaluated["mamba"][1]
    assert more.mechanism == found.mechanism
    pd.testing.assert_frame_equal(more.table.iloc[: len(found.table)], found.table, check_exact=True)
    hooks = more.table.hook.iloc[len(found.table) :].unique()
    assert list(hooks) == ["blocks.0.hook_ssm_state", "blocks.1.hook_ssm_state"]


def test_a_layer_without_a_hook_is_left_out():
    net = HookedSSM(model("hybrid"))
    assert hooks_of(net, ["hook_resid_pre", "hook_conv"]) == [
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_pre",
        "blocks.0.hook_conv",
    ]
    assert hooks_of(HookedSSM(model("attention")), ["hook_conv"]) == []


@pytest.mark.parametrize(
    ("component", "error", "message"),
    [
        (
            "hook_residpre",
            KeyError,
            "no hook named 'blocks.0.hook_residpre'; did you mean 'blocks.0.hook_resid_pre'",
        ),
        ("hook_pattern", ValueError, "'blocks.0.hook_pattern' has no position axis"),
        ("hook_result", ValueError, "would not fire"),
    ],
)
def test_a_component_that_cannot_be_intervened_on_is_refused(run_of, component, error, message):
    run = run_of("attention")
    kept = (run.folder / "evaluation.json").read_bytes()
    with pytest.raises(error, match=message):
        evaluate_run(run, docs=8, components=[component])
    assert (run.folder / "evaluation.json").read_bytes() == kept


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        evaluate_run(Run(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"docs": 0}, "n must be at least 1, got 0"),
        ({"site": "divider"}, "site must be one of .*got 'divider'"),
        ({"procedure": "mild"}, "procedure must be one of .*got 'mild'"),
    ],
)
def test_bad_options_are_refused(run_of, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_run(run_of("attention"), **options)


def test_cells_are_rounded_without_a_negative_zero(evaluated):
    found = evaluated["mamba"][1]
    table = found.table.copy()
    values = {("blocks.1.hook_resid_pre", "key"): -0.001, ("blocks.0.hook_conv", "value"): -0.7}
    values |= {("blocks.1.hook_conv", "value"): -0.004}
    for (hook, position), attrib in values.items():
        table.loc[(table.hook == hook) & (table.position == position), "attrib"] = attrib
    found = replace(found, table=table)
    assert found.cell("blocks.1.hook_resid_pre", "key") == "0.00"
    assert found.cell("blocks.0.hook_conv", "value") == "-0.70"
    convs = found.table.hook.str.endswith("hook_conv")
    found.table.loc[convs, "attrib"] = -0.8
    found.table.loc[
        (found.table.hook == "blocks.1.hook_conv") & (found.table.position == "value+2"), "attrib"
    ] = -0.004
    assert found.best_conv_cell == "0.00 (value+2)"
    assert found.cell("blocks.7.hook_resid_pre", "key") == "-"
    assert evaluated["attention"][1].best_conv_cell == "-"


def test_the_best_heuristic_is_not_the_one_that_solves_the_task(evaluated):
    found = replace(evaluated["mamba"][1], heuristics={"induction": 1.0, "a": 0.2, "b": 0.3})
    assert found.best_heuristic == ("b", 0.3)
    assert replace(found, solving_rule=None).best_heuristic == ("induction", 1.0)


def test_parts_are_the_documents_by_distance_depth_and_place(tmp_path):
    task = AssociativeTreecall(n_terminals=60, n_nonterminals=10, max_length=40)
    run = train(config(task=task, model=model(d_vocab=task.d_vocab, n_ctx=task.n_ctx)), tmp_path)
    found = evaluate_run(run, docs=60)
    docs = task.sample(60, generator=TEST_SEED_OFFSET, split="test")
    by: dict[str, list[Part]] = {}
    for part in found.parts:
        by.setdefault(part.by, []).append(part)
    assert set(by) == {"distance", "depth", "place"}
    for parts in by.values():
        assert sum(part.docs for part in parts) == 60
        correct = sum(part.docs * part.accuracy for part in parts)
        assert correct == pytest.approx(60 * found.accuracy)
        gaps = sum(part.docs * part.gap for part in parts)
        assert gaps == pytest.approx(60 * found.gap, rel=1e-4, abs=1e-6)
    near = next(part for part in by["distance"] if part.value == "1")
    assert near.docs == int((docs.distance == 1).sum()) and near.heuristics["next_token"] == 1
    far = next(part for part in by["distance"] if part.value == "4 or more")
    assert far.docs == int((docs.distance >= 4).sum())
    assert [part.docs for part in Evaluation.load(run.folder / "evaluation.json").parts] == [
        part.docs for part in found.parts
    ]
