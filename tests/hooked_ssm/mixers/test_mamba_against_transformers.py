"""Our Mamba against transformers' MambaForCausalLM on the same random weights: logits and all gradients."""

import pytest
import torch
from transformers import MambaConfig as HFConfig
from transformers import MambaForCausalLM
from transformers.models.mamba import modeling_mamba

from hooked_ssm import HookedSSM, zoo

NAMES = {
    "embed.W_E": "backbone.embeddings.weight",
    "ln_final.w": "backbone.norm_f.weight",
    **{
        f"blocks.{layer}.{ours}": f"backbone.layers.{layer}.{theirs}"
        for layer in range(3)
        for ours, theirs in [
            ("ln1.w", "norm.weight"),
            *(
                (f"mixer.{name}", f"mixer.{name}")
                for name in (
                    "in_proj.weight",
                    "conv1d.weight",
                    "conv1d.bias",
                    "x_proj.weight",
                    "dt_proj.weight",
                    "dt_proj.bias",
                    "A_log",
                    "D",
                    "out_proj.weight",
                )
            ),
        ]
    },
}


def pair(dtype: torch.dtype, d_conv: int = 4) -> tuple[HookedSSM, MambaForCausalLM]:
    """The two models with the same weights, moved away from their initial values at random."""
    torch.manual_seed(0)
    theirs = MambaForCausalLM(
        HFConfig(
            hidden_size=24,
            num_hidden_layers=3,
            vocab_size=29,
            state_size=5,
            conv_kernel=d_conv,
            use_cache=False,
        )
    )
    cfg = zoo.mamba(d_model=24, n_layers=3, d_vocab=29, d_state=5, d_conv=d_conv, final_norm="RMS")
    ours = HookedSSM(cfg)
    for p in theirs.parameters():
        p.data += 0.2 * torch.randn_like(p)
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[NAMES[name]] for name in ours.state_dict()})
    return ours.to(dtype), theirs.to(dtype).eval()


class _TorchWithWideFloat32:
    """torch as transformers' file sees it, whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def let_transformers_compute_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers casts norms, scan and logits to float32 whatever the model's dtype. Here to float64."""
    monkeypatch.setattr(modeling_mamba, "torch", _TorchWithWideFloat32())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("length", [1, 2, 7, 40])
@pytest.mark.parametrize("d_conv", [2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_logits_and_every_gradient_agree(dtype, tolerance, d_conv, length, monkeypatch):
    ours, theirs = pair(dtype, d_conv)
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
        scale = wanted_grad.abs().max()
        assert (grad - wanted_grad).abs().max() <= tolerance * scale, name
        checked += 1
    assert checked == len(theirs_by_name)
