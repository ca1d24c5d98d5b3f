"""What a model is made of: one dataclass for the model, one small frozen dataclass per mixer.

`HookedSSMConfig` is a `TransformerLensConfig`, so that TransformerLens's own functions find the fields
they read. The architecture of each layer is its entry in `mixers`; a hybrid is a list of different ones.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformer_lens.config import TransformerLensConfig

from hooked_ssm.ops.backends import AUTO, check_backend

Norm = Literal["LN", "RMS"]


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Base of every mixer's config. A subclass sets `name` and `build`, and is then known by its name."""

    name: ClassVar[str]
    registry: ClassVar[dict[str, type["MixerConfig"]]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        MixerConfig.registry[cls.name] = cls

    def build(self, cfg: "HookedSSMConfig") -> nn.Module:
        """The mixer for one layer of a model with config `cfg`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to build its mixer.")

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "MixerConfig":
        """The config written by `to_dict`. Raises ValueError for an unknown mixer or option."""
        values = dict(values)
        name = values.pop("name", None)
        check_known([str(name)], set(MixerConfig.registry), "known mixer")
        cls = MixerConfig.registry[name]
        check_known(values, {f.name for f in dataclasses.fields(cls)}, f"option of mixer {name!r}")
        return cls(**values)


@dataclass(kw_only=True, repr=False)
class HookedSSMConfig(TransformerLensConfig):
    """Config of a `HookedSSM`.

    d_model, n_layers, d_vocab: sizes of the residual stream, of the stack and of the vocabulary.
    mixers: one `MixerConfig` a layer, or a single one for all layers.
    n_heads: heads of every mixer that has heads; elsewhere the number of channel groups that
        TransformerLens's per-head tools see as heads.
    d_head: width of a head, where a mixer does not say otherwise; -1 for d_model / n_heads.
    n_ctx: longest document with learned positions; without, only what tools take for a limit.
    d_mlp: hidden size of the MLP after each mixer; None for no MLP.
    gated_mlp: whether the MLP is gated, and without biases.
    parallel_attn_mlp: whether the MLP reads what the mixer reads, and not what that adds to (as in GPT-NeoX).
    positional_embedding_type: "standard" (learned, added to the embedding) or "none". Rotary positions are
        the attention's own (`AttentionConfig`).
    normalization_type, final_norm: "LN" or "RMS", in the blocks and before the unembedding.
    tie_embeddings: whether the unembedding is the transposed embedding.
    embed_std, linear_std: standard deviations of initial embeddings and of linear maps; None leaves
        linear maps at PyTorch's default.
    backend: what operators run on, see `ops.backends`; like the device, it is no part of what is saved.
    seed: if given, initial weights are drawn with it and the global random state is left alone.

    Raises ValueError for sizes that do not fit together.
    """

    d_model: int
    n_layers: int
    d_vocab: int  # pyright: ignore[reportGeneralTypeIssues]  # required here, optional in TransformerLens
    mixers: MixerConfig | list[MixerConfig]
    n_ctx: int = 1024
    n_heads: int = 1
    d_head: int = -1
    d_mlp: int | None = None
    act_fn: str = "gelu"
    positional_embedding_type: str = "none"
    normalization_type: str | None = "LN"
    final_norm: Norm = "LN"
    tie_embeddings: bool = True
    embed_std: float = 0.02
    linear_std: float | None = 0.02
    backend: str = AUTO
    seed: int | None = None
    model_name: str = "hooked_ssm"
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    parallel_attn_mlp: bool = False

    def __post_init__(self):
        for name in ("d_model", "n_layers", "d_vocab", "n_ctx", "n_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.d_head == -1 and self.d_model % self.n_heads:
            raise ValueError(
                "d_model must be a multiple of n_heads where d_head is not given, "
                f"got d_model={self.d_model}, n_heads={self.n_heads}."
            )
        if self.d_mlp is not None and self.d_mlp < 0:
            raise ValueError(f"d_mlp must not be negative, got {self.d_mlp}.")
        if self.parallel_attn_mlp and not self.d_mlp:
            raise ValueError(f"parallel_attn_mlp needs MLPs, got d_mlp={self.d_mlp}.")
        if isinstance(self.mixers, MixerConfig):
            self.mixers = [self.mixers] * self.n_layers
        if not isinstance(self.mixers, list) or not all(isinstance(m, MixerConfig) for m in self.mixers):
            raise TypeError(f"mixers must be a MixerConfig or a list of them, got {self.mixers!r}.")
        if len(self.mixers) != self.n_layers:
            raise ValueError(
                f"one mixer a layer is wanted, got {len(self.mixers)} for {self.n_layers} layers."
            )
        for name, allowed in (
            ("normalization_type", ("LN", "RMS")),
            ("final_norm", ("LN", "RMS")),
            ("positional_embedding_type", ("standard", "none")),
            ("act_fn", ("gelu", "gelu_new", "relu", "silu")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        check_backend(self.backend)
        if self.d_head == -1:
            self.d_head = self.d_model // self.n_heads
        # TransformerLens turns d_mlp=None into 4 d_model; a model without MLPs says attn_only instead.
        self.attn_only = not self.d_mlp
        self.d_mlp = self.d_mlp or 0
        self.uses_rms_norm = self.normalization_type == "RMS"
        self.final_rms = self.final_norm == "RMS"
        super().__post_init__()

    def __repr__(self) -> str:
        return f"HookedSSMConfig({', '.join(f'{k}={v!r}' for k, v in self.to_json().items())})"

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold and `from_json` reads. Device and back end are not part of it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        del values["device"], values["backend"]
        values["dtype"] = str(self.dtype).removeprefix("torch.")
        values["mixers"] = [mixer.to_dict() for mixer in self.mixer_list]
        values["d_mlp"] = self.d_mlp or None
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "HookedSSMConfig":
        """The config written by `to_json`. Raises ValueError for an unknown field or mixer."""
        values = dict(values)
        check_known(values, {f.name for f in dataclasses.fields(cls) if f.init}, "field of HookedSSMConfig")
        values["mixers"] = [MixerConfig.from_dict(mixer) for mixer in values.get("mixers", [])]
        dtype = values.get("dtype", "float32")
        values["dtype"] = getattr(torch, str(dtype), None)
        if not isinstance(values["dtype"], torch.dtype):
            raise ValueError(f"dtype must be the name of a torch dtype, such as 'float32', got {dtype!r}.")
        return cls(**values)

    @property
    def mixer_list(self) -> list[MixerConfig]:
        assert isinstance(self.mixers, list)
        return self.mixers


def check_known(names: Iterable[str], known: set[str], what: str) -> None:
    """Raise ValueError if there is a name that is not in `known`, with the nearest known ones."""
    for key in names:
        if key not in known:
            near = get_close_matches(key, known, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {sorted(known)}."
            raise ValueError(f"{key!r} is no {what}; {hint}")
