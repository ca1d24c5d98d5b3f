"""The selective scan's kernels as functions of tensors, without autograd: strides, memory and tiles."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import scan_parts
from .common import TL_DTYPES, accumulator, launch, on_device
from .scan_backward import backward
from .scan_forward import forward


class Given(NamedTuple):
    """Values at some positions. values: [batch, slot, d_inner, n], as `by_slot` has it; slot: see `slots`."""

    values: Tensor
    slot: Tensor


class Problem(NamedTuple):
    """What is scanned. decay, write: where they are given. set_to: the states that are set, `is_set` saying
    which of its entries. stop: whether no gradient goes back through the positions of `set_to`."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    initial: Tensor | None
    decay: Given | None = None
    write: Given | None = None
    set_to: Given | None = None
    is_set: Tensor | None = None
    stop: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return accumulator(*self[:6])


class Tile(NamedTuple):
    """What one program has in hand at a time: `pos` positions of `channels` channels."""

    pos: int
    channels: int
    warps: int


class Scanned(NamedTuple):
    """y; the last state [batch, d_inner, n]; the states before each chunk [chunk, batch, n, d_inner]."""

    y: Tensor
    last: Tensor
    starts: Tensor | None


class Gradients(NamedTuple):
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    initial: Tensor | None
    decay: Tensor | None
    write: Tensor | None


def choose_tile(length: int, channels: int) -> Tile:
    """16 channels are two memory transactions of 32 bytes; at 64 positions nothing spills on Hopper."""
    pos = min(64, triton.next_power_of_2(length))
    wide = min(16, triton.next_power_of_2(channels))
    return Tile(pos, wide, min(4, max(1, pos * wide // 256)))


def by_slot(tensor: Tensor) -> Tensor:
    """[batch, slot, d_inner, n] in the kernels' memory order, where d_inner comes last."""
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


def empty_by_slot(like: Tensor, slots: int, channels: int, n_state: int, dtype: torch.dtype) -> Tensor:
    """The same, without values."""
    strides = (slots * n_state * channels, n_state * channels, 1, channels)
    return like.new_empty_strided((len(like), slots, channels, n_state), strides, dtype=dtype)


def scan(
    problem: Problem,
    tile: Tile,
    *,
    keep: bool,
    states: Given | None = None,
    first: int = 0,
    into: Scanned | None = None,
) -> Scanned:
    """Runs it. `states` is written to at its positions. `keep`: whether a gradient will be wanted.

    `first`: the chunk to begin with, `into` being what holds for those before it, and is written to.
    """
    x, dt, A, B, C, initial = problem[:6]
    batch, length, channels = x.shape
    n_state = A.shape[1]
    if into is None:
        chunks = triton.cdiv(length, tile.pos)
        starts = x.new_empty(chunks, batch, n_state, channels, dtype=problem.dtype) if keep else None
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        into = Scanned(y, x.new_empty(batch, channels, n_state, dtype=problem.dtype), starts)
    if x.numel() == 0:
        return into
    with on_device(x):
        launch(forward, (batch, triton.cdiv(channels, tile.channels)))(
            x,
            dt,
            A,
            B,
            C,
            initial,
            *_given(problem.decay),
            *_given(problem.write),
            *_set(problem),
            *into,
            *_given(states),
            length,
            channels,
            n_state,
            first,
            *_strides(problem),
            *((0, 0, 0) if initial is None else initial.stride()),
            T=tile.pos,
            D=tile.channels,
            N=triton.next_power_of_2(n_state),
            ACC=TL_DTYPES[problem.dtype],
            num_warps=tile.warps,
        )
    return into


def gradients(
    problem: Problem,
    tile: Tile,
    starts: Tensor,
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    grad_states: Given | None = None,
    totals: Given | None = None,
) -> Gradients:
    """Of a loss that depends on y, the last state, and states at some positions, as far as given.

    `totals` is written to: the total gradient of the states at its positions.
    """
    x, dt, A, B, C, initial = problem[:6]
    batch, length, channels = x.shape
    n_state, dtype = A.shape[1], problem.dtype
    blocks = triton.cdiv(channels, tile.channels)
    grad_x, grad_dt = x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape, dtype=dtype)
    grad_A, grad_initial = x.new_empty(2, batch, channels, n_state, dtype=dtype)
    parts_B, parts_C = (
        x.new_empty(*([] if each.ndim == 4 else [blocks]), *each.shape, dtype=dtype) for each in (B, C)
    )
    of_decay, of_write = (
        None if given is None else torch.empty_like(given.values) for given in (problem.decay, problem.write)
    )
    if x.numel():
        with on_device(x):
            launch(backward, (batch, blocks))(
                x,
                dt,
                A,
                B,
                C,
                *_given(problem.decay),
                *_given(problem.write),
                *_set(problem),
                starts,
                None if grad_y is None else grad_y.contiguous(),
                None if grad_last is None else grad_last.contiguous(),
                *_given(grad_states),
                grad_x,
                grad_dt,
                grad_A,
                parts_B,
                parts_C,
                None if initial is None else grad_initial,
                of_decay,
                of_write,
                *_given(totals),
                length,
                channels,
                n_state,
                *_strides(problem),
                T=tile.pos,
                D=tile.channels,
                N=triton.next_power_of_2(n_state),
                B_EACH=B.ndim == 4,
                C_EACH=C.ndim == 4,
                STOP=problem.stop,
                ACC=TL_DTYPES[dtype],
                num_warps=tile.warps,
            )
    grad_B, grad_C = (
        parts if each.ndim == 4 else parts.sum(0) for parts, each in ((parts_B, B), (parts_C, C))
    )
    return Gradients(
        grad_x.to(x.dtype),
        grad_dt.to(dt.dtype),
        grad_A.sum(0).to(A.dtype),
        grad_B.to(B.dtype),
        grad_C.to(C.dtype),
        None if initial is None else grad_initial.to(initial.dtype),
        of_decay,
        of_write,
    )


def make_decay(dt: Tensor, A: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(dt A), dt [batch, pos, d_inner], A [d_inner, n]: [batch, pos, d_inner, n]."""
    out = empty_by_slot(dt, dt.shape[1], dt.shape[2], A.shape[1], dtype)
    if out.numel():
        with on_device(dt):
            grid, options = _rows(dt, A.shape[1], dtype)
            launch(scan_parts.make_decay, grid)(dt.contiguous(), A.contiguous(), out, **options)
    return out


def make_write(dt: Tensor, x: Tensor, B: Tensor, dtype: torch.dtype) -> Tensor:
    """dt x B, dt and x [batch, pos, d_inner], B [batch, pos, (d_inner,) n]: [batch, pos, d_inner, n]."""
    out = empty_by_slot(dt, dt.shape[1], dt.shape[2], B.shape[-1], dtype)
    if out.numel():
        with on_device(dt):
            grid, options = _rows(dt, B.shape[-1], dtype)
            inputs = (tensor.contiguous() for tensor in (dt, x, B))
            launch(scan_parts.make_write, grid)(*inputs, out, EACH=B.ndim == 4, **options)
    return out


def _rows(dt: Tensor, n_state: int, dtype: torch.dtype) -> tuple[tuple[int, int], dict[str, Any]]:
    rows, channels = dt.shape[0] * dt.shape[1], dt.shape[2]
    high = min(16, triton.next_power_of_2(rows))
    wide = min(64, triton.next_power_of_2(channels))
    options = {"rows": rows, "channels": channels, "n_state": n_state}
    options |= {"R": high, "D": wide, "ACC": TL_DTYPES[dtype]}
    return (triton.cdiv(rows, high), triton.cdiv(channels, wide)), options


def _given(given: Given | None) -> tuple[Tensor | None, Tensor | None, int]:
    """Values, slots, and how many values a document has."""
    return (None, None, 0) if given is None else (given.values, given.slot, given.values.shape[1])


def _set(problem: Problem) -> tuple[Tensor | None, Tensor | None, Tensor | None, int]:
    values, slot, count = _given(problem.set_to)
    return values, problem.is_set, slot, count


def _strides(problem: Problem) -> tuple[int, ...]:
    """Of x, dt, A, B and C; B and C have none along channels if all channels share them."""
    x, dt, A, B, C = problem[:5]
    each = (t.stride() if t.ndim == 4 else (*t.stride()[:2], 0, t.stride(2)) for t in (B, C))
    return (*x.stride(), *dt.stride(), *A.stride(), *next(each), *next(each))
