"""One layer: norm, mixer, residual; then norm, MLP, residual where the model has MLPs."""

from typing import Any

from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.gated_mlp import GatedMLP
from hooked_ssm.hooks import Hook
from hooked_ssm.layers import MLP, NORMS
from hooked_ssm.mixers.base import Mixer
from hooked_ssm.ops.backends import backend_of_model


class Block(nn.Module):
    """Pre-norm:

    resid_mid = resid_pre + mixer(ln1(resid_pre))
    resid_post = resid_mid + mlp(ln2(resid_mid))

    or, with `parallel_attn_mlp`, resid_post = resid_pre + mixer(ln1(resid_pre)) + mlp(ln2(resid_pre)).
    """

    # TransformerLens's logit lens asks whether hook_resid_post is all that a block hands on.
    hook_out_is_single_residual_stream = True

    mixer: Mixer

    def __init__(self, mixer: MixerConfig, cfg: HookedSSMConfig):
        super().__init__()
        self.cfg = cfg
        norm = NORMS[str(cfg.normalization_type)]
        resid = "batch pos d_model"
        self.hook_resid_pre = Hook(resid, "residual stream before the block", copy=True)
        self.hook_attn_in = Hook(
            "batch pos head d_model", "residual read by the mixer, one copy a head", copy=True
        )
        self.ln1 = norm(cfg.d_model, cfg.eps)
        self.mixer = mixer.build(cfg)  # pyright: ignore[reportAttributeAccessIssue]
        self.hook_mixer_out = Hook(resid, "what the mixer adds to the residual stream")
        self.hook_resid_mid = Hook(resid, "residual stream after the mixer")
        self.hook_mlp_in = Hook(resid, "residual read by the MLP", copy=True)
        if cfg.attn_only:
            self.ln2 = self.mlp = None
        else:
            self.ln2 = norm(cfg.d_model, cfg.eps)
            self.mlp = GatedMLP(cfg) if cfg.gated_mlp else MLP(cfg)
        self.hook_mlp_out = Hook(resid, "what the MLP adds to the residual stream (0 without one)")
        self.hook_resid_post = Hook(resid, "residual stream after the block", copy=True)

    @property
    def attn(self) -> Mixer:
        """The mixer, where TransformerLens looks for attention."""
        return self.mixer

    def extend(
        self, resid: Float[Tensor, "batch pos d_model"], state: Any = None, *, keep_state: bool = True
    ) -> tuple[Float[Tensor, "batch pos d_model"], Any]:
        """The block at the given positions, which follow those already in the mixer's `state`.

        keep_state=False is for whole documents: the state after them, which may be costly, is None.
        """
        before = self.hook_resid_pre(resid)
        with backend_of_model(self.cfg.backend):
            mixer_out, state = self.mix(before, state, keep_state)
        resid = before + self.hook_mixer_out(mixer_out)
        if not self.cfg.parallel_attn_mlp:
            before = resid = self.hook_resid_mid(resid)
        if self.mlp is not None and self.ln2 is not None:
            mlp_in = self.hook_mlp_in(before) if self.cfg.use_hook_mlp_in else before
            resid = resid + self.hook_mlp_out(self.mlp(self.ln2(mlp_in)))
        elif self.hook_mlp_out.attached or self.hook_mlp_in.attached:
            # TransformerLens's attribution wants an MLP in every layer: here is one that writes 0, as part of
            # the graph.
            resid = resid + self.hook_mlp_out(self.hook_mlp_in(resid) * 0.0)
        return self.hook_resid_post(resid), state

    def forward(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.extend(resid, keep_state=False)[0]

    def mix(
        self, resid: Float[Tensor, "batch pos d_model"], state: Any, keep_state: bool
    ) -> tuple[Float[Tensor, "batch pos d_model"], Any]:
        """ln1 and mixer, with an input of its own for every head (and q, k, v) if the config says so."""
        if not (self.cfg.use_split_qkv_input or self.cfg.use_attn_in):
            u = self.ln1(resid)
            return self.mixer.extend(u, state) if keep_state else (self.mixer(u), None)
        if state is not None:
            raise ValueError(
                "inputs split by head work on whole documents, not when continuing from a state: call "
                "set_use_split_qkv_input(False) and set_use_attn_in(False) first."
            )
        per_head = repeat(resid, "batch pos d_model -> batch pos head d_model", head=self.cfg.n_heads)
        if self.cfg.use_split_qkv_input:
            hooks = self.mixer.hook_q_input, self.mixer.hook_k_input, self.mixer.hook_v_input
            inputs = [self.ln1(hook(per_head)) for hook in hooks]
        else:
            inputs = [self.ln1(self.hook_attn_in(per_head))] * 3
        return self.mixer.split(*inputs), None

    def unavailable_hooks(self) -> dict[str, str]:
        """Hooks that cannot fire as things are set, each with what would make it fire."""
        reasons = {f"mixer.{name}": reason for name, reason in self.mixer.unavailable_hooks().items()}
        if self.cfg.parallel_attn_mlp:
            reasons["hook_resid_mid"] = (
                "mixer and MLP read one residual stream (cfg.parallel_attn_mlp): there is none in between"
            )
        if not self.cfg.use_attn_in:
            reasons["hook_attn_in"] = "it fires after model.set_use_attn_in(True)"
        if not self.cfg.use_hook_mlp_in and self.mlp is not None:
            reasons["hook_mlp_in"] = "it fires after model.set_use_hook_mlp_in(True)"
        if self.cfg.use_split_qkv_input or self.cfg.use_attn_in:
            for name in ("ln1.hook_scale", "ln1.hook_normalized"):
                reasons[name] = "every head has a norm of its own input while inputs are split by head"
        return reasons
