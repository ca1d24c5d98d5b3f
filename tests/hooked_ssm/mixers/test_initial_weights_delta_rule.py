"""The distributions that the weights of DeltaNet, gated or not, start from, in models of the paper's size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.mixers import DeltaNet, GatedDeltaNet, GatedDeltaNetConfig

from .test_initial_weights import mean_and_std, uniform

D_MODEL, N_LAYERS = 64, 2


def mixers_of(preset, n_layers: int = N_LAYERS, **options) -> list[DeltaNet | GatedDeltaNet]:
    torch.manual_seed(0)
    model = HookedSSM(preset(d_model=D_MODEL, d_vocab=5, n_layers=n_layers, **options))
    return [block.mixer for block in model.blocks]


def weights_of(mixer: DeltaNet | GatedDeltaNet, shapes: dict[str, tuple[int, ...]], d_head: int) -> None:
    """All but A_log and dt_bias: norm, convolution, linear maps. The output's is not scaled by depth."""
    parameters = dict(mixer.named_parameters())
    conv = parameters.pop("conv1d.weight", None)
    assert (parameters.pop("norm.w") == torch.ones(d_head)).all()
    assert {name: tuple(p.shape) for name, p in parameters.items()} == shapes
    for name, p in parameters.items():
        if name.endswith("_proj.weight"):
            mean_and_std(p, 0.02)
    width = mixer.mixer_cfg.d_conv
    if width:
        channels = sum(shapes[f"{letter}_proj.weight"][0] for letter in "qkv")
        assert conv is not None and conv.shape == (channels, 1, width)
        uniform(conv, width**-0.5)
    else:
        assert conv is None and mixer.conv1d is None


@pytest.mark.parametrize("d_conv", [0, 1, 2, 4])
@pytest.mark.parametrize(
    ("preset", "heads"), [(zoo.delta_net, 4), (zoo.paper.delta_net, 2)], ids=["published", "paper"]
)
def test_delta_net(preset, heads, d_conv):
    square = (D_MODEL, D_MODEL)
    shapes = {f"{letter}_proj.weight": square for letter in "qkvo"} | {"b_proj.weight": (heads, D_MODEL)}
    for mixer in mixers_of(preset, d_conv=d_conv):
        weights_of(mixer, shapes, D_MODEL // heads)
    gated = shapes | {"g_proj.weight": square}
    for mixer in mixers_of(preset, d_conv=d_conv, use_gate=True):
        weights_of(mixer, gated, D_MODEL // heads)


@pytest.mark.parametrize("d_conv", [0, 1, 2, 4])
def test_gated_delta_net(d_conv):
    """It has no preset of the paper's own."""
    keys, values, heads = D_MODEL, 2 * D_MODEL, 4
    shapes = {
        "q_proj.weight": (keys, D_MODEL),
        "k_proj.weight": (keys, D_MODEL),
        "v_proj.weight": (values, D_MODEL),
        "g_proj.weight": (values, D_MODEL),
        "o_proj.weight": (D_MODEL, values),
        "a_proj.weight": (heads, D_MODEL),
        "b_proj.weight": (heads, D_MODEL),
        "A_log": (heads,),
        "dt_bias": (heads,),
    }
    for mixer in mixers_of(zoo.gated_delta_net, d_conv=d_conv):
        weights_of(mixer, shapes, values // heads)
    assert not hasattr(zoo.paper, "gated_delta_net")


@pytest.mark.parametrize("preset", [zoo.delta_net, zoo.gated_delta_net], ids=["delta net", "gated"])
def test_linear_maps_have_pytorchs_distribution_where_the_model_leaves_it(preset):
    """As a bare layer has them."""
    for mixer in mixers_of(preset, linear_std=None):
        for name, p in mixer.named_parameters():
            if name.endswith("_proj.weight"):
                uniform(p, p.shape[1] ** -0.5)


def many_heads(**options) -> tuple[Tensor, Tensor]:
    """exp(A_log) and softplus(dt_bias) of 1024 heads: a model has few, and they are drawn one a head."""
    cfg = zoo.gated_delta_net(d_model=512, d_vocab=5, n_layers=2, n_heads=512, d_mlp=None)
    cfg.mixers = [GatedDeltaNetConfig(**options)] * 2
    torch.manual_seed(0)
    mixers = [block.mixer for block in HookedSSM(cfg).blocks]
    A = torch.cat([mixer.A_log.detach() for mixer in mixers]).double().exp()
    return A, F.softplus(torch.cat([mixer.dt_bias.detach() for mixer in mixers]).double())


def test_decays_are_uniform_from_0_and_step_sizes_log_uniform():
    A, dt = many_heads()
    uniform(A - 8, 8 * (1 + 1e-6))
    uniform(dt.log() - math.log(0.01), math.log(10) * (1 + 1e-5))


def test_decays_and_step_sizes_do_not_start_below_their_floors():
    A, dt = many_heads(A_min=4.0, A_max=8.0, dt_min=1e-6, dt_max=1e-3, dt_floor=1e-4)
    for x, floor, ceiling, share in ((A, 4.0, 8.0, 1 / 2), (dt, 1e-4, 1e-3, 2 / 3)):
        assert abs(x.min() / floor - 1) < 1e-5 and x.max() <= ceiling * 1.00001
        at_floor = (x < floor * 1.00001).double().mean()
        assert abs(at_floor - share) < 4 * (share * (1 - share) / x.numel()) ** 0.5


def test_an_A_of_0_would_not_start_without_a_decay():
    """A_max so small that all of [0, A_max] would be at the floor: A_log is the floor's logarithm, finite."""
    A, _ = many_heads(A_min=1e-4, A_max=1e-4)
    torch.testing.assert_close(A, torch.full_like(A, 1e-4), rtol=1e-5, atol=0)
