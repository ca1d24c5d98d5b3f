"""Loading takes little memory beside the model's own.

While a tensor is copied it is there twice: the share of the largest, a third, is here that of Mamba 130M.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .sources import random_model

CLEAR_REFS = Path("/proc/self/clear_refs")
# In a process of its own: memory that something else has freed would be taken again unseen.
LOAD = """
import json, sys
from pathlib import Path
from hooked_ssm import HookedSSM

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

kept, found = [], []
for folder in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept.append(HookedSSM.from_pretrained(folder))
    found.append([resident("VmHWM") - before, sum(p.nbytes for p in kept[-1].parameters())])
print(json.dumps(found))
"""


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="peak memory is read from Linux's /proc")
def test_loading_peaks_below_1_3_times_the_weights(tmp_path):
    theirs = random_model("mamba", hidden_size=768, num_hidden_layers=6, vocab_size=16_000)
    weights = sum(p.nbytes for p in theirs.parameters())
    assert weights > 120e6, "else what else happens in memory would show"
    theirs.save_pretrained(tmp_path / "safetensors")
    theirs.config.save_pretrained(tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "safetensors"), str(tmp_path / "bin")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for peak, own in json.loads(done.stdout.splitlines()[-1]):
        assert own == weights
        assert 0.9 * weights < peak < 1.3 * weights, f"{peak / weights:.2f} times the weights"
