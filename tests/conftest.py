"""One thread: the tests' tensors are small, and threads that spin while idle slow a busy machine down.

And torch's global random numbers are the same in every test, whichever ran before it. Without a GPU Triton's
kernels are interpreted, which has to be said before triton is first imported.
"""

import os

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
