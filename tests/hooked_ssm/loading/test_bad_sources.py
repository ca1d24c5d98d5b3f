"""What cannot be loaded is refused in one clear error, and nothing of it is run."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hooked_ssm import HookedSSM

from .sources import random_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    random_model("mamba").save_pretrained(tmp_path)
    return tmp_path


def refused(folder: Path, error: type[Exception], message: str, **options) -> None:
    with pytest.raises(error, match=message):
        HookedSSM.from_pretrained(folder, **options)


def configured(folder: Path, **values) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_a_name_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json in the local cache of 'no/such-model'"):
        HookedSSM.from_pretrained("no/such-model", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(
        FileNotFoundError, match="'/no/such/folder' is neither a folder nor a model on the Hugging"
    ):
        HookedSSM.from_pretrained("/no/such/folder", local_files_only=True, cache_dir=tmp_path)


def test_missing_files_are_named(folder):
    (folder / WEIGHTS).unlink()
    refused(
        folder,
        FileNotFoundError,
        "no model.safetensors or pytorch_model.bin, whole or in shards, in the folder",
    )
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    refused(folder, FileNotFoundError, "no part-1.safetensors in the folder")
    (folder / f"{WEIGHTS}.index.json").write_text("{}")
    refused(folder, ValueError, "is no index of weights: it has no weight_map")
    (folder / "config.json").unlink()
    refused(folder, FileNotFoundError, "no config.json in the folder")


def test_a_shard_outside_the_folder_is_refused(folder):
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    refused(folder, ValueError, "names a file elsewhere: '../outside.safetensors'")


def test_truncated_and_foreign_files_are_refused(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"not weights at all"):
        (folder / WEIGHTS).write_bytes(content)
        refused(folder, ValueError, r"model.safetensors is not a whole safetensors file")
    (folder / "config.json").write_text('{"model_type": "mam')
    refused(folder, ValueError, r"config.json is not JSON \(truncated\?\)")
    (folder / "config.json").write_text("[]")
    refused(folder, ValueError, "must hold an object, holds a list")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_and_foreign_files_of_torch_are_refused(folder, zipped):
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS), path, _use_new_zipfile_serialization=zipped)
    (folder / WEIGHTS).unlink()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b""):
        path.write_bytes(content)
        refused(folder, ValueError, r"pytorch_model.bin is (not a whole file|no file of tensors)")
    torch.save([torch.ones(2)], path)
    refused(folder, ValueError, "holds a list, not a dictionary of tensors")
    torch.save({"a": 3}, path)
    refused(folder, ValueError, "not a dictionary of tensors")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_shard_that_is_missing_or_not_whole_is_named(folder, kind):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, shards, index = sorted(weights), {}, {}
    for number, some in enumerate((names[:7], names[7:])):
        file = f"part-{number}.{kind}"
        shards[file] = {name: weights[name] for name in some}
        index |= dict.fromkeys(some, file)
        save_file(shards[file], folder / file) if kind == "safetensors" else torch.save(
            shards[file], folder / file
        )
    whole = WEIGHTS if kind == "safetensors" else "pytorch_model.bin"
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": index}))
    tokens = torch.randint(29, (2, 9))
    wanted = HookedSSM.from_pretrained(random_model("mamba"))(tokens)
    assert torch.equal(HookedSSM.from_pretrained(folder)(tokens), wanted)
    last = folder / f"part-1.{kind}"
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    refused(folder, ValueError, rf"part-1.{kind} is (not a whole|no file of tensors)")
    last.unlink()
    refused(folder, FileNotFoundError, rf"no part-1.{kind} in the folder")


class Code:
    """Runs when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("written", ["torch", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(folder, written):
    (folder / WEIGHTS).unlink()
    content = {"backbone.norm_f.weight": Code(folder / "it ran")}
    if written == "torch":
        torch.save(content, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content, protocol=2))
    refused(folder, ValueError, "holds more than tensors; nothing in it was run")
    assert not (folder / "it ran").exists()


def test_weights_that_do_not_fit_are_named(folder):
    weights = load_file(folder / WEIGHTS)
    norm, D = "backbone.norm_f.weight", "backbone.layers.1.mixer.D"
    save_file({k: v for k, v in weights.items() if k != D}, folder / WEIGHTS)
    refused(folder, ValueError, rf"does not fit its config: missing \['{D}'\], unknown nothing")
    save_file(weights | {"backbone.extra": torch.ones(3)}, folder / WEIGHTS)
    refused(folder, ValueError, r"missing nothing, unknown \['backbone.extra'\]")
    save_file({norm: weights[norm]}, folder / WEIGHTS)
    refused(folder, ValueError, "'backbone.layers.0.mixer.conv1d.bias'. and 17 more, unknown nothing")
    save_file(weights | {norm: torch.ones(7)}, folder / WEIGHTS)
    refused(folder, ValueError, rf"{norm} \[7\] cannot be ln_final.w \[24\]")
    save_file(weights | {norm: torch.ones(24, dtype=torch.long)}, folder / WEIGHTS)
    refused(folder, ValueError, rf"{norm} is torch.int64, not floating point")


def test_a_split_that_does_not_fit_is_named(tmp_path):
    random_model("mamba2").save_pretrained(tmp_path)
    refused(
        configured(tmp_path, n_groups=4),
        ValueError,
        r"in_proj.weight .120, 24. cannot be blocks.0.mixer.in_proj.weight .140, 24.",
    )


def test_an_unknown_architecture_gets_the_list_of_known_ones(folder):
    refused(
        configured(folder, model_type="llama"), ValueError, "'llama' is not supported.*mamba, .*gpt2, .*gla"
    )
    refused(configured(folder, model_type=None), ValueError, "'MambaForCausalLM'. is not supported")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mamba", {"use_bias": True}, "use_bias=True of this transformers mamba"),
        ("mamba", {"hidden_act": "relu"}, "hidden_act='relu' of this transformers mamba"),
        ("falcon_mamba", {"use_bias": True}, "use_bias=True of this transformers falcon_mamba"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, r"time_step_limit=\(0.0, 0.1\) of this"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True of this"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh'"),
        ("gpt_neox", {"hidden_act": "gelu_fast"}, "hidden_act='gelu_fast' of this transformers gpt_neox"),
        (
            "gpt_neox",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_type='linear' of this transformers gpt_neox's rope_parameters",
        ),
        ("gpt_neox", {"rope_parameters": {"mscale": 2.0}}, "mscale=2.0 of this .* is not known"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.4}}, "rotary_dim must be even .* got 3"),
    ],
)
def test_what_cannot_be_honoured_is_named(name, values, message, tmp_path):
    random_model(name).config.save_pretrained(tmp_path)
    refused(configured(tmp_path, **values), ValueError, message)


def test_half_precision_needs_a_residual_stream_of_that_precision(folder):
    for dtype in (torch.float16, torch.bfloat16):
        refused(
            folder, ValueError, f"residual_in_fp32=True cannot be honoured with dtype={dtype}", dtype=dtype
        )
    ours = HookedSSM.from_pretrained(configured(folder, residual_in_fp32=False), dtype=torch.bfloat16)
    assert ours.W_E.dtype == torch.bfloat16


def test_options_that_make_no_sense_are_refused(folder):
    refused(folder, ValueError, "options of from_pretrained are .*, got .'n_layers'", n_layers=3)
    refused(folder, ValueError, "dtype must be a floating point dtype, got torch.int8", dtype=torch.int8)
    with pytest.raises(ValueError, match="n_heads is 4, the heads of the mixer"):
        HookedSSM.from_pretrained(random_model("mamba2"), n_heads=2)
    with pytest.raises(ValueError, match="n_ctx is 50, the number of learned positions"):
        HookedSSM.from_pretrained(random_model("gpt2"), n_ctx=20)
    HookedSSM.from_pretrained(folder).save(folder / "ours")
    refused(folder / "ours", ValueError, r"has its own config: leave out \['n_ctx'\]", n_ctx=20)
    with pytest.raises(TypeError, match="wanted a name, a folder or a model, got int"):
        HookedSSM.from_pretrained(3)
    with pytest.raises(TypeError, match="a Linear has no config"):
        HookedSSM.from_pretrained(nn.Linear(2, 2))
