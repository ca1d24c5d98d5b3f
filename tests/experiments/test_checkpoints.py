"""Checkpoints and the log: every bit comes back, and what is broken or foreign is refused."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments import runs
from experiments.runs import Run, TrainConfig
from hooked_ssm import HookedSSM

from .small import config, model


def trained(cfg: TrainConfig, steps: int = 2) -> tuple[HookedSSM, torch.optim.Optimizer]:
    torch.manual_seed(cfg.seed)
    net = HookedSSM(cfg.model)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
    for step in range(steps):
        docs = cfg.task.sample(4, generator=step)
        optimizer.zero_grad()
        net(docs.tokens, return_type="loss").backward()
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("preset", ["attention", "mamba"])
def test_a_checkpoint_restores_every_bit(tmp_path, preset):
    cfg, run = config(preset), Run(tmp_path)
    net, optimizer = trained(cfg)
    run.save_checkpoint(7, net, optimizer, seconds=0.1 + 0.2)
    again, other = trained(replace(cfg, seed=9), steps=1)
    assert run.restore(again, other) == {"step": 7, "seconds": 0.1 + 0.2}
    for (name, p), q in zip(net.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other.state[q][key]) and value.dtype == other.state[q][key].dtype, (
                name,
                key,
            )
    assert {float(state["step"]) for state in other.state.values()} == {2.0}


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    net, optimizer = trained(config(), steps=0)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    Run(tmp_path).log({"step": 5, "loss": 1.0})
    assert Run(tmp_path).restore(net, optimizer) == {"step": 0}
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items()) and not optimizer.state
    assert Run(tmp_path).metrics().empty, "what was logged without a checkpoint is done again"


def test_what_was_logged_after_the_checkpoint_is_forgotten(tmp_path):
    run = Run(tmp_path)
    net, optimizer = trained(config())
    for step in (2, 4, 6):
        run.log({"step": step, "loss": step / 3})
    run.save_checkpoint(4, net, optimizer)
    run.restore(net, optimizer)
    assert run.metrics().to_dict("list") == {"step": [2, 4], "loss": [2 / 3, 4 / 3]}
    run.log({"step": 6, "loss": 2.0})
    assert run.metrics().step.tolist() == [2, 4, 6]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4, "loss": 0.5}', "{"])
def test_a_line_without_its_end_is_not_a_record(tmp_path, torn):
    run = Run(tmp_path)
    run.log({"step": 2, "loss": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert run.metrics().step.tolist() == [2]
    net, optimizer = trained(config())
    run.save_checkpoint(4, net, optimizer)
    run.restore(net, optimizer)
    run.log({"step": 6, "loss": 0.4})
    assert run.metrics().step.tolist() == [2, 6]


@pytest.fixture
def checkpointed(tmp_path):
    run = Run(tmp_path)
    net, optimizer = trained(config())
    run.save_checkpoint(3, net, optimizer)
    return run, net, optimizer


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(checkpointed, keep):
    run, net, optimizer = checkpointed
    path = run.folder / "checkpoint.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(
        ValueError, match=r"checkpoint.safetensors is not a whole checkpoint \(truncated or foreign\)"
    ):
        run.restore(net, optimizer)


def test_a_file_of_something_else_is_refused(checkpointed):
    run, net, optimizer = checkpointed
    (run.folder / "checkpoint.safetensors").write_bytes(b"PK\x03\x04 a zip file, say" * 20)
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        run.restore(net, optimizer)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_without_a_step_are_no_checkpoint(checkpointed, metadata):
    run, net, optimizer = checkpointed
    path = run.folder / "checkpoint.safetensors"
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match="is not a checkpoint of a run: it does not say after which step"):
        run.restore(net, optimizer)


@pytest.mark.parametrize("metadata", [{"step": "three"}, {"step": "3", "format": "pt"}])
def test_a_step_that_is_no_number_is_refused(checkpointed, metadata):
    run, net, optimizer = checkpointed
    path = run.folder / "checkpoint.safetensors"
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match="is not a checkpoint of a run: .*numbers"):
        run.restore(net, optimizer)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (model(d_model=16), r"of another model: \S+ should be \[.*\], is \[.*\]"),
        (
            model(d_mlp=None),
            r"of another model: \S+mlp\S+ should be missing, is \[.*\]|ln2\S+ should be missing",
        ),
        (model("mamba"), r"of another model: \S+ should be (\[.*\], is missing|missing, is \[.*\])"),
    ],
)
def test_the_checkpoint_of_another_model_is_refused(checkpointed, other, message):
    run, _, _ = checkpointed
    net, optimizer = trained(config(model=other), steps=0)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        run.restore(net, optimizer)
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items()) and not optimizer.state


def test_weights_without_the_optimisers_state_are_refused(checkpointed):
    run, net, optimizer = checkpointed
    path = run.folder / "checkpoint.safetensors"
    weights = {name: t for name, t in load_file(path).items() if not name.endswith("W_E.exp_avg_sq")}
    save_file(weights, path, metadata={"step": "3"})
    with pytest.raises(ValueError, match=r"optimizer.embed.W_E.exp_avg_sq should be \[15, 8\], is missing"):
        run.restore(net, optimizer)


def test_a_write_that_fails_keeps_the_old_checkpoint(checkpointed, monkeypatch):
    run, net, optimizer = checkpointed
    before = (run.folder / "checkpoint.safetensors").read_bytes()

    def half_a_file(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(runs, "save_file", half_a_file)
    with pytest.raises(OSError, match="no space left"):
        run.save_checkpoint(4, net, optimizer)
    assert (run.folder / "checkpoint.safetensors").read_bytes() == before
    assert [path.name for path in run.folder.iterdir()] == ["checkpoint.safetensors"]


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(checkpointed):
    run, net, optimizer = checkpointed
    (run.folder / "model").mkdir()
    unfinished = [".checkpoint.safetensors.x1", ".metrics.jsonl.y2", "model/.model.safetensors.z3"]
    others = [".gitignore", "notes.txt", "checkpoint.safetensors.old", "model/.keep"]
    for name in [*unfinished, *others]:
        (run.folder / name).touch()
    run.restore(net, optimizer)
    assert not any((run.folder / name).exists() for name in unfinished)
    assert all((run.folder / name).exists() for name in others)
