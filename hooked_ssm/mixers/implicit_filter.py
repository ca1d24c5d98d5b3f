"""Filters of long convolutions that are a small MLP of the lag: as long as one likes, in few weights.

    K_t = MLP(z_t)            z_t features of lag t, one filter a channel

    BaseConv (Arora et al. 2023)     MLP: one hidden layer of ReLUs
    Hyena (Poli et al. 2023)         MLP: layers of sin(freq (.) x); around it a window exp(-rate t)

The features are z_t = [t / (n - 1), cos(f_b w_t), ..., -sin(f_b w_t), ...] with w_t = 2 pi t / n, n = n_ctx,
and (d_pos - 1) / 2 frequencies f_b from 1e-4 on. With the usual d_pos = 3 there is one, 1e-4: then z_t is
[t / (n - 1), 1, 0] but for a thousandth, and what a filter does not learn through it is a matter of z itself,
where that is trained.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.layers import Linear


class LagFeatures(nn.Module):
    """z [n_ctx, d_pos]: a parameter if it is trained, else fixed."""

    z: Tensor

    def __init__(self, n_ctx: int, d_pos: int, *, trained: bool):
        super().__init__()
        if d_pos < 3 or d_pos % 2 == 0:
            raise ValueError(
                "features of a lag are its time and some cosines and as many sines: d_pos must be odd and at "
                f"least 3, got {d_pos}."
            )
        if trained:
            self.z = nn.Parameter(torch.empty(n_ctx, d_pos))
        else:
            self.register_buffer("z", torch.empty(n_ctx, d_pos), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        n_ctx, d_pos = self.z.shape
        bands = (d_pos - 1) // 2
        time = torch.linspace(0, 1, n_ctx, dtype=torch.float64).unsqueeze(1)
        w = 2 * math.pi * torch.arange(n_ctx, dtype=torch.float64).unsqueeze(1) / n_ctx
        angle = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64) * w
        self.z.copy_(torch.cat([time, angle.cos(), -angle.sin()], dim=1))

    def forward(self, length: int) -> Float[Tensor, "lag d_pos"]:
        if length > len(self.z):
            raise ValueError(
                f"the model's long filters have n_ctx={len(self.z)} lags, got a document of {length}."
            )
        return self.z[:length]


class ReluFilter(nn.Module):
    """K_t = W_out relu(W_in z_t + b_in) + b_out.

    std: of the initial weights, with biases of 0; None for PyTorch's own linear maps, weights and biases.
    """

    def __init__(
        self, channels: int, n_ctx: int, *, width: int, d_pos: int, train_positions: bool, std: float | None
    ):
        super().__init__()
        check_positive(filter_width=width)
        self.positions = LagFeatures(n_ctx, d_pos, trained=train_positions)
        self.hidden = linear(d_pos, width, std)
        self.out = linear(width, channels, std)

    def forward(self, length: int) -> Float[Tensor, "lag channel"]:
        return self.out(self.hidden(self.positions(length)).relu())


class SineFilter(nn.Module):
    """K_t = exp(-rate t / (n - 1)) (.) W_out x, with x from z_t by n_layers of x <- sin(freq (.) (W x + b)).

    All layers share freq, initially `frequency`. The rates are fixed and evenly spaced over the channels: the
    window falls to `target` after `slow` documents of length n_ctx for the first, `fast` for the last.
    std: as for `ReluFilter`.
    """

    rate: Tensor
    time: Tensor

    def __init__(
        self,
        channels: int,
        n_ctx: int,
        *,
        width: int,
        n_layers: int,
        d_pos: int,
        frequency: float,
        slow: float,
        fast: float,
        target: float,
        train_positions: bool,
        std: float | None,
    ):
        super().__init__()
        check_positive(filter_width=width, filter_layers=n_layers, slow_decay=slow, fast_decay=fast)
        if not 0 < target < 1:
            raise ValueError(f"decay_target must lie between 0 and 1, got {target}.")
        self.frequency = frequency
        self.positions = LagFeatures(n_ctx, d_pos, trained=train_positions)
        self.layers = nn.ModuleList(linear(d_pos if i == 0 else width, width, std) for i in range(n_layers))
        self.out = linear(width, channels, std, bias=False)
        self.freq = nn.Parameter(torch.empty(width))
        rate = torch.linspace(-math.log(target) / slow, -math.log(target) / fast, channels)
        self.register_buffer("rate", rate, persistent=False)
        self.register_buffer("time", torch.linspace(0, 1, n_ctx), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.freq.fill_(self.frequency)

    def forward(self, length: int) -> Float[Tensor, "lag channel"]:
        x = self.positions(length)
        for layer in self.layers:
            x = (self.freq * layer(x)).sin()
        return self.out(x) * self.window(length)

    def window(self, length: int) -> Float[Tensor, "lag channel"]:
        return (-self.rate * self.time[:length].unsqueeze(1)).exp()


def linear(d_in: int, d_out: int, std: float | None, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(d_in, d_out, bias=bias) if std is None else Linear(d_in, d_out, bias=bias, std=std)


def check_positive(**options: int | float) -> None:
    for name, value in options.items():
        if value <= 0:
            raise ValueError(f"a filter's {name} must be greater than 0, got {value}.")
