"""BaseConv (Arora et al. 2023, Zoology, arXiv:2312.04927): a convolution, gated by a projection.

    s_i   = conv(u)_i                                       short, d_conv wide, with a bias b
          = sum_{j <= i} K_{i-j} (.) u_j + u_i              long, K an MLP of the lag, with a skip
    out_i = s_i (.) (W u_i + c) + u_i                       with a residual of its own

u is the normalised residual stream: the last term adds a copy of it. There is no output projection.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook
from hooked_ssm.layers import Linear
from hooked_ssm.mixers.base import Activations, AttentionFreeMixer
from hooked_ssm.mixers.channel_groups import check_groups, own_channels, project_by_group, sum_groups
from hooked_ssm.mixers.implicit_filter import ReluFilter
from hooked_ssm.mixers.long_conv import LongConv
from hooked_ssm.mixers.short_conv import ShortConv
from hooked_ssm.ops.long_conv import toeplitz


@dataclass(frozen=True, kw_only=True)
class BaseConvConfig(MixerConfig):
    """d_conv: width of the short convolution; None for the long one, whose filter has n_ctx lags.

    The rest is about the long one. filter_width: hidden size of its filter's MLP. d_pos: features of a lag.
    train_positions: whether those features are trained. filter_std: of the MLP's initial weights, with biases
    of 0; None for PyTorch's default, weights and biases.
    """

    name: ClassVar[str] = "base_conv"
    d_conv: int | None = 3
    filter_width: int = 16
    d_pos: int = 3
    train_positions: bool = False
    filter_std: float | None = None

    def __post_init__(self):
        if self.d_conv is not None and self.d_conv < 1:
            raise ValueError(
                f"BaseConv's d_conv must be at least 1, or None for the long convolution, got {self.d_conv}."
            )

    def build(self, cfg: HookedSSMConfig) -> "BaseConv":
        return BaseConv(self, cfg)


class BaseConv(AttentionFreeMixer):
    """Its heads, for tools that want heads, are groups of d_model / n_heads channels. Its state is the
    convolution's inputs: the last d_conv - 1, or all so far of the long one."""

    def __init__(self, mixer_cfg: BaseConvConfig, cfg: HookedSSMConfig):
        super().__init__(cfg)
        check_groups("BaseConv", cfg)
        self.mixer_cfg = mixer_cfg
        self.matrix_hooks = ("hook_x" if mixer_cfg.d_conv is None else "hook_conv_in"), "hook_z"
        for letter, reads in (("q", "the gate"), ("k", "the inner residual"), ("v", "the convolution")):
            meaning = f"residual read by {reads}, one copy a head"
            setattr(self, f"hook_{letter}_input", Hook("batch pos head d_model", meaning, copy=True))
        self.hook_gate = Hook("batch pos d_model", "W u + c, which the convolution is multiplied by")
        if mixer_cfg.d_conv is None:
            self.hook_x = Hook("batch pos d_model", "input of the long convolution and its skip", copy=True)
            long_conv = LongConv()
            self.hook_filter, self.hook_long_conv = long_conv.hook_filter, long_conv.hook_long_conv
            self.long_conv, self.short_conv = long_conv, None
            self.filter = ReluFilter(
                cfg.d_model,
                cfg.n_ctx,
                width=mixer_cfg.filter_width,
                d_pos=mixer_cfg.d_pos,
                train_positions=mixer_cfg.train_positions,
                std=mixer_cfg.filter_std,
            )
        else:
            conv = ShortConv(cfg.d_model, mixer_cfg.d_conv)
            self.hook_conv_in, self.hook_conv_taps = conv.hook_conv_in, conv.hook_conv_taps
            self.hook_conv = conv.hook_conv
            self.short_conv = conv
        self.hook_y = Hook("batch pos d_model", "s: the convolution, before the gate", copy=True)
        self.hook_z = Hook("batch pos head d_head", "the output by head, with the inner residual")
        self.projection = Linear(cfg.d_model, cfg.d_model, bias=True, std=cfg.linear_std)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """The identity."""
        weight = self.projection.weight
        identity = torch.eye(self.cfg.d_model, dtype=weight.dtype, device=weight.device)
        return rearrange(identity, "(head d) d_model -> head d d_model", head=self.cfg.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.projection.weight.new_zeros(self.cfg.d_model)

    def write(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        if self.cfg.use_attn_result:
            return super().write(z)
        return (z.clone() if self.hook_z.attached else z).flatten(2)  # who looks at z may write to it

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: Float[Tensor, "batch past d_model"] | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch inputs d_model"]]:
        return self.mix(self.projection(u), u, u, state)

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """The gate reads q_input, the inner residual k_input, the convolution v_input."""
        gate = project_by_group(q_input, self.projection.weight, self.projection.bias)
        return self.mix(gate, own_channels(k_input), own_channels(v_input), None)[0]

    def mix(
        self, gate: Tensor, residual: Tensor, x: Tensor, state: Tensor | None
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch inputs d_model"]]:
        gate = self.hook_gate(gate)
        s, state = self.convolve(x, state)
        z = self.hook_y(s) * gate + residual
        z = rearrange(z, "batch pos (head d) -> batch pos head d", head=self.cfg.n_heads)
        return self.write(self.hook_z(z)), state

    def convolve(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """s, and the convolution's inputs that the next call needs."""
        if self.short_conv is not None:
            return self.short_conv.extend(x, past)
        x = self.hook_x(x)
        length = x.shape[1] + (0 if past is None else past.shape[1])
        y, past = self.long_conv.extend(x, self.filter(length), past)
        return y + x, past

    def effective_attention(
        self, activations: Activations, *, by_channel: bool = True
    ) -> Float[Tensor, "batch channel_or_head dest src"]:
        """The causal matrix of every channel, from the mixer's input u to hook_z, with p = hook_gate:

        M_ij = p_i K_{i-j} + [i = j] (p_i + 1)           the long convolution
        M_ij = p_i w_{i-j} + [i = j]                     the short one: M u is hook_z less p b

        u is hook_conv_in or hook_x, where those were not edited. `by_channel=False` sums the channels of
        each head.
        """
        gate = rearrange(activations["hook_gate"], "batch dest channel -> batch channel dest 1")
        length = gate.shape[2]
        if self.short_conv is None:
            T = toeplitz(activations["hook_filter"].transpose(1, 2))
            skip = 1
        else:
            taps = self.short_conv.weight[:, 0].flip(1)
            T = toeplitz(F.pad(taps, (0, length - taps.shape[1])))
            skip = 0
        identity = torch.eye(length, dtype=gate.dtype, device=gate.device)
        M = gate * (T + skip * identity) + identity
        return M if by_channel else sum_groups(M, self.cfg.n_heads)
