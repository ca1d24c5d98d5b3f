"""Files of a checkpoint: in a folder, or from the Hugging Face Hub through its cache."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hooked_ssm.loading.checkpoint import PICKLED, SAFETENSORS, shards

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


@dataclass(frozen=True)
class Repository:
    """A folder, or a name on the Hub with the options of `huggingface_hub`.

    Without a network, or with HF_HUB_OFFLINE set, what is in the cache is enough.
    """

    name: str
    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    unreached: list[str] = field(default_factory=list, init=False)  # why files may be missing: no network

    @property
    def folder(self) -> Path | None:
        """The folder, if the name is one's."""
        path = Path(self.name)
        return path if path.is_dir() else None

    def file(self, name: str) -> Path | None:
        """A file's place on disk, after a download if need be; None if the checkpoint has no such file."""
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        return self._reaching(
            lambda: Path(
                hf_hub_download(
                    self.name,
                    name,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    local_files_only=self.local_files_only,
                )
            )
        )

    def need(self, name: str) -> Path:
        path = self.file(name)
        if path is None:
            raise self.missing(name)
        return path

    def missing(self, what: str) -> OSError:
        """The error for a file that is not there, or that may be where the network does not reach."""
        if self.unreached:
            return OSError(
                f"no {what} in the local cache of {self.name!r}; it is no folder, and the Hugging Face Hub "
                f"was not reached: {self.unreached[0]}"
            )
        return FileNotFoundError(f"no {what} in {self.place}.")

    @property
    def place(self) -> str:
        if self.folder is not None:
            return f"the folder {self.folder}"
        if self.local_files_only:
            return f"the local cache of {self.name!r} (local_files_only=True), and no folder has this name"
        return f"{self.name!r} on the Hugging Face Hub, and no folder has this name"

    def weights(self) -> list[Path]:
        """The files of weights: safetensors if there are any, whole or in shards."""
        for whole in (SAFETENSORS, PICKLED):
            path = self.file(whole)
            if path is not None:
                return [path]
            index = self.file(f"{whole}.index.json")
            if index is not None:
                return [self.need(shard) for shard in shards(index)]
        raise self.missing(f"{SAFETENSORS} or {PICKLED}, whole or in shards,")

    def tokenizer(self) -> Any:
        """The tokenizer beside the weights, if there is one.

        As in TransformerLens, a missing pad or BOS token is the end-of-text token.
        """
        if all(self.file(name) is None for name in TOKENIZER_FILES):
            return None
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            self.name,
            revision=self.revision,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
        )
        for token in ("pad_token", "bos_token"):
            if getattr(tokenizer, token) is None:
                setattr(tokenizer, token, tokenizer.eos_token)
        return tokenizer

    def _reaching(self, download: Callable[[], Path]) -> Path | None:
        try:
            return download()
        except LocalEntryNotFoundError as error:
            if not self.local_files_only:
                self.unreached.append(" ".join(str(error).split()))
            return None
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"{self.name!r} has no revision {self.revision!r}.") from error
        except EntryNotFoundError:
            return None
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise FileNotFoundError(
                f"{self.name!r} is neither a folder nor a model on the Hugging Face Hub: {error}"
            ) from error
        except HfHubHTTPError as error:
            raise OSError(f"{self.name!r} could not be downloaded: {error}") from error
