"""`HookedSSM.from_pretrained`: source, config, an empty model, and its weights one by one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hooked_ssm import saving
from hooked_ssm.loading.checkpoint import Files, LiveModel, Source, read_json
from hooked_ssm.loading.formats import plan_for
from hooked_ssm.loading.hub import Repository
from hooked_ssm.loading.plan import Plan

HALF = (torch.float16, torch.bfloat16)
OPTIONS = {"n_ctx", "n_heads", "default_prepend_bos", "model_name"}


def from_pretrained(
    cls: type,
    source: Any,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    tokenizer: Any = None,
    **options: Any,
) -> Any:
    """See `HookedSSM.from_pretrained`."""
    if not options.keys() <= OPTIONS:
        raise ValueError(f"options of from_pretrained are {sorted(OPTIONS)}, got {sorted(options)}.")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating point dtype, got {dtype}.")
    device = "cpu" if device is None else str(device)
    if isinstance(tokenizer, str | Path):
        beside = Repository(str(tokenizer), cache_dir=cache_dir, local_files_only=local_files_only)
        tokenizer = beside.tokenizer()
        if tokenizer is None:
            raise beside.missing("tokenizer")
    if isinstance(source, nn.Module):
        weights = LiveModel(source)
        values = config_of(source)
        options = {"model_name": values.get("_name_or_path") or type(source).__name__, **options}
        return build(cls, values, weights, dtype, device, tokenizer, options)
    if not isinstance(source, str | Path):
        raise TypeError(f"wanted a name, a folder or a model, got {type(source).__name__}.")
    repository = Repository(str(source), revision, cache_dir, local_files_only)
    values = read_json(repository.need(saving.CONFIG))
    if tokenizer is None:
        tokenizer = repository.tokenizer()
    if values.get("format") == saving.FORMAT:
        if options:
            raise ValueError(f"a saved HookedSSM has its own config: leave out {sorted(options)}.")
        repository.need(saving.WEIGHTS)
        model = cls.load(repository.need(saving.CONFIG).parent, device)
        model.tokenizer = tokenizer
        return model.to(dtype or model.cfg.dtype)
    options = {"model_name": str(source), **options}
    plan_for(values, torch.float32, options)  # refuse what is not supported before weights are downloaded
    return build(cls, values, Files(repository.weights()), dtype, device, tokenizer, options)


def config_of(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    if config is None:
        raise TypeError(f"a {type(model).__name__} has no config: it cannot be told what architecture it is.")
    return config.to_dict() if hasattr(config, "to_dict") else dict(vars(config))


def build(
    cls: type,
    values: dict[str, Any],
    source: Source,
    dtype: torch.dtype | None,
    device: str,
    tokenizer: Any,
    options: dict[str, Any],
) -> Any:
    """The model of this config, without initial weights, filled from the source."""
    plan = plan_for(values, dtype, options)
    names = source_names(plan, source)
    if dtype is None:
        # Half precision widens without loss; what a HookedSSM computes, it computes in one precision.
        first = source.tensor(next(iter(names.values()))).dtype
        plan.cfg.dtype = torch.float32 if first in HALF else first
    plan.cfg.device = "meta"
    with torch.device("meta"):
        model = cls(plan.cfg, tokenizer)
    check_fits(model, plan, names, source)
    model.to_empty(device=device)
    weights = model.state_dict()
    for name, _ in model.named_buffers():
        if name not in weights:
            model.get_submodule(name.rpartition(".")[0]).reset_parameters()  # a constant that no file holds
    fill(weights, plan, names, source)
    return model


def source_names(plan: Plan, source: Source) -> dict[str, str]:
    """The source's own name of every tensor, by the plan's."""
    names = {}
    for name in source.names():
        uniform = plan.uniform(name)
        if uniform is None:
            continue
        if uniform in names:
            raise ValueError(
                f"{source.where} has {names[uniform]!r} and {name!r}, which are the same weight."
            )
        names[uniform] = name
    return names


def check_fits(model: nn.Module, plan: Plan, names: dict[str, str], source: Source) -> None:
    """Raise ValueError unless the source has just the tensors that the plan wants."""
    assert plan.weights.keys() == model.state_dict().keys()
    wanted = {name for piece in plan.weights.values() for name in piece.names}
    missing, surplus = sorted(wanted - names.keys()), sorted(names.keys() - wanted)
    if missing or surplus:
        raise ValueError(
            f"{source.where} does not fit its config: missing {some(missing)}, unknown {some(surplus)}."
        )


def some(names: list[str]) -> str:
    """The first few of many names."""
    if not names:
        return "nothing"
    return f"{names[:4]}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@torch.no_grad()
def fill(weights: dict[str, Tensor], plan: Plan, names: dict[str, str], source: Source) -> None:
    """Copy every weight, the largest first: memory is taken as it is written, so the copy in hand is small
    when much is."""
    for ours in sorted(weights, key=lambda name: -weights[name].numel()):
        piece, into = plan.weights[ours], weights[ours]
        tensors = [source.tensor(names[name]) for name in piece.names]
        for name, tensor in zip(piece.names, tensors, strict=True):
            if not tensor.is_floating_point():
                raise ValueError(f"{source.where}: {name} is {tensor.dtype}, not floating point.")
        try:
            made = piece.make(*tensors) if piece.make else tensors[0]
            fits = made.shape == into.shape
        except RuntimeError:  # of a view that the shape does not allow
            fits = False
        if not fits:
            shapes = ", ".join(
                f"{name} {list(t.shape)}" for name, t in zip(piece.names, tensors, strict=True)
            )
            raise ValueError(
                f"{source.where} does not fit its config: {shapes} cannot be {ours} {list(into.shape)}."
            )
        into.copy_(made)
