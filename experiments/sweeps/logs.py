"""Curves of a run sent to TensorBoard or Weights & Biases while it is trained."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.runs import Run, TrainConfig

Watch = Callable[[dict[str, Any]], None]
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


def check_log(log: str | None) -> None:
    """ValueError for an unknown logger, ModuleNotFoundError for one that is not installed."""
    if log is None:
        return
    if log not in PACKAGES:
        raise ValueError(f"log must be one of {', '.join(PACKAGES)}, got {log!r}.")
    try:
        importlib.import_module(PACKAGES[log])
    except ImportError as error:
        raise ModuleNotFoundError(f"logging to {log} needs its package: pip install {log}.") from error


@contextmanager
def watcher(log: str | None, folder: Path, cfg: TrainConfig) -> Iterator[Watch | None]:
    """What is to be called with each evaluation of the run; None without a logger."""
    check_log(log)
    if log is None:
        yield None
    elif log == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        # what was logged after the checkpoint that the run goes on from is logged again
        reached = Run(folder).checkpoint_step()
        with SummaryWriter(str(folder / "tensorboard"), purge_step=reached + 1) as writer:

            def to_tensorboard(record: dict[str, Any]) -> None:
                for name, value in record.items():
                    if name != "step":
                        writer.add_scalar(name, value, int(record["step"]))

            yield to_tensorboard
    else:
        import wandb  # pyright: ignore[reportMissingImports]

        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project="hooked_ssm", id=folder.name, name=folder.name, resume="allow", dir=str(folder),
            config=cfg.to_json(),
        )  # fmt: skip
        try:
            yield lambda record: run.log(record, step=int(record["step"]))
        finally:
            run.finish()
