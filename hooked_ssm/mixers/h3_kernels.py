"""The parameters of H3's two state space models, and what the convolutions and recurrences take of them.

In half precision they compute in float32.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from hooked_ssm.ops.s4d import bilinear
from hooked_ssm.ops.shift_filter import shift_filter


class ShiftKernel(nn.Module):
    """B, initially the first unit vector, and C, initially U(-1/sqrt(d_state), 1/sqrt(d_state))."""

    def __init__(self, channels: int, d_state: int):
        super().__init__()
        self.B = nn.Parameter(torch.empty(channels, d_state))
        self.C = nn.Parameter(torch.empty(1, channels, d_state))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.B.zero_()[:, 0] = 1.0
        self.C.uniform_(-(self.B.shape[1] ** -0.5), self.B.shape[1] ** -0.5)

    def forward(self, length: int) -> Float[Tensor, "lag channel"]:
        """kappa, without the skip: its first min(length, d_state) entries."""
        return shift_filter(at_least_float32(self.B), at_least_float32(self.C[0]), length)


class DiagonalKernel(nn.Module):
    """The diagonal SSM in continuous time, dh/dt = A h + B x, y = 2 Re C h. B and C are kept as real pairs.

    Initially (S4D-Lin) A_n = -1/2 + i pi n, B = 1, C a complex standard normal, dt log-uniform.
    """

    def __init__(self, n_heads: int, d_state: int, dt_min: float, dt_max: float):
        super().__init__()
        modes = d_state // 2
        self.dt_min, self.dt_max = dt_min, dt_max
        self.inv_A_real = nn.Parameter(torch.empty(n_heads, modes))
        self.A_imag = nn.Parameter(torch.empty(n_heads, modes))
        self.B = nn.Parameter(torch.empty(n_heads, modes, 2))
        self.C = nn.Parameter(torch.empty(1, n_heads, modes, 2))
        self.log_dt = nn.Parameter(torch.empty(n_heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.inv_A_real.fill_(math.log(0.5))
        self.A_imag.copy_(math.pi * torch.arange(self.A_imag.shape[1]).expand_as(self.A_imag))
        self.B.copy_(torch.tensor([1.0, 0.0]).expand_as(self.B))
        self.C.normal_(0.0, 0.5**0.5)
        self.log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max))

    def discrete(
        self,
    ) -> tuple[
        Complex[Tensor, "head mode"],
        Complex[Tensor, "head mode"],
        Complex[Tensor, "head mode"],
    ]:
        """A, B and C in discrete time."""
        A_real, A_imag, B, C, dt = (
            at_least_float32(p)
            for p in (-self.inv_A_real.exp(), self.A_imag, self.B, self.C[0], self.log_dt.exp())
        )
        A, B_factor = bilinear(torch.complex(A_real, A_imag), dt)
        return A, torch.view_as_complex(B) * B_factor, torch.view_as_complex(C)


def at_least_float32(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return x.to(torch.promote_types(x.dtype, torch.float32))
