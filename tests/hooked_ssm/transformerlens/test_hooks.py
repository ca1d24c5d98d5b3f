"""TransformerLens's ways of attaching hooks, by name, alias or filter: none is silently without effect."""

import pytest
import torch


def names_of(case, layer):
    """Names of one hook: its own, TransformerLens's for attention, and at block level."""
    return [f"blocks.{layer}.mixer.hook_z", f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_z"]


def double(activation, hook):
    return 2 * activation


def test_every_name_of_a_hook_edits_the_same_activation(case):
    edited = [case.measure([(name, double)]) for name in names_of(case, 1)]
    assert edited[0] == edited[1] == edited[2]
    assert abs(edited[0] - case.measure([])) > 1e-3
    outs = [case.measure([(f"blocks.0.{name}", double)]) for name in ("hook_mixer_out", "hook_attn_out")]
    assert outs[0] == outs[1] != case.measure([])


def test_a_filter_that_matches_several_names_attaches_once(case):
    once = case.measure([("blocks.0.mixer.hook_z", double)])
    by_filter = case.measure(
        [(lambda name: name.startswith("blocks.0.") and name.endswith("hook_z"), double)]
    )
    assert by_filter == once != case.measure([])
    calls = []
    case.measure([(lambda name: True, lambda x, hook: calls.append(hook.name))])
    assert len(calls) == len(set(calls)), "a hook was attached more than once"


def test_a_filter_for_everything_reaches_every_hook_that_can_fire(case):
    calls = []
    case.measure([(lambda name: True, lambda x, hook: calls.append(hook.name))])
    table = case.model.hook_table()
    assert set(calls) == set(table[table.unavailable == ""].name)


def test_hooks_see_themselves_under_their_own_name(case):
    seen = []
    case.measure([("blocks.1.attn.hook_z", lambda x, hook: seen.append((hook.name, hook.layer())))])
    assert seen == [("blocks.1.mixer.hook_z", 1)]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("blocks.0.mixer.hook_zz", "blocks.0.mixer.hook_z"),
        ("blocks.0.hook_resid_pree", "blocks.0.hook_resid_pre"),
    ],
)
def test_an_unknown_name_raises_with_the_nearest(case, wrong, right):
    ways = [
        lambda: case.measure([(wrong, double)]),
        lambda: case.cached(case.clean, names_filter=wrong),
        lambda: case.cached(case.clean, names_filter=[wrong]),
        lambda: case.model.add_hook(wrong, double),
        lambda: case.model.add_caching_hooks([wrong]),
        lambda: case.clean_cache[wrong],
    ]
    for way in ways:
        with pytest.raises(KeyError, match=f"no hook named '{wrong}'; did you mean .*'{right}'"):
            way()


def test_a_hook_that_would_not_fire_raises_with_what_would_make_it(case):
    unavailable = {
        "blocks.0.attn.hook_result": r"set_use_attn_result\(True\)",
        "blocks.0.attn.hook_q_input": r"set_use_split_qkv_input\(True\)",
        "blocks.0.hook_attn_in": r"set_use_attn_in\(True\)",
    }
    if not case.model.cfg.attn_only:
        unavailable["blocks.0.hook_mlp_in"] = r"set_use_hook_mlp_in\(True\)"
    for name, reason in unavailable.items():
        ways = [
            lambda: case.measure([(name, double)]),  # noqa: B023
            lambda: case.cached(case.clean, names_filter=[name]),  # noqa: B023
            lambda: case.model.add_hook(name, double),  # noqa: B023
        ]
        for way in ways:
            with pytest.raises(ValueError, match=f"{name}.* would not fire: .*{reason}"):
                way()


def test_a_hook_in_a_part_that_the_run_leaves_out_raises(case):
    resid = case.clean_cache["resid_pre", 1]
    parts = [
        ((resid,), {"start_at_layer": 1}, ["hook_embed", "blocks.0.attn.hook_z"]),
        ((case.clean,), {"stop_at_layer": 1}, ["blocks.1.attn.hook_z", "ln_final.hook_scale"]),
    ]
    for inputs, options, names in parts:
        for name in names:
            with pytest.raises(ValueError, match=f"{name}.* would not fire"):
                case.model.run_with_hooks(*inputs, fwd_hooks=[(name, double)], **options)


def test_permanent_hooks_stay_until_they_are_removed(case):
    model, plain = case.model, case.measure([])
    model.add_perma_hook("blocks.0.attn.hook_z", double)
    edited = case.measure([])
    model.reset_hooks()
    assert case.measure([]) == edited != plain
    model.reset_hooks(including_permanent=True)
    assert case.measure([]) == plain


def test_hooks_added_by_filter_are_listed_and_reset(case):
    model, plain = case.model, case.measure([])
    model.add_hook(lambda name: name.endswith("hook_z"), double)
    assert "blocks.0.attn.hook_z" in model.list_hooks()
    assert case.measure([]) != plain
    model.reset_hooks()
    assert not model.list_hooks() and case.measure([]) == plain


def test_caching_hooks_fill_their_dictionary_until_reset(case):
    model = case.model
    cache = model.add_caching_hooks(["blocks.0.attn.hook_z", "hook_embed"], incl_bwd=True)
    case.metric(model(case.clean)).backward()
    model.reset_hooks()
    model.zero_grad()
    reference = case.clean_cache
    torch.testing.assert_close(cache["blocks.0.attn.hook_z"], reference["z", 0], rtol=0, atol=0)
    assert set(cache) == {
        "blocks.0.attn.hook_z",
        "blocks.0.attn.hook_z_grad",
        "hook_embed",
        "hook_embed_grad",
    }


def test_backward_hooks_can_change_gradients(case):
    """A gradient set to 0 at the last layer's output leaves none for the layers before."""
    model, last = case.model, f"blocks.{case.model.cfg.n_layers - 1}.hook_resid_post"
    gradients = []
    hooks = [
        (last, lambda grad, hook: torch.zeros_like(grad)),
        ("blocks.0.attn.hook_z", lambda grad, hook: gradients.append(grad)),
    ]
    with model.hooks(bwd_hooks=hooks):
        case.metric(model(case.clean)).backward()
    model.zero_grad()
    assert len(gradients) == 1 and (gradients[0] == 0).all()
