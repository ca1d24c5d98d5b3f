"""TransformerLens's patching sweeps over heads: real ones in attention, groups of channels in Mamba."""

import pytest
import torch
from transformer_lens import patching

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # sweeps store float32

BY_POSITION = {
    "z": patching.get_act_patch_attn_head_out_by_pos,
    "q": patching.get_act_patch_attn_head_q_by_pos,
    "k": patching.get_act_patch_attn_head_k_by_pos,
    "v": patching.get_act_patch_attn_head_v_by_pos,
}
ALL_POSITIONS = {
    "z": patching.get_act_patch_attn_head_out_all_pos,
    "q": patching.get_act_patch_attn_head_q_all_pos,
    "k": patching.get_act_patch_attn_head_k_all_pos,
    "v": patching.get_act_patch_attn_head_v_all_pos,
}


def replace(clean, *index):
    """A hook that takes the entries at `index` from `clean`, without writing in place."""

    def hook(activation, hook):
        mask = torch.zeros_like(activation, dtype=torch.bool)
        mask[index] = True
        return torch.where(mask, clean, activation)

    return hook


def cell(case, cache, letter, layer, *index):
    name = f"blocks.{layer}.mixer.hook_{letter}"
    return case.measure([(name, replace(cache[name], slice(None), *index))])


def cells(case):
    """Some (layer, position, head)."""
    cfg = case.model.cfg
    within = (1, 0), (2, cfg.n_heads - 1)
    return [(layer, pos, head) for layer in range(cfg.n_layers) for pos, head in within]


@pytest.mark.parametrize("letter", BY_POSITION)
def test_every_cell_is_the_run_with_one_head_replaced_at_one_position(case, letter):
    case = case.first(3)
    cache = case.clean_cache
    swept = BY_POSITION[letter](case.model, case.corrupted, cache, case.metric)
    for layer, pos, head in cells(case):
        expected = cell(case, cache, letter, layer, pos, head)
        assert float(swept[layer, pos, head]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    effects = (swept - case.measure([])).abs().amax(dim=(1, 2))
    assert (effects > 1e-3).all(), "a layer in which no patch does anything"


@pytest.mark.parametrize("letter", ALL_POSITIONS)
def test_every_cell_is_the_run_with_one_head_replaced(case, letter):
    cache = case.clean_cache
    swept = ALL_POSITIONS[letter](case.model, case.corrupted, cache, case.metric)
    for layer, _, head in cells(case):
        expected = cell(case, cache, letter, layer, slice(None), head)
        assert float(swept[layer, head]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert ((swept - case.measure([])).abs().amax(dim=1) > 1e-3).all()


def test_patterns_by_head(pattern_case):
    case, cache = pattern_case, pattern_case.clean_cache
    swept = patching.get_act_patch_attn_head_pattern_all_pos(case.model, case.corrupted, cache, case.metric)
    for layer, _, head in cells(case):
        expected = cell(case, cache, "pattern", layer, head)
        assert float(swept[layer, head]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert ((swept - case.measure([])).abs().amax(dim=1) > 1e-3).all()


def test_patterns_by_head_and_destination(pattern_case):
    case, cache = pattern_case, pattern_case.clean_cache
    swept = patching.get_act_patch_attn_head_pattern_by_pos(case.model, case.corrupted, cache, case.metric)
    for layer, pos, head in cells(case):
        expected = cell(case, cache, "pattern", layer, head, pos)
        assert float(swept[layer, head, pos]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert ((swept - case.measure([])).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_patterns_by_head_destination_and_source(pattern_case):
    case = pattern_case.first(3)
    cache = case.clean_cache
    swept = patching.get_act_patch_attn_head_pattern_dest_src_pos(
        case.model, case.corrupted, cache, case.metric
    )
    assert swept.shape == (case.model.cfg.n_layers, case.model.cfg.n_heads, 3, 3)
    expected = cell(case, cache, "pattern", 1, 2, 2, 1)
    assert float(swept[1, 2, 2, 1]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    future = swept[:, :, torch.ones(3, 3, dtype=torch.bool).triu(1)]
    torch.testing.assert_close(future, torch.full_like(future, case.measure([])), **CLOSE)
    assert (swept - case.measure([])).abs().max() > 1e-3


def test_every_kind_of_head_patch_by_head(pattern_case):
    case, cache = pattern_case, pattern_case.clean_cache
    every = patching.get_act_patch_attn_head_all_pos_every(case.model, case.corrupted, cache, case.metric)
    for kind, letter in enumerate("zqkv"):
        alone = ALL_POSITIONS[letter](case.model, case.corrupted, cache, case.metric)
        torch.testing.assert_close(every[kind], alone)
    alone = patching.get_act_patch_attn_head_pattern_all_pos(case.model, case.corrupted, cache, case.metric)
    torch.testing.assert_close(every[4], alone)


def test_every_kind_of_head_patch_by_head_and_position(pattern_case):
    case = pattern_case.first(3)
    cache = case.clean_cache
    result = patching.get_act_patch_attn_head_by_pos_every(
        case.model, case.corrupted, cache, case.per_document, reduce="none", baseline=True
    )
    assert result.patch_type_names == ["out", "q", "k", "v", "pattern"]
    means = result.mean()
    for kind, letter in enumerate("zqkv"):
        expected = cell(case, cache, letter, 1, 1, 2)
        assert float(means[kind, 1, 1, 2]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    expected = cell(case, cache, "pattern", 1, 2, 1)
    assert float(means[4, 1, 1, 2]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_mamba_whose_heads_are_groups_of_channels_says_why_it_has_no_pattern(ssm_case):
    case = ssm_case
    with pytest.raises(ValueError, match=r"hook_pattern.*each of Mamba's channels.*n_heads=16"):
        case.measure([("blocks.0.attn.hook_pattern", lambda pattern, hook: None)])
    with pytest.raises(KeyError, match="each of Mamba's channels has a pattern of its own"):
        patching.get_act_patch_attn_head_pattern_all_pos(
            case.model, case.corrupted, case.clean_cache, case.metric
        )
