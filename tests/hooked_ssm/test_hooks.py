"""Hooks that would do nothing are refused; the position axis is where the declared shape says."""

import pytest
import torch
from torch import Tensor

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.hooks import Hook


@pytest.fixture
def model() -> HookedSSM:
    return HookedSSM(zoo.hybrid(d_model=8, d_vocab=7, d_mlp=6, device="cpu", seed=0))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(0))


def zero(tensor: Tensor, hook) -> Tensor:
    return tensor * 0


@pytest.mark.parametrize(
    ("shape", "pos_dim"),
    [
        ("batch pos d_model", 1),
        ("batch pos head d_head", 1),
        ("batch head dest src", 2),
        ("batch pos tap channel", 1),
    ],
)
def test_the_position_axis_is_read_off_the_shape(shape, pos_dim):
    assert Hook(shape, "meaning").pos_dim == pos_dim


def test_an_idle_hook_hands_on_the_tensor_itself():
    for copy in (False, True):
        hook = Hook("batch pos d_model", "meaning", copy=copy)
        x = torch.zeros(1, 2, 3)
        assert hook(x) is x and not hook.attached and hook.if_attached() is None


def test_a_copying_hook_copies_only_while_something_is_attached():
    hook = Hook("batch pos d_model", "meaning", copy=True)
    x = torch.randn(2, 3, 8)[..., :4]
    seen: list[Tensor] = []
    hook.add_hook(lambda tensor, hook: seen.append(tensor))
    assert hook.attached and hook.if_attached() is hook
    assert hook(x) is seen[0] is not x
    assert torch.equal(seen[0], x) and seen[0].is_contiguous() and seen[0].data_ptr() != x.data_ptr()
    hook.remove_hooks()
    assert hook(x) is x


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_hook_of_either_direction_is_attached(direction):
    hook = Hook("batch pos d_model", "meaning")
    hook.add_hook(lambda tensor, hook: None, dir=direction)
    assert hook.attached


def test_hook_table_lists_every_hook_of_the_model(model):
    table = model.hook_table()
    hooks = {name for name, module in model.named_modules() if isinstance(module, Hook)}
    assert set(table.name) == hooks == set(model.hook_dict) - set(model.hook_aliases)
    rows = table.set_index("name")
    assert rows.loc["blocks.0.mixer.hook_ssm_state", "shape"] == "[batch, pos, d_inner, d_state]"
    assert rows.loc["blocks.0.mixer.hook_x", "aliases"] == "blocks.0.hook_x, blocks.0.attn.hook_x"
    assert rows.loc["blocks.0.hook_mixer_out", "aliases"] == "blocks.0.hook_attn_out"
    assert "set_use_attn_result" in rows.loc["blocks.0.mixer.hook_result", "unavailable"]
    assert rows.loc["hook_embed", "unavailable"] == ""
    assert set(model.unavailable_hooks()) == set(table[table.unavailable != ""].name)


def test_a_filter_that_matches_nothing_that_fires_is_refused(model, tokens):
    def nothing(name: str) -> bool:
        return name.endswith("hook_result")  # there, but only after set_use_attn_result(True)

    ways = [
        lambda: model.run_with_hooks(tokens, fwd_hooks=[(nothing, zero)]),
        lambda: model.add_hook(nothing, zero),
        lambda: model.run_with_hooks(tokens, fwd_hooks=[(lambda name: False, zero)]),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="the filter matches no hook that can fire"):
            way()
    assert not model.list_hooks()
    model.set_use_attn_result(True)
    assert not torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(nothing, zero)]), model(tokens))


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("blocks.1.mixer.hook_z", {"stop_at_layer": 1}),
        ("blocks.1.hook_attn_out", {"stop_at_layer": -1}),
        ("blocks.0.mixer.hook_ssm_state", {"stop_at_layer": 0}),
        ("ln_final.hook_scale", {"stop_at_layer": 2}),
        ("blocks.0.hook_resid_pre", {"start_at_layer": 1}),
        ("hook_embed", {"start_at_layer": 0}),
    ],
)
def test_a_hook_in_a_part_that_is_left_out_is_refused(model, tokens, name, limits):
    given = torch.zeros(2, 5, 8) if "start_at_layer" in limits else tokens
    for hooks in ({"fwd_hooks": [(name, zero)]}, {"bwd_hooks": [(name, zero)]}):
        with pytest.raises(ValueError, match=f"'{name}' would not fire with start_at_layer="):
            model.run_with_hooks(given, **hooks, **limits)
    assert not model.list_hooks()


def test_a_hook_in_the_part_that_runs_is_not(model, tokens):
    calls = []
    hook = [("blocks.1.hook_resid_pre", lambda x, hook: calls.append(hook.name))]
    resid = model(tokens, stop_at_layer=1)
    model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", hook[0][1])], stop_at_layer=0)
    model.run_with_hooks(resid, fwd_hooks=hook, start_at_layer=1)
    model.run_with_hooks(resid, fwd_hooks=hook, start_at_layer=-1)
    model.run_with_hooks(resid, fwd_hooks=[("ln_final.hook_scale", hook[0][1])], start_at_layer=2)
    assert calls == [
        "hook_embed",
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_pre",
        "ln_final.hook_scale",
    ]


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("attn_result", "blocks.1.mixer.hook_result"),
        ("split_qkv_input", "blocks.1.mixer.hook_q_input"),
        ("attn_in", "blocks.0.hook_attn_in"),
        ("hook_mlp_in", "blocks.0.hook_mlp_in"),
    ],
)
def test_a_setting_that_would_silence_an_attached_hook_is_refused(model, flag, name):
    set_use = getattr(model, f"set_use_{flag}")
    set_use(True)
    model.add_hook(name, zero)
    with pytest.raises(ValueError, match=f"use_{flag}=False would silence hooks that are attached: .*{name}"):
        set_use(False)
    assert getattr(model.cfg, f"use_{flag}")
    model.reset_hooks()
    set_use(False)


def test_splitting_inputs_would_silence_a_state_hook(model):
    model.add_hook("blocks.0.hook_ssm_state", zero)
    for set_use in (model.set_use_split_qkv_input, model.set_use_attn_in):
        with pytest.raises(
            ValueError, match="would silence hooks that are attached: .*blocks.0.mixer.hook_ssm_state"
        ):
            set_use(True)
    assert not model.cfg.use_split_qkv_input and not model.cfg.use_attn_in


def test_split_inputs_exclude_each_other(model):
    model.set_use_attn_in(True)
    with pytest.raises(ValueError, match="exclude each other"):
        model.set_use_split_qkv_input(True)
    model.set_use_attn_in(False)
    model.set_use_split_qkv_input(True)
    with pytest.raises(ValueError, match="exclude each other"):
        model.set_use_attn_in(True)


def test_mambas_pattern_is_refused_unless_each_channel_is_a_head(model, tokens):
    with pytest.raises(
        ValueError, match=r"each of Mamba's channels has a pattern of its own, .* n_heads=16 .* has 1"
    ):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", zero)])
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_pattern", zero)])


def test_mambas_pattern_is_refused_after_the_first_step(tokens):
    model = HookedSSM(zoo.mamba(d_model=8, d_vocab=7, expand=1, n_heads=8, device="cpu", seed=0))
    with model.hooks(fwd_hooks=[("blocks.0.hook_pattern", zero)]):
        _, state = model.step(tokens)
        with pytest.raises(ValueError, match="fires on whole documents, not when continuing from a state"):
            model.step(tokens, state)


def test_pos_slice_cuts_the_position_axis_of_every_hook(model, tokens):
    model.set_use_attn_result(True)
    _, whole = model.run_with_cache(tokens)
    _, cut = model.run_with_cache(tokens, pos_slice=slice(1, 4))
    _, one = model.run_with_cache(tokens, pos_slice=-1)
    assert cut.keys() == whole.keys()
    for name, tensor in whole.items():
        dim = model.hook_dict[name].pos_dim
        assert torch.equal(cut[name], tensor.narrow(dim, 1, 3)), name
        assert torch.equal(one[name], tensor.narrow(dim, 4, 1)), name
