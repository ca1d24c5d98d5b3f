"""What every sweep asks of a model and of its options."""

from collections.abc import Mapping
from typing import Any

import torch


def check_options(
    batch_size: int | None, baseline: bool, reduce: str, metric: Any, return_index_df: bool
) -> None:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if return_index_df and (baseline or reduce == "none" or isinstance(metric, Mapping)):
        raise ValueError("return_index_df goes with a tensor; a PatchingResult has its index_df.")


def check_eval(model: Any) -> None:
    """Raises ValueError if any part of the model is in training mode."""
    roots = [model, getattr(model, "original_model", None)]
    training = [
        name or "the model"
        for root in roots
        if isinstance(root, torch.nn.Module)
        for name, module in root.named_modules()
        if module.training
    ]
    if training:
        raise ValueError(
            f"patching wants the model in evaluation mode, but {training[0]} is in training mode: "
            "call model.eval()."
        )
