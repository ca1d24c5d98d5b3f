from pathlib import Path

import pytest

from .sweeping import jobs


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the grid, done one after the other in this process."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert [job.attempt(out) for job in jobs()] == [None] * 12
    return out
