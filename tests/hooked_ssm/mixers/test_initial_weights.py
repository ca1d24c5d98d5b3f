"""The distributions that each mixer's weights start from, in models of the paper's shape."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_ssm import HookedSSM, zoo

D_MODEL, N_LAYERS = 64, 2


def mean_and_std(x: Tensor, std: float) -> None:
    """Mean 0 and this standard deviation, to four standard errors (of a normal; a uniform's are smaller)."""
    assert abs(x.mean()) < 4 * std / x.numel() ** 0.5
    assert abs(x.std() / std - 1) < 4 / (2 * x.numel()) ** 0.5


def uniform(x: Tensor, bound: float) -> None:
    mean_and_std(x, bound / 3**0.5)
    assert (1 - 8 / x.numel()) * bound < x.abs().max() <= bound  # fails by chance once in e^8


@pytest.mark.parametrize("bias", [False, True])
def test_attention(bias):
    torch.manual_seed(0)
    for block in HookedSSM(zoo.attention(d_model=D_MODEL, d_vocab=5, n_layers=N_LAYERS, bias=bias)).blocks:
        mixer = block.mixer
        for W in (mixer.W_Q, mixer.W_K, mixer.W_V):
            mean_and_std(W, 0.02)
        mean_and_std(mixer.W_O, 0.02 / (2 * N_LAYERS) ** 0.5)
        assert (mixer.b_O == 0).all()
        for b in (mixer.b_Q, mixer.b_K, mixer.b_V):
            assert (b == 0).all() if bias else b is None


@pytest.mark.parametrize("d_conv", [0, 1, 2, 3, 4])
def test_mamba(d_conv):
    torch.manual_seed(0)
    model = HookedSSM(zoo.mamba(d_model=D_MODEL, d_vocab=5, n_layers=N_LAYERS, d_conv=d_conv))
    e, n, rank = 2 * D_MODEL, 16, D_MODEL // 16
    for block in model.blocks:
        mixer = block.mixer
        uniform(mixer.in_proj.weight, D_MODEL**-0.5)
        uniform(mixer.x_proj.weight, e**-0.5)
        uniform(mixer.dt_proj.weight, rank**-0.5)
        uniform(mixer.out_proj.weight, e**-0.5 / N_LAYERS**0.5)
        if d_conv:
            assert mixer.conv1d.weight.shape == (e, 1, d_conv)
            uniform(torch.cat([mixer.conv1d.weight.flatten(), mixer.conv1d.bias]), d_conv**-0.5)
        else:
            assert mixer.conv1d is None
        wanted = torch.arange(1, n + 1, dtype=torch.float32).log().expand(e, n)
        torch.testing.assert_close(mixer.A_log.data, wanted, rtol=1e-7, atol=0)
        assert (mixer.D == 1).all()
        assert mixer.in_proj.bias is mixer.x_proj.bias is mixer.out_proj.bias is None
        # softplus(bias) is log-uniform in 0.001..0.1.
        log_dt = F.softplus(mixer.dt_proj.bias.double()).log()
        middle, half = math.log(0.01), math.log(10)
        uniform(log_dt - middle, half * (1 + 1e-5))


def test_mambas_step_sizes_do_not_start_below_their_floor():
    torch.manual_seed(0)
    cfg = zoo.mamba(d_model=D_MODEL, d_vocab=5, n_layers=1)
    mixer = cfg.mixers[0].__class__(dt_min=1e-6, dt_max=1e-3, dt_floor=1e-4)
    cfg.mixers = [mixer]
    dt = F.softplus(HookedSSM(cfg).blocks[0].mixer.dt_proj.bias.double())
    assert abs(dt.min() / 1e-4 - 1) < 1e-5 and dt.max() <= 1.001e-3
    assert 0.5 < (dt < 1.001e-4).double().mean() < 0.8  # log-uniform below the floor with probability 2/3
