"""The gated MLP (Shazeer 2020, arXiv:2002.05202): (act(x W_gate) (.) x W_in) W_out, without biases."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.hooks import Hook
from hooked_ssm.layers import ACTIVATIONS, init_matrix
from hooked_ssm.ops.memory import matrix_product


class GatedMLP(nn.Module):
    """Its weights and hooks have TransformerLens's names.

    W_out is initially scaled by 1 / sqrt(2 n_layers).
    """

    b_out: Float[Tensor, " d_model"]

    def __init__(self, cfg: HookedSSMConfig):
        super().__init__()
        assert cfg.d_mlp
        self.std, self.depth_scale = cfg.linear_std, (2 * cfg.n_layers) ** -0.5
        self.act = ACTIVATIONS[cfg.act_fn]
        self.W_gate = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model))
        self.register_buffer("b_out", torch.zeros(cfg.d_model), persistent=False)
        self.hook_pre = Hook("batch pos d_mlp", "gate of the neurons, before the activation")
        self.hook_pre_linear = Hook("batch pos d_mlp", "what the gate multiplies")
        self.hook_post = Hook("batch pos d_mlp", "neurons: the activated gate times what it multiplies")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for W, scale in ((self.W_gate, 1.0), (self.W_in, 1.0), (self.W_out, self.depth_scale)):
            init_matrix(W, self.std, d_in=len(W), scale=scale)
        self.b_out.zero_()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self.hook_pre(matrix_product(x, self.W_gate))
        post = self.hook_post(self.act(pre) * self.hook_pre_linear(matrix_product(x, self.W_in)))
        return matrix_product(post, self.W_out)
