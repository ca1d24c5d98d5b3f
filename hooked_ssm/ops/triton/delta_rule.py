"""The delta rule by chunks, in Triton: `hooked_ssm.ops.delta_rule`, whose names this uses, for a GPU.

`chunk_forward` and `chunk_backward` say what each kernel computes: within a chunk of positions a triangular
system, in its WY form; between chunks the state. The reference holds every state once something is hooked.
Here

- decays are factors, and writes are what the kernels leave anyway;
- states are formed at the positions that are asked for (by `At`; else at all), and nowhere else;
- a state that is set ends a chunk, and the next one starts from it; a write that is set is a chunk of its
  own.

Interpreted, this is tested against the reference, forward and backward; it compiles for Hopper. On a GPU it
was never run.
"""

from typing import Any

from torch import Tensor

from .common import accumulator, check_runnable
from .handing import Edit, decays, hand_out_at, wanted
from .memory import LONGEST_CHUNK, Inputs, walk
from .memory_edits import Edits, Seen, forced_by
from .memory_graph import to_hand_out, with_graph

CHUNK = 32  # positions in a chunk, at most


def triton_delta_rule(
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
    check_runnable(q, k, v, beta, log_decay, initial)
    decay = decays(log_decay, accumulator(q, k, v, beta, log_decay, initial), edit_decay)
    dense: Any = (None if x is None else x.contiguous() for x in (q, k, v, beta, decay, initial))
    inputs = Inputs(*dense)
    length = v.shape[1]
    chunk = min(chunk or CHUNK, LONGEST_CHUNK, length)
    edits = Edits()
    forced = forced_by(edits, inputs, chunk)
    o, path = walk(inputs, forced, chunk)
    for kind, edit in (("writes", edit_write), ("states", edit_state)):
        if edit is not None:
            positions, edit = wanted(edit, length)
            edits = edits._replace(**{kind: Seen(positions)})
            trajectory = to_hand_out(kind, o, path, inputs, edits, forced, chunk)
            setting = hand_out_at(kind, trajectory, edit, len(positions) == length)
            edits = edits._replace(**{kind: Seen(positions, setting)})
            if setting.set_at is not None:
                forced = forced_by(edits, inputs, chunk)
                o, path = walk(inputs, forced, chunk)
    return with_graph(o, path, inputs, edits, forced, chunk)
