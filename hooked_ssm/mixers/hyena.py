"""Hyena (Poli et al. 2023, arXiv:2302.10866), the operator of order 2. With d = d_model,

[k, q, v] = short_conv(in_proj(u))                      [d] each: the paper's x_1, x_2, v
kv_i  = k_i (.) v_i
y_i   = sum_{j <= i} K_{i-j} (.) kv_j + D (.) kv_i      K a sine MLP of the lag times a window, D the skip
out_i = out_proj(q_i (.) y_i)
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook
from hooked_ssm.layers import Linear
from hooked_ssm.mixers.base import Activations, AttentionFreeMixer
from hooked_ssm.mixers.channel_groups import check_groups, project_by_group, sum_groups
from hooked_ssm.mixers.heads import head_weights
from hooked_ssm.mixers.implicit_filter import SineFilter
from hooked_ssm.mixers.long_conv import LongConv
from hooked_ssm.mixers.short_conv import ShortConv
from hooked_ssm.ops.long_conv import toeplitz


@dataclass(frozen=True, kw_only=True)
class HyenaConfig(MixerConfig):
    """d_conv: width of the short convolution. skip: whether there is a D, initially N(0, 1).

    The filter has n_ctx lags. filter_width, filter_layers: hidden size of its MLP, and number of sine layers,
    whose frequencies are initially `frequency`. d_pos: features of a lag. train_positions: whether those are
    trained. filter_std: of the MLP's initial weights, with biases of 0; None for PyTorch's default, weights
    and biases. The window falls to decay_target after slow_decay n_ctx lags for the first channel,
    fast_decay n_ctx for the last.
    """

    name: ClassVar[str] = "hyena"
    d_conv: int = 3
    skip: bool = True
    filter_width: int = 64
    filter_layers: int = 3
    frequency: float = 1.0
    d_pos: int = 3
    train_positions: bool = True
    filter_std: float | None = None
    slow_decay: float = 1.5
    fast_decay: float = 0.3
    decay_target: float = 1e-2

    def __post_init__(self):
        if self.d_conv < 1:
            raise ValueError(f"Hyena's d_conv must be at least 1, got {self.d_conv}.")

    def build(self, cfg: HookedSSMConfig) -> "Hyena":
        return Hyena(self, cfg)


class HyenaState(NamedTuple):
    """conv: the last d_conv - 1 inputs of the short convolution. kv: all inputs of the long one so far."""

    conv: Float[Tensor, "batch past channel"]
    kv: Float[Tensor, "batch inputs d_model"]


class Hyena(AttentionFreeMixer):
    """Its heads, for tools that want heads, are groups of d_model / n_heads channels."""

    def __init__(self, mixer_cfg: HyenaConfig, cfg: HookedSSMConfig):
        super().__init__(cfg)
        check_groups("Hyena", cfg)
        self.mixer_cfg = mixer_cfg
        shape = "batch pos d_model"
        self.hook_k_pre = Hook(shape, "x_1 before the short convolution", copy=True)
        self.hook_q_pre = Hook(shape, "x_2 before the short convolution", copy=True)
        self.hook_v_pre = Hook(shape, "v before the short convolution", copy=True)
        conv = ShortConv(3 * cfg.d_model, mixer_cfg.d_conv)
        self.hook_conv_in, self.hook_conv_taps = conv.hook_conv_in, conv.hook_conv_taps
        self.hook_conv = conv.hook_conv
        by_head = "batch pos head d_head"
        self.hook_k = Hook(by_head, "x_1, the gate at the input of the long convolution", copy=True)
        self.hook_q = Hook(by_head, "x_2, the gate at the output of the long convolution", copy=True)
        self.hook_v = Hook(by_head, "v, the values", copy=True)
        self.hook_kv = Hook(shape, "x_1 (.) v, the input of the long convolution and its skip")
        long_conv = LongConv()
        self.hook_filter, self.hook_long_conv = long_conv.hook_filter, long_conv.hook_long_conv
        self.hook_y = Hook(shape, "long convolution and skip, before the output gate", copy=True)

        self.in_proj = Linear(cfg.d_model, 3 * cfg.d_model, bias=True, std=cfg.linear_std)
        self.short_conv = conv
        self.long_conv = long_conv
        self.filter = SineFilter(
            cfg.d_model,
            cfg.n_ctx,
            width=mixer_cfg.filter_width,
            n_layers=mixer_cfg.filter_layers,
            d_pos=mixer_cfg.d_pos,
            frequency=mixer_cfg.frequency,
            slow=mixer_cfg.slow_decay,
            fast=mixer_cfg.fast_decay,
            target=mixer_cfg.decay_target,
            train_positions=mixer_cfg.train_positions,
            std=mixer_cfg.filter_std,
        )
        self.D = nn.Parameter(torch.empty(cfg.d_model)) if mixer_cfg.skip else None
        depth = (2 * cfg.n_layers) ** -0.5
        self.out_proj = Linear(cfg.d_model, cfg.d_model, bias=True, std=cfg.linear_std, scale=depth)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.D is not None:
            self.D.normal_()

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return head_weights(self.out_proj, self.cfg.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.out_proj.bias

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: HyenaState | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], HyenaState]:
        return self.mix(self.in_proj(u), state)

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """x_2 reads q_input, x_1 reads k_input, v reads v_input."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        parts = map(project_by_group, (k_input, q_input, v_input), weights, biases)
        return self.mix(torch.cat(list(parts), dim=-1), None)[0]

    def mix(
        self, projected: Float[Tensor, "batch pos channel"], state: HyenaState | None
    ) -> tuple[Float[Tensor, "batch pos d_model"], HyenaState]:
        conv, past = (None, None) if state is None else state
        hooks = self.hook_k_pre, self.hook_q_pre, self.hook_v_pre
        if any(hook.attached for hook in hooks):
            parts = projected.chunk(3, dim=-1)
            projected = torch.cat([hook(part) for hook, part in zip(hooks, parts, strict=True)], dim=-1)
        x, conv = self.short_conv.extend(projected, conv)
        k, q, v = rearrange(x, "batch pos (kqv head d) -> kqv batch pos head d", kqv=3, head=self.cfg.n_heads)
        kv = self.hook_kv((self.hook_k(k) * self.hook_v(v)).flatten(2))
        q = self.hook_q(q)
        length = kv.shape[1] + (0 if past is None else past.shape[1])
        y, past = self.long_conv.extend(kv, self.filter(length), past)
        if self.D is not None:
            y = y + self.D * kv
        z = self.hook_z(q * self.hook_y(y).unflatten(2, q.shape[2:]))
        return self.write(z), HyenaState(conv, past)

    def effective_attention(
        self, activations: Activations, *, by_channel: bool = True
    ) -> Float[Tensor, "batch channel_or_head dest src"]:
        """The causal matrix of every channel that takes hook_v to hook_z:

        M_ij = q_i K_{i-j} k_j + [i = j] D q_i k_i

        `by_channel=False` sums the channels of each head.
        """
        q, k = (activations[name].flatten(2).transpose(1, 2) for name in ("hook_q", "hook_k"))
        T = toeplitz(activations["hook_filter"].transpose(1, 2))
        if self.D is not None:
            T = T + torch.diag_embed(self.D.unsqueeze(1).expand(-1, T.shape[-1]))
        M = q.unsqueeze(-1) * T * k.unsqueeze(-2)
        return M if by_channel else sum_groups(M, self.cfg.n_heads)
