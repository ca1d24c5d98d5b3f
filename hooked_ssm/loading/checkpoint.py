"""Where weights come from: files, read tensor by tensor and never unpickled, or a live model."""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


class LiveModel:
    """The weights of a model in memory. `where` says in an error message what they are read from."""

    def __init__(self, model: nn.Module):
        self.where = f"the given {type(model).__name__}"
        self.weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def names(self) -> Iterable[str]:
        return self.weights

    def tensor(self, name: str) -> Tensor:
        return self.weights[name]


class Files:
    """Weights in safetensors files, or in files of `torch.save` that hold tensors and nothing else.

    Files are mapped, and mapped anew now and then: all that was read of a mapping stays in memory beside
    the model. (Files of PyTorch before 1.6 cannot be mapped, and are in memory as a whole.)

    Raises ValueError naming the file if it is truncated, or holds more than tensors.
    """

    def __init__(self, paths: list[Path]):
        self.where = ", ".join(map(str, paths))
        self.path, self.taken = None, 0
        self.opened: dict[str, Tensor] = {}
        self.file_of: dict[str, Path] = {}
        for path in paths:
            self.file_of |= dict.fromkeys(read(path), path)

    def names(self) -> Iterable[str]:
        return self.file_of

    def tensor(self, name: str) -> Tensor:
        path = self.file_of[name]
        if path.suffix == ".safetensors":
            return read(path, name)[name]
        if path != self.path or (is_zip(path) and self.taken > path.stat().st_size // 16):
            self.path, self.opened, self.taken = path, {}, 0  # let go of the last mapping first
            self.opened = read(path)
        self.taken += self.opened[name].nbytes
        return self.opened[name]


Source = LiveModel | Files


def read(path: Path, name: str | None = None) -> dict[str, Tensor]:
    """One tensor of a file; without a name all names, whose tensors are to be left alone."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}.")
    mapped = is_zip(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = [name] if name is not None else file.keys()
                return {key: file.get_tensor(key) if name else torch.empty(0) for key in names}
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file (truncated or foreign): {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no file of tensors, or holds more than tensors; nothing in it was run: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # torch.load trips over broken bytes in any way there is
        raise ValueError(
            f"{path} is not a whole file of torch.save (truncated or foreign): {error}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a dictionary of tensors.")
    return found


def is_zip(path: Path) -> bool:
    """Whether torch.load can map the file: those of PyTorch before 1.6 have to be read whole."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}.")
    try:
        values = json.loads(path.read_text(), object_hook=special_float)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON (truncated?): {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold an object, holds a {type(values).__name__}.")
    return values


def special_float(value: dict[str, Any]) -> Any:
    """transformers writes infinity, which JSON does not have, as {"__float__": "Infinity"}."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def shards(index: Path) -> list[str]:
    """The file names in the index of weights that are shared out among several files."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} is no index of weights: it has no weight_map.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names a file elsewhere: {name!r}.")
    return names
