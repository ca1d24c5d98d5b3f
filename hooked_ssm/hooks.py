"""Hook points that say what they carry."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformer_lens.hook_points import HookPoint

from hooked_ssm.deferred import Deferred, DeferredDict, can_wait
from hooked_ssm.ops.at import At
from hooked_ssm.ops.looking import change_by
from hooked_ssm.ops.state_edit import StateEdit


class Hook(HookPoint):
    """A TransformerLens `HookPoint` with a declared shape and one line of meaning.

    shape: axis names, such as "batch pos d_inner d_state". The axis named `pos` (or `dest`) is the one
        that `pos_slice` cuts. (A filter has an axis `lag` instead: entry t is what reaches t places on.)
    meaning: one line for `HookedSSM.hook_table()`.
    copy: hand attached hooks a contiguous copy. For tensors that something else still reads under
        another name: TransformerLens's patch setters write in place.
    """

    pos_dim: int

    def __init__(self, shape: str, meaning: str, *, copy: bool = False):
        super().__init__()
        self.shape = shape
        self.meaning = meaning
        self.copy = copy
        self.positions: tuple[int, ...] | None = None
        axes = shape.split()
        self.pos_dim = next(axes.index(axis) for axis in ("dest", "lag", "pos") if axis in axes)

    @property
    def attached(self) -> bool:
        """Whether anything would see this hook fire."""
        return bool(self._forward_hooks or self._backward_hooks or self._forward_pre_hooks)

    @property
    def can_wait(self) -> bool:
        """Whether all that is attached is caches, which can have later what they want."""
        handles, others = self.fwd_hooks, self._backward_hooks or self._forward_pre_hooks
        plain = len(handles) == len(self._forward_hooks) and not others and self.positions is None
        return plain and all(isinstance(each.user_hook, Save) and each.user_hook.can_wait for each in handles)

    def later(self, deferred: Deferred) -> None:
        """Hand what is attached, which `can_wait`, what this hook carries."""
        for handle in self.fwd_hooks:
            handle.user_hook.later(deferred, self)  # pyright: ignore

    def put_off(self, compute: Callable[..., Tensor], *inputs: Tensor | None) -> bool:
        """Whether nobody wants compute(*inputs) at this hook now. Caches are handed it for later."""
        if not self.attached:
            return True
        if not (self.can_wait and can_wait(*inputs)):
            return False
        self.later(Deferred(partial(_apart, compute), *inputs))
        return True

    def change_of(self, compute: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor | None:
        """What this hook adds to compute(*inputs), which is computed for it alone; None if nothing."""
        return None if self.put_off(compute, *inputs) else change_by(self, partial(compute, *inputs))

    @contextmanager
    def only(self, positions: Sequence[int]) -> Iterator[None]:
        """Inside, the hook carries these positions alone, increasing: [batch, len(positions), ...].

        For what a recurrence otherwise holds for every position: decays, writes, states. A back end that can
        do it forms no others. At any other hook a run raises ValueError.
        """
        before, self.positions = self.positions, At(positions, self).positions
        try:
            yield
        finally:
            self.positions = before

    def __call__(self, x: Tensor) -> Any:
        """At once where nothing would see it: a token that is generated passes hundreds of idle hooks."""
        if not (self.attached or _has_any_global_hook()):
            return x
        edits = _edits.get()
        if edits is None:
            return super().__call__(x)
        before = x.detach().clone()
        after = super().__call__(x)
        if not (
            isinstance(after, Tensor) and after.dtype == before.dtype and torch.equal(after.detach(), before)
        ):
            edits.append(self)
        return after

    def forward(self, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        if self.positions is not None and self.attached and x.shape[self.pos_dim] != len(self.positions):
            raise ValueError(
                f"this hook ({self.meaning}) cannot carry positions {list(self.positions)} alone: "
                f"it was handed {x.shape[self.pos_dim]}."
            )
        return _copy(x) if self.copy and self.attached and not self.can_wait else x

    def if_attached(self) -> "Callable[[Tensor], object] | None":
        """This hook if anything is attached to it, else None: for operators that take optional edits."""
        if not self.attached:
            return None
        return self if self.positions is None else At(self.positions, self)


_edits: ContextVar[list[Hook] | None] = ContextVar("the hooks that edited", default=None)


@contextmanager
def noting_edits() -> Iterator[list[Hook]]:
    """Inside, the list gets every hook that hands on anything but the values that it was handed."""
    edits: list[Hook] = []
    token = _edits.set(edits)
    try:
        yield edits
    finally:
        _edits.reset(token)


def idle(modules: Iterable[nn.Module | None]) -> bool:
    """Whether nothing would see any of them run."""
    for m in modules:
        if m is not None and (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks):
            return False
    return not _has_any_global_hook()


def call_hooked(op: Callable[..., Any], *inputs: Tensor | None, **hooks: Hook | None) -> Any:
    """op(*inputs, edit_x=...) with a hook as every edit.

    If caches are all that is attached to them, the operator runs without, and again for what is read.
    """
    attached = {edit: hook for edit, hook in hooks.items() if hook is not None and hook.attached}
    if all(hook.can_wait for hook in attached.values()) and can_wait(*inputs):
        for edit, hook in attached.items():
            hook.later(Deferred(partial(_handed, op, edit), *inputs))
        return op(*inputs)
    return op(*inputs, **{edit: hook.if_attached() for edit, hook in attached.items()})


class _Handed(Exception):
    """What an operator handed to an edit that wants nothing else of it."""


def _handed(op: Callable[..., Any], edit: str, *inputs: Tensor | None) -> Tensor:
    """What the operator hands to this edit. It goes no further."""

    def stop(handed: Tensor) -> None:
        raise _Handed(handed)

    try:
        op(*inputs, **{edit: stop})
    except _Handed as stopped:
        return stopped.args[0]
    raise AssertionError(f"{op} has not called {edit}.")


def _apart(compute: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """compute(*inputs), in memory of its own and without gaps."""
    result = compute(*inputs)
    memory = result.untyped_storage().data_ptr()
    shared = any(x is not None and x.untyped_storage().data_ptr() == memory for x in inputs)
    return result if result.is_contiguous() and not shared else result.clone()


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


class Save:
    """What a cache attaches to a hook: `cache[key]` becomes what the hook carries, `finish`ed."""

    def __init__(self, cache: dict[str, Any], key: str, finish: Callable[[Tensor, Hook], Tensor]):
        self.cache, self.key, self.finish = cache, key, finish
        self.can_wait = isinstance(cache, DeferredDict)

    def __call__(self, tensor: Tensor | StateEdit, hook: Hook) -> None:
        tensor = tensor.states if isinstance(tensor, StateEdit) else tensor
        if hook.copy and hook.can_wait:
            if can_wait(tensor):
                return self.later(Deferred(_copy, tensor), hook)
            tensor = _copy(tensor)
        self.cache[self.key] = self.finish(tensor.detach(), hook)

    def later(self, deferred: Deferred, hook: Hook) -> None:
        finish = self.finish  # not of self, which has the cache: that would keep itself alive
        self.cache[self.key] = deferred.then(lambda tensor: finish(tensor, hook))
