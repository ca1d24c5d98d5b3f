"""How near attribution comes to patching."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_ssm.attribution.hooks import resolve
from hooked_ssm.attribution.nodes import gradient_attribution, integrated_gradients
from hooked_ssm.attribution.result import Attribution
from hooked_ssm.patching.logits import LogitPositions
from hooked_ssm.patching.sweep import patch_sweep


@dataclass(frozen=True, eq=False)
class Agreement:
    """cells: one row a cell: activation, *axes, patching (what it changes of the metric), attribution.

    table: one row an activation (and one for all together): cells, correlation (Pearson's), rank correlation
    (Spearman's), slope (of attribution by patching, through 0), largest difference, and largest effect, which
    says what that is to be compared with.
    """

    cells: pd.DataFrame
    table: pd.DataFrame

    def __str__(self) -> str:
        return self.table.to_string(float_format=lambda x: f"{x:.4g}")


def agreement(
    model: Any,
    clean_tokens: Int[Tensor, "doc pos"],
    corrupted_tokens: Int[Tensor, "corrupted_doc corrupted_pos"],
    metric: Callable[[Tensor], Any],
    activation_names: str | Sequence[str],
    axes: Sequence[str] = ("pos",),
    *,
    steps: int | None = None,
    path: str = "activations",
    groups: Mapping[str, int] | None = None,
    logit_positions: LogitPositions = None,
    batch_size: int | None = None,
    verbose: bool = False,
) -> Agreement:
    """Attribution beside `patch_sweep` of the same cells: every layer, and these axes of the hooks.

    activation_names: as patching takes them ("resid_pre", "conv_taps", "ssm_state").
    steps: None for the gradient at the corrupted run, a number for `integrated_gradients`, along `path`.
    batch_size: of the attribution.
    """
    names = [activation_names] if isinstance(activation_names, str) else list(activation_names)
    full = [name for name in names if name.startswith(("blocks.", "hook_", "ln_final."))]
    if full or not names:
        raise ValueError(
            "agreement is over all layers and takes activations as patching does ('resid_pre', 'ssm_state'), "
            f"got {full or names}."
        )
    options: dict[str, Any] = {"groups": groups, "logit_positions": logit_positions, "batch_size": batch_size}
    documents = model, clean_tokens, corrupted_tokens, metric
    if steps is None:
        found = gradient_attribution(*documents, names, axes, **options)
    else:
        found = integrated_gradients(*documents, names, axes, steps=steps, path=path, **options)
    reduce = "scalar" if found.scores.one_metric else "mean"
    frames = []
    for name in names:
        cache: dict[str, Tensor] = {}
        hooks = resolve(model, name)
        with torch.no_grad():
            cache = model.run_with_cache(clean_tokens, names_filter=hooks)[1]
        swept = patch_sweep(
            model,
            corrupted_tokens,
            cache,
            metric,
            name,
            ("layer", *sweep_axes(model, hooks, axes)),
            reduce=reduce,
            logit_positions=logit_positions,
            groups=groups,
            verbose=verbose,
        )
        assert isinstance(swept, Tensor)
        frames.append(cells_of(name, found, swept - found.metric_corrupted.mean()))
    cells = pd.concat(frames, ignore_index=True)
    rows = {name: compared(frame) for name, frame in zip(names, frames, strict=True)}
    if len(names) > 1:
        rows["all"] = compared(cells)
    return Agreement(cells, pd.DataFrame.from_dict(rows, orient="index"))


def sweep_axes(model: Any, hooks: list[str], axes: Sequence[str]) -> list[str]:
    """The axes as `patch_sweep` calls them."""
    declared = getattr(model.hook_dict[hooks[0]], "shape", "pos").split()
    return ["dest" if axis == "pos" and "pos" not in declared else axis for axis in axes]


def cells_of(name: str, found: Attribution, patched: Float[Tensor, "layer ..."]) -> pd.DataFrame:
    scores = found.by_layer(name)
    index = torch.cartesian_prod(*(torch.arange(size) for size in scores.shape)).view(-1, scores.ndim)
    frame = pd.DataFrame(index.numpy(), columns=["layer", *found.axes])
    frame.insert(0, "activation", name)
    frame["patching"] = patched.flatten().double().cpu().numpy()
    frame["attribution"] = scores.flatten().double().cpu().numpy()
    return frame.dropna(subset=["patching", "attribution"]).reset_index(drop=True)


def compared(cells: pd.DataFrame) -> dict[str, Any]:
    real, found = (cells[name].to_numpy() for name in ("patching", "attribution"))
    differ = real.std() > 0 and found.std() > 0 if len(cells) else False
    ranks = [pd.Series(each).rank() for each in (real, found)]
    return {
        "cells": len(cells),
        "correlation": float(np.corrcoef(real, found)[0, 1]) if differ else float("nan"),
        "rank correlation": float(np.corrcoef(*ranks)[0, 1]) if differ else float("nan"),
        "slope": float(real @ found / (real @ real)) if (real != 0).any() else float("nan"),
        "largest difference": float(np.abs(real - found).max(initial=0.0)),
        "largest effect": float(np.abs(real).max(initial=0.0)),
    }
