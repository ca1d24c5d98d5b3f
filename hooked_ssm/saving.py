"""A model as two files: config.json and model.safetensors. Nothing is ever unpickled."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hooked_ssm.config import HookedSSMConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "hooked_ssm"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place: readers see all of it or the old one.

    Raises OSError naming the folder if it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch(exist_ok=False)
        mode = beside.stat().st_mode
    except OSError as error:
        raise OSError(f"cannot write into the folder {path.parent}: {error.strerror or error}.") from error
    try:
        write(beside)
        beside.chmod(mode)  # safetensors' own files are for their owner alone
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def save(model: Any, folder: Path) -> None:
    config = {"format": FORMAT, "config": model.cfg.to_json()}
    weights = {name: p.detach().contiguous() for name, p in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, lambda path: save_file(weights, path))
    write_atomically(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2)))


def load(cls: type, folder: Path, device: str | None) -> Any:
    config = read_config(folder / CONFIG)
    if device is not None:
        config.device = device
    config.seed, seed = 0, config.seed  # initial weights are replaced: leave the global random state alone
    model = cls(config)
    model.cfg.seed = seed
    load_weights(model, folder / WEIGHTS)
    return model


def read_config(path: Path) -> HookedSSMConfig:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: not a folder written by HookedSSM.save.")
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON (truncated?): {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f'{path} is not a config written by HookedSSM.save: it has no "format": "{FORMAT}".')
    try:
        return HookedSSMConfig.from_json(values["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no config of a HookedSSM: {error}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError, or ValueError if it is not whole."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file (truncated or foreign): {error}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model's weights from a safetensors file. Raises ValueError if names or shapes do not fit."""
    given, wanted = read_tensors(path), model.state_dict()
    missing, surplus = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or surplus:
        raise ValueError(
            f"{path} does not fit the config: missing {missing or 'nothing'}, unknown {surplus or 'nothing'}."
        )
    for name, tensor in wanted.items():
        found = given[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"{path} does not fit the config: {name} should be {tensor.dtype} {list(tensor.shape)}, "
                f"is {found.dtype} {list(found.shape)}."
            )
    model.load_state_dict(given)
