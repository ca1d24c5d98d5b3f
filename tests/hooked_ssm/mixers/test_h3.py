"""What only H3 has: two filters, complex states, heads whose channels share a matrix, its presets."""

import pytest
import torch
from torch import Tensor

from hooked_ssm import HookedSSM, HookedSSMConfig, zoo
from hooked_ssm.mixers import H3Config
from hooked_ssm.ops import StateEdit

from .case import close, random_input, random_tokens
from .naive_h3 import CASES, h3

STATE = "blocks.0.mixer.hook_ssm_state"
PAIRS = next(case for case in CASES if case.name == "h3-pairs")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_taps_sum_to_the_convolution_skip_included(case):
    model = case.model(n_layers=1)
    _, cache = model.run_with_cache(random_tokens())
    taps, kappa, k = cache["conv_taps", 0], cache["conv_filter", 0], cache["conv_in", 0]
    assert close(taps.sum(2), cache["conv", 0], 1e-12)
    assert taps.shape[2] == min(9, model.blocks[0].mixer.d_state)
    for tau in range(taps.shape[2]):
        assert (taps[:, :tau, tau] == 0).all()
        assert torch.equal(taps[:, tau:, tau], kappa[:, None, tau] * k[:, : 9 - tau])
    assert (kappa[:, taps.shape[2] :] == 0).all()


@pytest.mark.parametrize("with_taps", [False, True])
def test_a_filter_can_be_made_longer_than_the_state(with_taps):
    """The convolution reaches where the edited filter does; taps are shown of the d_state first lags only."""
    case = next(case for case in CASES if case.mixer.d_state == 4)
    model, u = case.model(n_layers=1), random_input()

    def lengthen(kappa: Tensor, hook) -> Tensor:
        kappa = kappa.clone()
        kappa[:, 6] = 1.5
        return kappa

    def in_the_loop(name: str, t: int, value: Tensor) -> Tensor:
        return torch.full_like(value, 1.5) if (name, t) == ("hook_conv_filter", 6) else value

    taps = [("blocks.0.mixer.hook_conv_taps", lambda taps, hook: None)] if with_taps else []
    with model.hooks(fwd_hooks=[("blocks.0.mixer.hook_conv_filter", lengthen), *taps]):
        got = model.blocks[0].mixer(u)
    assert close(got, h3(model.blocks[0].mixer, u, in_the_loop)["out"], case.tolerance)


def test_taps_are_those_of_the_edited_filter():
    """So that without them nothing is left of the convolution."""
    model = PAIRS.model(n_layers=1)
    edits = {
        "conv_filter": lambda kappa, hook: 2 * kappa + 1,
        "conv_taps": lambda taps, hook: torch.zeros_like(taps),
    }
    with model.hooks(fwd_hooks=[(f"blocks.0.mixer.hook_{name}", edit) for name, edit in edits.items()]):
        _, cache = model.run_with_cache(random_tokens())
    kappa, k = cache["conv_filter", 0], cache["conv_in", 0]
    assert cache["conv", 0].abs().max() < 1e-13 * kappa.abs().max() * k.abs().max()


@every_case
def test_a_document_needs_no_last_state(case):
    """What `forward` leaves out does not change a bit of the output."""
    mixer, u = case.model(n_layers=1).blocks[0].mixer, random_input()
    out, state = mixer.extend(u)
    assert torch.equal(mixer(u), out)
    heads, width = mixer.cfg.n_heads, mixer.cfg.d_head
    assert state.ssm.shape == (3, heads, width, width, mixer.d_state // 2)
    assert state.conv.shape == (3, min(9, mixer.d_state - 1), heads * width)
    last = h3(mixer, u)["hook_ssm_state"][:, -1]
    assert close(torch.view_as_real(state.ssm), last, case.tolerance)


@every_case
@pytest.mark.parametrize("hook", ["ssm_state", "ssm_write", "ssm_decay"])
@torch.no_grad()
def test_looking_changes_no_bit_of_the_state_that_is_kept(case, hook):
    mixer, u = case.model(torch.float32, n_layers=1).blocks[0].mixer, random_input(dtype=torch.float32)
    wanted = mixer.extend(u)[1]
    getattr(mixer, f"hook_{hook}").add_hook(lambda tensor, hook: tensor.clone())
    got = mixer.extend(u)[1]
    assert torch.equal(got.ssm, wanted.ssm) and torch.equal(got.conv, wanted.conv)


@pytest.mark.parametrize("in_place", [False, True])
def test_setting_one_part_sets_the_number(in_place):
    """The imaginary part is then what came back: the one of before an earlier edit."""
    model, u = PAIRS.model(n_layers=1), random_input().requires_grad_()
    mixer = model.blocks[0].mixer
    raw = h3(mixer, u)["hook_ssm_state"]

    def real_parts_to_zero(states: Tensor, hook) -> Tensor:
        states = states if in_place else states.clone()
        states[:, 2] = 1.0
        states[:, 5, ..., 0] = 0.0
        return states

    def in_the_loop(name: str, t: int, value: Tensor) -> Tensor:
        if name == "hook_ssm_state" and t == 5:
            return torch.stack([torch.zeros_like(raw[:, 5, ..., 0]), raw[:, 5, ..., 1]], dim=-1)
        return torch.ones_like(value) if name == "hook_ssm_state" and t == 2 else value

    with model.hooks(fwd_hooks=[(STATE, real_parts_to_zero)]):
        got = mixer(u)
    wanted = h3(mixer, u, in_the_loop)["out"]
    assert close(got, wanted, PAIRS.tolerance)
    inputs = [u, *mixer.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (got, wanted))):
        assert close(ours, theirs, PAIRS.tolerance)


def test_a_freeze_by_one_part_holds_the_number():
    model, u = PAIRS.model(n_layers=1), random_input()
    mixer = model.blocks[0].mixer
    raw = h3(mixer, u)["hook_ssm_state"]

    def freeze(states: Tensor, hook) -> StateEdit:
        mask = torch.zeros(states.shape[1:], dtype=torch.bool)
        mask[5, ..., 1] = True
        states = states.clone()
        states[:, 2] = 1.0
        return StateEdit(states, mask)

    def in_the_loop(name: str, t: int, value: Tensor) -> Tensor:
        if name == "hook_ssm_state" and t in (2, 5):
            return torch.ones_like(value) if t == 2 else raw[:, 5]
        return value

    with model.hooks(fwd_hooks=[(STATE, freeze)]):
        got = mixer(u)
    assert close(got, h3(mixer, u, in_the_loop)["out"], PAIRS.tolerance)


def test_a_state_hook_that_returns_another_shape_is_refused():
    model = PAIRS.model(n_layers=1)
    with model.hooks(fwd_hooks=[(STATE, lambda states, hook: states[..., 0])]):
        with pytest.raises(ValueError, match=r"hook on the states must return shape \(3, 9, 4, 2, 2, 6, 2\)"):
            model(random_tokens())


def test_the_matrix_of_edited_filters_takes_values_to_the_read():
    """One edit a document: the cached filters have it, and so has the matrix."""
    model = PAIRS.model(n_layers=1)
    with model.hooks(fwd_hooks=[("blocks.0.mixer.hook_filter", lambda K, hook: K * torch.rand_like(K))]):
        _, cache = model.run_with_cache(random_tokens())
    matrix = cache.compute_ssm_effective_attention(0)
    assert close(matrix, cache["pattern", 0], PAIRS.tolerance)
    assert close(torch.einsum("bhij,bjhd->bihd", matrix, cache["v", 0]), cache["z", 0], PAIRS.tolerance)


def test_the_pattern_is_of_whole_documents():
    model, tokens = PAIRS.model(n_layers=1), random_tokens()
    _, state = model.step(tokens[:, :4])
    with model.hooks(fwd_hooks=[("blocks.0.mixer.hook_pattern", lambda pattern, hook: None)]):
        model.step(tokens[:, :4])
        with pytest.raises(ValueError, match="hook_pattern of H3 fires on whole documents"):
            model.step(tokens[:, 4:], state)


@pytest.mark.parametrize("length", [63, 64, 65, 130])
@pytest.mark.parametrize("d_state", [4, 100])
def test_long_documents_are_their_pieces(length, d_state):
    """Where convolutions go through the Fourier transform, and the last state through several blocks."""
    cfg = zoo.h3(d_model=8, d_vocab=13, d_state=d_state, n_heads=4, dtype=torch.float64, seed=0)
    model, tokens = HookedSSM(cfg), random_tokens(2, length)
    wanted, state, got = model(tokens), None, []
    for piece in tokens.split([1, length // 2, 1, length - 2 - length // 2], dim=1):
        logits, state = model.step(piece, state)
        got.append(logits)
    assert close(torch.cat(got, dim=1), wanted, 1e-11)


def test_the_order_of_the_output_is_a_permutation_of_its_weights():
    outputs = {}
    for order in ("head d_head", "d_head head"):
        cfg = zoo.h3(d_model=8, d_vocab=13, n_heads=4, d_state=4, seed=0, output_order=order)
        model = HookedSSM(cfg)
        for block in model.blocks:
            mixer = block.mixer
            assert mixer.W_O.shape == (4, 2, 8)
            if order == "d_head head":  # give it the weights of the other order
                weight = mixer.output_linear.weight.detach().clone()
                for head in range(4):
                    for channel in range(2):
                        mixer.output_linear.weight.data[:, channel * 4 + head] = weight[:, head * 2 + channel]
        outputs[order] = model(random_tokens())
    assert close(*outputs.values(), 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state must be even .* at least 2, got 0"),
        ({"d_state": 5}, "d_state must be even .* at least 2, got 5"),
        ({"dt_min": 0.0}, "dt_min must be positive and at most dt_max, got 0.0 and 0.1"),
        ({"dt_min": 0.2}, "dt_min must be positive and at most dt_max, got 0.2 and 0.1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        H3Config(**options)


def test_an_unknown_output_order_is_refused():
    with pytest.raises((ValueError, TypeError), match="output_order"):
        H3Config(output_order="heads first")  # type: ignore[arg-type]


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="zoo.h3's d_model must be a multiple of head_dim, got 10 and 3"):
        zoo.h3(d_model=10, d_vocab=5, head_dim=3)
    with pytest.raises(ValueError, match="multiple of head_dim, got 9 and 2"):
        zoo.paper.h3(d_model=9, d_vocab=5)
    with pytest.raises(ValueError, match="multiple of head_dim, got 8 and 0"):
        zoo.h3(d_model=8, d_vocab=5, head_dim=0)
    with pytest.raises(ValueError, match="multiple of n_heads .* got d_model=8, n_heads=3"):
        HookedSSMConfig(d_model=8, n_layers=1, d_vocab=5, n_heads=3, mixers=H3Config())


def test_presets_are_the_published_and_the_papers_h3():
    published, paper = zoo.h3(d_model=16, d_vocab=9), zoo.paper.h3(d_model=16, d_vocab=9)
    assert published.mixers == [H3Config(d_state=64, output_order="head d_head")] * 2
    assert (published.n_heads, published.d_head) == (16, 1)
    assert paper.mixers == [H3Config(d_state=1024, output_order="d_head head")] * 2
    assert (paper.n_heads, paper.d_head) == (8, 2)
    for cfg in (published, paper):
        assert (cfg.d_mlp, cfg.normalization_type, cfg.positional_embedding_type) == (64, "LN", "none")
    assert zoo.h3(d_model=16, d_vocab=9, head_dim=4).n_heads == 4
    given = zoo.paper.h3(d_model=16, d_vocab=9, n_heads=2, d_state=6)
    assert (given.n_heads, given.d_head, given.mixers[0].d_state) == (2, 8, 6)
