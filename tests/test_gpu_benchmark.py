"""`python -m benchmarks.gpu` on a machine without a GPU: what it checks, what it says, how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/gpu/results.md"
SEVERAL_CALLS = """
import sys
from benchmarks.gpu import __main__, operators

def call(*arguments):
    sys.argv[1:] = arguments
    print("exit code", __main__.main())

call("--out", sys.argv[1])
call("--check", "--only", "short convolution")
call("--check", "--only", "training: mamba")
call("--check", "--only", "mixer: mamba2")
operators.TOLERANCE = dict.fromkeys(operators.TOLERANCE, 1e-30)
call("--check", "--only", "short convolution")
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu(tmp_path):
    table = tmp_path / "table.md"
    command = [sys.executable, "-c", SEVERAL_CALLS, str(table)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    plain, conv, training, mixer, wrong, _ = done.stdout.split("exit code")
    assert "sees no CUDA device, so nothing was timed" in plain and conv.startswith(" 2")
    assert "ok: short convolution, triton, error" in conv and training.startswith(" 0")
    assert "ok: training: mamba" in training and mixer.startswith(" 0")
    assert "ok: mixer: mamba2" in mixer and wrong.startswith(" 0")
    assert "FAILED: short convolution: its error is" in wrong and done.stdout.strip().endswith("1")

    assert table.read_text().count("not measured") > 100
    committed = RESULTS.read_text()
    if "Not measured" in committed:
        again = "make it again: python -m benchmarks.gpu --out benchmarks/gpu/results.md"
        assert committed == table.read_text(), again
