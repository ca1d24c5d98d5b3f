"""Names on the Hugging Face Hub, with a folder in the Hub's place."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from hooked_ssm import HookedSSM
from hooked_ssm.loading import hub

from .sources import random_model


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[Any]:
    """A model "somebody/mamba" on a Hub that notes what it is asked."""
    random_model("mamba").save_pretrained(tmp_path / "hub", max_shard_size="8KB")
    calls: list[Any] = []

    def download(repo: str, name: str, **options: Any) -> str:
        calls.append((repo, name, options))
        if not (tmp_path / "hub" / name).is_file():
            raise EntryNotFoundError(f"no {name}")
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return calls


def test_files_are_asked_for_as_the_caller_says(asked, tmp_path):
    ours = HookedSSM.from_pretrained(
        "somebody/mamba", revision="abc", cache_dir=tmp_path / "cache", local_files_only=True
    )
    tokens = torch.randint(29, (2, 9))
    assert torch.equal(ours(tokens), HookedSSM.from_pretrained(random_model("mamba"))(tokens))
    assert ours.cfg.model_name == "somebody/mamba" and ours.tokenizer is None
    wanted = {"revision": "abc", "cache_dir": tmp_path / "cache", "local_files_only": True}
    assert all(repo == "somebody/mamba" and options == wanted for repo, _, options in asked)
    names = [name for _, name, _ in asked]
    assert names[0] == "config.json" and len(names) == len(set(names))
    assert names[-1].startswith("model-") and "pytorch_model.bin" not in names


def test_the_cache_is_enough_offline(tmp_path):
    """A cache as `huggingface_hub` keeps it, two revisions in it; no file of it is replaced by a stand-in."""
    cache, tokenizer = tmp_path / "cache", Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    repository = cache / "models--somebody--mamba"
    (repository / "refs").mkdir(parents=True)
    models = {}
    for number, revision in enumerate(("main", "other")):
        commit = str(number) * 40
        models[revision] = random_model("mamba", time_step_rank=1 + number)
        models[revision].save_pretrained(repository / "snapshots" / commit)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="a").save_pretrained(
            repository / "snapshots" / commit
        )
        (repository / "refs" / revision).write_text(commit)
    tokens = torch.randint(29, (2, 9))
    for revision, theirs in models.items():
        ours = HookedSSM.from_pretrained(
            "somebody/mamba",
            revision=revision,
            cache_dir=cache,
            local_files_only=True,
            dtype=torch.float64,
            device="cpu",
        )
        assert torch.equal(ours(tokens), HookedSSM.from_pretrained(theirs, dtype=torch.float64)(tokens))
        assert ours.cfg.device == "cpu" and ours.to_tokens("b").tolist() == [[0, 1]]
    for wrong in ({"revision": "third"}, {"cache_dir": tmp_path / "empty"}):
        options = {"cache_dir": cache, "local_files_only": True} | wrong
        with pytest.raises(FileNotFoundError, match="no config.json in the local cache of 'somebody/mamba'"):
            HookedSSM.from_pretrained("somebody/mamba", **options)


def test_without_a_network_the_cache_is_enough(tmp_path, monkeypatch):
    """Whole weights are asked for before those in shards, and are not there: that is no error."""
    repository = tmp_path / "models--somebody--mamba"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    random_model("mamba").save_pretrained(snapshot, max_shard_size="8KB")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    ours, tokens = HookedSSM.from_pretrained("somebody/mamba", cache_dir=tmp_path), torch.randint(29, (2, 9))
    assert torch.equal(ours(tokens), HookedSSM.from_pretrained(random_model("mamba"))(tokens))
    assert ours.tokenizer is None
    for path in snapshot.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(OSError, match="no model-.* in the local cache of 'somebody/mamba'.* not reached"):
        HookedSSM.from_pretrained("somebody/mamba", cache_dir=tmp_path)
    with pytest.raises(OSError, match="no config.json in the local cache of 'some/other'.* not reached"):
        HookedSSM.from_pretrained("some/other", cache_dir=tmp_path)


def test_an_unsupported_architecture_is_refused_before_its_weights_are_downloaded(asked, tmp_path):
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama' is not supported"):
        HookedSSM.from_pretrained("somebody/mamba")
    assert not any("safetensors" in name for _, name, _ in asked)


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            RepositoryNotFoundError,
            FileNotFoundError,
            "'no/model' is neither a folder nor a model on the Hugging",
        ),
        (RevisionNotFoundError, FileNotFoundError, "'no/model' has no revision 'abc'"),
        (
            LocalEntryNotFoundError,
            OSError,
            "no config.json in the local cache of 'no/model'; it is no folder, and .* not reached: a reason",
        ),
        (HfHubHTTPError, OSError, "'no/model' could not be downloaded: a reason"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_error(error, raised, message, monkeypatch):
    def download(*_: Any, **__: Any) -> Path:
        if issubclass(error, HfHubHTTPError):
            raise error("a reason", response=SimpleNamespace(headers={}, request=None))
        raise error("a reason")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(raised, match=message):
        HookedSSM.from_pretrained("no/model", revision="abc")
