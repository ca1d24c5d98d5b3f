"""One thread: the tests' tensors are small, and idle threads that spin slow down everything on a busy machine."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)
