"""A run as a folder.

    config.json              what was asked for
    metrics.jsonl            one evaluation a line
    checkpoint.safetensors   weights and optimiser state, with the step in its metadata
    model/                   the trained model, as `HookedSSM.save` writes it
    result.json              the last evaluation, heuristics and times: there when the run is finished

Everything in it is written in one step or can be mended after a kill at any moment.
"""

import dataclasses
import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hooked_ssm import HookedSSM, HookedSSMConfig
from hooked_ssm.config import check_known
from hooked_ssm.saving import write_atomically
from tasks import Task
from tasks.task import check_choice, check_count

CHECKPOINT = "checkpoint.safetensors"
FILES = (
    "config.json",
    "metrics.jsonl",
    CHECKPOINT,
    "result.json",
    "model/config.json",
    "model/model.safetensors",
)
ADAMW = ("step", "exp_avg", "exp_avg_sq")  # what it keeps of every parameter


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    task, model: what is learned by what. `eval_task`: what is tested, if not the task itself (a task with
        many supervised queries a document is tested on documents with one).
    steps, batch_size, lr, weight_decay: of AdamW. lr rises linearly over the first `warmup` share of the
        steps, then falls to 0 as `decay` says: a "cosine" or "linear".
    n_train: size of the fixed training set, walked through in the same order every epoch as in the paper;
        None for documents that never repeat.
    n_test: held-out documents tested every `eval_every` steps.
    seed: of weights and documents.
    stop_at_accuracy: end early once the test accuracy is at least this.
    """

    task: Task
    model: HookedSSMConfig
    steps: int
    eval_task: Task | None = None
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    decay: str = "cosine"
    n_train: int | None = 100_032
    n_test: int = 320
    eval_every: int = 1000
    checkpoint_every: int = 1000
    seed: int = 0
    stop_at_accuracy: float | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "n_test", "eval_every", "checkpoint_every"):
            check_count(name, getattr(self, name), least=1)
        check_count("seed", self.seed, least=0)
        if self.n_train is not None:
            check_count("n_train", self.n_train, least=1)
            if self.n_train < self.batch_size:
                raise ValueError(
                    f"n_train must be at least batch_size={self.batch_size}, got {self.n_train}."
                )
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), got {self.warmup}.")
        check_choice("decay", self.decay, ("cosine", "linear"))
        if self.stop_at_accuracy is not None and not 0 <= self.stop_at_accuracy <= 1:
            raise ValueError(f"stop_at_accuracy is a share of the documents, got {self.stop_at_accuracy}.")
        d_vocab, n_ctx = (
            max(getattr(t, n) for t in (self.task, self.test_task)) for n in ("d_vocab", "n_ctx")
        )
        if self.model.d_vocab < d_vocab:
            raise ValueError(f"the model has d_vocab={self.model.d_vocab}, the task needs {d_vocab}.")
        if self.model.positional_embedding_type == "standard" and self.model.n_ctx < n_ctx:
            raise ValueError(
                f"the model has n_ctx={self.model.n_ctx} positions, documents have up to {n_ctx}."
            )

    @property
    def test_task(self) -> Task:
        return self.eval_task or self.task

    def to_json(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["task"] = self.task.to_dict()
        values["eval_task"] = None if self.eval_task is None else self.eval_task.to_dict()
        values["model"] = self.model.to_json()
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        values = dict(values)
        check_known(values, {f.name for f in dataclasses.fields(cls)}, "field of TrainConfig")
        values["task"] = Task.from_dict(values["task"])
        if values.get("eval_task") is not None:
            values["eval_task"] = Task.from_dict(values["eval_task"])
        values["model"] = HookedSSMConfig.from_json(values["model"])
        return cls(**values)


class Run:
    """The folder of one run. Raises OSError if it cannot be written, ValueError if it holds another run."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def start(self, cfg: TrainConfig) -> None:
        """Write the config, or check that the folder's own is the same."""
        path = self.folder / "config.json"
        wanted = json.loads(json.dumps(cfg.to_json()))
        if path.exists():
            found = self._read_json("config.json")
            with suppress(ValueError, TypeError, KeyError):  # what an older version left out has its default
                found = json.loads(json.dumps(TrainConfig.from_json(found).to_json()))
            differ = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
            if differ:
                fields = [f"{key} (there {found.get(key)}, asked for {wanted.get(key)})" for key in differ]
                raise ValueError(
                    f"{self.folder} holds another run, which differs in {', '.join(fields)}: choose another."
                )
        else:
            self._write_json("config.json", wanted)

    def config(self) -> TrainConfig:
        return TrainConfig.from_json(self._read_json("config.json"))

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").exists()

    def result(self) -> dict[str, Any]:
        return self._read_json("result.json")

    def finish(self, model: HookedSSM, result: dict[str, Any]) -> None:
        model.save(self.folder / "model")
        self._write_json("result.json", result)

    def model(self) -> HookedSSM:
        """The trained model."""
        return HookedSSM.load(self.folder / "model")

    def metrics(self) -> pd.DataFrame:
        """One row an evaluation: step, loss, test_loss, test_accuracy, seconds."""
        return pd.DataFrame(self._records())

    def log(self, record: dict[str, Any]) -> None:
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that is on the disk has its record there too

    def save_checkpoint(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, **more: float
    ) -> None:
        """Weights and optimiser state after `step` steps."""
        names = {id(p): name for name, p in model.named_parameters()}
        tensors = {f"model.{name}": t.detach().contiguous() for name, t in model.state_dict().items()}
        for p, state in optimizer.state.items():
            tensors |= {f"optimizer.{names[id(p)]}.{key}": t.contiguous() for key, t in state.items()}
        metadata = {"step": str(step)} | {key: repr(value) for key, value in more.items()}
        write_atomically(self.folder / CHECKPOINT, lambda path: save_file(tensors, path, metadata=metadata))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Load the checkpoint, if there is one, and forget what was logged after it.

        Returns the checkpoint's numbers: `step` (0 without a checkpoint) and what was saved with it. Raises
        ValueError for a checkpoint that is not whole or not of this model.
        """
        self._remove_unfinished()
        path = self.folder / CHECKPOINT
        numbers = {"step": 0.0}
        if path.exists():
            numbers, tensors = read_checkpoint(path, model)
            model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
            for name, p in model.named_parameters():
                optimizer.state[p] = {key: tensors[f"optimizer.{name}.{key}"].to(p.device) for key in ADAMW}
        kept = [record for record in self._records() if record["step"] <= numbers["step"]]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self.folder / "metrics.jsonl", lambda file: file.write_text(lines))
        return numbers

    def checkpoint_step(self) -> int:
        """The step after which the checkpoint was written; 0 without one, or with one that is not whole."""
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
            with safe_open(self.folder / CHECKPOINT, framework="pt") as file:
                return int(file.metadata()["step"])
        return 0

    def _remove_unfinished(self) -> None:
        """Remove what a kill left of files that were being written."""
        for path in (self.folder / name for name in FILES):
            for unfinished in path.parent.glob(f".{path.name}.*"):
                unfinished.unlink(missing_ok=True)

    def _records(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A kill while a line was being written leaves it without its end.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"no {name} in {self.folder}: not the folder of a run, or not a finished one."
            )
        try:
            values = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON (truncated?): {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} is not of a run: it holds no object.")
        return values

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(self.folder / name, lambda path: path.write_text(text))


def read_checkpoint(path: Path, model: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Numbers and tensors of a checkpoint. Raises ValueError if it is not a whole one of this model."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole checkpoint (truncated or foreign): {error}") from error
    if "step" not in metadata:
        raise ValueError(f"{path} is not a checkpoint of a run: it does not say after which step.")
    try:
        numbers = {key: float(value) for key, value in metadata.items()}
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint of a run: {metadata} should be numbers.") from error
    wanted = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    for name, p in model.named_parameters():
        wanted |= {f"optimizer.{name}.{key}": torch.Size() if key == "step" else p.shape for key in ADAMW}
    for name in wanted.keys() | tensors.keys():
        should = list(wanted[name]) if name in wanted else "missing"
        found = list(tensors[name].shape) if name in tensors else "missing"
        if should != found:
            raise ValueError(
                f"{path} is a checkpoint of another model: {name} should be {should}, is {found}."
            )
    return numbers, tensors
