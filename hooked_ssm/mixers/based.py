"""Based: linear attention whose feature map is the Taylor expansion of softmax attention's exponential
(Arora et al. 2024, arXiv:2402.18668). Per head, with q, k [f], f = feature_dim, and v [d_head] linear in u,

    phi(x) = [1, x / f^(1/4), vec(x x^T) / sqrt(2 f)]     phi(q).phi(k) = 1 + s + s^2/2, s = q.k / sqrt(f)
    S_t    = S_{t-1} + phi(k_t) v_t^T                     the memory [1 + f + f^2, d_head]
    z_t    = z_{t-1} + phi(k_t)                           what normalises it [1 + f + f^2]
    y_t    = S_t^T phi(q_t)
    out_t  = proj_o(y_t / (z_t . phi(q_t)))

(The published code adds 1e-12 to the divisor, which is at least 1/2.) It has no convolution and no positions:
models of this name put it in layers that take turns with a BaseConv.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook, call_hooked
from hooked_ssm.layers import Linear
from hooked_ssm.mixers.base import Activations, AttentionFreeMixer
from hooked_ssm.mixers.heads import head_weights, project_heads
from hooked_ssm.ops.linear_attention import explicit_states
from hooked_ssm.ops.taylor_attention import (
    TaylorMemory,
    TaylorRead,
    edited_taylor_attention,
    taylor_features,
)


@dataclass(frozen=True, kw_only=True)
class BasedConfig(MixerConfig):
    """feature_dim: width f of a head's queries and keys, before the feature map."""

    name: ClassVar[str] = "based"
    feature_dim: int = 16

    def __post_init__(self):
        if self.feature_dim < 1:
            raise ValueError(f"Based's feature_dim must be at least 1, got {self.feature_dim}.")

    def build(self, cfg: HookedSSMConfig) -> "Based":
        return Based(self, cfg)


class Based(AttentionFreeMixer):
    """Its state is the memory S and the sum z. An edit of `hook_ssm_state` is one of S alone, an edit of
    `hook_ssm_norm_state` one of z alone; both are carried forward."""

    has_b_O = False

    def __init__(self, mixer_cfg: BasedConfig, cfg: HookedSSMConfig):
        super().__init__(cfg)
        self.mixer_cfg = mixer_cfg
        heads, f = cfg.n_heads, mixer_cfg.feature_dim
        self.hook_q = Hook("batch pos head d_feature", "queries, before the feature map")
        self.hook_k = Hook("batch pos head d_feature", "keys, before the feature map")
        self.hook_v = Hook("batch pos head d_head", "values")
        self.hook_q_features = Hook(
            "batch pos head feature", "phi(q): 1, q, and products of two entries of q"
        )
        self.hook_k_features = Hook("batch pos head feature", "phi(k)")
        self.hook_ssm_write = Hook("batch pos head feature d_head", "phi(k) v^T, what is added to the memory")
        self.hook_ssm_state = Hook("batch pos head feature d_head", "memory S; an edit is carried forward")
        self.hook_ssm_norm_state = Hook(
            "batch pos head feature", "z, the sum of phi(k) so far; an edit is carried forward"
        )
        self.hook_y = Hook(
            "batch pos head d_head", "S^T phi(q): the read, before it is normalised", copy=True
        )
        self.hook_normalizer = Hook("batch pos head", "z . phi(q), which the read is divided by", copy=True)
        self.hook_pattern = Hook("batch head dest src", "the causal matrix that takes hook_v to hook_z")
        self.proj_q, self.proj_k, self.proj_v, self.proj_o = (
            Linear(d_in, d_out, bias=False, std=cfg.linear_std)
            for d_in, d_out in (
                (cfg.d_model, heads * f),
                (cfg.d_model, heads * f),
                (cfg.d_model, heads * cfg.d_head),
                (heads * cfg.d_head, cfg.d_model),
            )
        )

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return head_weights(self.proj_o, self.cfg.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.proj_o.weight.new_zeros(self.cfg.d_model)

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: TaylorMemory | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], TaylorMemory]:
        per_head = u.unsqueeze(2)
        return self.attend(per_head, per_head, per_head, state)

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """q reads q_input, k reads k_input and v reads v_input."""
        return self.attend(q_input, k_input, v_input, None)[0]

    def attend(
        self,
        q_input: Float[Tensor, "batch pos #head d_model"],
        k_input: Float[Tensor, "batch pos #head d_model"],
        v_input: Float[Tensor, "batch pos #head d_model"],
        state: TaylorMemory | None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], TaylorMemory]:
        heads = self.cfg.n_heads
        q = self.hook_q(project_heads(q_input, self.proj_q, heads))
        k = self.hook_k(project_heads(k_input, self.proj_k, heads))
        v = self.hook_v(project_heads(v_input, self.proj_v, heads))
        dtype = v.dtype
        wide = torch.promote_types(dtype, torch.float32)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        read, memory = self.read(q, k, v, state)
        y, normalizer = self.hook_y(read.read), self.hook_normalizer(read.normalizer)
        z = y / normalizer.unsqueeze(-1)

        def pattern(q: Tensor, k: Tensor, normalizer: Tensor) -> Tensor:
            return self.pattern(taylor_features(q), taylor_features(k), normalizer)

        z = self.through_pattern(z, v, state, pattern, q, k, normalizer)
        return self.write(self.hook_z(z.to(dtype))), memory

    def read(
        self,
        q: Float[Tensor, "batch pos head d_feature"],
        k: Float[Tensor, "batch pos head d_feature"],
        v: Float[Tensor, "batch pos head d_head"],
        memory: TaylorMemory | None,
    ) -> tuple[TaylorRead, TaylorMemory]:
        """By the fast path; where a hook wants what that does not form, explicitly."""
        if self.hook_k.attached:
            k = k.clone()  # who looks at k may write to it, and the memory keeps it
        features = {"edit_q_features": self.hook_q_features, "edit_k_features": self.hook_k_features}
        put_off = [
            hook.put_off(taylor_features, x) for hook, x in zip(features.values(), (q, k), strict=True)
        ]
        return call_hooked(
            edited_taylor_attention,
            *(q, k, v, *(memory or (None, None, None))),
            **({} if all(put_off) else features),
            edit_write=self.hook_ssm_write,
            edit_state=self.hook_ssm_state,
            edit_norm_state=self.hook_ssm_norm_state,
        )

    @staticmethod
    def pattern(
        q_features: Float[Tensor, "batch pos head feature"],
        k_features: Float[Tensor, "batch pos head feature"],
        normalizer: Float[Tensor, "batch pos head"],
    ) -> Float[Tensor, "batch head dest src"]:
        scores = torch.einsum("bihf,bjhf->bhij", q_features, k_features).tril()
        return scores / rearrange(normalizer, "batch dest head -> batch head dest 1")

    def states(self, activations: Activations) -> Float[Tensor, "batch pos head feature d_head"]:
        """The memory S."""
        return explicit_states(activations["hook_k_features"], activations["hook_v"])

    def effective_attention(self, activations: Activations) -> Float[Tensor, "batch head dest src"]:
        """The causal matrix of every head that takes hook_v to hook_z:

        M_ij = phi(q_i) . phi(k_j) / (z_i . phi(q_i)).
        """
        names = "hook_q_features", "hook_k_features", "hook_normalizer"
        return self.pattern(*(activations[name] for name in names))
