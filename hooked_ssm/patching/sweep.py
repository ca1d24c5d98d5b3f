"""Activation patching over any hook and any of its axes.

The corrupted documents are run with a part of one activation replaced by the clean run's, for every part that
the axes make out, and a metric is taken of the logits. It is one forward a cell by meaning; what is computed
is what `BaseRun` and `Patch` leave of that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.patching import PatchingResult

from hooked_ssm.patching.base_run import BaseRun
from hooked_ssm.patching.between import check_between
from hooked_ssm.patching.checks import check_eval, check_options
from hooked_ssm.patching.lazy_logits import LazyLogits
from hooked_ssm.patching.logits import LogitPositions, cell_finals, wanted_logits
from hooked_ssm.patching.metrics import Metric, Metrics, result
from hooked_ssm.patching.plan import all_cells, check_rows, plans_of
from hooked_ssm.patching.rows import Patch

FEWEST_CELLS = 8  # with fewer, what it takes to start late is not earned back
BAR_DELAY = 2.0  # seconds that a sweep takes before it shows a progress bar

# (base run, layer, the layer's cells) -> the cells that are not the base run, with how they end, or None
# where a layer has no such cell.
RunLayer = Callable[[BaseRun, Any, list[int]], Iterator[tuple[int, Tensor | None]]]


@torch.no_grad()
def patch_sweep(
    model: Any,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: Any,
    patching_metric: Metric | Mapping[str, Metric],
    activation_name: str,
    index_axis_names: Sequence[str] | None = ("layer", "pos"),
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
    *,
    reduce: str = "scalar",
    baseline: bool = False,
    logit_positions: LogitPositions = None,
    groups: Mapping[str, int] | None = None,
    read_only: bool = False,
    batch_size: int | None = None,
    verbose: bool = True,
) -> Tensor | tuple[Tensor, pd.DataFrame] | PatchingResult:
    """The metric with each part of an activation replaced: one value a cell, shaped as the axes.

    activation_name: as in TransformerLens, "resid_pre", "z", "ssm_state"; or with its place, "mixer.hook_y".
        Without "layer" among the axes, a hook's full name.
    index_axis_names: "layer", and any axes that the hook declares (`model.hook_table()`); axes left out are
        replaced whole. "channel" is the activation's channels, "head" groups of them where it has no heads.
    index_df: the cells, one a row with axes for columns, instead of all of them; the result is then flat.
    patching_metric: of the logits [batch, pos, d_vocab] of all documents in one cell, or several such by
        name. A function of the logits alone: cells in which nothing differs share one evaluation. Of a
        HookedSSM's logits those are made that it indexes (`logits[:, -1]`, `logits[rows, positions,
        answers]`), and all if it does anything else with them.
    reduce, baseline, return_index_df: as TransformerLens's `generic_activation_patch`.
    logit_positions: the metric is given these logits alone: of one position for all documents or one each,
        [batch, d_vocab], or of a mask, [selected, d_vocab] in row order. Nothing after the last is run.
    groups: for some axes, in how many parts of neighbouring entries they are swept: {"channel": 8}.
    read_only: of states, change what is read at the position, and not the states after it.
    batch_size: documents times cells to run at once; None for what is fast and fits.

    Layers that have no such hook are NaN. Raises KeyError or ValueError if none has it; for hooks that do not
    lie between the inputs and the metric (no logit depends on them; or they are the same whatever the tokens,
    as filters mostly are, and the cache holds what they are in the corrupted run); for positions and other
    indices out of range; for clean and corrupted documents of different shapes; for metrics that do not give
    one number or do not read the logits; and for models in training mode.
    """
    check_eval(model)
    check_options(batch_size, baseline, reduce, patching_metric, return_index_df)
    if read_only and not activation_name.endswith("ssm_state"):
        raise ValueError(f"read_only is for recurrent states (ssm_state), got {activation_name!r}.")
    axes = [str(axis) for axis in (index_axis_names or () if index_df is None else index_df.columns)]
    plans = plans_of(model, clean_cache, activation_name, axes, groups or {})
    frame = all_cells(axes, model.cfg.n_layers, plans) if index_df is None else index_df
    cells = [tuple(int(i) for i in row) for row in frame.itertuples(index=False)]
    check_rows(cells, axes, plans, model.cfg.n_layers, given=index_df is not None)

    def run_layer(base: BaseRun, layer: Any, mine: list[int]) -> Iterator[tuple[int, Tensor | None]]:
        plan = plans.get(layer)
        exist = [i for i in mine if plan is not None and plan.has(cells[i])]
        yield from ((i, None) for i in mine if i not in set(exist))
        if plan is not None and exist:
            patch = Patch(
                base,
                plan.name,
                plan.clean,
                [plan.cell(cells[i]) for i in exist],
                pos_dim=plan.pos_dim,
                partial=plan.partial,
                read_only=read_only,
            )
            for cell, final in cell_finals(patch, batch_size):
                yield exist[cell], final
            check_between(base, plan.name, plan.clean)

    metrics = Metrics(patching_metric, reduce, len(corrupted_tokens))
    layers = [cell[axes.index("layer")] if "layer" in axes else next(iter(plans)) for cell in cells]
    whole = len(cells) < FEWEST_CELLS or not all(plan.partial for plan in plans.values())
    values, unpatched = measured(
        model, corrupted_tokens, metrics, layers, run_layer, logit_positions, whole, activation_name, verbose
    )
    if index_df is None:
        sizes = {axis: max(plan.sizes[axis] for plan in plans.values()) for axis in axes if axis != "layer"}
        shape = [model.cfg.n_layers if axis == "layer" else sizes[axis] for axis in axes]
        values = values.reshape(len(values), *shape, *values.shape[2:])
    out = result(metrics, values, frame, axes if index_df is None else [], unpatched if baseline else None)
    return (out, frame) if return_index_df and isinstance(out, Tensor) else out


def measured(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    metrics: Metrics,
    layers: list[Any],
    run_layer: RunLayer,
    logit_positions: LogitPositions,
    whole: bool,
    title: str,
    verbose: bool,
) -> tuple[Tensor, Tensor]:
    """The metrics in all cells, [metric, cell, doc?], and without a patch. `layers`: every cell's."""
    slots, shaped = wanted_logits(tokens, logit_positions)
    base = BaseRun(model, tokens, slots, whole=whole)

    def measure(final: Tensor) -> Tensor:
        return metrics(LazyLogits(shaped(final), base.unembed))

    unpatched = measure(base.final)
    values = unpatched[:, None].repeat(1, len(layers), *[1] * (unpatched.ndim - 1))
    with tqdm(total=len(layers), desc=title, delay=BAR_DELAY, disable=not verbose) as bar:
        for layer in dict.fromkeys(layers):
            mine = [i for i, of in enumerate(layers) if of == layer]
            for cell, final in run_layer(base, layer, mine):
                values[:, cell] = torch.nan if final is None else measure(final)
                bar.update()
        bar.update(len(layers) - bar.n)
    return values, unpatched
