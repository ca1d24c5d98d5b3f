"""Circuits of a trained model: found, tested on fresh documents, drawn, saved."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from hooked_ssm import HookedSSM
from hooked_ssm.circuits import Circuit, find_circuit
from hooked_ssm.circuits.drawing import arrows_of, layout
from hooked_ssm.saving import write_atomically
from tasks import AssociativeRecall

MODELS = Path(__file__).parents[3] / "tutorials/models"
TASK = AssociativeRecall(n_keys=32, n_values=32, n_pairs=4)


@pytest.fixture(scope="module")
def model():
    return HookedSSM.load(MODELS / "attention")


@pytest.fixture(scope="module")
def circuit(model):
    return find_circuit(model, TASK, n_docs=32, steps=3, verbose=False)


@pytest.fixture(scope="module")
def path_of_the_key(model):
    return find_circuit(model, TASK, sites="key", n_docs=24, steps=None, verbose=False)


def names(circuit):
    rows = circuit.edges()
    return set(zip(rows.writer, rows.writer_at, rows.reader, rows.reader_at, strict=True))


def test_a_transformers_circuit_is_two_step_induction(circuit):
    """Block 0 brings the key to the value; block 1 finds it there from the query, and copies the value."""
    b0, b1 = "blocks.0.mixer.hook_", "blocks.1.mixer.hook_"
    steps = {
        ("hook_embed", "key", f"{b0}v", "key"),
        (f"{b0}v", "key", f"{b0}z", "value"),
        ("blocks.0.hook_mixer_out", "value", f"{b1}k", "value"),
        (f"{b1}k", "value", f"{b1}z", "query"),
        (f"{b1}q", "query", f"{b1}z", "query"),
        (f"{b1}v", "value", f"{b1}z", "query"),
        ("blocks.1.hook_mixer_out", "query", "logits", ""),
    }
    assert steps <= names(circuit)
    # Nothing else moves anything from one position to another.
    moved = {(a, i, b, j) for a, i, b, j in names(circuit) if i != j and b != "logits"}
    assert moved == {step for step in steps if step[1] != step[3] and step[2] != "logits"}


def test_few_edges_are_faithful_on_fresh_documents_and_nothing_else_does_it(circuit):
    assert len(circuit) <= 0.1 * circuit.n_graph and circuit.share == len(circuit) / circuit.n_graph
    fresh = circuit.test(100)
    assert fresh.site.tolist() == ["key", "value", "query"]
    assert (fresh.faithfulness >= 0.9).all() and (fresh.completeness >= 0.8).all()
    assert (fresh.accuracy_circuit >= 0.9).all() and (fresh.accuracy_floor <= 0.4).all()
    assert (circuit.found.faithfulness >= 0.95).all()


def test_faithfulness_is_of_the_metrics_of_the_runs(circuit, model):
    docs = TASK.sample(20, 7, "test")
    (row,) = circuit.test(docs=docs, sites=["key"], seed=3).itertuples()
    corrupted = TASK.corrupt(docs, "key", 3)
    with torch.no_grad():
        clean, floor = (float(docs.answer_logprob(model(each.tokens)).mean()) for each in (docs, corrupted))
    assert row.clean == pytest.approx(clean, abs=1e-5) and row.floor == pytest.approx(floor, abs=1e-5)
    assert row.faithfulness == pytest.approx((row.circuit - floor) / (clean - floor), abs=1e-5)
    assert row.completeness == pytest.approx((clean - row.complement) / (clean - floor), abs=1e-5)


def test_every_edge_is_needed(circuit, path_of_the_key):
    for each in (circuit, path_of_the_key):
        hurts = each.minimality(48)
        assert (hurts.hurts > 0).all() and len(hurts) == len(each)
        assert list(hurts.columns[-1 - len(each.sites) :]) == [*(f"hurts_{s}" for s in each.sites), "hurts"]
    # On the one way of the key every edge up to the stored association carries all.
    only = hurts[hurts.writer.isin(["hook_embed", "blocks.0.mixer.hook_v"])]
    assert len(only) == 2 and (only.hurts > 0.9).all()


def test_the_path_of_one_corruption_is_shorter(circuit, path_of_the_key):
    assert path_of_the_key.sites == ("key",) and len(path_of_the_key) < len(circuit)
    assert {at for _, at, _, _ in names(path_of_the_key)} == {"key", "value", "query"}
    writers = path_of_the_key.edges().writer
    assert (writers == "hook_embed").sum() == 1


def test_the_same_seed_finds_the_same_circuit(path_of_the_key, model):
    again = find_circuit(model, TASK, sites="key", n_docs=24, steps=None, verbose=False)
    pd.testing.assert_frame_equal(again.edges(), path_of_the_key.edges())


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_other_ablations_have_a_floor_of_their_own(circuit, ablation):
    table = circuit.test(32, ablation=ablation, sites=["key"])
    assert (table.floor < table.clean - 1).all() and (table.faithfulness > 0.9).all()


def test_a_circuit_found_with_means_is_faithful_under_means(model):
    found = find_circuit(model, TASK, sites="key", n_docs=8, steps=None, ablation="mean", verbose=False)
    assert found.ablation == "mean" and (found.test(32).faithfulness > 0.8).all()


def test_a_metric_may_be_a_function(model):
    def logit_difference(docs, logits):
        return docs.answer_logit(logits) - logits.mean(-1)

    found = find_circuit(
        model, TASK, sites="key", n_docs=16, steps=None, metric=logit_difference, verbose=False
    )
    assert (found.found.faithfulness >= 0.95).all()
    with pytest.raises(ValueError, match="whose metric is a function cannot be saved as JSON"):
        found.save("circuit.json")


# Files and pictures ---------------------------------------------------------------------------------------


def test_json_brings_it_back(circuit, model, tmp_path):
    circuit.save(tmp_path / "circuit.json")
    alone = Circuit.load(tmp_path / "circuit.json")
    pd.testing.assert_frame_equal(alone.edges(), circuit.edges())
    assert repr(alone) == repr(circuit) and alone.html() == circuit.html()
    with pytest.raises(ValueError, match="give Circuit.load a model and a task"):
        alone.test()
    again = Circuit.load(tmp_path / "circuit.json", model, TASK)
    pd.testing.assert_frame_equal(again.test(16), circuit.test(16))
    # For readers of the file: the edges by name.
    edges = json.loads((tmp_path / "circuit.json").read_text())["edges"]
    assert len(edges) == len(circuit) and edges[0].keys() == set(circuit.edges().columns)


def test_a_file_is_written_whole_or_not_at_all(circuit, tmp_path, monkeypatch):
    path = tmp_path / "circuit.json"
    circuit.save(path)
    before = path.read_bytes()

    def fails(beside):
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is no circuit"),
        ('{"format": "hooked_ssm circuit"}', "is no circuit as it was saved"),
    ],
)
def test_foreign_files_are_named(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Circuit.load(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="no file"):
        Circuit.load(tmp_path / "y.json")


def test_a_circuit_of_another_model_is_refused(circuit, tmp_path):
    circuit.save(tmp_path / "circuit.json")
    with pytest.raises(ValueError, match="not a circuit of this model, which has no hook 'hook_pos_embed'"):
        Circuit.load(tmp_path / "circuit.json", HookedSSM.load(MODELS / "mamba"))


def test_pictures(circuit, tmp_path):
    for suffix, start in [("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!DOCTYPE html>")]:
        path = tmp_path / f"circuit.{suffix}"
        circuit.save(path, title="Attention")
        assert path.read_bytes().startswith(start)
        first = path.read_bytes()
        circuit.save(path, title="Attention")
        assert path.read_bytes() == first
    with pytest.raises(ValueError, match=r"saved as .json, .png, .svg or .html, got 'circuit.gif'"):
        circuit.save(tmp_path / "circuit.gif")


def test_the_page_loads_nothing_and_knows_every_edge(circuit):
    page = circuit.html()
    loaded = re.findall(r"""(?:src|href)=["'](?!#)([^"']*)""", page)
    assert loaded == []
    for number in range(len(circuit)):
        assert page.count(f'id="edge-{number}"') == 1
    rows = json.loads(re.search("const edges_all = (.*);\n", page)[1])
    assert "hook_embed at key  \u2192  blocks.0.mixer.hook_v at key" in " ".join(row["says"] for row in rows)
    assert "srcdoc" in circuit._repr_html_() and circuit._repr_png_().startswith(b"\x89PNG")


def test_the_drawing_has_positions_across_and_layers_upwards(circuit):
    found = layout(circuit.edges(), circuit.index)
    assert [found.columns[role][0] for role in ("key", "value", "query")] == sorted(
        found.columns[role][0] for role in ("key", "value", "query")
    )
    for writer, reader, _ in arrows_of(circuit.edges()):
        assert found.place[writer][1] < found.place[reader][1]
    words = [text.get_text() for text in circuit.draw("Recall").axes[0].texts]
    assert {"Recall", "block 0", "block 1", "key", "value", "query", "logits", "MLP", "z"} <= set(words)


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "loss"}, "metric must be one of logprob, prob, logit, or a function, got 'loss'"),
        ({"metric": lambda docs, logits: logits}, r"a scalar, or one value a document, \[4\], got shape"),
        ({"metric": lambda docs, logits: logits.mean()}, "one value a document, .* got a scalar"),
        ({"metric": lambda docs, logits: logits.argmax(-1).float()}, "the metric cannot be differentiated"),
        ({"metric": lambda docs, logits: 0 * logits.sum(-1)}, "there is nothing for a circuit to explain"),
        ({"sites": ()}, "at least one site to corrupt is wanted"),
        ({"sites": "kye"}, "must be one of .*, got 'kye'"),
        ({"roles": ["key", "walue"]}, "a role is one of .*; got 'walue'"),
        ({"method": "best"}, "method must be one of threshold, greedy, got 'best'"),
        ({"ablation": "noise"}, "ablation must be one of corrupt, mean, zero, got 'noise'"),
        ({"target": 1.5}, r"target must be in \(0, 1\] .* got target=1.5"),
        ({"n_docs": 0}, "n_docs at least 1"),
    ],
)
def test_mistakes_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        find_circuit(model, TASK, **({"n_docs": 4, "steps": None} | options))


def test_a_metric_gives_a_tensor(model):
    with pytest.raises(TypeError, match="a metric must return a tensor, got float"):
        find_circuit(model, TASK, metric=lambda docs, logits: float(logits.sum()), n_docs=2)
    with pytest.raises(TypeError):
        find_circuit(model, TASK, metric=3, n_docs=2)


def test_documents_are_as_long_as_their_corruptions(model):
    class Cuts:
        sample = staticmethod(TASK.sample)

        @staticmethod
        def corrupt(docs, site, generator=None):
            return replace(docs, tokens=docs.tokens[:, :-1], labels=docs.labels[:, :-1])

    with pytest.raises(ValueError, match=r"must have one shape \[doc, pos\], got \[4, 13\] and \[4, 12\]"):
        find_circuit(model, Cuts(), n_docs=4)


def test_models_in_training_mode_and_foreign_ones_are_refused(model, circuit):
    model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            find_circuit(model, TASK)
        with pytest.raises(ValueError, match="training mode"):
            circuit.test()
    finally:
        model.eval()
    with pytest.raises(TypeError, match="circuits are for a HookedSSM, .* got Linear"):
        find_circuit(nn.Linear(2, 2).eval(), TASK)
