"""The parts around a mixer: linear maps and embeddings that know their initial scale, norms, MLP."""

from functools import partial

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.hooks import Hook
from hooked_ssm.ops import onednn
from hooked_ssm.ops.memory import few_rows, matrix_product, product_of_few_rows
from hooked_ssm.ops.rms_norm import rms_norm

# "gelu_new" is the approximation by tanh.
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def linear(x: Float[Tensor, "*batch d_in"], layer: nn.Linear) -> Float[Tensor, "*batch d_out"]:
    """What the layer makes of x. For single tokens, without a graph, as fast as the weights can be read."""
    if few_rows(x, layer.weight):
        return product_of_few_rows(x, layer.weight.t(), layer.bias)
    if onednn.takes(x, layer.weight.t()):
        return onednn.product(x, layer.weight.t(), layer.bias)
    return F.linear(x, layer.weight, layer.bias)


class Linear(nn.Linear):
    """`nn.Linear` whose `reset_parameters` restores the model's own initial distribution.

    std: standard deviation of the initial weights; None for PyTorch's uniform default.
    scale: factor on the initial weights (depth scaling of what writes to the residual stream).
    Initial biases are 0 (as in the paper's code, for PyTorch's default weights too).
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool, std: float | None, scale: float = 1.0):
        self.std, self.scale = std, scale
        super().__init__(d_in, d_out, bias=bias)

    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return linear(input, self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.std is None:
            super().reset_parameters()
        else:
            self.weight.normal_(0.0, self.std)
        self.weight.mul_(self.scale)
        if self.bias is not None:
            self.bias.zero_()


class Embed(nn.Module):
    """Token embedding, W_E [d_vocab, d_model], initially N(0, embed_std)."""

    def __init__(self, cfg: HookedSSMConfig):
        super().__init__()
        self.std = cfg.embed_std
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.W_E.normal_(0.0, self.std)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.W_E)


class PosEmbed(nn.Module):
    """Learned absolute positions, W_pos [n_ctx, d_model], initially N(0, embed_std)."""

    def __init__(self, cfg: HookedSSMConfig):
        super().__init__()
        self.std = cfg.embed_std
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.W_pos.normal_(0.0, self.std)

    def forward(self, batch: int, start: int, end: int) -> Float[Tensor, "batch pos d_model"]:
        """Positions start..end-1, the same for every document: a fresh tensor, not a view of W_pos."""
        if end > len(self.W_pos):
            raise ValueError(
                f"the model has n_ctx={len(self.W_pos)} learned positions, got a document of {end}."
            )
        return self.W_pos[start:end].repeat(batch, 1, 1)


class Unembed(nn.Module):
    """Residual stream to logits, W_U [d_model, d_vocab]: tied models pass the transposed embedding."""

    def __init__(self, cfg: HookedSSMConfig):
        super().__init__()
        self.std = cfg.embed_std
        if not cfg.tie_embeddings:
            self.W_U = nn.Parameter(torch.empty(cfg.d_model, cfg.d_vocab))
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for W_U in self.parameters():  # none if tied
            W_U.normal_(0.0, self.std)


class LayerNorm(nn.Module):
    """(x - mean) / scale * w + b, with hook_scale = sqrt(var + eps) and hook_normalized after w and b.

    It normalises the last axis of a tensor whose axes `shape` names.
    """

    def __init__(self, d_model: int, eps: float, shape: str = "batch pos d_model"):
        super().__init__()
        self.eps = eps
        self.w = nn.Parameter(torch.empty(d_model))
        self.b = nn.Parameter(torch.empty(d_model))
        self.hook_scale = Hook(f"{shape.rsplit(maxsplit=1)[0]} one", "what the norm divides by")
        self.hook_normalized = Hook(shape, "output of the norm", copy=True)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.w.fill_(1.0)
        self.b.zero_()

    def normalize(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch one"]:
        return (x.var(-1, unbiased=False, keepdim=True) + self.eps).sqrt()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        y = self.normalize(x)
        if self.hook_scale.attached:
            scale = self.scale(x)
            hooked = self.hook_scale(scale.clone())
            # The fused norm divided by `scale`; dividing by the hooked value instead is a factor that is
            # exactly 1 where nothing was changed, so that looking changes no bit.
            if not self.hook_scale.can_wait:
                y = y + (y - self.b) * (scale / hooked - 1)
        return self.hook_normalized(y)


class RMSNorm(LayerNorm):
    """x / scale * w, with hook_scale = sqrt(mean x^2 + eps). No bias: `b` is absent."""

    def __init__(self, d_model: int, eps: float, shape: str = "batch pos d_model"):
        super().__init__(d_model, eps, shape)
        del self.b
        self.register_buffer("b", torch.zeros(()), persistent=False)

    def normalize(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return rms_norm(x, self.w, self.eps)

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch one"]:
        return (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


NORMS = {"LN": LayerNorm, "RMS": RMSNorm}


class MLP(nn.Module):
    """act(x W_in + b_in) W_out + b_out. W_out is initially scaled by 1 / sqrt(2 n_layers)."""

    def __init__(self, cfg: HookedSSMConfig):
        super().__init__()
        assert cfg.d_mlp
        self.std, self.depth_scale = cfg.linear_std, (2 * cfg.n_layers) ** -0.5
        self.act = ACTIVATIONS[cfg.act_fn]
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.b_in = nn.Parameter(torch.empty(cfg.d_mlp))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model))
        self.b_out = nn.Parameter(torch.empty(cfg.d_model))
        self.hook_pre = Hook("batch pos d_mlp", "neurons before the activation")
        self.hook_post = Hook("batch pos d_mlp", "neurons after the activation")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for W, scale in ((self.W_in, 1.0), (self.W_out, self.depth_scale)):
            init_matrix(W, self.std, d_in=len(W), scale=scale)
        self.b_in.zero_()
        self.b_out.zero_()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self.hook_pre(matrix_product(x.flatten(0, 1), self.W_in, self.b_in).unflatten(0, x.shape[:2]))
        post = self.hook_post(self.act(pre))
        return matrix_product(post.flatten(0, 1), self.W_out, self.b_out).unflatten(0, x.shape[:2])


@torch.no_grad()
def init_matrix(W: Float[Tensor, "..."], std: float | None, *, d_in: int, scale: float = 1.0) -> None:
    """N(0, std), or PyTorch's default for a linear map with d_in inputs, U(-1/sqrt(d_in), 1/sqrt(d_in))."""
    if std is None:
        W.uniform_(-(d_in**-0.5), d_in**-0.5)
    else:
        W.normal_(0.0, std)
    W.mul_(scale)


def write_heads(
    z: Float[Tensor, "batch pos head d_head"], W_O: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "batch pos head d_model"]:
    """What each head writes to the residual stream."""
    return einsum(z, W_O, "batch pos head d_head, head d_head d_model -> batch pos head d_model")
