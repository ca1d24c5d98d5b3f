"""Training: what is computed, and on which documents."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from experiments.runs import Run
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
from tasks import IGNORE

from .small import TASK, config, model

MANY_QUERIES = replace(TASK, n_queries=2)


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


def test_the_learning_rate_may_fall_linearly():
    factors = [schedule(step, 100, 0.1, "linear") for step in range(101)]
    assert factors[:11] == [schedule(step, 100, 0.1) for step in range(11)]
    assert factors[10:] == pytest.approx([(100 - step) / 90 for step in range(10, 101)], abs=1e-15)


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


def first_loss_that_is_not_finite(cfg) -> tuple[int, list[float]]:
    """Its step, and the losses before, by a loop that goes on to the end."""
    torch.manual_seed(cfg.seed)
    net = HookedSSM(cfg.model)
    optimizer = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    docs, losses = TrainingDocuments(cfg), []
    for step in range(cfg.steps):
        optimizer.param_groups[0]["lr"] = cfg.lr * schedule(step, cfg.steps, cfg.warmup, cfg.decay)
        losses.append((loss := supervised_loss(net, docs.batch(step))).item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    finite = [math.isfinite(loss) for loss in losses]
    return finite.index(False) + 1, losses[: finite.index(False)]


DIVERGES = config(lr=1e30)


def test_training_ends_at_a_loss_that_is_not_finite(tmp_path):
    """With one error: what, where, and the last loss that was. Gone on with, it ends so again."""
    step, before = first_loss_that_is_not_finite(DIVERGES)
    assert 1 < step < 12
    said = (
        f"the loss is nan at step {step} of 12 (peak rate 1e+30); the last finite loss: {before[-1]:.4g} at "
    )
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=re.escape(said + f"step {step - 1}.")):
            train(DIVERGES, tmp_path, progress=False)
        assert not Run(tmp_path).finished


def test_a_last_step_that_breaks_the_weights_is_found_too(tmp_path):
    """Its own loss is finite, and there is no other."""
    with pytest.raises(FloatingPointError, match="the test loss is nan at step 1 of 1 .*finite loss: 2"):
        train(replace(DIVERGES, steps=1, warmup=0.0), tmp_path, progress=False)
    assert not Run(tmp_path).finished
