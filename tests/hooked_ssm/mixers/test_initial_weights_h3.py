"""The distributions that H3's weights start from, in models of the paper's shape."""

import math

import pytest
import torch
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


@pytest.mark.parametrize(
    ("preset", "d_state", "heads"), [(zoo.h3, 64, 64), (zoo.paper.h3, 1024, 32)], ids=["published", "paper"]
)
def test_h3(preset, d_state, heads):
    torch.manual_seed(0)
    log_dt, skips = [], []
    for block in HookedSSM(preset(d_model=D_MODEL, d_vocab=5, n_layers=N_LAYERS)).blocks:
        mixer = block.mixer
        for linear in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.output_linear):
            assert linear.weight.shape == (D_MODEL, D_MODEL)
            mean_and_std(linear.weight, 0.02)  # the output's, too: not scaled by depth
            assert (linear.bias == 0).all()

        shift = mixer.ssm_k_kernel
        assert shift.B.shape == (D_MODEL, d_state) and shift.C.shape == (1, D_MODEL, d_state)
        assert (shift.B[:, 0] == 1).all() and (shift.B[:, 1:] == 0).all()
        uniform(shift.C, d_state**-0.5)

        kernel = mixer.kernel
        modes = d_state // 2
        for p in (kernel.inv_A_real, kernel.A_imag):
            assert p.shape == (heads, modes)
        torch.testing.assert_close(-kernel.inv_A_real.exp(), torch.tensor(-0.5).expand(heads, modes))
        torch.testing.assert_close(kernel.A_imag, (math.pi * torch.arange(modes)).expand(heads, modes))
        assert kernel.B.shape == (heads, modes, 2)
        assert (kernel.B[..., 0] == 1).all() and (kernel.B[..., 1] == 0).all()
        assert kernel.C.shape == (1, heads, modes, 2)
        for part in kernel.C.unbind(-1):
            mean_and_std(part, 0.5**0.5)  # E |C|^2 = 1
        assert kernel.log_dt.shape == mixer.D.shape == (heads,) and mixer.ssm_k_D.shape == (D_MODEL,)
        log_dt.append(kernel.log_dt)
        skips += [mixer.D, mixer.ssm_k_D]
    middle, half = math.log(0.01), math.log(10)  # log-uniform in 0.001..0.1
    uniform(torch.cat(log_dt) - middle, half * (1 + 1e-6))
    mean_and_std(torch.cat(skips), 1.0)


def test_the_first_filters_are_what_the_initial_weights_say():
    """kappa is C, plus the skip; K is that of S4D-Lin with the bilinear rule, one mode at a time."""
    torch.manual_seed(0)
    model = HookedSSM(zoo.h3(d_model=4, d_vocab=5, n_layers=1, d_state=6, dtype=torch.float64))
    mixer = model.blocks[0].mixer.requires_grad_(False)
    _, cache = model.run_with_cache(torch.zeros(1, 5, dtype=torch.long))
    kappa = mixer.ssm_k_kernel.C[0].T[:5].clone()
    kappa[0] += mixer.ssm_k_D
    torch.testing.assert_close(cache["conv_filter", 0][0], kappa, rtol=1e-12, atol=1e-14)
    for head in range(4):
        dt = float(mixer.kernel.log_dt[head].exp())
        wanted = [float(mixer.D[head])] + 4 * [0.0]
        for n, (real, imaginary) in enumerate(mixer.kernel.C[0, head].tolist()):
            half = dt * complex(-0.5, math.pi * n) / 2
            for t in range(5):
                kept = ((1 + half) / (1 - half)) ** t
                wanted[t] += 2 * (complex(real, imaginary) * kept * dt / (1 - half)).real
        torch.testing.assert_close(
            cache["filter", 0][0, :, head], torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-7
        )
