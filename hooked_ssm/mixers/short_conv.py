"""The short causal depthwise convolution, tap by tap.

    c_t = b + sum_{tau=0}^{k-1} w_tau (.) x_{t-tau}          x before the start of the document is 0

w [channel, 1, k] as in `nn.Conv1d`: the last index is the current token, tau = 0.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.hooks import Hook
from hooked_ssm.ops.depthwise_conv import depthwise_conv


class ShortConv(nn.Module):
    """Depthwise causal convolution of width d_conv, before any activation.

    Initially U(-1/sqrt(d_conv), 1/sqrt(d_conv)), weight and bias, PyTorch's default for a depthwise Conv1d.
    """

    def __init__(self, channels: int, d_conv: int, *, bias: bool = True):
        super().__init__()
        if d_conv < 1:
            raise ValueError(f"a convolution has d_conv of at least 1, got {d_conv}.")
        self.d_conv = d_conv
        self.weight = nn.Parameter(torch.empty(channels, 1, d_conv))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.hook_conv_in = Hook("batch pos channel", "input of the short convolution", copy=True)
        self.hook_conv_taps = Hook(
            "batch pos tap channel", "what the token `tap` places back adds to the convolution's output"
        )
        self.hook_conv = Hook(
            "batch pos channel", "output of the short convolution, before the activation", copy=True
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for p in self.parameters():
            p.uniform_(-(self.d_conv**-0.5), self.d_conv**-0.5)

    def extend(
        self, x: Float[Tensor, "batch pos channel"], past: Float[Tensor, "batch past channel"] | None = None
    ) -> tuple[Float[Tensor, "batch pos channel"], Float[Tensor, "batch past channel"]]:
        """Outputs at the positions of x, and the last d_conv - 1 inputs, which the next call needs."""
        x = self.hook_conv_in(x)
        length = x.shape[1]
        if past is None:
            padded = F.pad(x, (0, 0, self.d_conv - 1, 0))
        else:
            padded = torch.cat([past, x], dim=1)
        y = depthwise_conv(padded, self.weight, self.bias)
        change = self.hook_conv_taps.change_of(taps, padded, self.weight)
        if change is not None:
            y = y + change.sum(2)
        return self.hook_conv(y), padded[:, length:]


def taps(
    padded: Float[Tensor, "batch past_and_pos channel"], weight: Float[Tensor, "channel 1 tap"]
) -> Float[Tensor, "batch pos tap channel"]:
    """What each token adds to the outputs at the d_conv positions from its own on."""
    d_conv = weight.shape[-1]
    length = padded.shape[1] - d_conv + 1
    shifted = [padded[:, d_conv - 1 - tau :][:, :length] for tau in range(d_conv)]
    return torch.stack([x * weight[:, 0, -1 - tau] for tau, x in enumerate(shifted)], dim=2)
