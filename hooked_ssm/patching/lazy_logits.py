"""Logits that are made where they are read.

Most metrics read one position of every document, and logits are by far the largest activation. So a metric
is given a tensor that holds what the unembedding reads: an index makes the logits that it asks for, anything
else makes them all. The numbers are those of all logits, and so is everything else about the tensor.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map_only

# What a tensor of this shape is without its numbers.
ABOUT = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim")),
    *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_cpu", "is_sparse", "is_meta")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.__len__, Tensor.__hash__),
    *(Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex, torch.numel),
}


class LazyLogits(Tensor):
    """unembed(final), [*lead, d_vocab].

    final: [*lead, d_model], or the logits themselves with an `unembed` that gives back what it gets.
    was_read: whether anything of it but its shape, dtype and the like was asked for.

    An index without the last axis, or with a slice of it, unembeds the rows that it picks, any other index
    the rows that it touches. In-place edits, of the logits or of a view that an index gave, are kept. Where
    `final` is part of a graph, so are the logits.
    """

    final: Tensor
    unembed: Callable[[Tensor], Tensor]
    was_read: bool
    _all: Tensor | None
    _views: list[tuple[tuple, Tensor, int]]  # index, what it gave, and that at which version

    @staticmethod
    def __new__(cls, final: Float[Tensor, "*lead d_model"], unembed: Callable[[Tensor], Tensor]):
        none = unembed(final.flatten(0, -2)[:0])
        shape = (*final.shape[:-1], none.shape[-1])
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=none.dtype, device=none.device)  # type: ignore
        self.final, self.unembed, self.was_read = final, unembed, False
        self._all, self._views = None, []
        return self

    def _whole(self) -> Tensor:
        self.was_read = True
        if self._all is None:
            self._all = self.unembed(self.final)
        for place, (index, view, version) in enumerate(self._views):
            if view._version != version:
                self._all[index] = view
                self._views[place] = index, view, view._version
        return self._all

    def _part(self, index: Any) -> Tensor:
        edited = any(view._version != version for _, view, version in self._views)
        items = None if self._all is not None or edited else spelled_out(index, self.ndim)
        if items is None:
            return self._whole()[index]
        self.was_read = True
        is_view = all(item is None or isinstance(item, int | slice) for item in items)
        for known, view, _ in self._views if is_view else ():
            if known == items:
                return view
        if not isinstance(items[-1], slice):
            return self._entries(index)
        part = self.unembed(self.final[(*items[:-1], slice(None))])[..., items[-1]]
        if is_view and not part.is_inference():
            self._views.append((items, part, part._version))
        return part

    def _entries(self, index: Any) -> Tensor:
        """What an index of the last axis too picks."""
        device = self.final.device
        lead = torch.arange(self.final[..., 0].numel(), device=device).view(*self.final.shape[:-1], 1)
        rows = lead.expand(self.shape)[index]
        columns = torch.arange(self.shape[-1], device=device).expand(self.shape)[index]
        read, place = rows.unique(return_inverse=True)
        return self.unembed(self.final.flatten(0, -2)[read])[place, columns]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__ and isinstance(args[0], LazyLogits):
            return args[0]._part(args[1])
        args, kwargs = tree_map_only(LazyLogits, LazyLogits._whole, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """For what asks no `__torch_function__`: scripted functions and function transforms."""
        args, kwargs = tree_map_only(LazyLogits, LazyLogits._whole, (args, kwargs or {}))
        return func(*args, **kwargs)


def spelled_out(index: Any, ndim: int) -> tuple | None:
    """The index with an entry for every axis, the last axis' at the end; None where that is not plain."""
    items = list(index) if isinstance(index, tuple) else [index]
    axes = 0
    for place, item in enumerate(items):
        if isinstance(item, bool):
            return None
        if item is None or item is Ellipsis:
            continue
        if isinstance(item, slice) or (isinstance(item, int) and not isinstance(item, Tensor)):
            axes += 1
            continue
        try:
            item = items[place] = torch.as_tensor(item)
        except (TypeError, ValueError, RuntimeError):
            return None
        if item.dtype == torch.uint8:  # a mask, as masks once were
            return None
        axes += item.ndim if item.dtype == torch.bool else 1
    dots = [place for place, item in enumerate(items) if item is Ellipsis]
    left = [slice(None)] * (ndim - axes)
    if axes > ndim or len(dots) > 1:
        return None
    if dots:
        items[dots[0] : dots[0] + 1] = left
    else:
        items += left
    return None if items[-1] is None else tuple(items)
