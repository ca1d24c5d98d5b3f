"""One mixer as the contract runs it, and the inputs that it is run on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hooked_ssm import HookedSSM, HookedSSMConfig, MixerConfig

D_VOCAB = 13
N_CTX = 40
TRANSFORMER = {"d_mlp": 12, "positional_embedding_type": "standard"}
NO_MLP = {"normalization_type": "RMS"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One mixer, as small as shows all of it.

    naive: the mixer's equations written naively, one position at a time, `(mixer, u, edit) -> quantities`:
        what every hook of the mixer carries, by the hook's name in the mixer, and the output, "out".
        `edit(name, t, value)` gives what is computed with instead of a quantity's value at position t (for a
        matrix: its row t).
    read: `(activations, mixer, matrix) -> (causal matrix times values, the hook's value that this is)`;
        the matrix is `effective_attention`'s.
    options: of the model's config.
    exact: whether the past is bit-identical when the future changes; False where an FFT is used.
    no_gradient: parameters whose gradient is 0 by symmetry.
    moves_later: hooks whose edit at a position moves the output after it, but not there.
    carried: hooks of trajectories: what such a hook is given depends on its own entries at earlier positions,
        and an edit there is carried on.
    """

    name: str
    mixer: MixerConfig
    naive: Callable[..., dict[str, Tensor]]
    read: Callable[..., tuple[Tensor, Tensor]]
    options: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    no_gradient: frozenset[str] = frozenset()
    moves_later: frozenset[str] = frozenset()
    carried: frozenset[str] = frozenset({"hook_ssm_state"})

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
