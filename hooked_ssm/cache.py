"""The activations of one run, under every name that the model knows for them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.model_bridge.generalized_components.ssm_protocol import find_ssm_mixer
from transformer_lens.utilities.components_utils import get_act_name

from hooked_ssm.mixers.base import MixerActivations


class HookedCache(ActivationCache):
    """TransformerLens's `ActivationCache` that follows the model's aliases.

    `cache["blocks.0.hook_attn_out"]`, `cache["attn_out", 0]` and `cache["blocks.0.hook_mixer_out"]` are one
    tensor. A name that no hook has, or that this run did not cache, raises a KeyError that says which.
    """

    model: Any

    def __getitem__(self, key: Any) -> Tensor:
        name = self._full_name(key)
        found = self._find(name)
        if found is None:
            canonical = self.model.canonical_name(name.removesuffix("_grad"))  # raises if unknown
            reason = self.model.unavailable_hooks().get(canonical)
            if reason is not None:
                raise KeyError(f"{canonical!r} does not fire: {reason}.")
            raise KeyError(
                f"{canonical!r} is a hook of this model, but this cache does not hold {name!r}: it was not "
                "in names_filter, or it did not fire."
            )
        return self.cache_dict[found]

    def __contains__(self, key: Any) -> bool:
        return self._find(self._full_name(key)) is not None

    def _full_name(self, key: Any) -> str:
        if isinstance(key, str):
            return key if key in self.cache_dict else get_act_name(key)
        name, *rest = key
        if rest and rest[0] is not None and rest[0] < 0:
            rest[0] += self.model.cfg.n_layers
        return get_act_name(name, *rest)

    def _find(self, name: str) -> str | None:
        """The key under which the cache holds what `name` means, if it does."""
        if name in self.cache_dict:
            return name
        grad = "_grad" if name.endswith("_grad") else ""
        aliases = self.model.hook_aliases
        canonical = aliases.get(name.removesuffix("_grad"), name.removesuffix("_grad"))
        for other in (canonical, *(alias for alias, target in aliases.items() if target == canonical)):
            if other + grad in self.cache_dict:
                return other + grad
        return None

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "HookedCache":
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        return HookedCache(sliced.cache_dict, sliced.model, has_batch_dim=sliced.has_batch_dim)

    def _uses_ln_centering(self, layer: int | None) -> bool:
        cfg = self.model.cfg
        return (cfg.final_norm if layer in (None, cfg.n_layers) else cfg.normalization_type) == "LN"

    def decompose_resid(self, layer: int | None = None, mlp_input: bool = False, **options: Any) -> Any:
        """As TransformerLens's. Raises ValueError for the input of an MLP that reads what its mixer reads."""
        self._check_mlp_input(mlp_input)
        return super().decompose_resid(layer, mlp_input, **options)

    def get_full_resid_decomposition(
        self, layer: int | None = None, mlp_input: bool = False, **options: Any
    ) -> Any:
        """As TransformerLens's. Raises ValueError for the input of an MLP that reads what its mixer reads."""
        self._check_mlp_input(mlp_input)
        return super().get_full_resid_decomposition(layer, mlp_input, **options)

    def _check_mlp_input(self, mlp_input: bool) -> None:
        # TransformerLens would add what the layer's own heads write.
        if mlp_input and self.model.cfg.parallel_attn_mlp:
            raise ValueError(
                "the MLP of a parallel block (cfg.parallel_attn_mlp) reads resid_pre: leave out mlp_input."
            )

    def of_mixer(self, layer: int) -> MixerActivations:
        """One mixer's activations by hook name, as its `effective_attention` and `states` take them."""
        if layer < 0:
            layer += self.model.cfg.n_layers
        return MixerActivations(self, layer)

    def compute_ssm_state(
        self, layer: int | None = None, time_step: int | None = None
    ) -> Float[Tensor, "..."] | dict[int, Tensor]:
        """The recurrent state [batch, pos, ..., d_state] from the cached inputs of the recurrence.

        Without `layer`: all recurrent layers, stacked if every layer is one and their shapes agree, else a
        dictionary by layer. `time_step` gives one position, without the pos axis.
        """
        return self._over_mixers("compute_ssm_state", layer, time_step=time_step)

    def compute_ssm_effective_attention(  # type: ignore[override]
        self, layer: int | None = None, include_dt_scaling: bool = True, **options: Any
    ) -> Float[Tensor, "..."] | dict[int, Tensor]:
        """The exact causal matrix of each recurrent layer, [batch, head or channel, dest, src].

        Unlike TransformerLens's, it has the step size dt_j in it by default, so that it times the values is
        what the mixer reads.
        """
        if not include_dt_scaling:
            options["include_dt_scaling"] = False
        return self._over_mixers("compute_effective_attention", layer, **options)

    def _over_mixers(self, method: str, layer: int | None, **options: Any) -> Any:
        if layer is not None and layer < 0:
            layer += self.model.cfg.n_layers
        layers, having = self.ssm_layers(), "mixer without softmax"
        if method == "compute_ssm_state":
            layers = [each for each in layers if hasattr(self.model.blocks[each].mixer, "hook_ssm_state")]
            having = "recurrent mixer"
        if layer is None and not layers:
            raise RuntimeError(f"the model has no layer with a {having}.")
        if layer is not None and layer not in layers:
            raise TypeError(f"layer {layer} has no {having}; layers that have one: {layers}.")
        batched = self if self.has_batch_dim else self._with_batch_dim()

        def call(index: int) -> Tensor:
            mixer: Any = find_ssm_mixer(self.model.blocks[index])
            result = getattr(mixer, method)(batched, layer_idx=index, **options)
            return result if self.has_batch_dim else result[0]

        if layer is not None:
            return call(layer)
        results = {index: call(index) for index in layers}
        if len(layers) == self.model.cfg.n_layers and len({r.shape for r in results.values()}) == 1:
            return torch.stack(list(results.values()))
        return results

    def _with_batch_dim(self) -> "HookedCache":
        return HookedCache({name: t.unsqueeze(0) for name, t in self.cache_dict.items()}, self.model)
