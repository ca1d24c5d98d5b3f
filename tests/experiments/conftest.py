import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from experiments.evaluation import Evaluation, evaluate_run
from experiments.runs import Run
from experiments.training import train

from .small import config


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """What is under test may set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Evaluation]]:
    """A trained and evaluated run of each preset: to read, not to change."""
    found = {}
    for preset in ("attention", "mamba"):
        run = train(config(preset), tmp_path_factory.mktemp(preset) / "run", progress=False)
        found[preset] = run, evaluate_run(run, docs=40)
    return found


@pytest.fixture
def run_of(evaluated: dict[str, tuple[Run, Evaluation]], tmp_path: Path) -> Callable[[str], Run]:
    """A copy of a trained run, to do with as one likes."""

    def copy(preset: str) -> Run:
        return Run(shutil.copytree(evaluated[preset][0].folder, tmp_path / preset))

    return copy
