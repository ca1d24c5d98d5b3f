"""The delta rule: a matrix as memory, in which what a key recalls is corrected towards a value. Per head,

    w_t = beta_t (v_t - a_t S_{t-1}^T k_t)          write: the error of what is recalled, times beta_t
    S_t = a_t S_{t-1} + k_t w_t^T                   a decays, or is 1
    o_t = S_t^T q_t                                 read after the write

q, k [d_key], v, w, o [d_value], beta and a numbers, S [d_key, d_value]; before the first position S is
`initial`, or 0. Schlag, Irie & Schmidhuber (2021), arXiv:2102.11174; with decay Yang et al. (2024),
arXiv:2412.06464. Equivalently S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T.

One function, two paths. The fast path takes a chunk of positions at a time (`chunked_delta_rule`). The
explicit path, taken when decays, writes or states are asked for, holds all states: by chunks too
(`delta_rule_states`), or compiled, one position after the other. Looking changes no bit: see `unless_edited`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .backends import call_of, implementation, in_one_dtype
from .chunked_delta_rule import chunked_delta_rule
from .delta_rule_path import Inputs, Path, Walker, with_graph
from .delta_rule_states import TORCH
from .looking import unless_edited
from .state_edit import check_edited
from .trajectory_edit import Setting, hand_out

Edit = Callable[[Tensor], object]


def delta_rule(
    q: Float[Tensor, "batch pos head d_key"],
    k: Float[Tensor, "batch pos head d_key"],
    v: Float[Tensor, "batch pos head d_value"],
    beta: Float[Tensor, "batch pos head"],
    log_decay: Float[Tensor, "batch pos head"] | None = None,
    initial: Float[Tensor, "batch head d_key d_value"] | None = None,
    *,
    edit_decay: Edit | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "batch pos head d_value"], Float[Tensor, "batch head d_key d_value"]]:
    """The reads o, and the state after the last position.

    The edits are handed fresh tensors, and what they return (None: what they were handed) is computed with:
    `edit_decay` exp(log_decay), factors that it may set to anything; `edit_write` all w [batch, pos, head,
    d_value]; then `edit_state` all states [batch, pos, head, d_key, d_value]. Writes and states are
    trajectories: entries that are changed, or that a `StateEdit` names, are set, and all that comes after
    them, later writes included, is computed again from there. Gradients at what is returned are total; if it
    is detached as a whole, gradients stop there.

    Half precision is computed in float32: o comes back in the dtype of v, the last state in float32. `chunk`,
    the most positions that the fast path takes at a time, changes rounding only.
    """
    _check_shapes(q, k, v, beta, log_decay, initial)
    if edit_decay is not None and log_decay is None:
        raise ValueError("there are no decays to edit: log_decay is None.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    inputs = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay, "initial": initial}
    call = call_of("delta_rule", inputs, decay=edit_decay, write=edit_write, state=edit_state)
    edits = {"edit_decay": edit_decay, "edit_write": edit_write, "edit_state": edit_state}
    return implementation(call)(q, k, v, beta, log_decay, initial, **edits, chunk=chunk)


def delta_rule_by(walker: Walker) -> Callable[..., tuple[Tensor, Tensor]]:
    """The delta rule of a back end whose explicit path is this one, and whose fast path is torch's."""

    def delta_rule(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        initial: Tensor | None,
        *,
        edit_decay: Edit | None,
        edit_write: Edit | None,
        edit_state: Edit | None,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor]:
        o_dtype = v.dtype
        q, k, v, beta, log_decay, initial = in_one_dtype(q, k, v, beta, log_decay, initial)
        if edit_decay is None and edit_write is None and edit_state is None:
            o, last = chunked_delta_rule(q, k, v, beta, log_decay, initial, chunk)
            return o.to(o_dtype), last
        with torch.no_grad():
            exact = chunked_delta_rule(q, k, v, beta, log_decay, initial, chunk)
        # A clone: exp keeps its result for its gradient, and an edit may write into what it is handed.
        decay = None if log_decay is None else log_decay.exp().clone()
        inputs = Inputs(q, k, v, beta, decay, initial)
        plain, edited = explicit_delta_rule(inputs, edit_decay, edit_write, edit_state, walker)
        o, last = map(unless_edited, exact, edited, plain)
        return o.to(o_dtype), last

    return delta_rule


torch_delta_rule = delta_rule_by(TORCH)

Result = tuple[Tensor, Tensor]  # o and the last state


def explicit_delta_rule(
    inputs: Inputs, edit_decay: Edit | None, edit_write: Edit | None, edit_state: Edit | None, walker: Walker
) -> tuple[Result, Result]:
    """Without the edits, as numbers alone; with them, as a function of the inputs and of what they return."""
    writes = states = nothing = Setting()

    def again() -> Path:
        nonlocal path
        path = walker.walk(inputs, writes, states)
        return path

    path = again()
    plain = path.o.clone(), path.states[:, -1].clone()
    if edit_decay is not None and inputs.decay is not None:
        decay, before = inputs.decay, inputs.decay.detach().clone()
        returned = edit_decay(decay)
        if returned is not None:
            decay = check_edited("decays", returned, before)
            inputs = inputs._replace(decay=decay)
        if not torch.equal(decay, before):
            again()
    if edit_write is not None:
        trajectory = with_graph(inputs, nothing, nothing, path, walker)[2]
        writes = hand_out("writes", trajectory, edit_write, lambda: again().writes)
        if writes.set_at is not None:
            again()
    if edit_state is not None:
        trajectory = with_graph(inputs, writes, nothing, path, walker)[3]
        states = hand_out("states", trajectory, edit_state, lambda: again().states)
        if states.set_at is not None:
            again()
    o, last, *_ = with_graph(inputs, writes, states, path, walker)
    return plain, (o, last)


def _check_shapes(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial: Tensor | None
) -> None:
    if q.ndim != 4 or v.ndim != 4 or v.shape[1] == 0:
        raise ValueError(
            "q must be [batch, pos, head, d_key] and v [batch, pos, head, d_value], with at least one "
            f"position, got {tuple(q.shape)} and {tuple(v.shape)}."
        )
    (batch, pos, heads, d_value), d_key = v.shape, q.shape[3]
    wanted = {
        "q": (q, (batch, pos, heads, d_key)),
        "k": (k, (batch, pos, heads, d_key)),
        "beta": (beta, (batch, pos, heads)),
        "log_decay": (log_decay, (batch, pos, heads)),
        "initial": (initial, (batch, heads, d_key, d_value)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} beside q with d_key {d_key} and v {tuple(v.shape)}, "
                f"got {tuple(tensor.shape)}."
            )
