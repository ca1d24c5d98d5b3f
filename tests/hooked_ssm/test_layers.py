"""The parts around a mixer, against PyTorch's own and against their equations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_ssm import HookedSSM, HookedSSMConfig, zoo
from hooked_ssm.layers import MLP, LayerNorm, Linear, PosEmbed, RMSNorm, Unembed, init_matrix
from hooked_ssm.mixers import AttentionConfig

EPS = 1e-5


def config(**options) -> HookedSSMConfig:
    sizes = {"d_model": 6, "n_layers": 2, "d_vocab": 5, "d_mlp": 9, "n_ctx": 7, "device": "cpu"}
    return HookedSSMConfig(**(sizes | options), mixers=AttentionConfig())


def norms() -> list[tuple[LayerNorm, torch.nn.Module]]:
    """Ours and PyTorch's, with the same random weights."""
    torch.manual_seed(0)
    pairs = [(LayerNorm(6, EPS), torch.nn.LayerNorm(6, EPS)), (RMSNorm(6, EPS), torch.nn.RMSNorm(6, EPS))]
    for ours, theirs in pairs:
        with torch.no_grad():
            ours.w.copy_(theirs.weight.normal_())
            if isinstance(theirs, torch.nn.LayerNorm):
                ours.b.copy_(theirs.bias.normal_())
    return [(ours.double(), theirs.double()) for ours, theirs in pairs]


def hooked(norm: LayerNorm, x: Tensor, edit) -> Tensor:
    """The norm's output while `edit` is attached to its hook_scale."""
    norm.hook_scale.add_hook(lambda scale, hook: edit(scale))
    try:
        return norm(x)
    finally:
        norm.hook_scale.remove_hooks()


@pytest.mark.parametrize("which", [0, 1], ids=["LN", "RMS"])
def test_norms_are_pytorchs(which):
    ours, theirs = norms()[which]
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(ours(x), theirs(x))
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))
    weight = torch.randn_like(x)
    for norm in (ours, theirs):
        (norm(x) * weight).sum().backward()
    assert torch.equal(ours.w.grad, theirs.weight.grad)


@pytest.mark.parametrize("which", [0, 1], ids=["LN", "RMS"])
def test_hook_scale_is_what_the_norm_divides_by(which):
    """An edited scale s gives (x - mean) / s * w + b, in value and in every gradient."""
    norm, _ = norms()[which]
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    s = (torch.rand(2, 3, 1, dtype=torch.float64) + 0.5).requires_grad_()
    seen: list[Tensor] = []
    hooked(norm, x, seen.append)
    centred = x - x.mean(-1, keepdim=True) if which == 0 else x
    torch.testing.assert_close(
        seen[0], (centred.square().mean(-1, keepdim=True) + EPS).sqrt(), rtol=1e-14, atol=0
    )

    got, wanted = hooked(norm, x, lambda scale: s), centred / s * norm.w + norm.b
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)
    weight, inputs = torch.randn_like(x), [x, s, *norm.parameters()]
    for ours, naive in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("which", [0, 1], ids=["LN", "RMS"])
def test_freezing_the_scale_makes_the_norm_linear(which):
    norm, _ = norms()[which]
    x, y = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    scales: list[Tensor] = []
    hooked(norm, x, lambda scale: scales.append(scale.clone()))

    def frozen(x: Tensor) -> Tensor:
        return hooked(norm, x, lambda scale: scales[0]) - norm.b

    torch.testing.assert_close(frozen(x + y), frozen(x) + frozen(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "silu"])
def test_mlp_is_its_equation(name):
    torch.manual_seed(0)
    mlp = MLP(config(act_fn=name)).double()
    for p in mlp.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    pre = x @ mlp.W_in + mlp.b_in
    act = {
        "gelu": pre * 0.5 * (1 + torch.erf(pre / 2**0.5)),
        "gelu_new": pre * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (pre + 0.044715 * pre**3))),
        "relu": pre * (pre > 0),
        "silu": pre / (1 + torch.exp(-pre)),
    }[name]
    torch.testing.assert_close(mlp(x), act @ mlp.W_out + mlp.b_out, rtol=1e-13, atol=1e-13)


def test_positions_are_fresh_and_end_at_n_ctx():
    embed = PosEmbed(config())
    got = embed(2, 3, 5)
    assert torch.equal(got, embed.W_pos[3:5].expand(2, -1, -1))
    assert got.untyped_storage().data_ptr() != embed.W_pos.untyped_storage().data_ptr()
    with pytest.raises(ValueError, match="n_ctx=7 learned positions, got a document of 8"):
        embed(2, 5, 8)


def test_a_tied_unembedding_has_no_weights_of_its_own():
    assert not list(Unembed(config()).parameters())
    model = HookedSSM(config())
    assert model.W_U.data_ptr() == model.W_E.data_ptr() and torch.equal(model.W_U, model.W_E.T)
    untied = HookedSSM(config(tie_embeddings=False))
    assert untied.W_U.shape == (6, 5) and not torch.equal(untied.W_U, untied.W_E.T)


def check_normal(x: Tensor, std: float) -> None:
    """Moments within four standard errors, and normal's share within one standard deviation."""
    n = x.numel()
    assert abs(x.mean()) < 4 * std / n**0.5
    assert abs(x.std() / std - 1) < 4 / (2 * n) ** 0.5
    assert abs((x.abs() < std).double().mean() - 0.6827) < 4 * 0.4654 / n**0.5


def check_uniform(x: Tensor, bound: float) -> None:
    n = x.numel()
    assert x.abs().max() <= bound
    assert abs(x.mean()) < 4 * bound / (3 * n) ** 0.5
    assert abs((x.abs() < bound / 2).double().mean() - 0.5) < 4 * 0.5 / n**0.5


def test_initial_weights_around_the_mixer():
    """N(0, 0.02) for embeddings and linear maps, W_out by 1 / sqrt(2 n_layers) smaller; biases 0, norms 1."""
    torch.manual_seed(0)
    model = HookedSSM(zoo.attention(d_model=64, n_layers=3, d_vocab=97, tie_embeddings=False))
    check_normal(model.W_E, 0.02)
    check_normal(model.W_U, 0.02)
    check_normal(model.pos_embed.W_pos, 0.02)
    for block in model.blocks:
        check_normal(block.mlp.W_in, 0.02)
        check_normal(block.mlp.W_out, 0.02 / 6**0.5)
        assert (block.mlp.b_in == 0).all() and (block.mlp.b_out == 0).all()
    for norm in (model.ln_final, *(b.ln1 for b in model.blocks), *(b.ln2 for b in model.blocks)):
        assert (norm.w == 1).all() and (norm.b == 0).all()


@torch.no_grad()
def test_linear_maps_start_as_they_are_asked_to():
    torch.manual_seed(0)
    check_normal(Linear(50, 80, bias=False, std=0.3).weight, 0.3)
    check_normal(Linear(50, 80, bias=False, std=0.3, scale=0.5).weight, 0.15)
    linear = Linear(50, 80, bias=True, std=None, scale=2.0)
    check_uniform(linear.weight, 2 * 50**-0.5)
    assert (linear.bias == 0).all()
    x = torch.randn(3, 50)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    check_uniform(init_matrix(W := torch.empty(50, 80), None, d_in=50) or W, 50**-0.5)
    check_normal(init_matrix(W, 0.1, d_in=50, scale=3.0) or W, 0.3)
