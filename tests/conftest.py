"""One thread: the tests' tensors are small, and threads that spin while idle slow a busy machine down."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)
