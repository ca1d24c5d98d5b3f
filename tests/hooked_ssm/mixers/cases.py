"""The mixers that the contract is run for. A new mixer adds its cases to CASES."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hooked_ssm import HookedSSM, HookedSSMConfig, MixerConfig
from hooked_ssm.mixers import AttentionConfig, MambaConfig

from .naive_attention import attention
from .naive_mamba import mamba

D_VOCAB = 13
N_CTX = 40


def attention_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor | None) -> tuple[Tensor, Tensor]:
    by_pattern = torch.einsum("bhij,bjhd->bihd", cache["hook_pattern"], cache["hook_v"])
    return by_pattern, cache["hook_z"]


def mamba_read(cache: dict[str, Tensor], mixer: Any, matrix: Tensor | None) -> tuple[Tensor, Tensor]:
    assert matrix is not None
    by_matrix = torch.einsum("bcij,bjc->bic", matrix, cache["hook_x"])
    return by_matrix + mixer.D * cache["hook_x"], cache["hook_y"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One mixer, as small as shows all of it.

    naive: the mixer's equations written naively, one position at a time, `(mixer, u, edit) -> quantities`:
        what every hook of the mixer carries, by the hook's name in the mixer, and the output, "out".
        `edit(name, t, value)` gives what is computed with instead of a quantity's value at position t (for a
        matrix: its row t).
    read: `(quantities, mixer, matrix) -> (causal matrix times values, the hook's value that this is)`;
        the matrix is compute_effective_attention's, None without. None where no such matrix exists.
    options: of the model's config.
    exact: whether the past is bit-identical when the future changes; False where an FFT is used.
    no_gradient: parameters whose gradient is 0 by symmetry.
    moves_later: hooks whose edit at a position moves the output after it, but not there.
    """

    name: str
    mixer: MixerConfig
    naive: Callable[..., dict[str, Tensor]]
    read: Callable[..., tuple[Tensor, Tensor]] | None
    options: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    no_gradient: frozenset[str] = frozenset()
    moves_later: frozenset[str] = frozenset()

    def config(self, **options: Any) -> HookedSSMConfig:
        sizes = {"d_model": 8, "n_layers": 2, "d_vocab": D_VOCAB, "n_ctx": N_CTX, "device": "cpu"}
        return HookedSSMConfig(**(sizes | self.options | options), mixers=self.mixer)

    def model(self, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> HookedSSM:
        """The model with weights moved away from their initial values, so that nothing in it is 0 or 1."""
        model = HookedSSM(self.config(seed=seed, **options)).to(torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
        return model.to(dtype)

    @property
    def tolerance(self) -> float:
        """For what is equal but for the order of sums, relative to the largest entry, in float64."""
        return 1e-12 if self.exact else 1e-11


TRANSFORMER = {"d_mlp": 12, "positional_embedding_type": "standard"}
NO_MLP = {"normalization_type": "RMS"}


def attention_case(name: str, *, bias: bool = False, **options: Any) -> Case:
    return Case(
        name=name,
        mixer=AttentionConfig(bias=bias),
        naive=attention,
        read=attention_read,
        options=TRANSFORMER | options,
        # One vector added to all keys adds q . b_K to all scores of a position: softmax does not see it.
        no_gradient=frozenset({"mixer.b_K"} if bias else ()),
    )


def mamba_case(name: str, *, n_heads: int = 1, expand: int = 2, d_conv: int = 4, **options: Any) -> Case:
    mixer = MambaConfig(d_state=3, d_conv=d_conv, expand=expand)
    return Case(
        name=name, mixer=mixer, naive=mamba, read=mamba_read, options=NO_MLP | {"n_heads": n_heads} | options
    )


CASES = [
    attention_case("attention"),
    attention_case("attention-heads", n_heads=2),
    attention_case("attention-bias", n_heads=4, bias=True),
    mamba_case("mamba"),
    mamba_case("mamba-conv-three", d_conv=3, n_heads=2),
    mamba_case("mamba-conv-one", d_conv=1, d_mlp=12),
    mamba_case("mamba-no-conv", d_conv=0, n_heads=2),
    mamba_case("mamba-head-per-channel", expand=1, n_heads=8),
]


def random_tokens(batch: int = 3, length: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(D_VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def random_input(
    batch: int = 3, length: int = 9, d_model: int = 8, dtype: torch.dtype = torch.float64
) -> Tensor:
    """What a mixer reads: [batch, pos, d_model]."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, length, d_model, dtype=torch.float64, generator=generator).to(dtype)


def close(got: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether the largest difference is within `tolerance` of the largest entry. Infinities must coincide."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    finite = wanted.isfinite()
    if not torch.equal(got.isfinite(), finite) or not torch.equal(got[~finite], wanted[~finite]):
        return False
    got, wanted = got[finite], wanted[finite]
    return bool((got - wanted).abs().max() <= tolerance * wanted.abs().max()) if wanted.numel() else True
