"""Many models trained at a time: on a CPU the numbers of the plain loop, by a step that could be captured."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.gpu_training import DocumentsOnDevice, GraphReadyStep, Trainer, train_many
from experiments.runs import Run
from experiments.training import FRESH_BLOCK, TrainingDocuments, train
from hooked_ssm import HookedSSM, zoo
from hooked_ssm.ops import use_backend
from tasks import IGNORE, AssociativeTreecall

from .small import TASK, config, model

MANY_QUERIES = replace(TASK, n_queries=2)
TREES = AssociativeTreecall(n_terminals=8, n_nonterminals=4, max_length=12)


def trees(**changes):
    task = {
        "task": TREES,
        "model": model("mamba", d_vocab=TREES.d_vocab, n_ctx=TREES.n_ctx, dtype=torch.float64),
    }
    return config("mamba", **(task | changes))


def files(run: Run):
    """All that a run left, but how long it took."""
    result = {key: value for key, value in run.result().items() if key not in ("seconds", "device")}
    return result, run.metrics().drop(columns="seconds"), run.model().state_dict()


def assert_same(run, other, rtol=0.0, atol=0.0):
    (result, metrics, weights), (other_result, other_metrics, other_weights) = files(run), files(other)
    for name in weights:
        torch.testing.assert_close(weights[name], other_weights[name], rtol=rtol, atol=atol)
    assert list(metrics) == list(other_metrics)
    ours, theirs = (torch.from_numpy(each.to_numpy(float)) for each in (metrics, other_metrics))
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    assert result.keys() == other_result.keys()


CONFIGS = {
    "attention": config(weight_decay=0.1),
    "mamba": config("mamba", decay="linear"),
    "two queries": config(task=MANY_QUERIES, eval_task=TASK),
    "fresh documents": config(n_train=None, steps=4),
    "stops early": config(stop_at_accuracy=0.1, steps=200, lr=3e-2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_numbers_are_those_of_the_plain_loop_to_the_bit(tmp_path, name):
    plain = train(CONFIGS[name], tmp_path / "plain", progress=False)
    ((run, error),) = train_many([(CONFIGS[name], tmp_path / "many")], device="cpu", progress=False)
    assert error is None
    assert_same(run, plain)
    assert (run.result()["step"] < CONFIGS[name].steps) == (name == "stops early")


@pytest.mark.parametrize("n_train", [44, None], ids=["fixed", "fresh"])
def test_documents_of_several_lengths_give_them_to_rounding(tmp_path, n_train):
    cfg = trees(n_train=n_train)
    lengths = {
        int((docs.labels != IGNORE).any(0).nonzero().max())
        for docs in map(TrainingDocuments(cfg).batch, range(5))
    }
    assert len(lengths) > 1
    plain = train(cfg, tmp_path / "plain", progress=False)
    ((run, _),) = train_many([(cfg, tmp_path / "many")], device="cpu", progress=False)
    assert_same(run, plain, rtol=1e-9, atol=1e-12)


def test_each_goes_on_with_what_the_other_began(tmp_path):
    cfg = config("mamba")
    whole = train(cfg, tmp_path / "whole", progress=False)
    trainer = Trainer("cpu")
    trainer.add("run", cfg, tmp_path / "half")
    for _ in range(7):  # checkpoints are written every third
        trainer.training["run"].advance()
    assert Run(tmp_path / "half").metrics().step.tolist() == [5]
    assert_same(train(cfg, tmp_path / "half", progress=False), whole)

    class Killed(Exception):
        pass

    step = torch.optim.AdamW.step
    done = []

    def dying(self, *arguments, **options):
        done.append(1)
        if len(done) > 7:
            raise Killed
        return step(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(torch.optim.AdamW, "step", dying)
        train(cfg, tmp_path / "other", progress=False)
    ((run, _),) = train_many([(cfg, tmp_path / "other")], device="cpu", progress=False)
    assert_same(run, whole)


def test_several_at_a_time_do_not_touch_each_other(tmp_path):
    configs = [config("mamba"), config(), config(seed=1)]
    trainer = Trainer("cpu")
    for number, cfg in enumerate(configs):
        trainer.add(number, cfg, tmp_path / str(number))
    ended = {}
    while trainer.training:
        ended |= dict(trainer.advance(0.05))
    for number, cfg in enumerate(configs):
        assert_same(ended[number].run, train(cfg, tmp_path / f"plain {number}", progress=False))


def test_a_run_that_diverges_fails_when_it_is_next_evaluated(tmp_path):
    runs = [(config(lr=1e30), tmp_path / "bad"), (config(), tmp_path / "good")]
    bad, good = train_many(runs, device="cpu", progress=False)
    assert isinstance(bad.error, FloatingPointError) and not bad.run.finished
    assert "the loss is nan at step 5 of 12" in str(bad.error)
    assert good.error is None and good.run.finished


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path):
    train(config(seed=3), tmp_path / "taken", progress=False)
    taken, fine = tmp_path / "taken", tmp_path / "fine"
    runs = [(config(), taken), (config(), fine), (config(seed=3), taken)]
    first, second, third = train_many(runs, device="cpu", progress=False)
    assert isinstance(first.error, ValueError) and "holds another run" in str(first.error)
    assert second.error is None and second.run.finished
    assert third.error is None and third.run.finished, "and what is finished is left as it is"


class AsksNothing(TorchDispatchMode):
    """Raises at what no CUDA graph records: values asked for, shapes that depend on them, constants made."""

    REFUSED = "_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal", "is_nonzero"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.REFUSED, name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), "indexing by a mask"
        if name == "repeat_interleave":
            assert (kwargs and kwargs.get("output_size") is not None) or len(args) > 1, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", [*zoo.PRESETS])
def test_a_step_asks_the_device_for_nothing(preset, monkeypatch):
    cfg = config(model=model(preset, d_model=16))
    with use_backend("torch"):
        step = GraphReadyStep(cfg, HookedSSM(cfg.model))
        step.begin(0)
        step.documents.prepare(0)
        step.compute()
        # The CPU's fused AdamW reads the rate; CUDA's does not.
        monkeypatch.setattr(step.optimizer, "step", lambda: None)
        with AsksNothing():
            step.compute()


def test_what_cannot_be_captured_is_noticed():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), AsksNothing():
        torch.ones(1).item()
    with pytest.raises(AssertionError, match="mask"), AsksNothing():
        torch.ones(2)[torch.tensor([True, False])]


def test_the_steps_before_capture_are_undone():
    cfg = config("mamba")
    torch.manual_seed(0)
    step = GraphReadyStep(cfg, HookedSSM(cfg.model))
    step.begin(0)
    step()
    kept = [tensor.clone() for tensor in step.state()]
    step.warm_up()
    assert all((a != b).any() for a, b in zip(step.state()[:1], kept[:1]))
    step.set_state(kept)
    assert all(torch.equal(a, b) for a, b in zip(step.state(), kept, strict=True))


@pytest.mark.parametrize("n_train", [20, None], ids=["fixed", "fresh"])
def test_documents_by_the_number_of_the_step(n_train):
    cfg = config(task=MANY_QUERIES, eval_task=TASK, n_train=n_train)
    documents, source = DocumentsOnDevice(cfg, torch.device("cpu")), TrainingDocuments(cfg)
    for number in (0, 1, 7, FRESH_BLOCK + 3):
        documents.prepare(number)
        tokens, places, labels = documents.batch(torch.tensor([number]))
        docs = source.batch(number)
        assert torch.equal(tokens, docs.tokens[:, : tokens.shape[1]])
        assert torch.equal(labels.flatten(), docs.labels[docs.labels != IGNORE])
        assert torch.equal(tokens.flatten()[places.flatten()], docs.tokens[docs.labels != IGNORE])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_on_a_gpu_the_numbers_are_those_of_the_plain_loop(tmp_path):
    runs = [(CONFIGS[name], tmp_path / name) for name in CONFIGS]
    for (cfg, folder), (run, error) in zip(runs, train_many(runs, progress=False), strict=True):
        assert error is None
        assert_same(
            run, train(cfg, folder.with_name(f"plain {folder.name}"), progress=False), rtol=1e-3, atol=1e-4
        )
