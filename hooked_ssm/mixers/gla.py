"""Gated linear attention, whose memory forgets each key channel at a rate of its own (Yang et al. 2023,
arXiv:2312.06635). Per head, with q, k [d_key], v [d_head],

    a_t   = sigmoid(gk(u_t))^(1/16)             the decay [d_key]; gk is a linear map of low rank, with bias
    S_t   = a_t (.) S_{t-1} + k_t v_t^T         S [d_key, d_head]: a_t multiplies its rows
    y_t   = S_t^T q_t / sqrt(d_key)
    out_t = o_proj(norm(y_t) (.) SiLU(gate_t))  RMSNorm of each head, with one weight for all heads

q, k, v and gate are linear in u.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook, call_hooked
from hooked_ssm.layers import Linear, RMSNorm
from hooked_ssm.mixers.base import Activations, AttentionFreeMixer
from hooked_ssm.mixers.heads import head_weights, project_heads
from hooked_ssm.ops.causal_matrix import linear_attention_matrix
from hooked_ssm.ops.linear_attention import explicit_states, linear_attention


@dataclass(frozen=True, kw_only=True)
class GLAConfig(MixerConfig):
    """expand_k, expand_v: widths of a head's keys and of its values, as multiples of the model's d_head.

    gate_logit_normalizer: the 16 of the root that the decay is; larger forgets more slowly at first.
    gate_low_rank: inner size of the decay's projection.
    """

    name: ClassVar[str] = "gla"
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_logit_normalizer: float = 16.0
    gate_low_rank: int = 16

    def __post_init__(self):
        for name in ("expand_k", "expand_v", "gate_logit_normalizer"):
            if getattr(self, name) <= 0:
                raise ValueError(f"GLA's {name} must be positive, got {getattr(self, name)}.")
        if self.gate_low_rank < 1:
            raise ValueError(f"GLA's gate_low_rank must be at least 1, got {self.gate_low_rank}.")

    def build(self, cfg: HookedSSMConfig) -> "GLA":
        return GLA(self, cfg)


class GLAState(NamedTuple):
    """The memory."""

    ssm: Float[Tensor, "batch head d_key d_value"]


class GLA(AttentionFreeMixer):
    matrix_hooks = "hook_v", "hook_y"
    has_b_O = False

    def __init__(self, mixer_cfg: GLAConfig, cfg: HookedSSMConfig):
        super().__init__(cfg)
        self.mixer_cfg = mixer_cfg
        self.d_key = head_width("expand_k", mixer_cfg.expand_k, cfg)
        self.d_value = head_width("expand_v", mixer_cfg.expand_v, cfg)
        heads, d_model = cfg.n_heads, cfg.d_model

        self.hook_q = Hook("batch pos head d_key", "queries, before they are divided by sqrt(d_key)")
        self.hook_k = Hook("batch pos head d_key", "keys")
        self.hook_v = Hook("batch pos head d_head", "values")
        self.hook_ssm_decay = Hook("batch pos head d_key", "decay, the share of the state that is kept")
        self.hook_ssm_write = Hook("batch pos head d_key d_head", "k v^T, what is added to the state")
        self.hook_ssm_state = Hook("batch pos head d_key d_head", "state S; an edit is carried forward")
        self.hook_pattern = Hook("batch head dest src", "the causal matrix that takes hook_v to hook_y")
        self.hook_y = Hook("batch pos head d_head", "S^T q: the read, before norm and gate", copy=True)
        self.hook_gate = Hook("batch pos head d_head", "gate, before its SiLU")
        norm = RMSNorm(self.d_value, cfg.eps, shape="batch pos head d_head")
        self.hook_norm_scale, self.hook_normalized = norm.hook_scale, norm.hook_normalized
        self.norm = norm

        def linear(d_in: int, d_out: int, bias: bool = False) -> Linear:
            return Linear(d_in, d_out, bias=bias, std=cfg.linear_std)

        self.q_proj, self.k_proj = linear(d_model, heads * self.d_key), linear(d_model, heads * self.d_key)
        self.v_proj, self.g_proj = (
            linear(d_model, heads * self.d_value),
            linear(d_model, heads * self.d_value),
        )
        self.gk_low = linear(d_model, mixer_cfg.gate_low_rank)
        self.gk_proj = linear(mixer_cfg.gate_low_rank, heads * self.d_key, bias=True)
        self.o_proj = linear(heads * self.d_value, d_model)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return head_weights(self.o_proj, self.cfg.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.o_proj.weight.new_zeros(self.cfg.d_model)

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: GLAState | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], GLAState]:
        per_head = u.unsqueeze(2)
        return self.attend(per_head, per_head, per_head, state)

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """q reads q_input, k reads k_input; v, the decay and the gate read v_input."""
        return self.attend(q_input, k_input, v_input, None)[0]

    def attend(
        self,
        q_input: Float[Tensor, "batch pos #head d_model"],
        k_input: Float[Tensor, "batch pos #head d_model"],
        v_input: Float[Tensor, "batch pos #head d_model"],
        state: GLAState | None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], GLAState]:
        heads = self.cfg.n_heads
        q = self.hook_q(project_heads(q_input, self.q_proj, heads))
        k = self.hook_k(project_heads(k_input, self.k_proj, heads))
        v = self.hook_v(project_heads(v_input, self.v_proj, heads))
        gk = project_heads(self.gk_low(v_input), self.gk_proj, heads)
        gk = gk.to(torch.promote_types(gk.dtype, torch.float32))  # rounded decays would add up
        log_decay = F.logsigmoid(gk) / self.mixer_cfg.gate_logit_normalizer
        q = q * self.d_key**-0.5
        y, ssm = call_hooked(
            linear_attention,
            *(q, k, v, log_decay, None if state is None else state.ssm),
            edit_decay=self.hook_ssm_decay,
            edit_write=self.hook_ssm_write,
            edit_state=self.hook_ssm_state,
        )
        if self.hook_pattern.attached:
            decay = log_decay.exp().to(q.dtype)
            y = self.through_pattern(y, v, state, linear_attention_matrix, q, k, decay)
        gate = self.hook_gate(project_heads(v_input, self.g_proj, heads))
        z = self.norm(self.hook_y(y)) * F.silu(gate)
        return self.write(self.hook_z(z)), GLAState(ssm)

    def states(self, activations: Activations) -> Float[Tensor, "batch pos head d_key d_head"]:
        k, v, decay = (activations[name] for name in ("hook_k", "hook_v", "hook_ssm_decay"))
        return explicit_states(k, v, decay)

    def effective_attention(self, activations: Activations) -> Float[Tensor, "batch head dest src"]:
        """The causal matrix of every head that takes hook_v to hook_y:

        M_ij = sum_c q_ic k_jc a_{j+1,c} ... a_ic / sqrt(d_key).
        """
        q, k, decay = (activations[name] for name in ("hook_q", "hook_k", "hook_ssm_decay"))
        return linear_attention_matrix(q * self.d_key**-0.5, k, decay)


def head_width(option: str, expand: float, cfg: HookedSSMConfig) -> int:
    width = expand * cfg.d_head
    if width != int(width) or width < 1:
        raise ValueError(
            f"GLA's {option} * d_head must be a whole number, at least 1, got {expand} * {cfg.d_head}."
        )
    return int(width)
