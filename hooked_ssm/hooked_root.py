"""TransformerLens's HookedRootModule with its silent failures made loud.

Names may be aliases; an unknown name, or one that cannot fire as the model is set, raises. A hook is
attached once even if a filter matches several of its names. `pos_slice` cuts the position axis, wherever
it is. `run_with_cache` gives a `HookedCache`.
"""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import pandas as pd
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.slice import Slice

from hooked_ssm.cache import HookedCache
from hooked_ssm.deferred import DeferredDict
from hooked_ssm.hooks import Hook, Save

BLOCK_ALIASES = {"hook_mixer_out": "hook_attn_out"}


class HookedRoot(HookedRootModule):
    cfg: Any
    blocks: nn.ModuleList

    def setup(self) -> None:
        """Name all hooks, and their aliases, which stand in `hook_dict` and `mod_dict` beside them."""
        super().setup()
        self.hook_aliases: dict[str, str] = {}
        for name in list(self.hook_dict):
            for alias in aliases_of(name):
                if alias not in self.hook_dict:
                    self.hook_aliases[alias] = name
        for alias, name in self.hook_aliases.items():
            self.hook_dict[alias] = self.mod_dict[alias] = self.hook_dict[name]

    def canonical_name(self, name: str) -> str:
        """The hook's own name, for any of its names. Raises KeyError with the nearest names for others."""
        if name not in self.hook_dict:
            near = get_close_matches(name, self.hook_dict, n=3, cutoff=0.6)
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?" if near else "model.hook_table() lists all."
            )
            raise KeyError(f"no hook named {name!r}; {hint}")
        return self.hook_aliases.get(name, name)

    def unavailable_hooks(self) -> dict[str, str]:
        """Hooks that cannot fire as the model is set, each with what would make it fire."""
        return {
            f"blocks.{layer}.{name}": reason
            for layer, block in enumerate(self.blocks)
            for name, reason in block.unavailable_hooks().items()  # type: ignore[operator]
        }

    def _check_fires(self, name: str) -> None:
        match self.canonical_name(name).split(".", 2):
            case ["blocks", layer, hook]:
                reason = self.blocks[int(layer)].unavailable_hooks().get(hook)  # type: ignore[operator]
                if reason is not None:
                    raise ValueError(f"{name!r} would not fire: {reason}.")

    def _matching(self, wanted: Callable[[str], Any]) -> list[str]:
        """Canonical names of the hooks that can fire and any of whose names is wanted."""
        unavailable = self.unavailable_hooks()
        names = dict.fromkeys(self.hook_aliases.get(name, name) for name in self.hook_dict if wanted(name))
        return [name for name in names if name not in unavailable]

    def _matching_some(self, wanted: Callable[[str], bool]) -> list[str]:
        matching = self._matching(wanted)
        if not matching:
            raise ValueError("the filter matches no hook that can fire; model.hook_table() lists all.")
        return matching

    def hook_points(self) -> list[HookPoint]:
        """Every hook once, whatever its aliases."""
        return [hook for name, hook in self.hook_dict.items() if name not in self.hook_aliases]

    def add_hook(self, name: str | Callable[[str], bool], hook: Callable, *args: Any, **kwargs: Any) -> None:
        if isinstance(name, str):
            self._check_fires(name)
            super().add_hook(name, hook, *args, **kwargs)
        else:
            for match in self._matching_some(name):
                super().add_hook(match, hook, *args, **kwargs)

    def _enable_hook_with_name(self, name: str, hook: Callable, dir: Any) -> None:
        if not isinstance(hook, Save):  # whose name `get_caching_hooks` has checked
            self._check_fires(name)
        super()._enable_hook_with_name(name, hook, dir)

    def _enable_hooks_for_points(
        self, hook_points: Iterable[Any], enabled: Callable[[str], bool], hook: Callable, dir: Any
    ) -> None:
        for name in self._matching_some(enabled):
            super()._enable_hook_with_name(name, hook, dir)

    def run_with_hooks(
        self,
        *args: Any,
        fwd_hooks: Sequence[tuple[Any, Callable]] = (),
        bwd_hooks: Sequence[tuple[Any, Callable]] = (),
        **kwargs: Any,
    ) -> Any:
        """As TransformerLens's. Raises ValueError for a hook, named, in a part that this run leaves out."""
        start, stop = kwargs.get("start_at_layer"), kwargs.get("stop_at_layer")
        layers = range(self.cfg.n_layers)[start:stop]
        for name in (name for name, _ in [*fwd_hooks, *bwd_hooks] if isinstance(name, str)):
            match self.canonical_name(name).split("."):
                case ["blocks", layer, *_]:
                    runs = int(layer) in layers
                case ["ln_final", *_]:
                    runs = stop is None
                case _:
                    runs = start is None
            if not runs:
                raise ValueError(
                    f"{name!r} would not fire with start_at_layer={start}, stop_at_layer={stop}."
                )
        return super().run_with_hooks(*args, fwd_hooks=list(fwd_hooks), bwd_hooks=list(bwd_hooks), **kwargs)

    def get_caching_hooks(
        self,
        names_filter: Any = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict, list, list]:
        """As TransformerLens's; a filter may also be a tuple or set. The cache has the names asked for.

        Where other hooks edit what is cached, it holds what they leave. Of states that is what they set, with
        the others as they were: the states that grow out of them are what the run goes on with.
        """
        cache = DeferredDict() if cache is None else cache
        cut = Slice.unwrap(pos_slice)
        if names_filter is None:
            names = self._matching(lambda name: True)
        elif callable(names_filter):
            names = self._matching(names_filter)
        else:
            names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
            for name in names:
                self._check_fires(name)

        def finish(tensor: Tensor, hook: Hook) -> Tensor:
            if remove_batch_dim and len(tensor) != 1:
                raise ValueError(f"remove_batch_dim is for one document, got a batch of {len(tensor)}.")
            if pos_slice is not None:
                tensor = cut.apply(tensor, dim=hook.pos_dim)
            tensor = tensor.to(device)
            return tensor[0] if remove_batch_dim else tensor

        fwd = [(name, Save(cache, name, finish)) for name in names]
        bwd = [(name, Save(cache, f"{name}_grad", finish)) for name in names] if incl_bwd else []
        return cache, fwd, bwd

    def add_caching_hooks(self, *args: Any, **kwargs: Any) -> dict:
        """Attach the hooks of `get_caching_hooks`, until `reset_hooks`; the dictionary that they fill."""
        cache, fwd, bwd = self.get_caching_hooks(*args, **kwargs)
        for name, hook in fwd:
            self.add_hook(name, hook)
        for name, hook in bwd:
            self.add_hook(name, hook, dir="bwd")
        return cache

    def run_with_cache(  # type: ignore[override]
        self, *args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Run the model and keep its activations: `(output, HookedCache)`.

        names_filter, device, remove_batch_dim, incl_bwd, reset_hooks_end, clear_contexts, pos_slice: as in
        TransformerLens. Other arguments go to `forward`.

        What only hooks want (states, decays, writes, convolution taps, effective attention) is computed when
        it is first read; see `DeferredDict`. return_cache_object=False gives a plain dictionary, all
        computed.
        """
        out, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        if not return_cache_object:
            return out, dict(cache)
        return out, HookedCache(cache, self, has_batch_dim=not remove_batch_dim)

    def hook_table(self) -> pd.DataFrame:
        """Every hook: its name, axes, meaning, other names, and why it would not fire, if it would not."""
        unavailable = self.unavailable_hooks()
        others: dict[str, list[str]] = {}
        for alias, name in self.hook_aliases.items():
            others.setdefault(name, []).append(alias)
        rows = [
            (
                name,
                f"[{', '.join(hook.shape.split())}]",
                hook.meaning,
                ", ".join(others.get(name, [])),
                unavailable.get(name, ""),
            )
            for name, hook in self.hook_dict.items()
            if name not in self.hook_aliases and isinstance(hook, Hook)
        ]
        return pd.DataFrame(rows, columns=["name", "shape", "meaning", "aliases", "unavailable"])

    # Flags of TransformerLens's edge tools ------------------------------------------------------------

    def set_use_attn_result(self, use: bool) -> None:
        """Whether each head's write, `hook_result`, is computed."""
        self._set_flag("use_attn_result", use)

    def set_use_split_qkv_input(self, use: bool) -> None:
        """Whether every head reads residual streams of its own for q, k and v. Not with use_attn_in."""
        if use and self.cfg.use_attn_in:
            raise ValueError(
                "use_split_qkv_input and use_attn_in exclude each other: set the other to False first."
            )
        self._set_flag("use_split_qkv_input", use)

    def set_use_attn_in(self, use: bool) -> None:
        """Whether every head reads a residual stream of its own. Not with use_split_qkv_input."""
        if use and self.cfg.use_split_qkv_input:
            raise ValueError(
                "use_attn_in and use_split_qkv_input exclude each other: set the other to False first."
            )
        self._set_flag("use_attn_in", use)

    def set_use_hook_mlp_in(self, use: bool) -> None:
        """Whether the MLP's read of the residual stream, `hook_mlp_in`, has a hook of its own."""
        self._set_flag("use_hook_mlp_in", use)

    def _set_flag(self, flag: str, use: bool) -> None:
        before = getattr(self.cfg, flag)
        setattr(self.cfg, flag, use)
        silenced = [name for name in self.unavailable_hooks() if self.hook_dict[name].attached]  # type: ignore
        if silenced:
            setattr(self.cfg, flag, before)
            raise ValueError(
                f"{flag}={use} would silence hooks that are attached: remove them first ({silenced})."
            )


def aliases_of(name: str) -> list[str]:
    """Other names of a hook: a mixer's hooks at block level and under `attn`, and TransformerLens's own."""
    match name.split("."):
        case ["blocks", layer, "mixer", hook]:
            return [f"blocks.{layer}.{hook}", f"blocks.{layer}.attn.{hook}"]
        case ["blocks", layer, hook] if hook in BLOCK_ALIASES:
            return [f"blocks.{layer}.{BLOCK_ALIASES[hook]}"]
        case _:
            return []
