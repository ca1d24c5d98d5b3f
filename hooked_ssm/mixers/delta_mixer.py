"""What DeltaNet and Gated DeltaNet share: all but the decay.

q, k, v    = SiLU(conv(W u))                   one causal convolution a channel, without bias
q_t, k_t   = q / |q|, k / |k|                  by head; |x| = sqrt(x . x + 1e-6)
beta_t     = sigmoid(b_proj(u_t))              or twice that, or 1
y_t        = S_t^T q_t / sqrt(d_key)           S by the delta rule
out_t      = o_proj(norm(y_t) (.) SiLU(g_t))   RMSNorm by head, with one weight for all; the gate optional
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.hooks import Hook, call_hooked
from hooked_ssm.layers import Linear, RMSNorm
from hooked_ssm.mixers.base import Activations, AttentionFreeMixer
from hooked_ssm.mixers.heads import head_weights, project_heads
from hooked_ssm.mixers.short_conv import ShortConv
from hooked_ssm.ops.causal_matrix import delta_rule_matrix
from hooked_ssm.ops.delta_rule import delta_rule
from hooked_ssm.ops.linear_attention import explicit_states


@dataclass(frozen=True, kw_only=True)
class DeltaOptions:
    """expand_k, expand_v: widths of a head's keys and of its values, as multiples of the model's d_head.

    d_conv: width of the short convolution; 0 removes it and keeps the activation after it.
    use_beta: whether beta depends on the input; without, it is 1.
    allow_neg_eigval: whether beta goes up to 2, where what a key recalls is turned into its negative.
    use_gate: whether the normalised read is gated.
    """

    name: ClassVar[str]
    expand_k: float = 1.0
    expand_v: float = 1.0
    d_conv: int = 4
    use_beta: bool = True
    allow_neg_eigval: bool = False
    use_gate: bool = False

    def __post_init__(self):
        for name in ("expand_k", "expand_v"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{self.name}'s {name} must be positive, got {getattr(self, name)}.")
        if self.d_conv < 0:
            raise ValueError(f"{self.name}'s d_conv must be at least 0, got {self.d_conv}.")
        if self.allow_neg_eigval and not self.use_beta:
            raise ValueError(
                f"{self.name}'s allow_neg_eigval=True is about beta, and there is none with use_beta=False."
            )

    def head_width(self, option: str, cfg: HookedSSMConfig) -> int:
        width = getattr(self, option) * cfg.d_head
        if width != int(width) or width < 1:
            raise ValueError(
                f"{self.name}'s {option} * d_head must be a whole number, at least 1, "
                f"got {getattr(self, option)} * {cfg.d_head}."
            )
        return int(width)


class DeltaState(NamedTuple):
    """conv: the last d_conv - 1 inputs of the convolution. ssm: the memory."""

    conv: Float[Tensor, "batch past channel"] | None
    ssm: Float[Tensor, "batch head d_key d_value"]


class DeltaMixer(AttentionFreeMixer):
    """decays: whether the memory does, and `hook_ssm_decay` is there."""

    matrix_hooks = "hook_v", "hook_y"
    has_b_O = False
    decays: ClassVar[bool]
    hook_ssm_decay: Hook

    def __init__(self, mixer_cfg: DeltaOptions, cfg: HookedSSMConfig):
        super().__init__(cfg)
        self.mixer_cfg = mixer_cfg
        self.d_key = mixer_cfg.head_width("expand_k", cfg)
        self.d_value = mixer_cfg.head_width("expand_v", cfg)
        heads, d_model = cfg.n_heads, cfg.d_model
        self.widths = [heads * self.d_key, heads * self.d_key, heads * self.d_value]

        self.hook_q_pre = Hook("batch pos head d_key", "queries before the convolution")
        self.hook_k_pre = Hook("batch pos head d_key", "keys before the convolution")
        self.hook_v_pre = Hook("batch pos head d_head", "values before the convolution")
        if mixer_cfg.d_conv:
            conv = ShortConv(sum(self.widths), mixer_cfg.d_conv, bias=False)
            self.hook_conv_in, self.hook_conv_taps = conv.hook_conv_in, conv.hook_conv_taps
            self.hook_conv = conv.hook_conv
            self.conv1d = conv
        else:
            self.conv1d = None
        self.hook_q = Hook(
            "batch pos head d_key", "queries, of length 1, before they are divided by sqrt(d_key)"
        )
        self.hook_k = Hook("batch pos head d_key", "keys, of length 1")
        self.hook_v = Hook("batch pos head d_head", "values")
        if mixer_cfg.use_beta:
            self.hook_beta = Hook("batch pos head", "beta, the share of the error that is corrected")
        self.hook_ssm_write = Hook(
            "batch pos head d_head",
            "beta (v - what k recalls), written under k; an edit is carried forward",
        )
        self.hook_ssm_state = Hook("batch pos head d_key d_head", "state S; an edit is carried forward")
        self.hook_pattern = Hook("batch head dest src", "the causal matrix that takes hook_v to hook_y")
        self.hook_y = Hook("batch pos head d_head", "S^T q: the read, before the norm", copy=True)
        norm = RMSNorm(self.d_value, cfg.eps, shape="batch pos head d_head")
        self.hook_norm_scale, self.hook_normalized = norm.hook_scale, norm.hook_normalized
        self.norm = norm
        self.hook_z = Hook("batch pos head d_head", "the normalised (and gated) read, before W_O", copy=True)

        self.q_proj, self.k_proj, self.v_proj = (self.linear(width) for width in self.widths)
        self.b_proj = self.linear(heads) if mixer_cfg.use_beta else None
        if mixer_cfg.use_gate:
            self.hook_gate = Hook("batch pos head d_head", "gate, before its SiLU")
            self.g_proj = self.linear(heads * self.d_value)
        else:
            self.g_proj = None
        self.o_proj = Linear(heads * self.d_value, d_model, bias=False, std=cfg.linear_std)

    def linear(self, d_out: int) -> Linear:
        """A linear map of the mixer's input."""
        return Linear(self.cfg.d_model, d_out, bias=False, std=self.cfg.linear_std)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return head_weights(self.o_proj, self.cfg.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.o_proj.weight.new_zeros(self.cfg.d_model)

    @abstractmethod
    def log_decay(
        self, v_input: Float[Tensor, "batch pos #head d_model"]
    ) -> Float[Tensor, "batch pos head"] | None:
        """Logarithm of the share of the state that is kept; None for all of it."""

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: DeltaState | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], DeltaState]:
        per_head = u.unsqueeze(2)
        return self.attend(per_head, per_head, per_head, state)

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """q reads q_input, k reads k_input; v, beta, the decay and the gate read v_input."""
        return self.attend(q_input, k_input, v_input, None)[0]

    def attend(
        self,
        q_input: Float[Tensor, "batch pos #head d_model"],
        k_input: Float[Tensor, "batch pos #head d_model"],
        v_input: Float[Tensor, "batch pos #head d_model"],
        state: DeltaState | None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], DeltaState]:
        heads = self.cfg.n_heads
        past, ssm = (None, None) if state is None else state
        q, k, v, past = self.convolve(
            self.hook_q_pre(project_heads(q_input, self.q_proj, heads)),
            self.hook_k_pre(project_heads(k_input, self.k_proj, heads)),
            self.hook_v_pre(project_heads(v_input, self.v_proj, heads)),
            past,
        )
        q, k, v = self.hook_q(unit(q)), self.hook_k(unit(k)), self.hook_v(v)
        beta, log_decay = self.beta(v_input), self.log_decay(v_input)
        q = q * self.d_key**-0.5
        y, ssm = call_hooked(
            delta_rule,
            *(q, k, v, beta, log_decay, ssm),
            edit_decay=self.hook_ssm_decay if self.decays else None,
            edit_write=self.hook_ssm_write,
            edit_state=self.hook_ssm_state,
        )
        if self.hook_pattern.attached:
            decay = [] if log_decay is None else [log_decay.exp().to(q.dtype)]
            y = self.through_pattern(y, v, state, delta_rule_matrix, q, k, beta, *decay)
        z = self.norm(self.hook_y(y))
        if self.g_proj is not None:
            z = z * F.silu(self.hook_gate(project_heads(v_input, self.g_proj, heads)))
        return self.write(self.hook_z(z)), DeltaState(past, ssm)

    def convolve(
        self, q: Tensor, k: Tensor, v: Tensor, past: Float[Tensor, "batch past channel"] | None
    ) -> tuple[Tensor, Tensor, Tensor, Float[Tensor, "batch past channel"] | None]:
        """SiLU(conv(.)) of q, k and v, and what the convolution needs next time."""
        if self.conv1d is None:
            return F.silu(q), F.silu(k), F.silu(v), None
        x, past = self.conv1d.extend(torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1), past)
        # In one piece each, so that what follows rounds the same whether or not a hook was handed a copy.
        q, k, v = (
            part.contiguous().unflatten(-1, (self.cfg.n_heads, -1))
            for part in F.silu(x).split(self.widths, -1)
        )
        return q, k, v, past

    def beta(self, v_input: Float[Tensor, "batch pos #head d_model"]) -> Float[Tensor, "batch pos head"]:
        heads = self.cfg.n_heads
        if self.b_proj is None:
            return v_input.new_ones(*v_input.shape[:2], heads)
        beta = project_heads(v_input, self.b_proj, heads).squeeze(-1).sigmoid()
        return self.hook_beta(2 * beta if self.mixer_cfg.allow_neg_eigval else beta)

    def states(self, activations: Activations) -> Float[Tensor, "batch pos head d_key d_head"]:
        decay = activations["hook_ssm_decay"] if self.decays else None
        return explicit_states(activations["hook_k"], activations["hook_ssm_write"], decay)

    def effective_attention(self, activations: Activations) -> Float[Tensor, "batch head dest src"]:
        """The causal matrix of every head that takes hook_v to hook_y, see `delta_rule_matrix`."""
        q, k = activations["hook_q"], activations["hook_k"]
        beta = torch.ones_like(k[..., 0]) if self.b_proj is None else activations["hook_beta"]
        decay = activations["hook_ssm_decay"] if self.decays else None
        return delta_rule_matrix(q * self.d_key**-0.5, k, beta, decay)


def unit(x: Float[Tensor, "*dims d"]) -> Float[Tensor, "*dims d"]:
    """x over its length, which counts as at least 0.001: SiLU leaves vectors that are all but 0."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
