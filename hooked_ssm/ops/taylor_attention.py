"""Linear attention in the features of Taylor's exponential, with q, k [f] and s = q . k / sqrt(f):

    phi(q) . phi(k) = 1 + s + s^2 / 2       phi(x) = [1, x / f^(1/4), vec(x x^T) / sqrt(2 f)]

    o_i = sum_{j <= i} (phi(q_i) . phi(k_j)) v_j      n_i = sum_{j <= i} phi(q_i) . phi(k_j)

or, with the memory S_t = S_{t-1} + phi(k_t) v_t^T and sum z_t = z_{t-1} + phi(k_t), o_t = S_t^T phi(q_t) and
n_t = z_t . phi(q_t). Attention is o / n; since 1 + s + s^2 / 2 >= 1/2, n is positive.

Within a chunk of positions the polynomial of s is all that is needed; the 1 + f + f^2 features are formed for
what reaches from chunk to chunk.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .chunk_states import chunk_states, into_chunks
from .linear_attention import Edit, edited, explicit_states
from .linear_scan import linear_scan
from .looking import unless_edited
from .state_edit import scan_with_edits

LONGEST_CHUNK = 256  # a document up to this is one chunk
CHUNK = 128  # of longer ones


class TaylorMemory(NamedTuple):
    """S, with z as one more column; and keys and values that are still to be written to it.

    A short document is read without a single feature. They are formed when the document is continued.
    """

    sums: Float[Tensor, "batch head feature d_value_and_one"] | None
    k: Float[Tensor, "batch head pos d_feature"] | None = None
    v: Float[Tensor, "batch head pos d_value_and_one"] | None = None

    def settled(self) -> Float[Tensor, "batch head feature d_value_and_one"]:
        """S and z, everything written."""
        if self.k is None or self.v is None:
            assert self.sums is not None
            return self.sums
        write = taylor_features(self.k).mT @ self.v
        return write if self.sums is None else self.sums + write

    def split(
        self,
    ) -> tuple[Float[Tensor, "batch head feature d_value"], Float[Tensor, "batch head feature"]]:
        """S and z."""
        sums = self.settled()
        return sums[..., :-1].contiguous(), sums[..., -1].contiguous()


class TaylorRead(NamedTuple):
    """o and n at every position."""

    read: Float[Tensor, "batch pos head d_value"]
    normalizer: Float[Tensor, "batch pos head"]


def taylor_features(x: Float[Tensor, "*batch d_feature"]) -> Float[Tensor, "*batch feature"]:
    """phi, of width 1 + f + f^2."""
    x = x * x.shape[-1] ** -0.25
    second = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) * 0.5**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, second], dim=-1)


def taylor_scores(
    q: Float[Tensor, "*batch dest d_feature"], k: Float[Tensor, "*batch src d_feature"]
) -> Float[Tensor, "*batch dest src"]:
    """phi(q_i) . phi(k_j) for j <= i, else 0."""
    s = (q * q.shape[-1] ** -0.5) @ k.mT
    return (1 + s + 0.5 * s.square()).tril()


def taylor_attention(
    q: Float[Tensor, "batch pos head d_feature"],
    k: Float[Tensor, "batch pos head d_feature"],
    v: Float[Tensor, "batch pos head d_value"],
    memory: TaylorMemory | None = None,
    *,
    chunk: int | None = None,
) -> tuple[TaylorRead, TaylorMemory]:
    """The fast path: the reads, and the memory after the last position.

    `chunk`, the number of positions in a chunk, changes rounding only. The causal matrix of a whole
    document costs less than the features up to 300 positions for f = 8, 500 for f = 16 (on a CPU).
    """
    length = v.shape[1]
    chunk = chunk or (length if length <= LONGEST_CHUNK else CHUNK)
    v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)  # z is S for a value that is always 1
    q, k, v = (into_chunks(x, min(chunk, length)).transpose(2, 3) for x in (q, k, v))
    o = taylor_scores(q, k) @ v  # [batch, chunk, head, pos, d_value + 1]
    sums = None if memory is None else memory.settled()
    if o.shape[1] == 1:
        if sums is not None:
            o = o + taylor_features(q) @ sums.unsqueeze(1)
        memory = TaylorMemory(sums, k[:, 0], v[:, 0])
    else:
        before, last = chunk_states(None, taylor_features(k).mT @ v, sums)
        o = o + taylor_features(q) @ before
        memory = TaylorMemory(last)
    o = o.transpose(2, 3).flatten(1, 2)[:, :length]
    return TaylorRead(o[..., :-1], o[..., -1]), memory


def edited_taylor_attention(
    q: Float[Tensor, "batch pos head d_feature"],
    k: Float[Tensor, "batch pos head d_feature"],
    v: Float[Tensor, "batch pos head d_value"],
    sums: Float[Tensor, "batch head feature d_value_and_one"] | None,
    past_k: Float[Tensor, "batch head past d_feature"] | None,
    past_v: Float[Tensor, "batch head past d_value_and_one"] | None,
    *,
    edit_q_features: Edit | None = None,
    edit_k_features: Edit | None = None,
    **edits: Edit,
) -> tuple[TaylorRead, TaylorMemory]:
    """By the fast path; where an edit wants what that does not form, explicitly.

    sums, past_k, past_v: the memory. edits: those of `explicit_taylor_attention`. Looking changes no bit.
    """
    memory = None if sums is None and past_k is None else TaylorMemory(sums, past_k, past_v)
    if edit_q_features is None and edit_k_features is None and not edits:
        return taylor_attention(q, k, v, memory)
    q_features, k_features = taylor_features(q), taylor_features(k)
    with torch.no_grad():
        exact, exact_memory = taylor_attention(q, k, v, memory)
        plain, plain_memory = explicit_taylor_attention(q_features, k_features, v, memory)
    seen, seen_memory = explicit_taylor_attention(
        edited("features of q", q_features.clone(), edit_q_features),
        edited("features of k", k_features.clone(), edit_k_features),
        v,
        memory,
        **edits,
    )
    settled = unless_edited(*(each.settled() for each in (exact_memory, seen_memory, plain_memory)))
    return TaylorRead(*map(unless_edited, exact, seen, plain)), TaylorMemory(settled)


def explicit_taylor_attention(
    q_features: Float[Tensor, "batch pos head feature"],
    k_features: Float[Tensor, "batch pos head feature"],
    v: Float[Tensor, "batch pos head d_value"],
    memory: TaylorMemory | None = None,
    *,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
    edit_norm_state: Edit | None = None,
) -> tuple[TaylorRead, TaylorMemory]:
    """The same from features, with every S and z formed and put through the edits.

    `edit_write` is handed phi(k) v^T, what is added to S alone.
    """
    first, first_norm = (None, None) if memory is None else memory.split()
    states = explicit_states(k_features, v, None, first, edit_write, edit_state)
    kept = torch.ones_like(k_features)
    if edit_norm_state is None:
        norms = linear_scan(kept, k_features, first_norm)
    else:
        norms = scan_with_edits(kept, k_features, edit_norm_state, first_norm)
    read = (q_features.unsqueeze(-2) @ states).squeeze(-2)
    sums = torch.cat([states[:, -1], norms[:, -1].unsqueeze(-1)], dim=-1)
    return TaylorRead(read, (q_features * norms).sum(-1)), TaylorMemory(sums)
