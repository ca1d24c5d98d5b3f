"""The mixers of the package keep `hooked_ssm.contract`, and a broken one does not."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from hooked_ssm import HookedSSMConfig, MixerConfig, mixers
from hooked_ssm.contract import check_mixer
from hooked_ssm.hooks import Hook
from hooked_ssm.mixers import GLA, GLAConfig
from hooked_ssm.ops.linear_attention import explicit_states, linear_attention

# Not BaseConv: the bias of its convolution is in what it reads, and no causal matrix puts it there.
KEPT = {
    "attention": (mixers.AttentionConfig(), {"n_heads": 2, "positional_embedding_type": "standard"}),
    "delta rule": (mixers.DeltaNetConfig(), {"n_heads": 2}),
    "gla": (GLAConfig(), {"d_mlp": 12}),
    "mamba": (mixers.MambaConfig(d_state=3), {"n_heads": 2, "normalization_type": "RMS"}),
}


@pytest.mark.parametrize("mixer, options", KEPT.values(), ids=KEPT)
def test_the_contract_holds(mixer, options):
    check_mixer(mixer, **options)


class Extended(GLA):
    """GLA with something done to its output."""

    def attend(self, q_input, k_input, v_input, state):
        out, after = super().attend(q_input, k_input, v_input, state)
        return self.change(out, state), after

    def change(self, out, state):
        return out


class SeesTheFuture(Extended):
    def change(self, out, state):
        return out + 1e-3 * out.flip(1)


class SeesOtherDocuments(Extended):
    def change(self, out, state):
        return out + out.mean(0)


class IsDeaf(Extended):
    def change(self, out, state):
        return 0 * out


class Forgets(GLA):
    def extend(self, u, state=None):
        return super().extend(u)


class WritesToTheState(Extended):
    def change(self, out, state):
        if state is not None:
            state.ssm.add_(1.0)
        return out


class DoesNotReset(Extended):
    def __init__(self, mixer_cfg, cfg):
        super().__init__(mixer_cfg, cfg)
        self.shift = nn.Parameter(torch.zeros(cfg.d_model))

    def change(self, out, state):
        return out + self.shift


class NoGradient(DoesNotReset):
    def reset_parameters(self):
        self.shift.data.zero_()

    def change(self, out, state):
        return out + self.shift.detach()


class HalfAGradient(Extended):
    def change(self, out, state):
        return out + out.detach()


class WithHook(Extended):
    shape = "batch pos d_model"
    meaning = "the output"
    hook_name = "hook_out"

    def __init__(self, mixer_cfg, cfg):
        super().__init__(mixer_cfg, cfg)
        setattr(self, self.hook_name, Hook(self.shape, self.meaning))

    def change(self, out, state):
        return getattr(self, self.hook_name)(out)


class NeverFires(WithHook):
    def change(self, out, state):
        return out


class FiresTwice(WithHook):
    def change(self, out, state):
        return self.hook_out(self.hook_out(out))


class WrongAxes(WithHook):
    shape = "batch pos head d_head"


class ADigit(WithHook):
    hook_name = "hook_x2"


class NoMeaning(WithHook):
    meaning = ""


class LookingChanges(WithHook):
    def change(self, out, state):
        return self.hook_out(out) * (1 + 1e-12 * self.hook_out.attached)


class AWeight(WithHook):
    shape = "batch pos d_model d_inner"

    def change(self, out, state):
        self.hook_out(self.o_proj.weight.expand(*out.shape[:2], -1, -1))
        return out


class Expanded(WithHook):
    shape = "batch pos head d_model"

    def change(self, out, state):
        return self.hook_out(out.mean(1, keepdim=True).expand_as(out).unsqueeze(2)).squeeze(2) * 0 + out


class NothingArrives(WithHook):
    def change(self, out, state):
        self.hook_out(out.clone())
        return out


class OnePlaceOff(WithHook):
    def change(self, out, state):
        return self.hook_out(out.roll(1, dims=1)).roll(-1, dims=1)


class AGradientTooMany(WithHook):
    def change(self, out, state):
        hooked = self.hook_out(out)
        return hooked + (hooked - hooked.detach()) - (out - out.detach())


class SplitDiffers(GLA):
    def split(self, q_input, k_input, v_input):
        return 1.1 * super().split(q_input, k_input, v_input)


class WrongStates(GLA):
    def states(self, activations):
        return 2 * super().states(activations)


class WrongMatrix(GLA):
    def effective_attention(self, activations):
        return super().effective_attention(activations) ** 2


class FutureInTheMatrix(GLA):
    def effective_attention(self, activations):
        return super().effective_attention(activations) + 1e-3


class WrongBias(GLA):
    def write(self, z):
        return super().write(z) + 1


BROKEN = {
    SeesTheFuture: "another token at position 0 moves|another token at position 1 moves outputs before it",
    SeesOtherDocuments: "documents alone have other outputs than in a batch",
    Forgets: r"in pieces \[1, 1, 1, 1, 1, 1, 1, 1, 1\] the output is another",
    WritesToTheState: "going on from a state changes it",
    DoesNotReset: "reset_parameters leaves entries of blocks.0.mixer.shift as they are",
    NoGradient: "blocks.0.mixer.shift gets no gradient",
    HalfAGradient: "the gradient in .* is not that of finite differences",
    NeverFires: "blocks.0.mixer.hook_out fires 0 times",
    FiresTwice: "blocks.0.mixer.hook_out fires 2 times",
    WrongAxes: r"hook_out is declared \['batch', 'pos', 'head', 'd_head'\], and carries \[3, 9, 8\]",
    ADigit: "hook_x2 has a digit in its name",
    NoMeaning: "hook_out does not say what it carries",
    LookingChanges: "looking at .* changes the output",
    AWeight: "hook_out shares its memory with the weight blocks.0.mixer.o_proj.weight",
    Expanded: r"hook_out is expanded, or has gaps",
    NothingArrives: "no gradient arrives at blocks.0.mixer.hook_out",
    OnePlaceOff: "an edit of blocks.0.mixer.hook_out at position 4 moves outputs before it",
    AGradientTooMany: "the gradient at blocks.0.mixer.hook_out is not that of finite differences",
    SplitDiffers: "with use_split_qkv_input and use_attn_result the output is another",
    WrongStates: "the states that `states` computes are not blocks.0.mixer.hook_ssm_state's",
    WrongMatrix: "hook_y is not effective_attention times hook_v",
    FutureInTheMatrix: "effective_attention has entries above the diagonal",
    WrongBias: "the output is not hook_z W_O",
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(MixerConfig, "registry", dict(MixerConfig.registry))


def config_of(mixer: type[GLA]) -> GLAConfig:
    @dataclass(frozen=True, kw_only=True)
    class Config(GLAConfig):
        name: ClassVar[str] = "broken"
        gate_low_rank: int = 3

        def build(self, cfg: HookedSSMConfig) -> GLA:
            return mixer(self, cfg)

    return Config()


@pytest.mark.parametrize("cls", [GLA, WithHook], ids=lambda cls: cls.__name__)
def test_what_is_broken_below_is_whole(registry, cls):
    check_mixer(config_of(cls))


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_mixer_is_found_out(registry, cls):
    with pytest.raises(AssertionError, match=BROKEN[cls]):
        check_mixer(config_of(cls))


def test_a_mixer_that_is_deaf_is_found_out(registry):
    """Its block hands the token on past it: only the logits' dependence is there, and no hook moves them."""
    with pytest.raises(AssertionError, match="moves nothing|no gradient"):
        check_mixer(config_of(IsDeaf))


def test_a_state_edit_that_is_not_carried_on_is_found_out(registry, monkeypatch):
    def read_only(q, k, v, log_decay, initial, *, edit_decay=None, edit_write=None, edit_state=None):
        o, last = linear_attention(q, k, v, log_decay, initial, edit_decay=edit_decay, edit_write=edit_write)
        if edit_state is not None:
            states = explicit_states(k, v, log_decay.exp(), initial)
            edited = edit_state(states.clone())
            o = o + torch.einsum("bphk,bphkv->bphv", q, (states if edited is None else edited) - states)
        return o, last

    monkeypatch.setattr("hooked_ssm.mixers.gla.linear_attention", read_only)
    with pytest.raises(AssertionError, match="set at blocks.0.mixer.hook_ssm_state is not carried on"):
        check_mixer(config_of(GLA))


def test_settings_that_json_changes_are_found_out(registry):
    @dataclass(frozen=True, kw_only=True)
    class Tuple(GLAConfig):
        name: ClassVar[str] = "tuple"
        taps: tuple[int, ...] = (1, 2)

    with pytest.raises(AssertionError, match=r"came back from JSON as .*taps=\[1, 2\]"):
        check_mixer(Tuple())


def test_a_config_that_another_has_replaced_is_found_out(registry):
    first = config_of(GLA)
    config_of(WithHook)
    with pytest.raises(AssertionError, match="'broken' is registered as"):
        check_mixer(first)
