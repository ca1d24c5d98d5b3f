"""A saved model comes back bit by bit; a damaged or foreign one is refused, and says why."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.saving import write_atomically


def build(kind: str = "hybrid", **options) -> HookedSSM:
    return HookedSSM(
        zoo.PRESETS[kind](**({"d_model": 8, "d_vocab": 7, "n_ctx": 9, "device": "cpu", "seed": 1} | options))
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    build().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "attention", "bias": True, "n_heads": 2},
        {"kind": "mamba", "d_conv": 0},
        {"kind": "hybrid", "tie_embeddings": False, "final_norm": "RMS", "d_mlp": 12},
    ],
    ids=lambda options: options["kind"],
)
def test_a_loaded_model_is_the_saved_one_to_the_bit(tmp_path, options, dtype):
    model = build(**options).to(dtype)
    tokens = torch.randint(7, (2, 9))
    model.save(tmp_path / "new" / "folder")
    loaded = HookedSSM.load(tmp_path / "new" / "folder", device="cpu")
    assert loaded.cfg == model.cfg and loaded.cfg.dtype == dtype
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert torch.equal(loaded(tokens), model(tokens))
    assert not loaded.training


def test_the_files_are_json_and_safetensors(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    values = json.loads((saved / "config.json").read_text())
    assert values["format"] == "hooked_ssm" and values["config"]["mixers"][0]["name"] == "mamba"
    assert load_file(saved / "model.safetensors").keys() == build().state_dict().keys()


def test_the_files_may_be_read_by_whom_the_umask_lets(saved):
    mask = os.umask(0)
    os.umask(mask)
    for path in saved.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_saving_again_replaces_what_was_there(saved):
    other = build(d_model=16, seed=2)
    other.save(saved)
    assert torch.equal(HookedSSM.load(saved).W_E.cpu(), other.W_E)


def test_loading_leaves_random_numbers_alone(saved):
    state = torch.get_rng_state()
    HookedSSM.load(saved)
    assert torch.equal(torch.get_rng_state(), state)
    unseeded = build(seed=None)
    unseeded.save(saved)
    state = torch.get_rng_state()
    assert HookedSSM.load(saved).cfg.seed is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_truncated_weights_file_is_refused(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
            HookedSSM.load(saved)
    path.write_bytes(whole)
    HookedSSM.load(saved)


def test_a_pickle_is_never_opened(saved, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    for content in (pickle.dumps(Trap()), pickle.dumps({"embed.W_E": torch.zeros(7, 8)})):
        (saved / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            HookedSSM.load(saved)
    torch.save(Trap(), saved / "model.safetensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        HookedSSM.load(saved)
    assert not (tmp_path / "opened").exists()


def test_weights_of_another_model_are_refused(saved):
    weights = load_file(saved / "model.safetensors")

    def refused(changed: dict[str, torch.Tensor], message: str) -> None:
        save_file(changed, saved / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            HookedSSM.load(saved)

    refused({"wte": torch.zeros(2)}, r"missing \['blocks.*unknown \['wte'\]")
    refused(
        {k: v for k, v in weights.items() if k != "embed.W_E"}, r"missing \['embed.W_E'\], unknown nothing"
    )
    refused(weights | {"extra": torch.zeros(1)}, r"missing nothing, unknown \['extra'\]")
    refused(
        weights | {"embed.W_E": torch.zeros(8, 7)},
        r"embed.W_E should be torch.float32 \[7, 8\], is torch.float32 \[8, 7\]",
    )
    refused(
        weights | {"embed.W_E": weights["embed.W_E"].double()},
        r"embed.W_E should be torch.float32 \[7, 8\], is torch.float64 \[7, 8\]",
    )


def test_a_truncated_config_is_refused(saved):
    path = saved / "config.json"
    whole = path.read_text()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_text(whole[:length])
        with pytest.raises(ValueError, match=r"config.json is not JSON \(truncated\?\)"):
            HookedSSM.load(saved)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        HookedSSM.load(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], 'it has no "format": "hooked_ssm"'),
        ({"d_model": 8}, 'it has no "format": "hooked_ssm"'),
        ({"format": "other", "config": {}}, 'it has no "format": "hooked_ssm"'),
        ({"format": "hooked_ssm"}, "holds no config of a HookedSSM: 'config'"),
        ({"format": "hooked_ssm", "config": 3}, "holds no config of a HookedSSM: "),
        ({"format": "hooked_ssm", "config": {}}, "holds no config of a HookedSSM: "),
        (
            {"format": "hooked_ssm", "config": {"d_modle": 8}},
            "'d_modle' is no field .* did you mean 'd_model'",
        ),
        ({"format": "hooked_ssm", "config": {"mixers": ["mamba"]}}, "holds no config of a HookedSSM: "),
    ],
)
def test_a_foreign_config_is_refused(saved, content, message):
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        HookedSSM.load(saved)


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no config.json in .*nowhere: not a folder written by HookedSSM.save"
    ):
        HookedSSM.load(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no file .*model.safetensors"):
        HookedSSM.load(saved)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"cannot write into the folder {folder}: "):
            build().save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "numbers.txt"
    write_atomically(path, lambda part: part.write_text("old"))

    def half(part: Path) -> None:
        part.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.txt"] and path.read_text() == "old"


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    old = HookedSSM.load(saved)
    monkeypatch.setattr(
        os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        build(seed=2).save(saved)
    monkeypatch.undo()
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(HookedSSM.load(saved).W_E, old.W_E)


def test_readers_see_the_old_file_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("old")

    def slowly(part: Path) -> None:
        part.write_text("new")
        assert path.read_text() == "old" and part.parent == path.parent

    write_atomically(path, slowly)
    assert path.read_text() == "new"
