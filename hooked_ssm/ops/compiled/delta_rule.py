"""The delta rule's explicit path, compiled. The fast path, made of matrix products, is the reference's."""

import torch
from torch import Tensor

from hooked_ssm.ops.delta_rule import delta_rule_by
from hooked_ssm.ops.delta_rule_path import Inputs, Path, PathGradients, Walker
from hooked_ssm.ops.memory import empty
from hooked_ssm.ops.trajectory_edit import Setting

from . import delta_rule_kernels as kernels
from .threads import split


@torch.no_grad()
def walk(inputs: Inputs, writes: Setting, states: Setting) -> Path:
    q, k, v, beta, decay, initial = inputs
    batch, pos, heads, d_key = q.shape
    d_value = v.shape[3]
    if initial is None:
        S = v.new_zeros(batch, heads, d_key, d_value)
    else:
        S = initial.detach().clone(memory_format=torch.contiguous_format)
    o, errors, w = (v.new_empty(v.shape) for _ in range(3))
    path = Path(o, errors, w, empty((batch, pos, heads, d_key, d_value), v))
    arrays = (
        *(q, k, v, beta, _or_nothing(decay, v, 3), S),
        *(_values(writes, v, 4), _mask(writes, 4), _values(states, v, 5), _mask(states, 5)),
        *path,
    )
    split(kernels.forward, batch * heads, 4 * path.states.numel(), *_numpy(arrays))
    return path


def back(
    inputs: Inputs,
    writes: Setting,
    states: Setting,
    path: Path,
    do: Tensor | None,
    dlast: Tensor | None,
    dwrites: Tensor | None,
    dstates: Tensor | None,
    to_states: bool,
) -> PathGradients:
    q, k, v, beta, decay, initial = inputs
    first = torch.zeros_like(path.states[:, 0]) if initial is None else initial
    lam = first.new_zeros(first.shape)
    if dlast is not None:
        lam.copy_(dlast)
    dq = None if do is None else q.new_empty(q.shape)
    dk, dv, dbeta = k.new_empty(k.shape), v.new_empty(v.shape), beta.new_empty(beta.shape)
    ddecay = None if decay is None else decay.new_empty(decay.shape)
    mu_total = v.new_empty(v.shape)
    lam_total = empty(path.states.shape, v) if to_states else None
    nothing = [_or_nothing(x, v, ndim) for x, ndim in ((decay, 3), (do, 4), (dwrites, 4), (dstates, 5))]
    arrays = (
        *(q, k, beta, nothing[0], first, path.errors, path.writes, path.states),
        *(_mask(writes, 4), writes.stop, _mask(states, 5), states.stop),
        *(*nothing[1:], lam, _or_nothing(dq, v, 4), dk, dv, dbeta, _or_nothing(ddecay, v, 3)),
        *(mu_total, _or_nothing(lam_total, v, 5)),
    )
    batch, _, heads, _ = q.shape
    split(kernels.backward, batch * heads, 8 * path.states.numel(), *_numpy(arrays))
    return PathGradients(dq, dk, dv, dbeta, ddecay, lam, mu_total, lam_total)


numba_delta_rule = delta_rule_by(Walker(walk, back))


def _numpy(arrays: tuple) -> list:
    return [x.detach().contiguous().numpy() if isinstance(x, Tensor) else x for x in arrays]


def _or_nothing(x: Tensor | None, like: Tensor, ndim: int) -> Tensor:
    return like.new_empty((0,) * ndim) if x is None else x


def _values(edit: Setting, like: Tensor, ndim: int) -> Tensor:
    return _or_nothing(None if edit.set_at is None else edit.values, like, ndim)


def _mask(edit: Setting, ndim: int) -> Tensor:
    """[batch, pos, ...], of bytes."""
    if edit.set_at is None:
        return torch.empty((0,) * ndim, dtype=torch.uint8)
    return edit.set_at.contiguous().view(torch.uint8)
