"""Path patching: what one head writes, replaced in what one later head reads (Wang et al. 2022)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from hooked_ssm.patching.base_run import BaseRun
from hooked_ssm.patching.between import check_between
from hooked_ssm.patching.checks import check_eval
from hooked_ssm.patching.lazy_logits import LazyLogits
from hooked_ssm.patching.logits import LogitPositions, wanted_logits
from hooked_ssm.patching.memory import rows_at_once
from hooked_ssm.patching.metrics import Metrics
from hooked_ssm.patching.names import cached
from hooked_ssm.patching.sweep import BAR_DELAY


def get_act_patch_direct_path(
    model: Any,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    corrupted_cache: Any,
    patching_metric: Callable[[Tensor], Any],
    src_layer: int,
    src_head: int,
    component: str = "q",
    verbose: bool = True,
    *,
    logit_positions: LogitPositions = None,
    batch_size: int | None = None,
) -> Float[Tensor, "layer head"]:
    """The metric with one head's clean write in the q, k or v input of each later head alone.

    Added is, at every position, the head's clean less its corrupted write, z W_O; all other readers see what
    they saw. Both caches must hold the source's hook_z. Layers up to the source's are 0. The other arguments
    are those of `patch_sweep`. Raises ValueError for a layer or head that the model does not have.
    """
    check_source(model, src_layer, src_head)
    sources = [(src_layer, src_head)]
    out = _paths(
        model,
        corrupted_tokens,
        (clean_cache, corrupted_cache),
        patching_metric,
        sources,
        component,
        verbose,
        logit_positions,
        batch_size,
    )
    return out[0]


def get_act_patch_direct_path_all_sources(
    model: Any,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    corrupted_cache: Any,
    patching_metric: Callable[[Tensor], Any],
    component: str = "q",
    verbose: bool = True,
    *,
    logit_positions: LogitPositions = None,
    batch_size: int | None = None,
) -> Float[Tensor, "layer head layer head"]:
    """`get_act_patch_direct_path` from every head: [source layer, source head, layer, head]."""
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    sources = [(layer, head) for layer in range(layers) for head in range(heads)]
    out = _paths(
        model,
        corrupted_tokens,
        (clean_cache, corrupted_cache),
        patching_metric,
        sources,
        component,
        verbose,
        logit_positions,
        batch_size,
    )
    return out.unflatten(0, (layers, heads))


@torch.no_grad()
def _paths(
    model: Any,
    tokens: Tensor,
    caches: tuple[Any, Any],
    metric: Callable[[Tensor], Any],
    sources: list[tuple[int, int]],
    component: str,
    verbose: bool,
    logit_positions: LogitPositions,
    batch_size: int | None,
) -> Float[Tensor, "source layer head"]:
    # What TransformerLens's function refuses: blocks without attention, writes that are not z W_O, fewer
    # heads of keys and values.
    from transformer_lens.patching import _check_direct_path_support

    check_eval(model)
    if component not in ("q", "k", "v"):
        raise ValueError(f"component must be 'q', 'k' or 'v', got {component!r}.")
    _check_direct_path_support(model, [layer for layer, _ in sources], component)  # type: ignore[arg-type]
    metrics = Metrics(metric, "scalar", len(tokens))
    slots, shaped = wanted_logits(tokens, logit_positions)
    base = BaseRun(model, tokens, slots, whole=True)

    def measure(final: Tensor) -> Tensor:
        return metrics(LazyLogits(shaped(final), base.unembed))[0]

    unpatched = measure(base.final)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    values = unpatched.new_zeros(len(sources), layers, heads)
    deltas = {source: clean_less_corrupted(model, caches, *source) for source in sources}
    docs = torch.arange(len(tokens), device=tokens.device)
    work = [
        (layer, [(i, head) for i, (src, _) in enumerate(sources) if src < layer for head in range(heads)])
        for layer in range(layers)
    ]
    total = sum(len(pairs) for _, pairs in work)
    with (
        split_inputs(model),
        tqdm(total=total, desc=f"direct path, {component}", delay=BAR_DELAY, disable=not verbose) as bar,
    ):
        for layer, pairs in work:
            name = f"blocks.{layer}.attn.hook_{component}_input"
            if pairs and name not in model.hook_dict:
                raise NotImplementedError(f"there is no {name!r}, so that no head's input can be reached.")
            some_delta = next(iter(deltas.values()))
            numel = 3 * heads * some_delta[0].numel()
            rows = batch_size or rows_at_once(
                model, some_delta, positions=base.stop, numel=numel, logits=base.logits_a_run
            )
            at_once = max(1, rows // len(docs))
            for some in (pairs[i : i + at_once] for i in range(0, len(pairs), at_once)):
                fired = []

                def edit(inputs: Tensor, hook: Any, some: Any = some, fired: list = fired) -> Tensor:
                    fired.append(True)
                    cells = inputs.clone().unflatten(0, (len(some), -1))
                    for cell, (source, head) in zip(cells, some, strict=True):
                        cell[:, :, head] += deltas[sources[source]]
                    return cells.flatten(0, 1)

                row_docs = docs.repeat(len(some))
                out = base.edited(name, edit, row_docs, 0, base.slots[row_docs])
                if not fired:
                    raise NotImplementedError(
                        f"{name!r} did not fire, so that no head's input can be reached."
                    )
                for (source, head), each in zip(some, out.unflatten(0, (len(some), -1)), strict=True):
                    values[source, layer, head] = measure(each)
                bar.update(len(some))
            if pairs:
                check_between(base, name)
    return values


def clean_less_corrupted(
    model: Any, caches: tuple[Any, Any], layer: int, head: int
) -> Float[Tensor, "batch pos d_model"]:
    """What the head writes in the clean run and not in the corrupted one."""
    clean, corrupted = (cached(cache, f"blocks.{layer}.attn.hook_z", model)[:, :, head] for cache in caches)
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean and corrupted documents must be as many and as long, got {list(clean.shape[:2])} and "
            f"{list(corrupted.shape[:2])}."
        )
    W_O = model.blocks[layer].attn.W_O[head]
    return clean @ W_O - corrupted @ W_O


def check_source(model: Any, layer: int, head: int) -> None:
    for what, value, size in (("layer", layer, model.cfg.n_layers), ("head", head, model.cfg.n_heads)):
        if not 0 <= value < size:
            raise ValueError(f"src_{what} must lie in 0..{size - 1}, got {value}.")


@contextmanager
def split_inputs(model: Any) -> Iterator[None]:
    """Every head with inputs of its own for q, k and v, and afterwards as it was."""
    split, shared = (getattr(model.cfg, flag, False) for flag in ("use_split_qkv_input", "use_attn_in"))
    try:
        if shared:
            model.set_use_attn_in(False)
        model.set_use_split_qkv_input(True)
        yield
    finally:
        model.set_use_split_qkv_input(split)
        if shared:
            model.set_use_attn_in(True)
