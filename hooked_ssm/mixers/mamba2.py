"""Mamba-2, a state space model with one decay a head (Dao & Gu 2024, arXiv:2405.21060).

With e = expand * d_model channels in heads of width p = e / n_heads, n = d_state, and B and C shared by the
heads of a group,

    gate, xBC, dt_low = in_proj(u)                         [e], [e + 2 groups n], [heads]
    x_t, B_t, C_t     = SiLU(conv(xBC)_t)                  [heads, p], [groups, n], [groups, n]
    dt_t              = softplus(dt_low + dt_bias)         [heads]

    S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T             A = -exp(A_log), one number a head; S [n, p]
    y_t = S_t^T C_t + D x_t

    out_t = out_proj(norm(y_t (.) SiLU(gate_t)))           RMSNorm over the channels of each group

So it is linear attention with queries C, keys B and values dt x, whose state decays.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook, call_hooked
from hooked_ssm.layers import Linear
from hooked_ssm.mixers.base import Activations, AttentionFreeMixer
from hooked_ssm.mixers.group_norm import GroupRMSNorm
from hooked_ssm.mixers.heads import head_weights
from hooked_ssm.mixers.short_conv import ShortConv
from hooked_ssm.ops.decay_products import head_products
from hooked_ssm.ops.linear_attention import explicit_states, linear_attention


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(MixerConfig):
    """d_state: width of B and C. n_groups: how many of each there are; the heads are shared out in order.

    d_conv: width of the short convolution; 0 removes it and keeps the activation after it.
    norm_before_gate: norm(y) (.) SiLU(gate) instead of norm(y (.) SiLU(gate)).
    D_has_hdim: whether D has an entry a channel, and not a head.
    A_min, A_max: -A is initially uniform between them.
    dt_min, dt_max, dt_floor: dt is initially log-uniform in [dt_min, dt_max], at least dt_floor.
    """

    name: ClassVar[str] = "mamba2"
    d_state: int = 128
    d_conv: int = 4
    expand: int = 2
    n_groups: int = 1
    norm_before_gate: bool = False
    D_has_hdim: bool = False
    A_min: float = 1.0
    A_max: float = 16.0
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4

    def __post_init__(self):
        for name, least in (("d_state", 1), ("d_conv", 0), ("expand", 1), ("n_groups", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"Mamba2's {name} must be at least {least}, got {getattr(self, name)}.")
        for low, high in (("A_min", "A_max"), ("dt_min", "dt_max")):
            if not 0 < getattr(self, low) <= getattr(self, high):
                raise ValueError(
                    f"Mamba2's {low} must be positive and at most {high}, "
                    f"got {getattr(self, low)} and {getattr(self, high)}."
                )
        if self.dt_floor <= 0:
            raise ValueError(f"Mamba2's dt_floor must be positive, got {self.dt_floor}.")

    def build(self, cfg: HookedSSMConfig) -> "Mamba2":
        return Mamba2(self, cfg)


class Mamba2State(NamedTuple):
    """conv: the last d_conv - 1 inputs of the convolution. ssm: the recurrent state."""

    conv: Float[Tensor, "batch past channel"] | None
    ssm: Float[Tensor, "batch head d_state d_head"]


class SSMInput(NamedTuple):
    x: Float[Tensor, "batch pos head d_head"]
    dt: Float[Tensor, "batch pos head"]
    B: Float[Tensor, "batch pos group d_state"]
    C: Float[Tensor, "batch pos group d_state"]
    gate: Float[Tensor, "batch pos d_inner"]


class Mamba2(AttentionFreeMixer):
    """Its heads are the model's n_heads, of width expand * d_model / n_heads; q, k and v are C, B and x by
    head."""

    matrix_hooks = "hook_x", "hook_y"
    has_b_O = False

    def __init__(self, mixer_cfg: Mamba2Config, cfg: HookedSSMConfig):
        super().__init__(cfg)
        self.mixer_cfg = mixer_cfg
        heads, groups, n = cfg.n_heads, mixer_cfg.n_groups, mixer_cfg.d_state
        d_inner = self.d_inner = mixer_cfg.expand * cfg.d_model
        if d_inner % heads:
            raise ValueError(
                f"Mamba2's expand * d_model must be a multiple of n_heads, got {d_inner} and {heads}."
            )
        if heads % groups:
            raise ValueError(f"Mamba2's n_heads must be a multiple of n_groups, got {heads} and {groups}.")
        self.d_head = d_inner // heads
        channels = d_inner + 2 * groups * n

        self.hook_gate = Hook("batch pos d_inner", "gate, before its SiLU", copy=True)
        if mixer_cfg.d_conv:
            conv = ShortConv(channels, mixer_cfg.d_conv)
            self.hook_conv_in, self.hook_conv_taps = conv.hook_conv_in, conv.hook_conv_taps
            self.hook_conv = conv.hook_conv
            self.conv1d = conv
        else:
            self.conv1d = None
        self.hook_x = Hook(
            "batch pos d_inner", "x after convolution and SiLU: the input of the SSM", copy=True
        )
        self.hook_ssm_dt = Hook("batch pos head", "step size dt, after softplus")
        self.hook_ssm_B = Hook("batch pos group d_state", "B, where in the state x is written", copy=True)
        self.hook_ssm_C = Hook("batch pos group d_state", "C, where the state is read", copy=True)
        self.hook_ssm_decay = Hook("batch pos head", "exp(dt A), the share of the state that is kept")
        self.hook_ssm_write = Hook("batch pos head d_state d_head", "B (dt x)^T, what is added to the state")
        self.hook_ssm_state = Hook("batch pos head d_state d_head", "state S; an edit is carried forward")
        self.hook_q = Hook("batch pos head d_state", "C, one copy a head", copy=True)
        self.hook_k = Hook("batch pos head d_state", "B, one copy a head", copy=True)
        self.hook_v = Hook("batch pos head d_head", "x by head, as it is written and skipped to y", copy=True)
        self.hook_pattern = Hook(
            "batch head dest src", "the causal matrix that takes hook_v to the state's read"
        )
        self.hook_y = Hook("batch pos d_inner", "S^T C + D x: the read, before norm and gate")
        norm = GroupRMSNorm(groups, d_inner // groups, cfg.eps)
        self.hook_norm_scale, self.hook_normalized = norm.hook_scale, norm.hook_normalized
        self.norm = norm
        self.hook_z = Hook("batch pos head d_head", "the gated, normalised read, before W_O", copy=True)

        self.in_proj = Linear(cfg.d_model, d_inner + channels + heads, bias=False, std=None)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(d_inner if mixer_cfg.D_has_hdim else heads))
        self.out_proj = Linear(d_inner, cfg.d_model, bias=False, std=None, scale=cfg.n_layers**-0.5)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        c = self.mixer_cfg
        self.A_log.uniform_(c.A_min, c.A_max).log_()
        self.D.fill_(1.0)
        log_dt = torch.empty_like(self.dt_bias).uniform_(math.log(c.dt_min), math.log(c.dt_max))
        dt = log_dt.exp().clamp(min=c.dt_floor)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return head_weights(self.out_proj, self.cfg.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.out_proj.weight.new_zeros(self.cfg.d_model)

    @property
    def A(self) -> Float[Tensor, " head"]:
        return -self.A_log.exp()

    def unavailable_hooks(self) -> dict[str, str]:
        reasons = super().unavailable_hooks()
        if self.cfg.use_split_qkv_input or self.cfg.use_attn_in:
            for name, module in self.named_modules():
                if isinstance(module, Hook) and name not in SPLIT_HOOKS | reasons.keys():
                    reasons[name] = "it has no one value while inputs are split by head"
        return reasons

    def ssm_input(
        self, u: Float[Tensor, "batch pos d_model"], past: Float[Tensor, "batch past channel"] | None
    ) -> tuple[SSMInput, Float[Tensor, "batch past channel"] | None]:
        """What the recurrence is made of, and what the convolution needs next time."""
        groups, n = self.mixer_cfg.n_groups, self.mixer_cfg.d_state
        gate, xBC, dt_low = self.in_proj(u).split(
            [self.d_inner, self.d_inner + 2 * groups * n, self.cfg.n_heads], dim=-1
        )
        # In one piece, here and below, so that what follows rounds the same whether or not a hook was handed
        # a copy.
        gate = self.hook_gate(gate.contiguous())
        if self.conv1d is not None:
            xBC, past = self.conv1d.extend(xBC, past)
        x, B, C = F.silu(xBC).split([self.d_inner, groups * n, groups * n], dim=-1)
        return SSMInput(
            x=self.heads(self.hook_x(x)),
            dt=self.hook_ssm_dt(F.softplus(dt_low + self.dt_bias)),
            B=self.hook_ssm_B(B.contiguous().unflatten(-1, (groups, n))),
            C=self.hook_ssm_C(C.contiguous().unflatten(-1, (groups, n))),
            gate=gate,
        ), past

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: Mamba2State | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], Mamba2State]:
        conv, ssm = (None, None) if state is None else state
        (x, dt, B, C, gate), conv = self.ssm_input(u, conv)
        x = self.hook_v(x)
        recur = partial(self.recur, x=x, dt=dt, state=ssm)
        put_off = [hook.put_off(self.by_head, M) for hook, M in ((self.hook_k, B), (self.hook_q, C))]
        if not all(put_off):
            # Products by head round otherwise than those of a group: to what is read without hooks is added
            # what the edits change, exactly 0 if they only looked.
            with torch.no_grad():
                exact, plain = recur(B, C), recur(self.by_head(B), self.by_head(C))
            B, C = self.hook_k(self.by_head(B)), self.hook_q(self.by_head(C))
            seen = recur(B, C, hooked=True)
            read, ssm = (was + (now - before) for was, now, before in zip(exact, seen, plain, strict=True))
        else:
            read, ssm = recur(B, C, hooked=True)
        read = self.through_pattern(read, x, state, self.pattern, dt, self.A, B, C)
        return self.gated_write(read, x, gate), Mamba2State(conv, ssm)

    def recur(
        self,
        B: Float[Tensor, "batch pos group_or_head d_state"],
        C: Float[Tensor, "batch pos group_or_head d_state"],
        x: Float[Tensor, "batch pos head d_head"],
        dt: Float[Tensor, "batch pos head"],
        state: Float[Tensor, "batch head d_state d_head"] | None = None,
        *,
        hooked: bool = False,
    ) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch head d_state d_head"]]:
        """The reads S^T C, and the state after the last position."""
        v, log_decay = self.values_and_decays(x, dt)
        if not hooked:
            return linear_attention(C, B, v, log_decay, state)
        return call_hooked(
            linear_attention,
            *(C, B, v, log_decay, state),
            edit_decay=self.hook_ssm_decay,
            edit_write=self.hook_ssm_write,
            edit_state=self.hook_ssm_state,
        )

    def values_and_decays(
        self, x: Float[Tensor, "batch pos head d_head"], dt: Float[Tensor, "batch pos head"]
    ) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos head"]]:
        """dt x and dt A, in float32 at least: what is rounded off decays adds up over positions."""
        dt = dt.to(torch.promote_types(dt.dtype, torch.float32))
        return dt.unsqueeze(-1) * x, dt * self.A

    def gated_write(
        self,
        read: Float[Tensor, "batch pos head d_head"],
        x: Float[Tensor, "batch pos head d_head"],
        gate: Float[Tensor, "batch pos d_inner"],
    ) -> Float[Tensor, "batch pos d_model"]:
        skip = self.D.unflatten(0, (self.cfg.n_heads, -1)) * x  # D [head, d_head], or [head, 1]
        y = self.hook_y((read.to(x.dtype) + skip).flatten(2))
        if self.mixer_cfg.norm_before_gate:
            z = self.norm.by_group(y) * F.silu(gate)
        else:
            z = self.norm.by_group(y * F.silu(gate))
        return self.write(self.hook_z(self.heads(z)))

    def heads(self, x: Float[Tensor, "batch pos d_inner"]) -> Float[Tensor, "batch pos head d_head"]:
        return rearrange(x, "batch pos (head d) -> batch pos head d", head=self.cfg.n_heads)

    def by_head(self, B: Float[Tensor, "batch pos group d_state"]) -> Float[Tensor, "batch pos head d_state"]:
        """B or C, one copy a head."""
        return B.repeat_interleave(self.cfg.n_heads // B.shape[2], dim=2)

    def pattern(
        self,
        dt: Float[Tensor, "batch pos head"],
        A: Float[Tensor, " head"],
        B: Float[Tensor, "batch pos group_or_head d_state"],
        C: Float[Tensor, "batch pos group_or_head d_state"],
        *,
        include_dt_scaling: bool = True,
    ) -> Float[Tensor, "batch head dest src"]:
        k, q = (rearrange(self.by_head(M), "batch pos head n -> batch head pos n") for M in (B, C))
        log_decay = rearrange(dt * A, "batch pos head -> batch head pos")
        M = (q @ k.mT) * head_products(log_decay)[0]
        return M * rearrange(dt, "batch src head -> batch head 1 src") if include_dt_scaling else M

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """C reads q_input, B reads k_input; x, dt and the gate read v_input: each through its convolution."""
        batch, _, heads, _ = q_input.shape

        def seen_by_heads(x: Tensor) -> SSMInput:
            return self.ssm_input(rearrange(x, "batch pos head d -> (batch head) pos d"), None)[0]

        def own(x: Tensor) -> Tensor:
            """Of each head's copy of all heads, the head's own."""
            copies = rearrange(x, "(batch copy) pos head d -> batch pos d copy head", copy=heads)
            return rearrange(copies.diagonal(dim1=3, dim2=4), "batch pos d head -> batch pos head d")

        C = own(self.by_head(seen_by_heads(q_input).C))
        B = own(self.by_head(seen_by_heads(k_input).B))
        of_v = seen_by_heads(v_input)
        x, dt = own(of_v.x), own(of_v.dt.unsqueeze(-1))
        read, _ = self.recur(B, C, x, dt.squeeze(-1))
        return self.gated_write(read, x, own(self.heads(of_v.gate)).flatten(2))

    def states(self, activations: Activations) -> Float[Tensor, "batch pos head d_state d_head"]:
        x, dt, B = (activations[name] for name in ("hook_x", "hook_ssm_dt", "hook_ssm_B"))
        v, log_decay = self.values_and_decays(self.heads(x), dt)
        return explicit_states(B.to(v.dtype), v, log_decay.exp())

    def effective_attention(
        self, activations: Activations, *, include_dt_scaling: bool = True
    ) -> Float[Tensor, "batch head dest src"]:
        """The causal matrix of every head that takes hook_x, by head, to the state's read (hook_y less D x):

        M_ij = C_i . B_j exp(A sum_{j < l <= i} dt_l) dt_j,       the last factor optional.
        """
        dt, B, C = (activations[name] for name in ("hook_ssm_dt", "hook_ssm_B", "hook_ssm_C"))
        return self.pattern(dt, self.A, B, C, include_dt_scaling=include_dt_scaling)


SPLIT_HOOKS = {
    *("hook_q_input", "hook_k_input", "hook_v_input"),
    *("hook_y", "hook_norm_scale", "hook_normalized", "hook_z", "hook_result"),
}
