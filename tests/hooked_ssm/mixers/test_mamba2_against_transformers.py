"""Our Mamba-2 against transformers' Mamba2ForCausalLM on one set of weights: logits, gradients, states."""

from typing import Any

import pytest
import torch
from transformers import Mamba2Config as HFConfig
from transformers import Mamba2ForCausalLM
from transformers.models.mamba2 import modeling_mamba2

from hooked_ssm import HookedSSM, zoo

LAYERS = 2
SAME_NAME = ("in_proj.weight", "conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D", "out_proj.weight")
NAMES = {
    "embed.W_E": "backbone.embeddings.weight",
    "ln_final.w": "backbone.norm_f.weight",
    **{
        f"blocks.{layer}.{ours}": f"backbone.layers.{layer}.{theirs}"
        for layer in range(LAYERS)
        for ours, theirs in [
            ("ln1.w", "norm.weight"),
            ("mixer.norm.w", "mixer.norm.weight"),
            *((f"mixer.{name}", f"mixer.{name}") for name in SAME_NAME),
        ]
    },
}


def pair(
    dtype: torch.dtype, *, heads: int = 4, groups: int = 2, d_conv: int = 4, chunk_size: int = 8
) -> tuple[HookedSSM, Mamba2ForCausalLM]:
    """The two models with the same weights, moved away from their initial values at random."""
    torch.manual_seed(0)
    theirs = Mamba2ForCausalLM(
        HFConfig(
            hidden_size=24,
            num_hidden_layers=LAYERS,
            vocab_size=29,
            num_heads=heads,
            head_dim=48 // heads,
            state_size=5,
            n_groups=groups,
            conv_kernel=d_conv,
            chunk_size=chunk_size,
            use_cache=False,
            tie_word_embeddings=True,
        )
    )
    cfg = zoo.mamba2(
        d_model=24,
        n_layers=LAYERS,
        d_vocab=29,
        d_state=5,
        head_dim=48 // heads,
        n_groups=groups,
        d_conv=d_conv,
        final_norm="RMS",
    )
    ours = HookedSSM(cfg)
    for p in theirs.parameters():
        p.data += 0.2 * torch.randn_like(p)
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[NAMES[name]].view_as(p) for name, p in ours.state_dict().items()})
    return ours.to(dtype), theirs.to(dtype).eval()


class _TorchWithWideFloat32:
    """torch as transformers' file sees it, whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def let_transformers_compute_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers casts norms, scan and logits to float32 whatever the model's dtype. Here to float64."""
    monkeypatch.setattr(modeling_mamba2, "torch", _TorchWithWideFloat32())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def assert_agree(
    dtype: torch.dtype, tolerance: float, length: int, monkeypatch: pytest.MonkeyPatch, **sizes: Any
) -> None:
    ours, theirs = pair(dtype, **sizes)
    if dtype == torch.float64:
        let_transformers_compute_in_float64(monkeypatch)
    tokens = torch.randint(29, (3, length))
    wanted = theirs(tokens).logits
    got = ours(tokens)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)

    weight = torch.randn_like(wanted)
    (wanted * weight).sum().backward()
    (got * weight).sum().backward()
    theirs_by_name = dict(theirs.named_parameters())
    checked = 0
    for name, p in ours.named_parameters():
        wanted_grad, grad = theirs_by_name[NAMES[name]].grad, p.grad
        assert wanted_grad is not None and grad is not None
        scale = wanted_grad.abs().max()
        assert (grad - wanted_grad.view_as(grad)).abs().max() <= tolerance * scale, name
        checked += 1
    assert checked == len(theirs_by_name)


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["float64", "float32"]
)


@PRECISIONS
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 40])
def test_logits_and_every_gradient_agree(dtype, tolerance, length, monkeypatch):
    """Their chunks are of 8 positions: the lengths lie on both sides of that border."""
    assert_agree(dtype, tolerance, length, monkeypatch)


@PRECISIONS
@pytest.mark.parametrize("length", [63, 64, 65, 130])
def test_they_agree_on_long_documents(dtype, tolerance, length, monkeypatch):
    assert_agree(dtype, tolerance, length, monkeypatch, chunk_size=32)


@PRECISIONS
@pytest.mark.parametrize(
    "sizes",
    [{"heads": 1, "groups": 1}, {"heads": 4, "groups": 1}, {"heads": 4, "groups": 4}, {"d_conv": 2}],
    ids=str,
)
def test_they_agree_with_other_heads_groups_and_convolutions(dtype, tolerance, sizes, monkeypatch):
    assert_agree(dtype, tolerance, 11, monkeypatch, **sizes)


@PRECISIONS
@torch.no_grad()
def test_states_are_transformers_own_after_every_token(dtype, tolerance, monkeypatch):
    """Theirs come from a recurrence of their own, one token at a time; ours from one run over all."""
    ours, theirs = pair(dtype)
    if dtype == torch.float64:
        let_transformers_compute_in_float64(monkeypatch)
    tokens = torch.randint(29, (3, 12))
    _, cache = ours.run_with_cache(tokens)
    step, state = None, None
    for t in range(tokens.shape[1]):
        step = theirs(
            tokens[:, t : t + 1], use_cache=True, cache_params=None if step is None else step.cache_params
        )
        _, state = ours.step(tokens[:, t : t + 1], state)
        for layer in range(LAYERS):
            wanted = step.cache_params.get_recurrent_state(layer).transpose(2, 3)
            got = cache[f"blocks.{layer}.mixer.hook_ssm_state"][:, t]
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(state.layers[layer].ssm, wanted, rtol=tolerance, atol=tolerance)
            inputs = step.cache_params.get_conv_state(layer)[:, :, -3:].mT
            torch.testing.assert_close(state.layers[layer].conv, inputs, rtol=tolerance, atol=tolerance)
