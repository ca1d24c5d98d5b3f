"""Activations that a run leaves to be computed when they are read.

States, decays, writes, convolution taps and effective attention are large, and a forward needs none of them.
A cache that is all that wants one keeps what it is computed from, which the run has anyway.
"""

from collections.abc import Callable, ItemsView, Iterator, ValuesView
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor, nn

from hooked_ssm.ops.backends import is_plain


class Deferred:
    """compute(*inputs), for later: by the back end of now, without a graph."""

    def __init__(self, compute: Callable[..., Tensor], *inputs: Tensor | None):
        self.compute = compute
        self.inputs = [None if x is None else _kept(x) for x in inputs]
        self.versions = [None if x is None else x._version for x in self.inputs]
        self.context = copy_context()

    def then(self, finish: Callable[[Tensor], Tensor]) -> "Deferred":
        """The same, finished by another step."""
        compute = self.compute
        return Deferred(lambda *inputs: finish(compute(*inputs)), *self.inputs)

    @property
    def spoilt(self) -> bool:
        """Whether an input has been written to in place since."""
        return self.versions != [None if x is None else x._version for x in self.inputs]

    def __call__(self) -> Tensor:
        with torch.no_grad():
            return self.context.run(self.compute, *self.inputs)


def _kept(x: Tensor) -> Tensor:
    """x, or a copy if it is of a weight: training may go on."""
    is_weight = any(type(each) is nn.Parameter for each in (x, x._base))
    return x.detach().clone() if is_weight else x.detach()


def can_wait(*inputs: Tensor | None) -> bool:
    """Whether what is computed from these now can as well be computed later.

    Not where writing in place leaves no trace (inference mode), and not inside autocast or a transformation
    of functions, which will be over.
    """
    return all(
        x is None or (is_plain(x) and not x.is_inference() and not torch.is_autocast_enabled(x.device.type))
        for x in inputs
    )


class DeferredDict(dict[str, Any]):
    """Tensors by name. A `Deferred` is computed when it is first read, and the tensor kept.

    Reading raises RuntimeError if what the tensor is computed from has been written to in place. Whatever
    reads the values of a dictionary computes them all: iterating over `items()` and `values()`, copying,
    comparing, pickling (as a plain dictionary).
    """

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if not isinstance(value, Deferred):
            return value
        if value.spoilt:
            raise RuntimeError(
                f"{name!r} is computed when it is first read, from other activations of its run, and one of "
                "those has been written to in place: read it before that, or write into a clone."
            )
        self[name] = value = value()
        return value

    def __iter__(self) -> Iterator[str]:  # its being here makes dict(x) and {**x} ask __getitem__
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def values(self) -> Any:
        return ValuesView(self)

    def items(self) -> Any:
        return ItemsView(self)

    def pop(self, name: str, *default: Any) -> Any:
        if name in self:
            self[name]
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        name = next(reversed(self))
        return name, self.pop(name)

    def setdefault(self, name: str, default: Any = None) -> Any:
        super().setdefault(name, default)
        return self[name]

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __or__(self, other: Any) -> dict[str, Any]:
        return dict(self) | dict(other)

    def __ror__(self, other: Any) -> dict[str, Any]:
        return dict(other) | dict(self)

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    __hash__ = None

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> Any:
        return dict, (dict(self),)
