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
    # A norm's scale is what it divides by.
    activation.fill_(2.0) if hook.name.endswith("hook_scale") else activation.zero_()


def replace(activation, hook):
    return torch.full_like(activation, 2.0 if hook.name.endswith("hook_scale") else 0.0)


SAME = {"rtol": 0, "atol": 0, "equal_nan": True}  # what overwrites a norm's scale may be negative
HEAVY = ("ssm_decay", "ssm_write", "ssm_state", "conv_taps", "pattern", "mlp_in", "mlp_out")


def run(case, hook, **options):
    with torch.no_grad(), case.model.hooks(fwd_hooks=[hook]):
        return case.model.run_with_cache(case.clean, **options)


def check_edit(case, name, before, clean_cache):
    """`before`: the hooks that fire before this one."""
    weights = {key: p.clone() for key, p in case.model.state_dict().items()}
    out, cache = run(case, (name, overwrite))
    assert all(torch.equal(p, weights[key]) for key, p in case.model.state_dict().items()), (
        f"{name}: a weight"
    )
    for other in before:
        assert torch.equal(cache[other], clean_cache[other]), f"{name} edited in place changed {other}"
    expected, expected_cache = run(case, (name, replace))
    torch.testing.assert_close(out, expected, **SAME)
    for other in expected_cache:
        torch.testing.assert_close(cache[other], expected_cache[other], **SAME)
    # Once more with little cached: what nothing is attached to takes other, faster ways.
    light = [other for other in before if not other.endswith(HEAVY)]
    out, cache = run(case, (name, overwrite), names_filter=light)
    torch.testing.assert_close(out, expected, **SAME)
    for other in light:
        assert torch.equal(cache[other], clean_cache[other]), f"{name} edited in place changed {other}"
    return out


def test_an_edit_in_place_reaches_nothing_else_and_is_the_edit_returned(case):
    order, clean_cache = firing_order(case), case.clean_cache
    assert set(order) == set(clean_cache.keys())
    for index, name in enumerate(order):
        if not name.startswith("blocks.2."):  # as blocks.0, in the models here
            check_edit(case, name, order[:index], clean_cache)


def test_every_hook_hands_out_memory_of_its_own(case):
    """Neither expanded, nor a view of a weight or of a larger tensor, whichever hook is alone attached."""
    weights = {p.untyped_storage().data_ptr() for p in case.model.parameters()}

    def check(activation, hook):
        storage = activation.untyped_storage()
        assert storage.data_ptr() not in weights, f"{hook.name} is a view of a weight"
        assert storage.nbytes() == activation.numel() * activation.itemsize, (
            f"{hook.name} is a part or expanded"
        )

    for name in firing_order(case):
        case.measure([(name, check)])


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
            check_edit(case, name, order[: order.index(case.model.canonical_name(name))], clean_cache)
    finally:
        getattr(case.model, f"set_use_{flag}")(False)


def test_patterns_edited_in_place(pattern_case):
    case = pattern_case
    order, clean_cache, name = firing_order(case), case.clean_cache, "blocks.1.mixer.hook_pattern"
    out = check_edit(case, name, order[: order.index(name)], clean_cache)
    assert not torch.equal(out, run(case, (name, lambda x, hook: None))[0])
