"""Models with clean and corrupted documents for sweeps: small, in float64, far from initialisation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from hooked_ssm import HookedSSM, HookedSSMConfig
from hooked_ssm.mixers import AttentionConfig, MambaConfig

from ..models import D_VOCAB, scattered

DOCS, LENGTH = 3, 6
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@dataclass(frozen=True)
class Case:
    model: Any
    clean: Tensor
    corrupted: Tensor
    readout: Tensor
    cache: Any

    def metric(self, logits: Tensor) -> Tensor:
        """A number that every logit at every position moves, and not linearly."""
        return self.per_document(logits).mean()

    def per_document(self, logits: Tensor) -> Tensor:
        return (logits.tanh() * self.readout).sum((-1, -2))

    def measure(self, *hooks: tuple[str, Callable]) -> float:
        """The metric of the corrupted documents under hooks."""
        with torch.no_grad():
            return float(self.metric(self.model.run_with_hooks(self.corrupted, fwd_hooks=list(hooks))))


def by_channel(mixers: Any) -> HookedSSM:
    """Every channel of the Mambas a head, so that they have patterns."""
    cfg = HookedSSMConfig(
        mixers=mixers, d_model=4, n_layers=2, n_heads=4, d_vocab=D_VOCAB, normalization_type="RMS"
    )
    model = HookedSSM(cfg).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.4 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    return model


def gpt2_bridge() -> Any:
    cfg = GPT2Config(
        vocab_size=D_VOCAB, n_positions=16, n_embd=8, n_layer=2, n_head=2, attn_implementation="eager"
    )
    model = GPT2LMHeadModel(cfg).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.4 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=cfg)


@cache
def model_of(kind: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        match kind:
            case "a bridge":
                return gpt2_bridge()
            case "Mamba by channel":
                return by_channel(MambaConfig(expand=1, d_state=3))
            case "hybrid by channel":
                return by_channel([MambaConfig(expand=1, d_state=3), AttentionConfig()])
            case _:
                return scattered(kind)


def case_of(kind: str, length: int = LENGTH) -> Case:
    """Documents that differ in one token each, in different places; the last does not differ."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(D_VOCAB, (DOCS, length), generator=generator)
    corrupted = clean.clone()
    corrupted[0, 1] = (clean[0, 1] + 3) % D_VOCAB
    corrupted[1, 3] = (clean[1, 3] + 5) % D_VOCAB
    readout = torch.randn(length, D_VOCAB, generator=generator, dtype=torch.float64)
    model = model_of(kind)
    with torch.no_grad():
        return Case(model, clean, corrupted, readout, model.run_with_cache(clean)[1])


def hooks_outside(model: HookedSSM) -> set[str]:
    """The hooks that can fire and do not lie between the inputs and the logits, by the equations.

    Learned positions, filters and H3's decays are made of weights alone; an MLP that is not there reads the
    residual stream times 0, and writes 0.
    """
    names = {"hook_pos_embed"} if "hook_pos_embed" in model.hook_dict else set()
    for layer, block in enumerate(model.blocks):
        mixer = type(block.mixer).__name__
        own = ["mixer.hook_filter"] if hasattr(block.mixer, "hook_filter") else []
        own += ["mixer.hook_conv_filter", "mixer.hook_ssm_decay"] if mixer == "H3" else []
        own += ["hook_mlp_in", "hook_mlp_out"] if block.mlp is None else []
        names |= {f"blocks.{layer}.{name}" for name in own}
    return names & set(model.hook_dict) - set(model.unavailable_hooks())
