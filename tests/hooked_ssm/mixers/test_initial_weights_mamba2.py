"""The distributions that Mamba-2's weights start from: its authors', which are the paper's."""

import math

import pytest
import torch
import torch.nn.functional as F

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.mixers import Mamba2, Mamba2Config

from .test_initial_weights import uniform

D_MODEL, N_LAYERS = 64, 2


def mixers_of(preset=zoo.mamba2, n_layers: int = N_LAYERS, **options) -> list[Mamba2]:
    torch.manual_seed(0)
    model = HookedSSM(preset(d_model=D_MODEL, d_vocab=5, n_layers=n_layers, **options))
    return [block.mixer for block in model.blocks]


@pytest.mark.parametrize("preset", [zoo.mamba2, zoo.paper.mamba2], ids=["published", "paper"])
@pytest.mark.parametrize("d_conv", [0, 1, 2, 4])
def test_linear_maps_and_convolution(preset, d_conv):
    e, n = 2 * D_MODEL, 128
    for mixer in mixers_of(preset, d_conv=d_conv):
        assert mixer.in_proj.weight.shape == (2 * e + 2 * n + 2, D_MODEL)
        uniform(mixer.in_proj.weight, D_MODEL**-0.5)
        uniform(mixer.out_proj.weight, e**-0.5 / N_LAYERS**0.5)
        assert mixer.in_proj.bias is mixer.out_proj.bias is None
        assert (mixer.norm.w == 1).all() and (mixer.D == 1).all()
        if d_conv:
            assert mixer.conv1d.weight.shape == (e + 2 * n, 1, d_conv)
            uniform(torch.cat([mixer.conv1d.weight.flatten(), mixer.conv1d.bias]), d_conv**-0.5)
        else:
            assert mixer.conv1d is None


def test_decays_are_uniform_and_step_sizes_log_uniform():
    """Drawn a head: there are few in a model, so many small ones are looked at together."""
    mixers = mixers_of(n_layers=8, n_heads=128)
    A = torch.cat([mixer.A_log for mixer in mixers]).double().exp()
    uniform(A - 8.5, 7.5 * (1 + 1e-5))
    log_dt = F.softplus(torch.cat([mixer.dt_bias for mixer in mixers]).double()).log()
    uniform(log_dt - math.log(0.01), math.log(10) * (1 + 1e-5))


def test_step_sizes_do_not_start_below_their_floor():
    cfg = zoo.mamba2(d_model=D_MODEL, d_vocab=5, n_layers=1, n_heads=128)
    cfg.mixers = [Mamba2Config(dt_min=1e-6, dt_max=1e-3, dt_floor=1e-4)]
    torch.manual_seed(0)
    dt = F.softplus(HookedSSM(cfg).blocks[0].mixer.dt_bias.double())
    assert abs(dt.min() / 1e-4 - 1) < 1e-5 and dt.max() <= 1.001e-3
    assert 0.5 < (dt < 1.001e-4).double().mean() < 0.8  # log-uniform below the floor with probability 2/3


def test_D_of_every_channel():
    cfg = zoo.mamba2(d_model=D_MODEL, d_vocab=5, n_layers=1)
    cfg.mixers = [Mamba2Config(D_has_hdim=True)]
    mixer = HookedSSM(cfg).blocks[0].mixer
    assert mixer.D.shape == (2 * D_MODEL,) and (mixer.D == 1).all()
