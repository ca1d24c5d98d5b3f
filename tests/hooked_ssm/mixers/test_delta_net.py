"""What is the delta rules' own: what they refuse, and edits of decays, writes and states."""

import pytest
import torch

from hooked_ssm import HookedSSM, HookedSSMConfig
from hooked_ssm.mixers import DeltaNetConfig, GatedDeltaNetConfig
from hooked_ssm.ops import StateEdit

from .case import close, random_input
from .naive_delta_net import CASES, delta_net

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_config = pytest.mark.parametrize("config", [DeltaNetConfig, GatedDeltaNetConfig])
DECAYING = [case for case in CASES if isinstance(case.mixer, GatedDeltaNetConfig)]
AT = "blocks.0.mixer."


@every_config
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expand_k": 0.0}, "expand_k must be positive, got 0.0"),
        ({"expand_v": -1.0}, "expand_v must be positive, got -1.0"),
        ({"d_conv": -1}, "d_conv must be at least 0, got -1"),
        ({"use_beta": False, "allow_neg_eigval": True}, "allow_neg_eigval=True is about beta"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(config, options, message):
    with pytest.raises(ValueError, match=f"{config.name}'s {message}"):
        config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"A_min": 0.0}, "A_min must be positive and at most A_max, got 0.0 and 16.0"),
        ({"A_max": 1e-5}, "A_min must be positive and at most A_max, got 0.0001 and 1e-05"),
        ({"dt_min": 0.2}, "dt_min must be positive and at most dt_max, got 0.2 and 0.1"),
        ({"dt_floor": 0.0}, "dt_floor must be positive, got 0.0"),
    ],
    ids=str,
)
def test_wrong_initial_decays_are_refused(options, message):
    with pytest.raises(ValueError, match=f"gated_delta_net's {message}"):
        GatedDeltaNetConfig(**options)


@every_config
@pytest.mark.parametrize("option", ["expand_k", "expand_v"])
def test_a_head_of_broken_width_is_refused(config, option):
    cfg = HookedSSMConfig(d_model=6, n_layers=1, d_vocab=5, n_heads=2, mixers=config(**{option: 0.5}))
    with pytest.raises(
        ValueError, match=rf"{option} \* d_head must be a whole number, at least 1, got 0.5 \* 3"
    ):
        HookedSSM(cfg)


@pytest.mark.parametrize("case", DECAYING, ids=lambda case: case.name)
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_a_decay_may_be_set_to_zero_or_below(case, value):
    """0 makes the memory forget all that came before."""
    model, u = case.model(n_layers=1), random_input()
    mixer = model.blocks[0].mixer

    def set_decay(decay, hook):
        decay[:, 4] = value

    def in_the_loop(name, t, decay):
        return torch.full_like(decay, value) if (name, t) == ("hook_ssm_decay", 4) else decay

    with model.hooks(fwd_hooks=[(AT + "hook_ssm_decay", set_decay)]):
        got = mixer(u)
    assert close(got, delta_net(mixer, u, in_the_loop)["out"], case.tolerance)


@every_case
def test_writes_and_states_that_are_set_are_carried_on_together(case):
    """Values, and gradients in the input and in every parameter. Of a write, one head is set; of a state, one
    row; and one write is held at what it was though the memory before it is another."""
    model, u = case.model(n_layers=1), random_input().requires_grad_()
    mixer = model.blocks[0].mixer
    raw = delta_net(mixer, u)["hook_ssm_write"]

    def set_write(write, hook):
        mask = torch.zeros_like(write, dtype=torch.bool)
        mask[:, 6] = True
        write = write.clone()
        write[:, 2, -1] = 0.7
        return StateEdit(write, mask)

    def set_state(state, hook):
        state[:, 4, :, 0] = -0.3

    # The write that is held is what it was after the edit of the other, and before that of the state.
    def writes_alone(name, t, value):
        if (name, t) == ("hook_ssm_write", 2):
            value = value.clone()
            value[:, -1] = 0.7
        return value

    held = delta_net(mixer, u, writes_alone)["hook_ssm_write"]

    def in_the_loop(name, t, value):
        value = writes_alone(name, t, value)
        if (name, t) == ("hook_ssm_write", 6):
            return raw[:, 6]
        if (name, t) == ("hook_ssm_state", 4):
            value = value.clone()
            value[:, :, 0] = -0.3
        return value

    with model.hooks(fwd_hooks=[(AT + "hook_ssm_write", set_write), (AT + "hook_ssm_state", set_state)]):
        got = mixer(u)
    wanted = delta_net(mixer, u, in_the_loop)["out"]
    assert close(got, wanted, case.tolerance)
    assert not close(held[:, 6], raw[:, 6], 1e-3)  # a hook is handed what was computed without its edits
    inputs = [u, *mixer.parameters()]
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), inputs, materialize_grads=True) for out in (got, wanted)
    )
    for grad, naive_grad in zip(ours, theirs, strict=True):
        assert close(grad, naive_grad, case.tolerance)


@every_case
def test_a_state_of_0_forgets_and_a_write_of_0_is_as_if_the_key_had_not_come(case):
    model, u = case.model(torch.float32, n_layers=1), random_input(dtype=torch.float32)
    mixer = model.blocks[0].mixer
    with model.hooks(fwd_hooks=[(AT + "hook_ssm_state", lambda state, hook: torch.zeros_like(state))]):
        assert (mixer(u) == 0).all() and (mixer.extend(u)[1].ssm == 0).all()

    def without(letter):
        def zero(x, hook):
            x[:, 4] = 0.0

        with model.hooks(fwd_hooks=[(AT + f"hook_{letter}", zero)]):
            return mixer.extend(u)[1].ssm

    torch.testing.assert_close(without("ssm_write"), without("k"), rtol=1e-5, atol=1e-6)


@every_case
def test_hook_pattern_does_not_fire_after_a_state(case):
    model, u = case.model(n_layers=1), random_input()
    mixer = model.blocks[0].mixer
    _, state = mixer.extend(u[:, :4])
    with (
        model.hooks(fwd_hooks=[(AT + "hook_pattern", lambda pattern, hook: None)]),
        pytest.raises(ValueError, match=f"hook_pattern of {type(mixer).__name__} fires on whole documents"),
    ):
        mixer.extend(u[:, 4:], state)


@pytest.mark.parametrize("length", [101, 130])
@every_case
def test_long_documents_are_those_of_the_equations(case, length):
    """Of more than one chunk."""
    mixer, u = case.model(n_layers=1).blocks[0].mixer, random_input(2, length)
    assert close(mixer(u), delta_net(mixer, u)["out"], 1e-11)


def test_what_an_option_removes_has_no_hook():
    def hooks(mixer, **options):
        model = HookedSSM(
            HookedSSMConfig(d_model=8, n_layers=1, d_vocab=5, n_heads=2, mixers=mixer(**options))
        )
        return {name.split(".")[-1] for name in model.hook_dict if ".mixer." in name}

    everything = hooks(GatedDeltaNetConfig)
    assert everything - hooks(GatedDeltaNetConfig, use_gate=False) == {"hook_gate"}
    assert everything - hooks(GatedDeltaNetConfig, use_beta=False) == {"hook_beta"}
    convolution = {"hook_conv_in", "hook_conv_taps", "hook_conv"}
    assert everything - hooks(GatedDeltaNetConfig, d_conv=0) == convolution
    assert everything - hooks(DeltaNetConfig, use_gate=True) == {"hook_ssm_decay"}
