"""Names on the Hugging Face Hub, with a folder in the Hub's place."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

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
            "'no/model' is no folder, and the Hugging Face Hub was not reached",
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
