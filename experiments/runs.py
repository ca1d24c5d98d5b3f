"""A run as a folder. Everything in it is written in one step or can be mended after a kill at any moment.

    config.json              what was asked for
    metrics.jsonl            one evaluation a line
    checkpoint.safetensors   weights and optimiser state, with the step in its metadata
    model/                   the trained model, as `HookedSSM.save` writes it
    result.json              the last evaluation, heuristics and times: there when the run is finished
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from hooked_ssm import HookedSSM, HookedSSMConfig
from hooked_ssm.config import check_known
from hooked_ssm.saving import write_atomically
from tasks import Task


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    task, model: what is learned by what. `eval_task`: what is tested, if not the task itself (a task with
        many supervised queries a document is tested on documents with one).
    steps, batch_size, lr, weight_decay: of AdamW. lr rises linearly over the first `warmup` share of the
        steps, then falls as a cosine to 0.
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
    n_train: int | None = 100_032
    n_test: int = 320
    eval_every: int = 1000
    checkpoint_every: int = 1000
    seed: int = 0
    stop_at_accuracy: float | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "n_test", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.n_train is not None and self.n_train < self.batch_size:
            raise ValueError(f"n_train must be at least batch_size={self.batch_size}, got {self.n_train}.")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), got {self.warmup}.")
        if self.model.d_vocab < max(self.task.d_vocab, self.test_task.d_vocab):
            raise ValueError(f"the model has d_vocab={self.model.d_vocab}, the task needs {self.task.d_vocab}.")
        if self.model.positional_embedding_type == "standard" and self.model.n_ctx < self.task.n_ctx:
            raise ValueError(
                f"the model has n_ctx={self.model.n_ctx} positions, documents have up to {self.task.n_ctx}."
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
            differ = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
            if differ:
                raise ValueError(
                    f"{self.folder} holds another run: it differs in "
                    + "; ".join(f"{key} (there {found.get(key)}, asked for {wanted.get(key)})" for key in differ)
                    + ". Choose another folder."
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

    def save_checkpoint(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, **more: float) -> None:
        """Weights and optimiser state after `step` steps."""
        names = {id(p): name for name, p in model.named_parameters()}
        tensors = {f"model.{name}": t.detach().contiguous() for name, t in model.state_dict().items()}
        for p, state in optimizer.state.items():
            tensors |= {f"optimizer.{names[id(p)]}.{key}": t.contiguous() for key, t in state.items()}
        metadata = {"step": str(step)} | {key: repr(value) for key, value in more.items()}
        write_atomically(
            self.folder / "checkpoint.safetensors", lambda path: save_file(tensors, path, metadata=metadata)
        )

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Load the checkpoint, if there is one, and forget what was logged after it.

        Returns the checkpoint's numbers: `step` (0 without a checkpoint) and what was saved with it.
        """
        path = self.folder / "checkpoint.safetensors"
        numbers: dict[str, float] = {"step": 0}
        if path.exists():
            try:
                with safe_open(path, framework="pt") as file:
                    numbers = {key: float(value) for key, value in (file.metadata() or {}).items()}
                    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise ValueError(f"{path} is not a whole checkpoint (truncated or foreign): {error}") from error
            if "step" not in numbers:
                raise ValueError(f"{path} is not a checkpoint of a run: it does not say after which step.")
            model.load_state_dict({k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")})
            for name, p in model.named_parameters():
                prefix = f"optimizer.{name}."
                optimizer.state[p] = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        kept = [record for record in self._records() if record["step"] <= numbers["step"]]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self.folder / "metrics.jsonl", lambda file: file.write_text(lines))
        return numbers

    def _records(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A kill while a line was being written leaves it without its end.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name} in {self.folder}: not the folder of a run, or not a finished one.")
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON (truncated?): {error}") from error

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        write_atomically(self.folder / name, lambda path: path.write_text(json.dumps(values, indent=2) + "\n"))
