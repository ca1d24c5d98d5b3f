"""What the chunked kernels share: tiles in and out, and products of decays over spans of a chunk.

A chunk is the positions bounds[c] ... bounds[c + 1] - 1 of a document, at most C of them, where C is a power
of two; a tile has C rows, and those past the chunk's end are 0, with a decay of 1: they write nothing and
keep everything. Tensors are [batch, pos, head, d] in one piece, or [batch, pos, head]; a state is [d_key,
d_value].

No argument is annotated but with `tl.constexpr`, and `no_type_check` keeps run-time type checkers away:
triton compiles the source that it reads.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def rows_of(bounds, c, b, h, L, H, C: tl.constexpr):
    """The rows of chunk c in a tensor [batch, pos, head], and which of them there are."""
    t = tl.load(bounds + c) + tl.arange(0, C)
    return (b * L + t) * H + h, t < tl.load(bounds + c + 1)


@triton.jit
@no_type_check
def load_rows(x, row, there, first, D: tl.constexpr, BLOCK: tl.constexpr, DT: tl.constexpr):
    """The tile of some rows of x [..., D], columns first ... first + BLOCK - 1."""
    d = first + tl.arange(0, BLOCK)
    mask = there[:, None] & (d < D)[None, :]
    return tl.load(x + row[:, None] * D + d[None, :], mask=mask, other=0).to(DT)


@triton.jit
@no_type_check
def store_rows(x, row, there, first, tile, D: tl.constexpr, BLOCK: tl.constexpr):
    d = first + tl.arange(0, BLOCK)
    mask = there[:, None] & (d < D)[None, :]
    tl.store(x + row[:, None] * D + d[None, :], tile.to(x.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def block_of(n, first_k, first_v, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Where a block of the n-th state lies in a tensor of states, and which of its entries there are."""
    k, v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    return n * (DK * DV) + k[:, None] * DV + v[None, :], (k < DK)[:, None] & (v < DV)[None, :]


@triton.jit
@no_type_check
def from_start(decay, row, there, DT: tl.constexpr):
    """a_1 ... a_i for every i."""
    return tl.cumprod(tl.load(decay + row, mask=there, other=1).to(DT), axis=0)


@triton.jit
@no_type_check
def to_end(decay, row, next_there, H, DT: tl.constexpr):
    """a_{j+1} ... a_C for every j; `next_there` is whether j + 1 is there."""
    return tl.cumprod(tl.load(decay + row + H, mask=next_there, other=1).to(DT), axis=0, reverse=True)


@triton.jit
@no_type_check
def last_of(x, C: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, C) == C - 1, x, 0.0), axis=0)


@triton.jit
@no_type_check
def spans(decay, row, there, C: tl.constexpr, DT: tl.constexpr):
    """a_{j+1} ... a_i for every i >= j, and 0 for j > i: [i, j].

    Every product is over its own span: nothing is divided, so that a decay of 0, or a negative one, is no
    special case, and no digits are lost after one of almost 0.
    """
    a = tl.load(decay + row, mask=there, other=1).to(DT)
    i = tl.arange(0, C)
    own = tl.cumprod(tl.where(i[:, None] > i[None, :], a[:, None], 1.0), axis=0)
    return tl.where(i[:, None] >= i[None, :], own, 0.0)


@triton.jit
@no_type_check
def spans_before(decay, row, there, H, C: tl.constexpr, DT: tl.constexpr):
    """a_{j+1} ... a_{i-1} for every i > j, and 0 for j >= i: [i, j]."""
    i = tl.arange(0, C)
    a = tl.load(decay + row - H, mask=there & (i > 0), other=1).to(DT)
    own = tl.cumprod(tl.where(i[:, None] > i[None, :] + 1, a[:, None], 1.0), axis=0)
    return tl.where(i[:, None] > i[None, :], own, 0.0)
