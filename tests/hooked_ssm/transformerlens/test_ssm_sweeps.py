"""TransformerLens's generic sweep over quantities it has no sweep of its own for, by block-level names."""

import pandas as pd
import pytest
import torch
from transformer_lens import patching

from hooked_ssm.mixers import Mamba

NAMES = ["conv_in", "conv_taps", "conv", "x", "gate", "y"]
NAMES += [f"ssm_{name}" for name in ("dt", "B", "C", "decay", "write", "state")]


def mamba_cells(model, positions):
    layers = [layer for layer, block in enumerate(model.blocks) if isinstance(block.mixer, Mamba)]
    return pd.DataFrame([(layer, pos) for layer in layers for pos in positions], columns=["layer", "pos"])


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_over_an_ssm_hook_is_its_runs_with_one_position_replaced(ssm_case, name):
    case, cache = ssm_case, ssm_case.clean_cache
    frame = mamba_cells(case.model, [1, 3])
    swept = patching.generic_activation_patch(
        case.model, case.corrupted, cache, case.metric, patching.layer_pos_patch_setter, name, index_df=frame
    )
    for value, (layer, pos) in zip(swept, frame.itertuples(index=False), strict=True):
        full_name = f"blocks.{layer}.mixer.hook_{name}"

        def replace(activation, hook, clean=cache[full_name], pos=pos):
            return torch.cat([activation[:, :pos], clean[:, pos : pos + 1], activation[:, pos + 1 :]], dim=1)

        assert float(value) == pytest.approx(case.measure([(full_name, replace)]), rel=1e-5, abs=1e-5)
    assert (swept - case.measure([])).abs().max() > 1e-3


def test_clean_states_at_every_position_are_what_the_later_layers_and_readers_see(ssm_case):
    """With every state, C, x and gate of a layer clean, the layer writes what it writes in the clean run."""
    case, cache = ssm_case, ssm_case.clean_cache
    names = [f"blocks.0.hook_{name}" for name in ("ssm_state", "ssm_C", "x", "gate")]
    written = []
    hooks = [(name, lambda x, hook, clean=cache[name]: x.copy_(clean)) for name in names]
    case.measure([*hooks, ("blocks.0.hook_attn_out", lambda x, hook: written.append(x.clone()))])
    torch.testing.assert_close(written[0], cache["attn_out", 0], rtol=1e-12, atol=1e-12)
