"""Training: what is computed, that it repeats, and that a run that was cut off ends as one that was not."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from experiments import training
from experiments.runs import Run, TrainConfig
from experiments.training import (
    FRESH_BLOCK,
    TEST_SEED_OFFSET,
    TrainingDocuments,
    evaluate,
    schedule,
    supervised_loss,
    train,
)
from hooked_ssm import HookedSSM
from tasks import IGNORE, Documents

from .small import TASK, config, model

MANY_QUERIES = replace(TASK, n_queries=2)


def contents(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict], dict]:
    """All that a run leaves, but for times: weights, optimiser state, metrics, result."""
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    result = run.result()
    for record in (*metrics, result):
        assert record.pop("seconds") >= 0
    weights = load_file(run.folder / "model" / "model.safetensors")
    return weights, load_file(run.folder / "checkpoint.safetensors"), metrics, result


def assert_same(one: Run, other: Run) -> None:
    """Bit for bit, and file for file."""
    for a, b in zip(contents(one)[:2], contents(other)[:2], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert contents(one)[2:] == contents(other)[2:]
    files = [sorted(str(p.relative_to(run.folder)) for p in run.folder.rglob("*")) for run in (one, other)]
    assert files[0] == files[1]


class Killed(BaseException):
    """What no code of ours catches."""


def killed_at(step: int, cfg: TrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off in its step of this number."""
    batch = TrainingDocuments.batch

    def cut_off(documents: TrainingDocuments, at: int):
        if at == step:
            raise Killed
        return batch(documents, at)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingDocuments, "batch", cut_off)
        with pytest.raises(Killed):
            train(cfg, folder, progress=False)


# What is computed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["attention", "mamba"])
def test_training_is_adamw_on_the_documents_in_order(tmp_path, preset):
    """Against a loop that says so plainly, with all logits and PyTorch's unfused AdamW, in float64."""
    cfg = config(
        preset, task=MANY_QUERIES, eval_task=TASK, weight_decay=0.1, model=model(preset, dtype=torch.float64)
    )
    torch.manual_seed(cfg.seed)
    net = HookedSSM(cfg.model)
    optimizer = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=0.1, foreach=False)
    factors = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, 12, 0.1))
    docs = MANY_QUERIES.sample(44, generator=cfg.seed)
    losses = []
    for step in range(12):
        rows = torch.tensor([(step * 8 + i) % 44 for i in range(8)])
        logits = net(docs.tokens[rows])
        loss = F.cross_entropy(logits.flatten(0, 1), docs.labels[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        factors.step()
        losses.append(loss.item())
    run = train(cfg, tmp_path, progress=False)
    for name, p in run.model().state_dict().items():
        torch.testing.assert_close(
            p, net.state_dict()[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )
    metrics = run.metrics()
    assert metrics.step.tolist() == [5, 10, 12], "every eval_every steps, and at the end"
    assert metrics.loss.tolist() == pytest.approx([losses[4], losses[9], losses[11]], rel=1e-9)
    test = TASK.sample(24, generator=TEST_SEED_OFFSET, split="test")
    with torch.no_grad():
        probs = net(test.tokens)[torch.arange(24), test.answer_pos].softmax(-1)
    right = probs[torch.arange(24), test.answer]
    assert run.result()["test_accuracy"] == (probs.argmax(-1) == test.answer).double().mean()
    assert run.result()["test_prob"] == pytest.approx(right.mean().item(), rel=1e-6)
    assert run.result()["test_loss"] == pytest.approx(-right.log().mean().item(), rel=1e-6)


def test_the_learning_rate_rises_linearly_then_falls_as_a_cosine():
    expected = {
        0: 0.0,
        1: 0.1,
        5: 0.5,
        9: 0.9,
        10: 1.0,
        32: 0.5 * (1 + math.cos(math.pi * 22 / 90)),
        55: 0.5,
        100: 0.0,
    }
    for step, factor in expected.items():
        assert schedule(step, steps=100, warmup=0.1) == pytest.approx(factor, abs=1e-15)
    assert schedule(0, steps=100, warmup=0.0) == 1.0
    assert [schedule(0, steps=steps, warmup=0.1) for steps in (1, 9)] == [1.0, 1.0], (
        "too few steps to warm up"
    )
    factors = [schedule(step, 100, 0.1) for step in range(101)]
    assert max(factors) == 1.0 and all(a > b for a, b in pairwise(factors[10:]))


@pytest.mark.parametrize("preset", ["attention", "mamba", "hybrid"])
@pytest.mark.parametrize("task", [TASK, MANY_QUERIES, replace(MANY_QUERIES, query="value")])
def test_the_loss_and_its_gradient_are_those_of_all_logits(preset, task):
    torch.manual_seed(0)
    net, docs = HookedSSM(model(preset, dtype=torch.float64)), task.sample(6, generator=1)
    parameters = list(net.parameters())
    loss = supervised_loss(net, docs)
    wanted = F.cross_entropy(net(docs.tokens).flatten(0, 1), docs.labels.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    for got, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("task", [TASK, MANY_QUERIES])
def test_nothing_is_computed_after_the_last_label_nor_unembedded_without_one(task):
    net, docs, seen = HookedSSM(model()), task.sample(6, generator=1), []
    last = int((docs.labels != IGNORE).nonzero()[:, 1].max())
    net.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    net.add_hook("blocks.0.hook_resid_pre", lambda resid, hook: seen.append(tuple(resid.shape)))
    supervised_loss(net, docs)
    assert last + 1 < docs.tokens.shape[1]
    assert seen == [(6, last + 1, 8), (6 * task.n_queries, task.d_vocab)]
    seen.clear()
    evaluate(net, docs)
    assert seen == [(6, int(docs.answer_pos.max()) + 1, 8), (6, task.d_vocab)]


def test_evaluation_does_not_depend_on_the_batch_size_and_keeps_no_graph():
    net, docs = HookedSSM(model(dtype=torch.float64)), TASK.sample(30, generator=1)
    whole = evaluate(net, docs, batch_size=30)
    for batch_size in (1, 7, 64):
        assert evaluate(net, docs, batch_size) == pytest.approx(whole, rel=1e-6)
    assert all(p.grad is None for p in net.parameters())


# Documents -------------------------------------------------------------------------------------------------


def test_fixed_documents_come_in_the_same_order_every_epoch():
    cfg = config(n_train=20, batch_size=8)
    documents, every = TrainingDocuments(cfg), cfg.task.sample(20, generator=cfg.seed).tokens
    seen = torch.cat([documents.batch(step).tokens for step in range(10)])
    assert torch.equal(seen, every.repeat(4, 1)), "80 documents are four epochs of 20"
    assert torch.equal(TrainingDocuments(cfg).batch(7).tokens, seen[56:64]), "wherever one starts"
    assert not torch.equal(TrainingDocuments(replace(cfg, seed=1)).batch(0).tokens, seen[:8])


def test_fresh_documents_never_repeat():
    task = replace(TASK, n_keys=500, n_values=500)
    cfg = config(task=task, model=model(d_vocab=task.d_vocab), n_train=None, batch_size=4)
    documents = TrainingDocuments(cfg)
    steps = 2 * FRESH_BLOCK + 5
    seen = torch.cat([documents.batch(step).tokens for step in range(steps)])
    assert len(seen) == 4 * steps and len(seen.unique(dim=0)) == len(seen)


def test_fresh_documents_do_not_depend_on_where_one_resumes():
    cfg = config(n_train=None, batch_size=4)
    steps = [0, 1, FRESH_BLOCK - 1, FRESH_BLOCK, FRESH_BLOCK + 1, 3 * FRESH_BLOCK]
    documents = TrainingDocuments(cfg)
    in_order = [documents.batch(step).tokens for step in steps]
    for step, tokens in zip(steps, in_order, strict=True):
        assert torch.equal(TrainingDocuments(cfg).batch(step).tokens, tokens)
        assert torch.equal(documents.batch(step).tokens, tokens), "and one may go back"


def test_training_documents_are_of_the_training_split():
    task = replace(TASK, held_out=0.3)
    for n_train in (60, None):
        docs = TrainingDocuments(config(task=task, n_train=n_train)).batch(0)
        pairs = docs.tokens[:, 1:5].unflatten(1, (2, 2))
        test = task.sample(200, generator=5, split="test")
        rows = torch.arange(200)
        held = {
            tuple(test.tokens[row, test.positions["key"][row] + torch.tensor([0, 1])].tolist())
            for row in rows
        }
        assert held and not held & {tuple(pair.tolist()) for pair in pairs.flatten(0, 1)}


# Runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["attention", "mamba"])
@pytest.mark.parametrize("n_train", [44, None], ids=["fixed", "fresh"])
def test_the_same_seed_gives_the_same_bits(tmp_path, preset, n_train):
    cfg = config(preset, n_train=n_train)
    one = train(cfg, tmp_path / "one", progress=False)
    torch.manual_seed(99)
    torch.rand(3)
    assert_same(one, train(cfg, tmp_path / "other", progress=False))
    different = train(replace(cfg, seed=1), tmp_path / "different", progress=False)
    assert not torch.equal(different.model().W_E, one.model().W_E)
    assert different.metrics().test_loss.iloc[-1] != one.metrics().test_loss.iloc[-1]


def test_a_run_says_what_it_scored_beside_the_heuristics(tmp_path):
    run = train(config(), tmp_path, progress=False)
    result, last = run.result(), run.metrics().iloc[-1]
    assert all(
        result[name] == last[name] for name in ("step", "loss", "test_accuracy", "test_loss", "test_prob")
    )
    test = TASK.sample(24, generator=TEST_SEED_OFFSET, split="test")
    expected = {name: p.double().mean().item() for name, p in TASK.heuristics(test).items()}
    assert result["heuristics"] == expected and expected["induction"] == 1.0
    assert result["torch"] == torch.__version__ and result["threads"] == torch.get_num_threads()
    assert run.config() == config()


@pytest.mark.parametrize("preset", ["attention", "mamba", "hybrid"])
@pytest.mark.parametrize("n_train", [44, None], ids=["fixed", "fresh"])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tmp_path, preset, n_train, monkeypatch):
    """Cut off before a checkpoint, before an evaluation, between two checkpoints, and at the end."""
    cfg = config(preset, n_train=n_train)
    undisturbed = train(cfg, tmp_path / "undisturbed", progress=False)
    for step in (1, 4, 5, 8, 11):
        killed_at(step, cfg, tmp_path / "cut", monkeypatch)
    assert_same(undisturbed, train(cfg, tmp_path / "cut", progress=False))


def test_a_run_with_learned_positions_resumes_with_them(tmp_path, monkeypatch):
    cfg = config("attention")
    killed_at(7, cfg, tmp_path, monkeypatch)
    assert "model.pos_embed.W_pos" in load_file(tmp_path / "checkpoint.safetensors")
    before = load_file(tmp_path / "checkpoint.safetensors")["model.pos_embed.W_pos"]
    seen = []

    def look(net: HookedSSM, docs: Documents) -> Tensor:
        seen.append(net.pos_embed.W_pos.detach().clone())
        raise Killed

    monkeypatch.setattr(training, "supervised_loss", look)
    with pytest.raises(Killed):
        train(cfg, tmp_path, progress=False)
    assert torch.equal(seen[0], before)


def test_a_torn_line_of_metrics_is_done_again(tmp_path, monkeypatch):
    cfg = config()
    undisturbed = train(cfg, tmp_path / "undisturbed", progress=False)
    killed_at(11, cfg, tmp_path / "cut", monkeypatch)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 2
    metrics.write_text(metrics.read_text()[:-9])
    assert_same(undisturbed, train(cfg, tmp_path / "cut", progress=False))


def test_a_run_stops_early_once_it_is_good_enough(tmp_path, monkeypatch):
    scores = {5: 0.4, 10: 0.8, 15: 0.7}
    calls = []

    def scored(net, docs):
        calls.append(5 * (len(calls) + 1))
        return {"test_accuracy": scores[calls[-1]], "test_loss": 1.0, "test_prob": 0.5}

    monkeypatch.setattr(training, "evaluate", scored)
    cfg = config(steps=40, stop_at_accuracy=0.75, checkpoint_every=7)
    run = train(cfg, tmp_path, progress=False)
    assert run.metrics().step.tolist() == [5, 10] and run.result()["step"] == 10
    checkpoint = load_file(tmp_path / "checkpoint.safetensors")
    assert float(checkpoint["optimizer.embed.W_E.step"]) == 10, "the last checkpoint is of the last step"
    assert torch.equal(checkpoint["model.embed.W_E"], run.model().W_E)
    (tmp_path / "result.json").unlink()
    assert train(cfg, tmp_path, progress=False).result()["step"] == 10, "nor does it go on if asked again"
    assert calls == [5, 10]


def test_a_finished_run_is_left_alone(tmp_path, monkeypatch):
    cfg = config()
    train(cfg, tmp_path, progress=False)

    def state() -> dict[Path, tuple[bytes, int]]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    monkeypatch.setattr(training, "HookedSSM", lambda cfg: pytest.fail("a model was built"))
    assert train(cfg, tmp_path, progress=False).finished
    assert state() == before and len(before) == 6


def test_the_folder_of_another_run_is_left_alone(tmp_path):
    train(config(), tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"differs in lr \(there 0.01, asked for 0.02\)"):
        train(config(lr=0.02), tmp_path, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_broken_checkpoint_stops_the_run(tmp_path, monkeypatch):
    cfg = config()
    killed_at(5, cfg, tmp_path, monkeypatch)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        train(cfg, tmp_path, progress=False)


def test_a_folder_that_cannot_be_written_stops_the_run_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(training, "HookedSSM", lambda cfg: pytest.fail("a model was built"))
    with pytest.raises(OSError, match="cannot write into the folder"):
        train(config(), tmp_path / "file" / "run", progress=False)


def test_progress_can_be_watched(tmp_path, capsys):
    train(config(), tmp_path, progress=True)
    assert "attention d=8" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have imported PyTorch")
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    """With SIGKILL: in a line of metrics, in and around a checkpoint, at random, just before the result."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "kill_and_resume.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)["ends"]
    assert [end for _, _, end in ends] == [9] * 11 + [0], ends
    assert_same(Run(tmp_path / "undisturbed"), Run(tmp_path / "killed"))
    assert len(contents(Run(tmp_path / "killed"))[2]) == 23
