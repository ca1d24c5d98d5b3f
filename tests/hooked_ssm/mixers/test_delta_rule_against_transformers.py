"""Our Gated DeltaNet and DeltaNet against transformers' layer of Qwen3-Next, on the same weights.

Theirs keeps q, k, v and gate in one projection, by key head, and beta and decay in another; `as_ours` takes
them apart. Several of its value heads may share a key head: ours have keys and queries of their own, so that
theirs are repeated, and their gradient is the sum of those of the copies. DeltaNet is their layer with
A_log = -inf, where nothing decays.

Theirs has no counterpart of `allow_neg_eigval`, of `use_beta=False`, of `use_gate=False` and of `d_conv=0`.
Its norms, decays and memory are computed in float32 whatever the model's dtype: in float64 here, where its
file's name for float32 means that.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3NextConfig
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from hooked_ssm import HookedSSMConfig, MixerConfig
from hooked_ssm.mixers import DeltaNet, DeltaNetConfig, GatedDeltaNet, GatedDeltaNetConfig

D_MODEL, D_KEY, D_VALUE = 12, 3, 6
OF_THE_DECAY = {"a_proj.weight", "A_log", "dt_bias"}


def pair(
    ours: type[MixerConfig], dtype: torch.dtype, *, heads: int = 4, shared: int = 1, d_conv: int = 4
) -> tuple[GatedDeltaNet | DeltaNet, Qwen3NextGatedDeltaNet]:
    """Ours, with any weights, and theirs, with weights moved away from their initial values."""
    torch.manual_seed(0)
    theirs = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=D_MODEL,
            num_hidden_layers=1,
            linear_conv_kernel_dim=d_conv,
            linear_key_head_dim=D_KEY,
            linear_value_head_dim=D_VALUE,
            linear_num_key_heads=heads // shared,
            linear_num_value_heads=heads,
            rms_norm_eps=1e-3,
        ),
        layer_idx=0,
    )
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.3 * torch.randn_like(p)
        # Moderate decays: the gradient of strong ones is mostly rounding in their chunks of float32.
        theirs.A_log.uniform_(-2.0, 1.0)
        if ours is DeltaNetConfig:
            theirs.A_log.fill_(-torch.inf)
    options: dict[str, Any] = {"d_conv": d_conv, "expand_v": D_VALUE / D_KEY, "use_gate": True}
    cfg = HookedSSMConfig(
        d_model=D_MODEL,
        n_layers=1,
        d_vocab=5,
        n_heads=heads,
        d_head=D_KEY,
        eps=1e-3,
        mixers=ours(**options),
    )
    mixer = cfg.mixers[0].build(cfg)
    assert isinstance(mixer, (DeltaNet, GatedDeltaNet))
    return mixer.to(dtype), theirs.to(dtype)


def as_ours(theirs: Qwen3NextGatedDeltaNet) -> dict[str, Tensor]:
    """Their weights by our names, as functions of them."""
    key_heads, shared = theirs.num_k_heads, theirs.num_v_heads // theirs.num_k_heads

    def own(x: Tensor) -> Tensor:
        """[key head * d_key, ...] -> [head * d_key, ...]"""
        return x.unflatten(0, (key_heads, D_KEY)).repeat_interleave(shared, dim=0).flatten(0, 1)

    qkvz = theirs.in_proj_qkvz.weight.unflatten(0, (key_heads, -1))
    q, k, v, gate = qkvz.split([D_KEY, D_KEY, shared * D_VALUE, shared * D_VALUE], dim=1)
    beta, a = theirs.in_proj_ba.weight.unflatten(0, (key_heads, -1)).split([shared, shared], dim=1)
    q_conv, k_conv, v_conv = theirs.conv1d.weight.split([theirs.key_dim, theirs.key_dim, theirs.value_dim])
    return {
        "q_proj.weight": own(q.flatten(0, 1)),
        "k_proj.weight": own(k.flatten(0, 1)),
        "v_proj.weight": v.flatten(0, 1),
        "g_proj.weight": gate.flatten(0, 1),
        "b_proj.weight": beta.flatten(0, 1),
        "a_proj.weight": a.flatten(0, 1),
        "conv1d.weight": torch.cat([own(q_conv), own(k_conv), v_conv]),
        "A_log": theirs.A_log,
        "dt_bias": theirs.dt_bias,
        "norm.w": theirs.norm.weight,
        "o_proj.weight": theirs.out_proj.weight,
    }


def run_ours(ours: DeltaNet | GatedDeltaNet, theirs: Qwen3NextGatedDeltaNet, u: Tensor) -> Tensor:
    weights = as_ours(theirs)
    if isinstance(ours, DeltaNet):
        weights = {name: x for name, x in weights.items() if name not in OF_THE_DECAY}
    assert weights.keys() == dict(ours.named_parameters()).keys()
    return torch.func.functional_call(ours, weights, (u,), strict=False)


class _TorchWithWideFloat32:
    """torch as transformers' file sees it, whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def let_transformers_compute_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_qwen3_next, "torch", _TorchWithWideFloat32())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def assert_close(got: Tensor, wanted: Tensor, tolerance: float, name: str = "output") -> None:
    """To the largest entry: where entries all but cancel, what is left of them is rounding."""
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max(), name


def assert_agree(
    config: type[MixerConfig],
    dtype: torch.dtype,
    tolerance: float,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
    **sizes: int,
) -> None:
    ours, theirs = pair(config, dtype, **sizes)
    if dtype == torch.float64:
        let_transformers_compute_in_float64(monkeypatch)
    u = torch.randn(3, length, D_MODEL, dtype=dtype, requires_grad=True)
    wanted, got = theirs(u), run_ours(ours, theirs, u)
    assert_close(got, wanted, tolerance)

    weight = torch.randn_like(wanted)
    named = {"u": u} | dict(theirs.named_parameters())
    wanted_grads, grads = (
        torch.autograd.grad((out * weight).sum(), list(named.values()), materialize_grads=True)
        for out in (wanted, got)
    )
    idle = 0
    for name, wanted_grad, grad in zip(named, wanted_grads, grads, strict=True):
        if wanted_grad.abs().max() == 0:
            assert (grad == 0).all() and name in ("A_log", "dt_bias")
            idle += 1
        else:
            assert_close(grad, wanted_grad, tolerance, name)
    assert idle == (2 if config is DeltaNetConfig or length == 1 else 0)  # nothing decays in one position


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["float64", "float32"]
)
BOTH = pytest.mark.parametrize("config", [GatedDeltaNetConfig, DeltaNetConfig], ids=["gated", "ungated"])


@PRECISIONS
@BOTH
@pytest.mark.parametrize("length", [1, 2, 9, 63, 64, 65, 130])
def test_output_and_every_gradient_agree(config, dtype, tolerance, length, monkeypatch):
    """Their chunks are of 64 positions, ours of up to 100 or 32: the lengths lie on both sides of each."""
    assert_agree(config, dtype, tolerance, length, monkeypatch)


@PRECISIONS
@BOTH
@pytest.mark.parametrize(
    "sizes",
    [{"heads": 1}, {"heads": 2, "d_conv": 2}, {"shared": 2}, {"shared": 4}, {"heads": 6, "shared": 3}],
    ids=str,
)
def test_they_agree_with_other_heads_and_convolutions(config, dtype, tolerance, sizes, monkeypatch):
    assert_agree(config, dtype, tolerance, 11, monkeypatch, **sizes)


@PRECISIONS
@BOTH
@torch.no_grad()
def test_states_are_transformers_own_after_every_token(config, dtype, tolerance, monkeypatch):
    """Theirs come from a recurrence of their own, one token at a time."""
    ours, theirs = pair(config, dtype)
    weights = as_ours(theirs)
    ours.load_state_dict({name: weights[name] for name, _ in ours.named_parameters()})
    if dtype == torch.float64:
        let_transformers_compute_in_float64(monkeypatch)
    u = torch.randn(3, 12, D_MODEL, dtype=dtype)
    cache = DynamicCache(config=Qwen3NextConfig(num_hidden_layers=1))
    state = None
    for t in range(u.shape[1]):
        wanted = theirs(u[:, t : t + 1], cache_params=cache)
        got, state = ours.extend(u[:, t : t + 1], state)
        assert_close(got, wanted, tolerance)
        assert_close(state.ssm, cache.layers[0].recurrent_states[0], tolerance, "memory")
        assert_close(state.conv.mT, cache.layers[0].conv_states[0][..., -3:], tolerance, "convolution")
