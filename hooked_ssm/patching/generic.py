"""TransformerLens's generic patching function, batched, and its setters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import patching as theirs
from transformer_lens.patching import PatchingResult, make_df_from_ranges
from transformer_lens.utilities.components_utils import get_act_name

from hooked_ssm.patching.base_run import BaseRun
from hooked_ssm.patching.between import check_between
from hooked_ssm.patching.checks import check_eval, check_options
from hooked_ssm.patching.logits import LogitPositions
from hooked_ssm.patching.memory import rows_at_once
from hooked_ssm.patching.metrics import Metric, Metrics, result
from hooked_ssm.patching.names import ALIASES, cached, why_silent
from hooked_ssm.patching.sweep import measured, patch_sweep

Setter = Callable[[Tensor, Sequence[int], Tensor], Tensor]

# What TransformerLens's own setters replace, as axes of a sweep.
SETTERS: dict[Any, tuple[str, ...]] = {
    theirs.layer_pos_patch_setter: ("layer", "pos"),
    theirs.layer_pos_head_vector_patch_setter: ("layer", "pos", "head"),
    theirs.layer_head_vector_patch_setter: ("layer", "head"),
    theirs.layer_head_pattern_patch_setter: ("layer", "head"),
    theirs.layer_head_pos_pattern_patch_setter: ("layer", "head", "dest"),
    theirs.layer_head_dest_src_pos_pattern_patch_setter: ("layer", "head", "dest", "src"),
}


@torch.no_grad()
def generic_activation_patch(
    model: Any,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    patching_metric: Metric | Mapping[str, Metric],
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
    *,
    reduce: str = "scalar",
    baseline: bool = False,
    logit_positions: LogitPositions = None,
    batch_size: int | None = None,
    verbose: bool = True,
) -> Tensor | tuple[Tensor, pd.DataFrame] | PatchingResult:
    """TransformerLens's function of this name, for any setter `(activation, index, clean) -> activation`.

    The first index is the layer. A setter of one's own is given all documents of one cell, from their first
    position to their last; cells are stacked and started at their layer, as many as `batch_size` documents.
    """
    if index_axis_names is not None and index_df is None:
        names = list(index_axis_names)
    elif index_axis_names is None and index_df is not None:
        names = [str(name) for name in index_df.columns]
    else:
        raise ValueError("one of index_axis_names and index_df is wanted, and not both.")
    axes = SETTERS.get(patch_setter)
    if axes is not None:
        if [ALIASES.get(name, name) for name in names] != [*axes[: len(names)]] or len(names) != len(axes):
            raise ValueError(f"this setter takes an index {axes}, got {names}.")
        return patch_sweep(
            model,
            corrupted_tokens,
            clean_cache,
            patching_metric,
            activation_name,
            index_axis_names,
            index_df,
            return_index_df,
            reduce=reduce,
            baseline=baseline,
            logit_positions=logit_positions,
            batch_size=batch_size,
            verbose=verbose,
        )
    check_eval(model)
    check_options(batch_size, baseline, reduce, patching_metric, return_index_df)
    sizes = axis_sizes(model, activation_name, corrupted_tokens.shape[-1])
    if index_df is None:
        shape = [sizes[axis] for axis in names]
        frame = make_df_from_ranges(shape, names)
    else:
        shape, frame = [len(index_df)], index_df
    cells = [[int(i) for i in row] for row in frame.itertuples(index=False)]
    hooks = {layer: get_act_name(activation_name, layer) for layer in {cell[0] for cell in cells}}
    for name in hooks.values():
        reason = why_silent(model, name)
        if reason is not None:
            raise reason

    def run_layer(base: BaseRun, layer: Any, mine: list[int]) -> Iterator[tuple[int, Tensor | None]]:
        clean = cached(clean_cache, hooks[layer], model)
        docs = torch.arange(len(corrupted_tokens), device=corrupted_tokens.device)
        rows = batch_size or rows_at_once(
            model, clean, positions=base.stop, numel=clean[0].numel(), logits=base.logits_a_run
        )
        at_once = max(1, rows // len(docs))
        for some in (mine[i : i + at_once] for i in range(0, len(mine), at_once)):

            def edit(activation: Tensor, hook: Any, some: list[int] = some) -> Tensor:
                blocks = activation.clone().unflatten(0, (len(some), -1))
                return torch.cat(
                    [patch_setter(b, cells[i], clean) for b, i in zip(blocks, some, strict=True)]
                )

            rows_docs = docs.repeat(len(some))
            final = base.edited(hooks[layer], edit, rows_docs, 0, base.slots[rows_docs])
            yield from zip(some, final.unflatten(0, (len(some), -1)), strict=True)
        check_between(base, hooks[layer], clean)

    metrics = Metrics(patching_metric, reduce, len(corrupted_tokens))
    values, unpatched = measured(
        model,
        corrupted_tokens,
        metrics,
        [cell[0] for cell in cells],
        run_layer,
        logit_positions,
        True,
        activation_name,
        verbose,
    )
    values = values.reshape(len(values), *shape, *values.shape[2:])
    out = result(metrics, values, frame, names if index_df is None else [], unpatched if baseline else None)
    return (out, frame) if return_index_df and isinstance(out, Tensor) else out


def axis_sizes(model: Any, activation_name: str, length: int) -> dict[str, int]:
    """TransformerLens's axes of a sweep and how long they are."""
    heads = model.cfg.n_heads
    if activation_name in ("k", "v") and getattr(model.cfg, "n_key_value_heads", None) is not None:
        heads = model.cfg.n_key_value_heads
    positions = dict.fromkeys(("pos", "src_pos", "dest_pos"), length)
    return {"layer": model.cfg.n_layers, "head": heads, "head_index": heads, **positions}
