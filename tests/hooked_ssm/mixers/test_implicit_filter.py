"""The filters of BaseConv and Hyena: their features and windows, their limits, and documents of many lags."""

import math

import pytest
import torch

from hooked_ssm import HookedSSM, HookedSSMConfig, zoo
from hooked_ssm.mixers import BaseConvConfig, HyenaConfig
from hooked_ssm.mixers.implicit_filter import LagFeatures, SineFilter

LONG = {
    "base_conv": BaseConvConfig(d_conv=None),
    "hyena": HyenaConfig(filter_width=8),
}
every_long = pytest.mark.parametrize("mixer", LONG.values(), ids=LONG)


def model_of(mixer, n_ctx: int = 150, **options) -> HookedSSM:
    cfg = HookedSSMConfig(
        d_model=8, n_layers=1, d_vocab=11, n_ctx=n_ctx, mixers=mixer, seed=0, dtype=torch.float64, **options
    )
    return HookedSSM(cfg)


def tokens_of(length: int) -> torch.Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("n_ctx", "d_pos"), [(1, 3), (7, 3), (1024, 3), (20, 7)])
def test_features_are_time_cosines_and_sines(n_ctx, d_pos, trained):
    """In float32: a few units in the seventh digit, of angles up to 2 pi times the frequency."""
    features = LagFeatures(n_ctx, d_pos, trained=trained)
    bands = (d_pos - 1) // 2
    frequencies = [1e-4 + b * (bands - 1 - 1e-4) / max(1, bands - 1) for b in range(bands)]
    for t in range(n_ctx):
        angles = [f * 2 * math.pi * t / n_ctx for f in frequencies]
        wanted = [t / max(1, n_ctx - 1), *map(math.cos, angles), *(-math.sin(a) for a in angles)]
        assert features(n_ctx)[t].tolist() == pytest.approx(wanted, abs=1e-6)
    assert bool(list(features.parameters())) == trained


def test_hyenas_window_falls_to_its_target():
    """At the slow and the fast end of the channels, 1 % after 1.5 and 0.3 documents of length n_ctx."""
    filter = model_of(HyenaConfig(), n_ctx=1001).blocks[0].mixer.filter
    assert isinstance(filter, SineFilter)
    window = filter.window(1001)
    assert (window[0] == 1).all()
    assert window[1000, 0] ** 1.5 == pytest.approx(0.01, rel=1e-5)
    assert window[300, -1] == pytest.approx(0.01, rel=1e-5)
    assert (window.diff(dim=1) <= 0).all()


@every_long
def test_a_document_longer_than_the_filter_is_refused(mixer):
    model = model_of(mixer, n_ctx=20)
    assert model(tokens_of(20)).isfinite().all()
    message = "long filters have n_ctx=20 lags, got a document of 21"
    with pytest.raises(ValueError, match=message):
        model(tokens_of(21))
    _, state = model.step(tokens_of(18))
    with pytest.raises(ValueError, match=message):
        model.step(tokens_of(3), state)


@every_long
def test_long_documents_step_as_they_run(mixer):
    """Past the length where the convolution goes through the Fourier transform."""
    model, tokens = model_of(mixer), tokens_of(150)
    wanted, state, got = model(tokens), None, []
    for piece in tokens.split([70, 1, 74, 5], dim=1):
        logits, state = model.step(piece, state)
        got.append(logits)
    assert (torch.cat(got, dim=1) - wanted).abs().max() < 1e-11 * wanted.abs().max()


@every_long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_looking_at_a_long_document_changes_no_bit(mixer, dtype):
    model, tokens = model_of(mixer).to(dtype), tokens_of(100)
    wanted, cache = model(tokens), model.run_with_cache(tokens)
    assert torch.equal(cache[0], wanted)
    assert cache[1]["blocks.0.mixer.hook_filter"].shape == (2, 100, 8)


@every_long
def test_an_edited_filter_of_a_long_document_is_convolved_with(mixer):
    """Against the edit of the weights that has the same effect: twice the filter's last layer."""
    model, tokens = model_of(mixer), tokens_of(100)
    got = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.mixer.hook_filter", lambda K, hook: 2 * K)])
    plain = model(tokens)
    with torch.no_grad():
        for p in model.blocks[0].mixer.filter.out.parameters():
            p *= 2
    wanted = model(tokens)
    assert (got - wanted).abs().max() < 1e-11 * wanted.abs().max()
    assert (got - plain).abs().max() > 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("mixer", [*LONG.values(), BaseConvConfig()], ids=[*LONG, "base_conv short"])
def test_matrices_of_heads_are_sums_over_their_channels(mixer):
    model = model_of(mixer, n_heads=2)
    _, cache = model.run_with_cache(tokens_of(9))
    by_channel = cache.compute_ssm_effective_attention(layer=0)
    by_head = cache.compute_ssm_effective_attention(layer=0, by_channel=False)
    assert by_channel.shape == (2, 8, 9, 9) and by_head.shape == (2, 2, 9, 9)
    for head in range(2):
        wanted = sum(by_channel[:, channel] for channel in range(4 * head, 4 * head + 4))
        torch.testing.assert_close(by_head[:, head], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("mixer", "option", "message"),
    [
        (BaseConvConfig, {"d_conv": 0}, "d_conv must be at least 1, or None for the long convolution, got 0"),
        (BaseConvConfig, {"d_conv": None, "d_pos": 4}, "d_pos must be odd and at least 3, got 4"),
        (BaseConvConfig, {"d_conv": None, "filter_width": 0}, "filter_width must be greater than 0, got 0"),
        (HyenaConfig, {"d_conv": 0}, "Hyena's d_conv must be at least 1, got 0"),
        (HyenaConfig, {"d_pos": 1}, "d_pos must be odd and at least 3, got 1"),
        (HyenaConfig, {"filter_layers": 0}, "filter_layers must be greater than 0, got 0"),
        (HyenaConfig, {"filter_width": -1}, "filter_width must be greater than 0, got -1"),
        (HyenaConfig, {"slow_decay": 0.0}, "slow_decay must be greater than 0, got 0.0"),
        (HyenaConfig, {"decay_target": 1.0}, "decay_target must lie between 0 and 1, got 1.0"),
    ],
    ids=str,
)
def test_options_that_make_no_mixer_are_refused(mixer, option, message):
    with pytest.raises(ValueError, match=message):
        model_of(mixer(**option))


@pytest.mark.parametrize("mixer", [HyenaConfig(), BaseConvConfig()], ids=["hyena", "base_conv"])
def test_heads_must_divide_the_channels(mixer):
    with pytest.raises(ValueError, match="d_model must be a multiple of n_heads, got 8 and 3"):
        model_of(mixer, n_heads=3, d_head=2)


def test_an_unused_skip_is_no_weight():
    assert not [
        name
        for name, _ in HookedSSM(zoo.paper.hyena(d_model=8, d_vocab=5)).named_parameters()
        if name.endswith("mixer.D")
    ]
    assert [
        name
        for name, _ in HookedSSM(zoo.hyena(d_model=8, d_vocab=5)).named_parameters()
        if name.endswith("mixer.D")
    ]
