"""Softmax attention (Vaswani et al. 2017, arXiv:1706.03762), causal. Per head, with d_h = d_head,

    A_ij = softmax_{j <= i}(q_i . k_j / sqrt(d_h))
    z_i  = sum_j A_ij v_j
    y_i  = sum_heads z_i W_O + b_O

It sees positions only through the model's position embedding, or, with `rotary_dim`, through a rotation of q
and k (`hooked_ssm.ops.rotary`).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook
from hooked_ssm.layers import init_matrix
from hooked_ssm.mixers.base import Activations, Mixer
from hooked_ssm.ops.memory import few_rows, matrix_product
from hooked_ssm.ops.rotary import turned, turns


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(MixerConfig):
    """bias: whether q, k and v have biases (the output always has one).

    rotary_dim: how many of a head's entries are rotated with the position: even, 0 (none) to d_head.
    rotary_base: of the angles, which are base^(-2j/rotary_dim) a position.
    """

    name: ClassVar[str] = "attention"
    bias: bool = False
    rotary_dim: int = 0
    rotary_base: float = 10_000.0

    def __post_init__(self):
        if self.rotary_dim < 0 or self.rotary_dim % 2:
            raise ValueError(f"rotary_dim must be even and not negative, got {self.rotary_dim}.")
        if self.rotary_base <= 0:
            raise ValueError(f"rotary_base must be positive, got {self.rotary_base}.")

    def build(self, cfg: HookedSSMConfig) -> "Attention":
        return Attention(self, cfg)


class AttentionState(NamedTuple):
    """The key-value cache. Keys are as scores see them: rotated, if they are."""

    k: Float[Tensor, "batch past head d_head"]
    v: Float[Tensor, "batch past head d_head"]


class Attention(Mixer):
    def __init__(self, mixer_cfg: AttentionConfig, cfg: HookedSSMConfig):
        super().__init__(cfg)
        if mixer_cfg.rotary_dim > cfg.d_head:
            raise ValueError(f"rotary_dim must be at most d_head={cfg.d_head}, got {mixer_cfg.rotary_dim}.")
        self.rotary_dim, self.rotary_base = mixer_cfg.rotary_dim, mixer_cfg.rotary_base
        shape = cfg.n_heads, cfg.d_model, cfg.d_head
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.empty(shape)) for _ in range(3))
        self.b_Q, self.b_K, self.b_V = (
            nn.Parameter(torch.empty(shape[0], shape[2])) if mixer_cfg.bias else None for _ in range(3)
        )
        self.W_O = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_head, cfg.d_model))
        self.b_O = nn.Parameter(torch.empty(cfg.d_model))
        self.hook_q = Hook("batch pos head d_head", "queries")
        self.hook_k = Hook("batch pos head d_head", "keys")
        self.hook_v = Hook("batch pos head d_head", "values")
        if self.rotary_dim:
            self.hook_rot_q = Hook("batch pos head d_head", "queries, rotated by their positions")
            self.hook_rot_k = Hook("batch pos head d_head", "keys, rotated by their positions")
        self.hook_attn_scores = Hook("batch head dest src", "q . k / sqrt(d_head), -inf above the diagonal")
        self.hook_pattern = Hook("batch head dest src", "attention probabilities")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        std, d_model, depth = self.cfg.linear_std, self.cfg.d_model, (2 * self.cfg.n_layers) ** -0.5
        for W in (self.W_Q, self.W_K, self.W_V):
            init_matrix(W, std, d_in=d_model)
        init_matrix(self.W_O, std, d_in=self.cfg.n_heads * self.cfg.d_head, scale=depth)
        for b in (self.b_Q, self.b_K, self.b_V, self.b_O):
            if b is not None:
                b.zero_()

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: AttentionState | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], AttentionState]:
        per_head = u.unsqueeze(2)
        return self.attend(per_head, per_head, per_head, state)

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        return self.attend(q_input, k_input, v_input, None)[0]

    def effective_attention(self, activations: Activations) -> Float[Tensor, "batch head dest src"]:
        """The attention pattern: it takes hook_v to hook_z."""
        return activations["hook_pattern"]

    def attend(
        self,
        q_input: Float[Tensor, "batch pos #head d_model"],
        k_input: Float[Tensor, "batch pos #head d_model"],
        v_input: Float[Tensor, "batch pos #head d_model"],
        state: AttentionState | None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], AttentionState]:
        q = self.hook_q(project(q_input, self.W_Q, self.b_Q))
        k = self.hook_k(project(k_input, self.W_K, self.b_K))
        v = self.hook_v(project(v_input, self.W_V, self.b_V))
        if self.rotary_dim:
            start = 0 if state is None else state.k.shape[1]
            cos, sin = turns(start, start + k.shape[1], self.rotary_dim, self.rotary_base, like=k)
            q, k = self.hook_rot_q(turned(q, cos, sin)), self.hook_rot_k(turned(k, cos, sin))
        if state is not None:
            k, v = torch.cat([state.k, k], dim=1), torch.cat([state.v, v], dim=1)

        scores = einsum(q, k, "batch dest head d_head, batch src head d_head -> batch head dest src")
        dest, src = scores.shape[2:]
        future = torch.ones(dest, src, dtype=torch.bool, device=q.device).triu(src - dest + 1)
        scores = self.hook_attn_scores((scores / self.cfg.d_head**0.5).masked_fill(future, -torch.inf))
        pattern = self.hook_pattern(scores.softmax(-1))
        z = einsum(pattern, v, "batch head dest src, batch src head d_head -> batch dest head d_head")
        last_k = self.hook_rot_k if self.rotary_dim else self.hook_k
        if last_k.attached or self.hook_v.attached:
            k, v = k.clone(), v.clone()  # who looks at k and v may write to them
        return self.write(self.hook_z(z)), AttentionState(k, v)


def project(
    x: Float[Tensor, "batch pos #head d_model"],
    W: Float[Tensor, "head d_model d_head"],
    b: Float[Tensor, "head d_head"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """Each head's linear map of its own input, or of one input for all heads."""
    if few_rows(x, W) and x.shape[2] == 1:  # without making one matrix of all heads' first
        y = (x.flatten(0, 2) @ W).transpose(0, 1).unflatten(0, x.shape[:2])
    elif x.shape[2] == 1:
        flat = matrix_product(x.flatten(0, 2), W.transpose(0, 1).flatten(1))
        y = flat.unflatten(1, (W.shape[0], W.shape[2])).unflatten(0, x.shape[:2])
    else:
        y = einsum(x, W, "batch pos head d_model, head d_model d_head -> batch pos head d_head")
    return y if b is None else y + b
