"""Models and documents for TransformerLens's own functions: small, in float64, far from initialisation."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hooked_ssm import HookedCache, HookedSSM, HookedSSMConfig, zoo
from hooked_ssm.mixers import AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MambaConfig

VOCAB, LENGTH = 11, 5
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in")


def configs() -> dict[str, HookedSSMConfig]:
    sizes = {"d_vocab": VOCAB, "n_ctx": 32, "dtype": torch.float64, "device": "cpu"}
    channels = {"n_heads": 4, "d_model": 4, "n_layers": 2, "normalization_type": "RMS", **sizes}
    mamba = MambaConfig(expand=1, d_state=3)
    return {
        # Heads, MLP, biases, LayerNorm throughout, learned positions.
        "attention": zoo.attention(d_model=12, n_heads=3, d_mlp=10, bias=True, **sizes),
        # As in GPT-NeoX: rotary positions, and the MLP beside the attention.
        "rotary": HookedSSMConfig(
            d_model=12,
            n_heads=3,
            n_layers=2,
            d_mlp=10,
            mixers=AttentionConfig(bias=True, rotary_dim=2, rotary_base=10.0),
            parallel_attn_mlp=True,
            tie_embeddings=False,
            **sizes,
        ),
        # Mixers only; RMSNorm in the blocks, LayerNorm before the unembedding.
        "mamba": zoo.mamba(d_model=8, n_heads=2, d_state=3, **sizes),
        "hybrid": zoo.hybrid(d_model=8, n_heads=2, n_layers=3, **sizes),
        "hybrid with MLPs": zoo.hybrid(
            d_model=8, n_heads=2, d_mlp=6, final_norm="RMS", tie_embeddings=False, d_conv=3, **sizes
        ),
        # States that are matrices, one a head; gates and norms inside the mixers.
        "matrix states": HookedSSMConfig(
            d_model=8, n_heads=2, n_layers=2, mixers=[Mamba2Config(d_state=3), GatedDeltaNetConfig()], **sizes
        ),
        # Each of Mamba's channels a head, so that it has patterns.
        "mamba by channel": HookedSSMConfig(mixers=mamba, **channels),
        "hybrid by channel": HookedSSMConfig(mixers=[mamba, AttentionConfig()], **channels),
    }


MODELS = ["attention", "rotary", "mamba", "hybrid", "hybrid with MLPs", "matrix states"]
WITH_PATTERNS = ["attention", "rotary", "mamba by channel", "hybrid by channel"]


@torch.no_grad()
def scatter(model: HookedSSM, seed: int = 0) -> HookedSSM:
    """Draw every weight anew, norms and biases included, far from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        centre = 1.0 if name.endswith(("ln1.w", "ln2.w", "ln_final.w", ".D")) else 0.0
        p.copy_(centre + 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


@cache
def build(name: str) -> HookedSSM:
    return scatter(HookedSSM(configs()[name]))


@dataclass(frozen=True)
class Case:
    """A model with clean and corrupted documents [batch, pos], which differ in two tokens, and a metric."""

    model: HookedSSM
    clean: Tensor
    corrupted: Tensor
    readout: Tensor

    def first(self, length: int) -> "Case":
        """The case with documents cut off."""
        parts = self.clean[:, :length], self.corrupted[:, :length], self.readout[:length]
        return Case(self.model, *parts)

    def metric(self, logits: Tensor) -> Tensor:
        """A number that every logit at every position moves: nothing that a patch does is invisible to it."""
        return self.per_document(logits).mean()

    def per_document(self, logits: Tensor) -> Tensor:
        return (logits * self.readout).sum((-1, -2))

    def cached(self, tokens: Tensor, **options) -> HookedCache:
        with torch.no_grad():
            return self.model.run_with_cache(tokens, **options)[1]

    @property
    def clean_cache(self) -> HookedCache:
        return self.cached(self.clean)

    def measure(self, hooks: list[tuple[str, Callable]], tokens: Tensor | None = None) -> float:
        """The metric of the corrupted documents (or others) under hooks."""
        with torch.no_grad():
            tokens = self.corrupted if tokens is None else tokens
            return float(self.metric(self.model.run_with_hooks(tokens, fwd_hooks=hooks)))


def make_case(name: str) -> Case:
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(VOCAB, (2, LENGTH), generator=generator)
    corrupted = clean.clone()
    corrupted[:, [1, 3]] = (clean[:, [1, 3]] + 3) % VOCAB
    readout = torch.randn(LENGTH, VOCAB, generator=generator, dtype=torch.float64)
    return Case(build(name), clean, corrupted, readout)


def _checked(name: str) -> Iterator[Case]:
    """The case, and after the test a look at whether the tool left the model as it was."""
    case = make_case(name)
    weights = {name: p.clone() for name, p in case.model.state_dict().items()}
    yield case
    assert not case.model.list_hooks(), "hooks were left on the model"
    assert not any(getattr(case.model.cfg, flag) for flag in FLAGS), "a flag was left on"
    assert not case.model.training
    for name, p in case.model.state_dict().items():
        assert torch.equal(p, weights[name]), f"{name} was changed"


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield from _checked(request.param)


@pytest.fixture(params=WITH_PATTERNS)
def pattern_case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A model all of whose layers have patterns."""
    yield from _checked(request.param)


@pytest.fixture(params=["mamba", "hybrid"])
def ssm_case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A model with recurrent layers."""
    yield from _checked(request.param)


@pytest.fixture(params=["attention", "rotary", "hybrid with MLPs"])
def mlp_case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A model with neurons."""
    yield from _checked(request.param)


@pytest.fixture
def rebuilt() -> Callable[..., Case]:
    """A case whose model has some fields of its config changed."""

    def rebuild(name: str, **changes) -> Case:
        model = scatter(HookedSSM(dataclasses.replace(configs()[name], **changes)))
        return dataclasses.replace(make_case(name), model=model)

    return rebuild


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Words separated by spaces: a BOS token, a pad token, an unknown one, and the letters a to h."""
    words = ["<bos>", "<pad>", "<unk>", *"abcdefgh"]
    assert len(words) == VOCAB
    words_to_ids = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    words_to_ids.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>"
    )
