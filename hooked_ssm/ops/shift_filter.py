"""The filter of a shift state space model (H3's first; Fu et al. 2022, arXiv:2212.14052). Per channel,

    s_t = shift(s_{t-1}) + B k_t        shift moves every entry to the next place, and drops the last
    y_t = C . s_t = sum_tau kappa_tau k_{t-tau}          kappa_tau = sum_n B_n C_{n+tau},  tau < d_state

Its memory is d_state positions long and ends there.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def shift_filter(
    B: Float[Tensor, "channel d_state"], C: Float[Tensor, "channel d_state"], length: int
) -> Float[Tensor, "lag channel"]:
    """The first min(length, d_state) entries of kappa: a cross-correlation, by the Fourier transform."""
    size = 2 * B.shape[1]  # twice, so that nothing wraps around
    kappa = torch.fft.irfft(torch.fft.rfft(B, n=size).conj() * torch.fft.rfft(C, n=size), n=size)
    return kappa[:, : min(length, B.shape[1])].T
