"""The forward kernels launched: outputs, and states at the positions asked for, under given edits.

Linear attention and the delta rule share this; without beta it is linear attention, and the values are what
is written. Where a state is set, or added to, a chunk ends, and the output there is read from what it became.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..backends import MOST_KEYS
from .chunk_forward import chunk_reads, chunk_states, emit_states, writes_alone
from .common import TL_DTYPES, accumulator
from .plan import Plan, ends_in, plan, runs

WIDTH = 32  # columns of a state in a program that goes from chunk to chunk, at most
LONGEST_CHUNK = 64
TILE = 64  # rows and columns of the blocks of a state elsewhere, at most
GRADIENT_TILES = {"tf32": 32, "tf32x3": 16, "ieee": 16}  # where so much is held at once that more would spill


class Inputs(NamedTuple):
    """q, k [batch, pos, group, d_key], v [batch, pos, head, d_value], beta and decay [batch, pos, head],
    initial [batch, head, d_key, d_value]: each in one piece, in a dtype of its own. Decays are factors."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    decay: Tensor | None
    initial: Tensor | None


class Forced(NamedTuple):
    """What the recurrence is told, as numbers.

    ends: positions, in order, whose states have what `added` holds added to them, and then entries that
        `mask` names set to `values`; all three [batch, len(ends), head, d_key, d_value].
    dropped: of these, the positions that write nothing else (linear attention).
    alone: positions whose writes are set to `write_values` where `write_mask` says so, both
        [batch, len(alone), head, d_value].
    """

    ends: tuple[int, ...] = ()
    values: Tensor | None = None
    mask: Tensor | None = None
    added: Tensor | None = None
    dropped: tuple[int, ...] = ()
    alone: tuple[int, ...] = ()
    write_values: Tensor | None = None
    write_mask: Tensor | None = None


class Path(NamedTuple):
    """What the kernels leave beside o: T, W and u (see `chunk_forward`), and the states before each chunk and
    after the last, [batch, head, n_chunks + 1, d_key, d_value]."""

    T: Tensor | None
    W: Tensor | None
    u: Tensor
    starts: Tensor
    plan: Plan

    def state_after(self, positions: tuple[int, ...]) -> Tensor:
        """[batch, len(positions), head, d_key, d_value], for positions that chunks end with."""
        chunks, _ = ends_in(self.plan.edges, positions, self.starts.device)
        return self.starts.index_select(2, chunks + 1).transpose(1, 2).contiguous()


class Sizes:
    """The shapes of a call, and what kernels are launched with."""

    def __init__(self, inputs: Inputs, chunk: int):
        self.batch, self.length, self.heads, self.d_value = inputs.v.shape
        self.groups, self.d_key = inputs.k.shape[2:]
        self.tile, self.dtype = tile_of(chunk, LONGEST_CHUNK), accumulator(*inputs)
        self.corrected = inputs.beta is not None  # the delta rule
        self.width_k = tile_of(self.d_key, MOST_KEYS if self.corrected else TILE)
        self.width_v = tile_of(self.d_value, WIDTH if self.width_k <= TILE else WIDTH // 2)
        self.tile_k, self.tile_v = tile_of(self.d_key, TILE), tile_of(self.d_value, TILE)
        self.precision = precision(self.dtype, inputs.v)

    @property
    def lengths(self) -> tuple[int, int, int]:
        return self.length, self.heads, self.groups

    def kernel(self, part: str = "chunk") -> dict[str, Any]:
        """Compile-time arguments of a kernel: of a "chain" from chunk to chunk, for "gradients" of inputs, or
        any other."""
        most = GRADIENT_TILES[self.precision]
        block_k, block_v = {
            "chain": (self.width_k, self.width_v),
            "gradients": (min(most, self.tile_k), min(most, self.tile_v)),
            "chunk": (self.tile_k, self.tile_v),
        }[part]
        return {
            "DK": self.d_key,
            "DV": self.d_value,
            "C": self.tile,
            "BK": block_k,
            "BV": block_v,
            "DT": TL_DTYPES[self.dtype],
            "PRECISION": self.precision,
            "num_warps": 8 if block_k > TILE or (part == "gradients" and not self.corrected) else 4,
        }

    @property
    def rows(self) -> int:
        return self.batch * self.heads

    @property
    def columns(self) -> int:
        return triton.cdiv(self.d_value, self.tile_v)

    @property
    def chains(self) -> tuple[int, int, int]:
        return self.rows, triton.cdiv(self.d_value, self.width_v), triton.cdiv(self.d_key, self.width_k)

    @property
    def blocks(self) -> int:
        return triton.cdiv(self.d_key, self.tile_k) * self.columns

    def states(self, n: int) -> tuple[int, ...]:
        return self.batch, n, self.heads, self.d_key, self.d_value


def precision(dtype: torch.dtype, values: Tensor) -> str:
    """How matrix units take float32 numbers: as three products of tf32 ones, which keeps almost all digits;
    or as one, if torch may do so in its own products, or half precision has no more digits anyway."""
    if dtype == torch.float64:
        return "ieee"
    full = values.element_size() > 2 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if full else "tf32"


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    kernel[grid](*arguments, **constants)


def tile_of(d: int, most: int) -> int:
    """The size of blocks of an axis of d entries; matrix units want 16 at least."""
    return max(16, min(most, triton.next_power_of_2(d)))


@torch.no_grad()
def walk(inputs: Inputs, forced: Forced, chunk: int) -> tuple[Tensor, Path]:
    """o, and what else there is."""
    size = Sizes(inputs, chunk)
    q, k, v, beta, decay, initial = inputs
    cut = plan(size.length, chunk, forced.ends, forced.alone, v.device)
    T = W = None
    u = v.index_fill(1, index(forced.dropped, v), 0) if forced.dropped else v
    if beta is not None:
        T = v.new_empty(size.rows, cut.n_chunks, size.tile, size.tile, dtype=size.dtype)
        W = v.new_empty(size.batch, size.length, size.heads, size.d_key, dtype=size.dtype)
        u = torch.empty_like(v, dtype=size.dtype)
        launch(
            writes_alone,
            (size.rows, cut.n_chunks),
            *(k, v, beta, decay, cut.bounds, T, W, u, *size.lengths, cut.n_chunks),
            **size.kernel(),
            LOG=size.tile.bit_length() - 1,
            SOLVE="tf32x3" if size.precision == "tf32" else size.precision,
        )
    state_slot, write_slot = slots(cut, forced)
    starts = v.new_empty(size.batch, size.heads, cut.n_chunks + 1, size.d_key, size.d_value, dtype=size.dtype)
    launch(
        chunk_states,
        size.chains,
        *(k, u, W, decay, initial, cut.bounds),
        *(state_slot, forced.values, forced.mask, forced.added, len(forced.ends)),
        *(write_slot, forced.write_values, forced.write_mask, len(forced.alone)),
        *(starts, *size.lengths, cut.n_chunks),
        **size.kernel("chain"),
    )
    o = torch.empty_like(v)
    launch(
        chunk_reads,
        (size.rows, cut.n_chunks, size.columns),
        *(q, k, u, decay, cut.bounds, starts, o, *size.lengths, cut.n_chunks),
        **size.kernel(),
    )
    path = Path(T, W, u, starts, cut)
    if forced.ends:
        q_there = at(q, forced.ends).to(size.dtype).repeat_interleave(size.heads // size.groups, dim=2)
        o[:, index(forced.ends, o)] = (
            (q_there.unsqueeze(-2) @ path.state_after(forced.ends)).squeeze(-2).to(o)
        )
    return o, path


def slots(cut: Plan, forced: Forced) -> tuple[Tensor | None, Tensor | None]:
    """For each chunk, which of `ends`, and which of `alone`, it ends with, or -1; None for none at all."""
    device = cut.bounds.device
    states, writes = (
        ends_in(cut.edges, positions, device)[1] if positions else None
        for positions in (forced.ends, forced.alone)
    )
    return states, writes


@torch.no_grad()
def states_at(inputs: Inputs, path: Path, forced: Forced, positions: tuple[int, ...], chunk: int) -> Tensor:
    """[batch, len(positions), head, d_key, d_value]"""
    size = Sizes(inputs, chunk)
    run = runs(path.plan.edges, positions, path.u.device)
    states = path.starts.new_empty(size.states(len(positions)))
    launch(
        emit_states,
        (size.rows, len(run.chunk), size.blocks),
        *(inputs.k, path.u, inputs.decay, path.plan.bounds, path.starts, *run),
        *(states, len(positions), *size.lengths, path.plan.n_chunks),
        **size.kernel(),
    )
    known = tuple(p for p in forced.ends if p in set(positions))
    if known:
        place = {p: i for i, p in enumerate(positions)}
        states[:, index([place[p] for p in known], states)] = path.state_after(known)
    return states


def index(positions: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(positions, dtype=torch.long, device=like.device)


def at(x: Tensor, positions: Sequence[int]) -> Tensor:
    """x [batch, pos, ...] at some positions."""
    return x.index_select(1, index(positions, x))
