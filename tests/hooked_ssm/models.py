"""Small models for tests of what surrounds the mixers."""

import torch

from hooked_ssm import HookedSSM, HookedSSMConfig, zoo

D_VOCAB, N_CTX = 11, 12


def config(kind: str, **options) -> HookedSSMConfig:
    if kind == "rotary":  # as in GPT-NeoX
        kind, options = "attention", {"rotary_dim": 2, "parallel_attn_mlp": True} | options
    sizes = {"d_model": 8, "d_vocab": D_VOCAB, "n_ctx": N_CTX, "n_heads": 2, "device": "cpu", "seed": 0}
    return zoo.PRESETS[kind](**(sizes | options))


def scattered(kind: str, **options) -> HookedSSM:
    """In float64, weights far from where they start."""
    model = HookedSSM(config(kind, dtype=torch.float64, **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.4 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    return model
