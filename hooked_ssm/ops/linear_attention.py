"""Linear attention: a matrix as memory, written by outer products, read by products with queries. Per head,

    S_t = a_t S_{t-1} + k_t v_t^T       decay a: none, one a head, or one a key channel (a row of S)
    o_t = S_t^T q_t                     read after the write; before the first position S is `initial`, or 0

One function, two paths. The fast path takes a chunk of positions at a time: within a chunk o is a causal
matrix times v, between chunks it is read from the state before the chunk,

    o_i = sum_{j <= i} (q_i . (a_{j+1} ... a_i k_j)) v_j + S^T (a_1 ... a_i q_i).

Products of decays are sums of logarithms, every one of them summed over its own span: nothing is subtracted,
so that a decay of exactly 0 is no special case, nothing overflows and nothing cancels.

The explicit path, taken when decays, writes or states are asked for, holds all states. There decays are
factors, which an edit may set to 0 or to something negative. Looking changes no bit: see `unless_edited`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .backends import call_of, implementation, in_one_dtype
from .chunk_states import chunk_states, into_chunks
from .decay_products import channel_products, head_products
from .linear_scan import linear_scan
from .looking import Watched, unless_edited
from .memory import multiply
from .state_edit import check_edited, scan_with_edits

Edit = Callable[[Tensor], object]

LONGEST_CHUNK = 100  # a document up to this is one chunk where decays are by head, or none
CHUNK = 64  # of longer ones


def linear_attention(
    q: Float[Tensor, "batch pos group d_key"],
    k: Float[Tensor, "batch pos group d_key"],
    v: Float[Tensor, "batch pos head d_value"],
    log_decay: Float[Tensor, "batch pos head"] | Float[Tensor, "batch pos head d_key"] | None = None,
    initial: Float[Tensor, "batch head d_key d_value"] | None = None,
    *,
    edit_decay: Edit | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "batch pos head d_value"], Float[Tensor, "batch head d_key d_value"]]:
    """The reads o, and the state after the last position. q and k may have fewer heads
    than v, each of them for a group of neighbouring heads.

    `edit_decay` is handed exp(log_decay), `edit_write` k v^T and `edit_state` the states, both [batch, pos,
    head, d_key, d_value]: fresh tensors, and what is returned (None: what was handed) is computed with from
    there on; for states see `scan_with_edits`. Half precision is computed in float32: o comes back in the
    dtype of v, the last state in float32. `chunk`, the number of positions in a chunk, changes rounding only.
    """
    _check_shapes(q, k, v, log_decay, initial)
    if edit_decay is not None and log_decay is None:
        raise ValueError("there are no decays to edit: log_decay is None.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    inputs = {"q": q, "k": k, "v": v, "log_decay": log_decay, "initial": initial}
    call = call_of("linear_attention", inputs, decay=edit_decay, write=edit_write, state=edit_state)
    edits = {"edit_decay": edit_decay, "edit_write": edit_write, "edit_state": edit_state}
    return implementation(call)(q, k, v, log_decay, initial, **edits, chunk=chunk)


def torch_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial: Tensor | None,
    *,
    edit_decay: Edit | None,
    edit_write: Edit | None,
    edit_state: Edit | None,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    o_dtype = v.dtype
    q, k, v, log_decay, initial = in_one_dtype(q, k, v, log_decay, initial)
    if edit_decay is None and edit_write is None and edit_state is None:
        o, last = chunked_linear_attention(q, k, v, log_decay, initial, chunk)
        return o.to(o_dtype), last
    decay = None if log_decay is None else log_decay.exp()
    watched = [None if edit is None else Watched(edit) for edit in (edit_decay, edit_write, edit_state)]
    plain_decay = decay
    with torch.no_grad():
        exact = chunked_linear_attention(q, k, v, log_decay, initial, chunk)
    if decay is not None and watched[0] is not None:
        decay = edited("decays", decay.clone(), watched[0])
    plain = seen = explicit_linear_attention(q, k, v, decay, initial, *watched[1:])
    if any(watch is not None and watch.edited for watch in watched):
        with torch.no_grad():
            plain = explicit_linear_attention(q, k, v, plain_decay, initial)
    o, last = map(unless_edited, exact, seen, plain)
    return o.to(o_dtype), last


def explicit_linear_attention(
    q: Float[Tensor, "batch pos group d_key"],
    k: Float[Tensor, "batch pos group d_key"],
    v: Float[Tensor, "batch pos head d_value"],
    decay: Float[Tensor, "batch pos head"] | Float[Tensor, "batch pos head d_key"] | None = None,
    initial: Float[Tensor, "batch head d_key d_value"] | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
) -> tuple[Float[Tensor, "batch pos head d_value"], Float[Tensor, "batch head d_key d_value"]]:
    """The same with every state in memory, and factors for decays."""
    states = explicit_states(k, v, decay, initial, edit_write, edit_state)
    o = (_by_head(q, v.shape[2]).unsqueeze(-2) @ states).squeeze(-2)
    return o, states[:, -1].clone()


def explicit_states(
    k: Float[Tensor, "batch pos group d_key"],
    v: Float[Tensor, "batch pos head d_value"],
    decay: Float[Tensor, "batch pos head"] | Float[Tensor, "batch pos head d_key"] | None = None,
    initial: Float[Tensor, "batch head d_key d_value"] | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
) -> Float[Tensor, "batch pos head d_key d_value"]:
    """All states."""
    write = multiply(_by_head(k, v.shape[2]).unsqueeze(-1), v.unsqueeze(-2))
    write = edited("writes", write, edit_write)
    if decay is None:
        decay = write.new_ones(())
    else:
        decay = decay.reshape(*decay.shape, *[1] * (write.ndim - decay.ndim))
    decay = decay.to(write.dtype).expand(write.shape)
    if edit_state is None:
        return linear_scan(decay, write, initial)
    return scan_with_edits(decay, write, edit_state, initial)


def chunked_linear_attention(
    q: Float[Tensor, "batch pos group d_key"],
    k: Float[Tensor, "batch pos group d_key"],
    v: Float[Tensor, "batch pos head d_value"],
    log_decay: Float[Tensor, "batch pos head"] | Float[Tensor, "batch pos head d_key"] | None,
    initial: Float[Tensor, "batch head d_key d_value"] | None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "batch pos head d_value"], Float[Tensor, "batch head d_key d_value"]]:
    """The fast path, for arguments of one dtype.

    Heads of one group share q and k; their values are the columns of one matrix of a group.
    """
    _, length, heads, d_value = v.shape
    if length == 1 and initial is not None:
        return one_position(q, k, v, log_decay, initial)
    by_channel = log_decay is not None and log_decay.ndim == 4
    if by_channel:
        q, k = _by_head(q, heads), _by_head(k, heads)
    chunk = chunk or default_chunk(length, d_value, by_channel)
    if by_channel:
        chunk = 1 << (chunk - 1).bit_length()  # a power of two
    groups, per_group = q.shape[2], heads // q.shape[2]

    q, k = (into_chunks(x, chunk).transpose(2, 3) for x in (q, k))  # [batch, chunk, group, pos, d_key]
    v = into_chunks(v, chunk).unflatten(3, (groups, per_group))  # [batch, chunk, pos, group, head, d_value]
    k_write, v_write, q_read, decay, o_scale = k, v, q, None, None
    if log_decay is None:
        matrix = (q @ k.mT).tril().unsqueeze(3)
    elif by_channel:
        a = into_chunks(log_decay, chunk).transpose(2, 3).exp()
        matrix, q_read, k_write, decay = channel_products(q, k, a)
        matrix, decay = matrix.unsqueeze(3), decay[..., None, None]
    else:
        log_decay = into_chunks(log_decay, chunk).unflatten(3, (groups, per_group)).movedim(2, 4)
        products, to_here, to_last, decay = head_products(log_decay)
        matrix = (q @ k.mT).unsqueeze(3) * products  # [batch, chunk, group, head, dest, src]
        v_write, o_scale = v * to_last.movedim(4, 2).unsqueeze(5), to_here.movedim(4, 2).unsqueeze(5)
        decay = decay[:, :, :, None, :, None]

    o = (matrix @ v.movedim(2, 4)).movedim(4, 2)
    write = k_write.mT @ v_write.flatten(4).transpose(2, 3)
    write = write.unflatten(4, (per_group, d_value))  # [batch, chunk, group, d_key, head, d_value]
    if initial is not None:
        initial = initial.unflatten(1, (groups, per_group)).transpose(2, 3)
    if write.shape[1] == 1 and chunk > 1 and initial is None:  # (a lone position has a decay too: of nothing)
        last = write[:, 0]
    else:
        before, last = chunk_states(decay, write, initial)
        from_before = (q_read @ before.flatten(4)).transpose(2, 3).unflatten(4, (per_group, d_value))
        o = o + (from_before if o_scale is None else from_before * o_scale)
    o = o.flatten(3, 4).flatten(1, 2)[:, :length]
    return o, last.transpose(2, 3).flatten(1, 2).contiguous()


def one_position(
    q: Float[Tensor, "batch one group d_key"],
    k: Float[Tensor, "batch one group d_key"],
    v: Float[Tensor, "batch one head d_value"],
    log_decay: Float[Tensor, "batch one head"] | Float[Tensor, "batch one head d_key"] | None,
    initial: Float[Tensor, "batch head d_key d_value"],
) -> tuple[Float[Tensor, "batch one head d_value"], Float[Tensor, "batch head d_key d_value"]]:
    """S = a S + k v^T and its read, as a document that is continued token by token needs them."""
    q, k = (_by_head(x, v.shape[2])[:, 0] for x in (q, k))
    if log_decay is not None:
        decay = log_decay[:, 0].exp()
        initial = initial * decay.reshape(*decay.shape, *[1] * (4 - decay.ndim))
    S = torch.addcmul(initial, k.unsqueeze(3), v[:, 0].unsqueeze(2))
    return (q.unsqueeze(2) @ S).transpose(1, 2), S


def default_chunk(length: int, d_value: int, by_channel: bool) -> int:
    """The number of positions in a chunk: what was fastest on a CPU, forward and backward."""
    if by_channel:
        return min(length, max(8, d_value // 8))
    return length if length <= LONGEST_CHUNK else CHUNK


def _by_head(x: Tensor, heads: int) -> Tensor:
    """q or k of groups, one copy for each of a group's heads."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def edited(name: str, tensor: Tensor, edit: Edit | None) -> Tensor:
    """What the edit, if there is one, makes of the tensor."""
    returned = None if edit is None else edit(tensor)
    return tensor if returned is None else check_edited(name, returned, tensor)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial: Tensor | None) -> None:
    if q.ndim != 4 or v.ndim != 4 or v.shape[1] == 0:
        raise ValueError(
            "q must be [batch, pos, head, d_key] and v [batch, pos, head, d_value], with at least one "
            f"position, got {tuple(q.shape)} and {tuple(v.shape)}."
        )
    (batch, pos, heads, d_value), (groups, d_key) = v.shape, q.shape[2:]
    if heads % groups:
        raise ValueError(f"the heads of v must be a multiple of those of q, got {heads} and {groups}.")
    wanted: dict[str, tuple[Tensor, list[tuple[int, ...]]]] = {
        "q": (q, [(batch, pos, groups, d_key)]),
        "k": (k, [(batch, pos, groups, d_key)]),
    }
    if log_decay is not None:
        wanted["log_decay"] = (log_decay, [(batch, pos, heads), (batch, pos, heads, d_key)])
    if initial is not None:
        wanted["initial"] = (initial, [(batch, heads, d_key, d_value)])
    for name, (tensor, shapes) in wanted.items():
        if tuple(tensor.shape) not in shapes:
            raise ValueError(
                f"{name} must have shape {' or '.join(map(str, shapes))} beside q {tuple(q.shape)} "
                f"and v {tuple(v.shape)}, got {tuple(tensor.shape)}."
            )
