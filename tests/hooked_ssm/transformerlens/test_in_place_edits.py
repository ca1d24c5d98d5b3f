"""TransformerLens's patch setters write in place: that must change nothing but the activation itself.

For every hook of every model: the activation is overwritten in place, and no weight and no other cached
activation computed before it moves by a bit; and the run goes on exactly as if the hook had returned a new
tensor instead.
"""

import pytest
import torch


def firing_order(case):
    order = []
    case.measure([(lambda name: True, lambda x, hook: order.append(hook.name))], case.clean)
    return order


def overwrite(activation, hook):
    activation.mul_(0.5)  # 0 would divide by 0 at the norms' scales


def zero(activation, hook):
    activation.zero_()


def replace(activation, hook):
    return 0.5 * activation


def run(case, hook):
    """Output and cache of a run with a hook, all activations cached before the hook sees them or not."""
    with torch.no_grad(), case.model.hooks(fwd_hooks=[hook]):
        return case.model.run_with_cache(case.clean)


def check_hook(case, name, before, clean_cache, edit):
    weights = {key: p.clone() for key, p in case.model.state_dict().items()}
    out, cache = run(case, (name, edit))
    assert all(torch.equal(p, weights[key]) for key, p in case.model.state_dict().items()), f"{name}: a weight"
    for other in before:
        assert torch.equal(cache[other], clean_cache[other]), f"{name} edited in place changed {other}"
    return out, cache


def test_an_edit_in_place_reaches_nothing_computed_before_it(case):
    order, clean_cache = firing_order(case), case.clean_cache
    assert set(order) == set(clean_cache.keys())
    for index, name in enumerate(order):
        check_hook(case, name, order[:index], clean_cache, zero)


def test_an_edit_in_place_is_the_edit_returned(case):
    order, clean_cache = firing_order(case), case.clean_cache
    for index, name in enumerate(order):
        out, cache = check_hook(case, name, order[:index], clean_cache, overwrite)
        expected, expected_cache = run(case, (name, replace))
        assert torch.equal(out, expected), name
        for other in expected_cache:
            assert torch.equal(cache[other], expected_cache[other]), f"{name} edited in place changed {other}"


@pytest.mark.parametrize("flag", ["attn_result", "split_qkv_input", "attn_in", "hook_mlp_in"])
def test_edits_in_place_under_a_flag(case, flag):
    names = {
        "attn_result": ["attn.hook_result"],
        "split_qkv_input": [f"attn.hook_{letter}_input" for letter in "qkv"],
        "attn_in": ["hook_attn_in"],
        "hook_mlp_in": ["hook_mlp_in"],
    }[flag]
    getattr(case.model, f"set_use_{flag}")(True)
    try:
        order, clean_cache = firing_order(case), case.clean_cache
        for name in (f"blocks.1.{name}" for name in names):
            index = order.index(case.model.canonical_name(name))
            out, cache = check_hook(case, name, order[:index], clean_cache, overwrite)
            expected, expected_cache = run(case, (name, replace))
            assert torch.equal(out, expected), name
            assert all(torch.equal(cache[other], expected_cache[other]) for other in expected_cache)
    finally:
        getattr(case.model, f"set_use_{flag}")(False)


def test_patterns_edited_in_place(pattern_case):
    case = pattern_case
    order, clean_cache, name = firing_order(case), case.clean_cache, "blocks.1.mixer.hook_pattern"
    out, _ = check_hook(case, name, order[: order.index(name)], clean_cache, overwrite)
    assert torch.equal(out, run(case, (name, replace))[0])
    assert not torch.equal(out, run(case, (name, lambda x, hook: None))[0])
