"""The long causal convolution of a mixer, with its filter and its output as hooks.

    y_i = sum_{j <= i} K_{i-j} (.) x_j

It has no exact state of constant size: to go on, it needs all the inputs so far.
"""

from functools import partial

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.hooks import Hook
from hooked_ssm.ops import long_conv


class LongConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.hook_filter = Hook(
            "batch lag d_model",
            "filter of the long convolution: what reaches `lag` places on, one copy a document",
            copy=True,
        )
        self.hook_long_conv = Hook("batch pos d_model", "output of the long convolution, before any skip")

    def extend(
        self,
        x: Float[Tensor, "batch pos d_model"],
        filter: Float[Tensor, "lag d_model"],
        past: Float[Tensor, "batch past d_model"] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch inputs d_model"]]:
        """Outputs at the positions of x, and all inputs with the given ones, which the next call needs."""
        copies = partial(repeat, pattern="lag d_model -> batch lag d_model", batch=len(x))
        if self.hook_filter.put_off(copies, filter):
            y = long_conv(x, filter, past)
        else:
            # The edit is a second convolution, exactly 0 if there was none, so that looking changes no bit.
            # Gradients reach the filter through the hook alone.
            edited, fixed = self.hook_filter(copies(filter)), filter.detach()
            y = long_conv(x, fixed, past) + long_conv(x, edited - fixed, past)
        # Not x itself: who has seen it at a hook may write to it.
        inputs = x.clone() if past is None else torch.cat([past, x], dim=1)
        return self.hook_long_conv(y), inputs
