"""Loading takes little memory beside the model's own.

While a tensor is copied it is there twice: the share of the largest, a third, is here that of Mamba 130M.
"""

import gc
from pathlib import Path

import pytest
import torch

from hooked_ssm import HookedSSM

from .sources import random_model

CLEAR_REFS = Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (at most since it was cleared), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_loading_peaks_below_1_3_times_the_weights(kind, tmp_path):
    theirs = random_model("mamba", hidden_size=768, num_hidden_layers=6, vocab_size=16_000)
    if kind == "safetensors":
        theirs.save_pretrained(tmp_path)
    else:
        theirs.config.save_pretrained(tmp_path)
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    weights = sum(p.numel() * p.element_size() for p in theirs.parameters())
    assert weights > 120e6, "else what else happens in memory would show"
    gc.collect()  # `theirs` stays: memory that it freed would be taken again unseen
    CLEAR_REFS.write_text("5")
    before = resident("VmRSS")
    ours = HookedSSM.from_pretrained(tmp_path)
    peak = resident("VmHWM") - before
    assert sum(p.nbytes for p in ours.parameters()) == weights == sum(p.nbytes for p in theirs.parameters())
    assert 0.9 * weights < peak < 1.3 * weights, f"{peak / weights:.2f} times the weights"
