"""Mamba, the selective state space model (Gu & Dao 2023, arXiv:2312.00752). With e = d_inner, n = d_state,

    x, gate  = in_proj(u)                                      [e], [e]
    x_t      = SiLU(conv(x)_t)                                 the short convolution is the only mixing here
    dt_low, B_t, C_t = x_proj(x_t)                             [dt_rank], [n], [n]
    dt_t     = softplus(dt_proj(dt_low))                       [e]
    h_t      = exp(dt_t A) (.) h_{t-1} + (dt_t x_t) B_t^T      A = -exp(A_log) [e, n], h [e, n]
    y_t      = h_t C_t + D (.) x_t
    out_t    = out_proj(y_t (.) SiLU(gate_t))

As in the official code, A is discretised by zero-order hold and B by an Euler step.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook, call_hooked, idle, noting_edits
from hooked_ssm.layers import Linear, linear
from hooked_ssm.mixers.base import Activations, AttentionFreeMixer
from hooked_ssm.mixers.heads import head_weights
from hooked_ssm.mixers.short_conv import ShortConv
from hooked_ssm.ops.causal_matrix import selective_scan_matrix
from hooked_ssm.ops.linear_scan import linear_scan
from hooked_ssm.ops.mamba_step import StepWeights, mamba_step
from hooked_ssm.ops.selective_scan import selective_scan


@dataclass(frozen=True, kw_only=True)
class MambaConfig(MixerConfig):
    """d_conv: width of the short convolution; 0 removes it and keeps the activation after it.

    dt_rank: inner size of dt's projection; None for ceil(d_model / 16).
    dt_min, dt_max, dt_floor: dt is initially log-uniform in [dt_min, dt_max], at least dt_floor.
    inner_norm_eps: if given, dt_low, B and C are divided by sqrt(mean square + inner_norm_eps), as in
        Falcon-Mamba (arXiv:2410.05355).
    """

    name: ClassVar[str] = "mamba"
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    inner_norm_eps: float | None = None

    def __post_init__(self):
        for name, least in (("d_state", 1), ("d_conv", 0), ("expand", 1), ("dt_rank", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"Mamba's {name} must be at least {least}, got {value}.")
        if self.inner_norm_eps is not None and self.inner_norm_eps < 0:
            raise ValueError(f"Mamba's inner_norm_eps must not be negative, got {self.inner_norm_eps}.")

    def build(self, cfg: HookedSSMConfig) -> "Mamba":
        return Mamba(self, cfg)


class MambaState(NamedTuple):
    """conv: the last d_conv - 1 inputs of the convolution. ssm: the recurrent state."""

    conv: Float[Tensor, "batch past d_inner"] | None
    ssm: Float[Tensor, "batch d_inner d_state"]


class Mamba(AttentionFreeMixer):
    """Its heads, for tools that want heads, are groups of d_inner / n_heads channels: B and C are shared by
    all of them, and q, k, v are C, B and the x that is written, by head."""

    matrix_hooks = "hook_x", "hook_y"
    has_b_O = False

    def __init__(self, mixer_cfg: MambaConfig, cfg: HookedSSMConfig):
        super().__init__(cfg)
        self.mixer_cfg = mixer_cfg
        d_inner = self.d_inner = mixer_cfg.expand * cfg.d_model
        n = self.d_state = mixer_cfg.d_state
        self.dt_rank = mixer_cfg.dt_rank or math.ceil(cfg.d_model / 16)

        self.hook_gate = Hook("batch pos d_inner", "gate, before its SiLU", copy=True)
        if mixer_cfg.d_conv:
            conv = ShortConv(d_inner, mixer_cfg.d_conv)
            self.hook_conv_in, self.hook_conv_taps = conv.hook_conv_in, conv.hook_conv_taps
            self.hook_conv = conv.hook_conv
            self.conv1d = conv
        else:
            self.conv1d = None
        self.hook_x = Hook("batch pos d_inner", "x after convolution and SiLU: the input of the SSM")
        self.hook_ssm_dt = Hook("batch pos d_inner", "step size dt, after softplus")
        self.hook_ssm_B = Hook("batch pos d_state", "B, where in the state x is written", copy=True)
        self.hook_ssm_C = Hook("batch pos d_state", "C, where the state is read", copy=True)
        self.hook_ssm_decay = Hook(
            "batch pos d_inner d_state", "exp(dt A), the share of the state that is kept"
        )
        self.hook_ssm_write = Hook("batch pos d_inner d_state", "(dt x) B^T, what is added to the state")
        self.hook_ssm_state = Hook("batch pos d_inner d_state", "state h; an edit is carried forward")
        self.hook_q = Hook("batch pos head d_state", "C, one copy a head", copy=True)
        self.hook_k = Hook("batch pos head d_state", "B, one copy a head", copy=True)
        self.hook_v = Hook(
            "batch pos head d_head", "x as it is written and skipped to y (B, C, dt keep theirs)", copy=True
        )
        self.hook_pattern = Hook(
            "batch head dest src", "the causal matrix that takes hook_v to the state's read"
        )
        self.hook_y = Hook("batch pos d_inner", "h C + D x: the read, before the gate")

        self.in_proj = Linear(cfg.d_model, 2 * d_inner, bias=False, std=None)
        self.x_proj = Linear(d_inner, self.dt_rank + 2 * n, bias=False, std=None)
        self.dt_proj = DtProj(mixer_cfg, self.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.empty(d_inner, n))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out_proj = Linear(d_inner, cfg.d_model, bias=False, std=None, scale=cfg.n_layers**-0.5)
        if d_inner % cfg.n_heads:
            raise ValueError(
                f"Mamba's expand * d_model must be a multiple of n_heads, got {d_inner} and {cfg.n_heads}."
            )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.A_log.copy_(torch.arange(1, self.d_state + 1, dtype=torch.float64).log().expand_as(self.A_log))
        self.D.fill_(1.0)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return head_weights(self.out_proj, self.cfg.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.out_proj.weight.new_zeros(self.cfg.d_model)

    def unavailable_hooks(self) -> dict[str, str]:
        reasons = super().unavailable_hooks()
        if self.d_inner != self.cfg.n_heads:
            reasons["hook_pattern"] = (
                f"each of Mamba's channels has a pattern of its own, so it fires with n_heads={self.d_inner} "
                f"(the model has {self.cfg.n_heads}); cache.compute_ssm_effective_attention() gives all"
            )
        if self.cfg.use_split_qkv_input or self.cfg.use_attn_in:
            for name, module in self.named_modules():
                if isinstance(module, Hook) and name not in SPLIT_HOOKS | reasons.keys():
                    reasons[name] = "it has no one value while inputs are split by head"
        return reasons

    def ssm_input(
        self, u: Float[Tensor, "batch pos d_model"], past: Float[Tensor, "batch past d_inner"] | None
    ) -> tuple[
        Float[Tensor, "batch pos d_inner"],
        Float[Tensor, "batch pos d_inner"],
        Float[Tensor, "batch past d_inner"] | None,
    ]:
        """x after convolution and activation, the gate, and what the convolution needs next time."""
        x, gate = self.in_proj(u).chunk(2, dim=-1)
        # In one piece, so that its activation rounds the same whether or not a hook was handed a copy.
        gate = self.hook_gate(gate.contiguous())
        if self.conv1d is not None:
            x, past = self.conv1d.extend(x, past)
        return self.hook_x(F.silu(x)), gate, past

    def selection(
        self, x: Float[Tensor, "batch pos d_inner"]
    ) -> tuple[
        Float[Tensor, "batch pos d_inner"],
        Float[Tensor, "batch pos d_state"],
        Float[Tensor, "batch pos d_state"],
    ]:
        """dt, B and C, which depend on the input: what makes the SSM selective."""
        dt_low, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        eps = self.mixer_cfg.inner_norm_eps
        if eps is not None:
            dt_low, B, C = (F.rms_norm(part, part.shape[-1:], eps=eps) for part in (dt_low, B, C))
        dt = self.hook_ssm_dt(F.softplus(self.dt_proj(dt_low)))
        return dt, self.hook_ssm_B(B), self.hook_ssm_C(C)

    @property
    def A(self) -> Float[Tensor, "d_inner d_state"]:
        return -self.A_log.exp()

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: MambaState | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], MambaState]:
        if state is None or state.conv is None or not self.steps(u):
            return self.explicit(u, state)
        eps = self.mixer_cfg.inner_norm_eps
        out, conv, ssm = mamba_step(u[:, 0], self.step_weights, state.conv, state.ssm, eps)
        stepped = out.unsqueeze(1), MambaState(conv, ssm)
        if idle(self._modules.values()):
            return stepped
        # It rounds otherwise. So who looks sees what the equations give, and changes no bit by it.
        with noting_edits() as edits:
            seen = self.explicit(u, state)
        return seen if edits else stepped

    def explicit(
        self, u: Float[Tensor, "batch pos d_model"], state: MambaState | None
    ) -> tuple[Float[Tensor, "batch pos d_model"], MambaState]:
        conv, ssm = (None, None) if state is None else state
        x, gate, conv = self.ssm_input(u, conv)
        dt, B, C = self.selection(x)
        x, B, C = self.by_head(x, B, C)
        A = self.A
        read, ssm = call_hooked(
            selective_scan,
            *(x, dt, A, B, C, ssm),
            edit_decay=self.hook_ssm_decay,
            edit_write=self.hook_ssm_write,
            edit_state=self.hook_ssm_state,
        )
        if self.hook_pattern.attached:
            by_channel = read.unsqueeze(-1), x.unsqueeze(-1)
            read = self.through_pattern(*by_channel, state, selective_scan_matrix, dt, A, B, C).squeeze(-1)
        return self.gated_write(read + self.D * x, gate), MambaState(conv, ssm)

    def steps(self, u: Float[Tensor, "batch pos d_model"]) -> bool:
        """Whether u is a token that is generated, on a CPU, by what `mamba_step` computes."""
        return (
            u.shape[1] == 1
            and u.device.type == "cpu"
            and u.dtype in (torch.float32, torch.float64)
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not self.cfg.use_attn_result
            and type(self.in_proj) is type(self.x_proj) is type(self.out_proj) is Linear
            and type(self.dt_proj) is DtProj
            and type(self.conv1d) is ShortConv
            and idle((self.in_proj, self.x_proj, self.dt_proj, self.out_proj, self.conv1d))
        )

    @property
    def step_weights(self) -> StepWeights:
        conv, dt = self.conv1d, self.dt_proj
        assert conv is not None and conv.bias is not None
        return StepWeights(
            *(self.in_proj.weight, conv.weight, conv.bias, self.x_proj.weight, dt.weight, dt.bias),
            *(self.A_log, self.D, self.out_proj.weight),
        )

    def gated_write(
        self, y: Float[Tensor, "batch pos d_inner"], gate: Float[Tensor, "batch pos d_inner"]
    ) -> Float[Tensor, "batch pos d_model"]:
        z = self.hook_y(y) * F.silu(gate)
        return self.write(self.hook_z(self.by_group(z)))

    def by_group(self, z: Float[Tensor, "batch pos d_inner"]) -> Float[Tensor, "batch pos head d_head"]:
        return z.unflatten(-1, (self.cfg.n_heads, -1))

    def by_head(
        self, x: Float[Tensor, "batch pos d_inner"], B: Tensor, C: Tensor
    ) -> tuple[Float[Tensor, "batch pos d_inner"], Tensor, Tensor]:
        """x, B, C through `hook_v`, `hook_k`, `hook_q`. B and C get a channel axis if heads may differ."""
        heads = self.cfg.n_heads
        split = partial(rearrange, pattern="batch pos (head d) -> batch pos head d", head=heads)
        copies = partial(repeat, pattern="batch pos n -> batch pos head n", head=heads)
        if not self.hook_v.put_off(split, x):
            x = self.hook_v(split(x)).flatten(2)
        if not self.hook_k.put_off(copies, B):
            B = self.per_channel(self.hook_k(copies(B)))
        if not self.hook_q.put_off(copies, C):
            C = self.per_channel(self.hook_q(copies(C)))
        return x, B, C

    def per_channel(
        self, by_head: Float[Tensor, "batch pos head d_state"]
    ) -> Float[Tensor, "batch pos d_state"] | Float[Tensor, "batch pos d_inner d_state"]:
        """B or C by head as the scan takes it: without a channel axis where one head has all channels."""
        if self.cfg.n_heads == 1:
            return by_head[:, :, 0]
        return by_head.repeat_interleave(self.d_inner // self.cfg.n_heads, dim=2)

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """C reads q_input, B reads k_input; x, its convolution, dt and the gate read v_input."""
        batch, _, heads, _ = q_input.shape

        def folded(x: Tensor) -> Tensor:
            return rearrange(x, "batch pos head d -> (batch head) pos d")

        def own(x: Tensor) -> Tensor:
            """Of each head's copy of all channels, the channels that are the head's own."""
            copies = rearrange(
                x, "(batch copy) pos (head d) -> batch pos copy head d", copy=heads, head=heads
            )
            return rearrange(copies.diagonal(dim1=2, dim2=3), "batch pos d head -> batch pos (head d)")

        def by_head(x: Tensor) -> Tensor:
            return rearrange(x, "(batch head) pos n -> batch pos head n", head=heads)

        C = by_head(self.selection(self.ssm_input(folded(q_input), None)[0])[2])
        B = by_head(self.selection(self.ssm_input(folded(k_input), None)[0])[1])
        x, gate, _ = self.ssm_input(folded(v_input), None)
        dt = self.selection(x)[0]
        x, gate, dt = own(x), own(gate), own(dt)
        read, _ = selective_scan(x, dt, self.A, self.per_channel(B), self.per_channel(C))
        return self.gated_write(read + self.D * x, gate)

    def states(self, activations: Activations) -> Float[Tensor, "batch pos d_inner d_state"]:
        x, dt, B = (activations[name] for name in ("hook_x", "hook_ssm_dt", "hook_ssm_B"))
        write = (dt * x).unsqueeze(-1) * B.unsqueeze(-2)
        return linear_scan((dt.unsqueeze(-1) * self.A).exp(), write)

    def effective_attention(
        self, activations: Activations, *, include_dt_scaling: bool = True, by_channel: bool = True
    ) -> Float[Tensor, "batch channel_or_head dest src"]:
        """The causal matrix of every channel that takes hook_x to the state's read (hook_y less D x):

        M_ij = sum_n C_in exp(A_n sum_{j < l <= i} dt_l) B_jn dt_j,       the last factor optional.

        `by_channel=False` sums the channels of each head.
        """
        dt, B, C = (activations[name] for name in ("hook_ssm_dt", "hook_ssm_B", "hook_ssm_C"))
        M = selective_scan_matrix(dt, self.A, B, C)
        if not include_dt_scaling:
            M = M / rearrange(dt, "batch src channel -> batch channel 1 src")
        if by_channel:
            return M
        return reduce(M, "batch (head d) dest src -> batch head dest src", "sum", head=self.cfg.n_heads)


class DtProj(nn.Linear):
    """dt's projection: weights U(+-dt_rank^-1/2), bias such that softplus(bias) is log-uniform."""

    def __init__(self, mixer_cfg: MambaConfig, dt_rank: int, d_inner: int):
        self.mixer_cfg = mixer_cfg
        super().__init__(dt_rank, d_inner)

    def forward(self, input: Float[Tensor, "batch pos dt_rank"]) -> Float[Tensor, "batch pos d_inner"]:
        return linear(input, self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        c = self.mixer_cfg
        self.weight.uniform_(-(self.in_features**-0.5), self.in_features**-0.5)
        log_dt = torch.empty_like(self.bias).uniform_(math.log(c.dt_min), math.log(c.dt_max))
        dt = log_dt.exp().clamp(min=c.dt_floor)
        self.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


SPLIT_HOOKS = {"hook_q_input", "hook_k_input", "hook_v_input", "hook_y", "hook_z", "hook_result"}
