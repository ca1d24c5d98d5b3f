"""The smallest runs that show all of it. It is also imported by `kill_and_resume.py`, outside of pytest."""

from typing import Any

from experiments.runs import TrainConfig
from hooked_ssm import HookedSSMConfig, zoo
from tasks import AssociativeRecall

TASK = AssociativeRecall(n_keys=6, n_values=6, n_pairs=2)


def model(preset: str = "attention", **options: Any) -> HookedSSMConfig:
    sizes = {"d_model": 8, "n_layers": 2, "d_vocab": TASK.d_vocab, "n_ctx": 16, "device": "cpu"}
    return zoo.PRESETS[preset](**(sizes | options))


def config(preset: str = "attention", **changes: Any) -> TrainConfig:
    """A run of a dozen steps."""
    values = {
        "task": TASK,
        "model": model(preset),
        "steps": 12,
        "batch_size": 8,
        "lr": 1e-2,
        "n_train": 44,
        "n_test": 24,
        "eval_every": 5,
        "checkpoint_every": 3,
    }
    return TrainConfig(**(values | changes))
