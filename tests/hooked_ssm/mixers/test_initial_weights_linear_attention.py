"""The distributions that the weights of Based and of gated linear attention start from."""

import pytest
import torch

from hooked_ssm import HookedSSM, zoo

from .test_initial_weights import mean_and_std

D_MODEL = 64


@pytest.mark.parametrize(
    ("preset", "f"),
    [(zoo.based, 16), (zoo.paper.based, 8), (zoo.paper.based_long_only, 8)],
    ids=["published", "paper", "long only"],
)
def test_based(preset, f):
    """Its output is not scaled by depth."""
    torch.manual_seed(0)
    mixer = HookedSSM(preset(d_model=D_MODEL, d_vocab=5)).blocks[1].mixer
    assert mixer.proj_q.weight.shape == mixer.proj_k.weight.shape == (f, D_MODEL)
    assert mixer.proj_v.weight.shape == mixer.proj_o.weight.shape == (D_MODEL, D_MODEL)
    parameters = dict(mixer.named_parameters())
    assert parameters.keys() == {f"proj_{letter}.weight" for letter in "qkvo"}
    for weight in parameters.values():
        mean_and_std(weight, 0.02)


def test_gla():
    torch.manual_seed(0)
    for block in HookedSSM(zoo.gla(d_model=D_MODEL, d_vocab=5)).blocks:
        parameters = dict(block.mixer.named_parameters())
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        d_keys, rank, d_head = D_MODEL // 2, 16, D_MODEL // 4
        assert shapes == {
            "q_proj.weight": (d_keys, D_MODEL),
            "k_proj.weight": (d_keys, D_MODEL),
            "v_proj.weight": (D_MODEL, D_MODEL),
            "g_proj.weight": (D_MODEL, D_MODEL),
            "gk_low.weight": (rank, D_MODEL),
            "gk_proj.weight": (d_keys, rank),
            "gk_proj.bias": (d_keys,),
            "norm.w": (d_head,),
            "o_proj.weight": (D_MODEL, D_MODEL),
        }
        assert (parameters.pop("norm.w") == 1).all() and (parameters.pop("gk_proj.bias") == 0).all()
        for weight in parameters.values():
            mean_and_std(weight, 0.02)
