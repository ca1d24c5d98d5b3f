"""One thread: the tests' tensors are small, and threads that spin while idle slow a busy machine down.

And torch's global random numbers are the same in every test, whichever ran before it.
"""

import os

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
