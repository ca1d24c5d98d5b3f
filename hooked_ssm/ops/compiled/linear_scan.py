"""`linear_scan`, compiled: real or complex, with decays that may broadcast along the last axes of the state.

In memory a state is [group, member], and the members of a group share a decay. Where they do not, groups are
runs of entries. A group goes through all positions before the next one begins.
"""

import math

import torch
from torch import Tensor

from hooked_ssm.ops.linear_scan import LinearScan, in_single
from hooked_ssm.ops.memory import empty

from .arithmetic import conjugate, fma, kernel
from .threads import split

RUN = 1024  # entries: what is carried from position to position stays in the first cache


def run_scan(
    decay: Tensor,
    write: Tensor,
    initial: Tensor | None,
    values: Tensor | None = None,
    set_at: Tensor | None = None,
) -> Tensor:
    layout = _Layout(decay, write)
    w, states = layout.flat(write), layout.empty(write)
    h = w[:, :1] if initial is None else layout.flat(initial.unsqueeze(1))
    edit = layout.edit(values, set_at)
    layout.split(_run, w, h, initial is not None, *edit, set_at is not None, layout.flat(states))
    return states


def total_gradient(grad: Tensor, decay: Tensor, set_at: Tensor | None = None) -> Tensor:
    layout = _Layout(decay, grad)
    g, total = layout.flat(grad), layout.empty(grad)
    layout.split(_reverse, g, layout.edit(None, set_at)[1], set_at is not None, layout.flat(total))
    return total


NUMBA = LinearScan(in_single(run_scan), in_single(total_gradient))


class _Layout:
    """How [batch, pos, *dims] lies in memory: batch and positions first, then dims as `like` has them."""

    def __init__(self, decay: Tensor, like: Tensor):
        strides = like.stride()
        self.order = (0, 1, *sorted(range(2, like.ndim), key=lambda dim: -strides[dim]))
        self.shape = like.permute(self.order).shape
        batch, pos, *dims = self.shape
        decay = decay.detach().permute(self.order)
        members = 1
        while decay.ndim > 2 and (decay.stride(-1) == 0 or decay.shape[-1] == 1):
            members *= decay.shape[-1]
            decay = decay[..., 0]
        self.size = math.prod(dims)
        self.decay = decay.reshape(batch, pos, -1) if decay.numel() else decay.new_empty(batch, pos, 0)
        self.shared = members > 1
        self.groups = self.decay.shape[2] if self.shared else -(-self.size // RUN)

    def flat(self, x: Tensor) -> Tensor:
        """[batch, pos, entry], of one piece."""
        batch, pos, *_ = self.shape
        x = x.detach().permute(self.order)
        return x.reshape(x.shape[0], x.shape[1], self.size).contiguous().resolve_conj()

    def edit(self, values: Tensor | None, set_at: Tensor | None) -> tuple[Tensor, Tensor]:
        """The values and the mask, or something of their type."""
        some = self.decay[:0]
        mask = some.new_empty((0, 0, 0), dtype=torch.uint8) if set_at is None else self.flat(set_at)
        return some if values is None else self.flat(values), mask.view(torch.uint8)

    def empty(self, like: Tensor) -> Tensor:
        """[batch, pos, *dims] in this order, of which `flat` is a view."""
        return empty(like.shape, like, self.order)

    def split(self, kernel, *arguments) -> None:
        batch, pos = self.shape[:2]
        if batch * pos * self.size == 0:
            return
        arrays = (x.numpy() if isinstance(x, Tensor) else x for x in arguments)
        decay = self.decay.contiguous().resolve_conj().numpy()
        split(kernel, batch * self.groups, batch * pos * self.size, self.groups, self.shared, decay, *arrays)


@kernel
def _run(first, last, groups, shared, decay, write, initial, has_initial, values, set_at, has_edit, states):
    _, pos, size = write.shape
    for part in range(first, last):
        b, group = part // groups, part % groups
        members = size // groups if shared else RUN
        begin = group * members
        end = min(begin + members, size)
        for t in range(pos):
            w, out = write[b, t, begin:end], states[b, t, begin:end]
            if t == 0 and not has_initial:
                for m in range(end - begin):
                    out[m] = w[m]
            else:
                h = initial[b, 0, begin:end] if t == 0 else states[b, t - 1, begin:end]
                if shared:
                    one = decay[b, t, group]
                    for m in range(end - begin):
                        out[m] = fma(one, h[m], w[m])
                else:
                    a = decay[b, t, begin:end]
                    for m in range(end - begin):
                        out[m] = fma(a[m], h[m], w[m])
            if has_edit:
                v, cut = values[b, t, begin:end], set_at[b, t, begin:end]
                for m in range(end - begin):
                    out[m] = v[m] if cut[m] else out[m]


@kernel
def _reverse(first, last, groups, shared, decay, grad, set_at, has_edit, total):
    _, pos, size = grad.shape
    for part in range(first, last):
        b, group = part // groups, part % groups
        members = size // groups if shared else RUN
        begin = group * members
        end = min(begin + members, size)
        for t in range(pos - 1, -1, -1):
            g, out = grad[b, t, begin:end], total[b, t, begin:end]
            if t == pos - 1:
                for m in range(end - begin):
                    out[m] = g[m]
                continue
            later = total[b, t + 1, begin:end]
            if shared:
                one = conjugate(decay[b, t + 1, group])
                for m in range(end - begin):
                    out[m] = fma(one, later[m], g[m])
            else:
                a = decay[b, t + 1, begin:end]
                for m in range(end - begin):
                    out[m] = fma(conjugate(a[m]), later[m], g[m])
            if has_edit:
                cut = set_at[b, t + 1, begin:end]
                for m in range(end - begin):
                    out[m] = g[m] if cut[m] else out[m]
