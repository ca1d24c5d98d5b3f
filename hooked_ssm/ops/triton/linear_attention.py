"""Linear attention by chunks, in Triton: `hooked_ssm.ops.linear_attention`, whose names this uses, for a GPU.
With a decay a head it is Mamba-2's SSD; without, plain linear attention. Decays by channel it has not.

`chunk_forward` and `chunk_backward` say what each kernel computes: within a chunk of positions a causal
matrix times the values, between chunks the state. The reference holds every state once something is hooked.
Here

- decays are factors;
- writes k v^T, and states, are formed at the positions that are asked for (by `At`; else at all);
- a state that is set ends a chunk, and the next one starts from it; a write that is changed ends a chunk too,
  and is added to the state there instead of k v^T.

Interpreted, this is tested against the reference, forward and backward; it compiles for Hopper. On a GPU it
was never run.
"""

from typing import Any

from torch import Tensor

from ..state_edit import check_edited
from .common import accumulator, check_runnable
from .handing import Edit, decays, hand_out_at, wanted
from .memory import LONGEST_CHUNK, Inputs, at, walk
from .memory_edits import Edits, Seen, forced_by
from .memory_graph import to_hand_out, with_graph

CHUNK = 64  # positions in a chunk, at most


def triton_linear_attention(
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
    check_runnable(q, k, v, log_decay, initial)
    decay = decays(log_decay, accumulator(q, k, v, log_decay, initial), edit_decay)
    dense: Any = (None if x is None else x.contiguous() for x in (q, k, v, None, decay, initial))
    inputs = Inputs(*dense)
    length = v.shape[1]
    chunk = min(chunk or CHUNK, LONGEST_CHUNK, length)
    edits = Edits() if edit_write is None else hand_out_products(inputs, edit_write)
    forced = forced_by(edits, inputs, chunk)
    o, path = walk(inputs, forced, chunk)
    if edit_state is not None:
        positions, edit_state = wanted(edit_state, length)
        edits = edits._replace(states=Seen(positions))
        states = to_hand_out("states", o, path, inputs, edits, forced, chunk)
        setting = hand_out_at("states", states, edit_state, len(positions) == length)
        edits = edits._replace(states=Seen(positions, setting))
        if setting.set_at is not None:
            forced = forced_by(edits, inputs, chunk)
            o, path = walk(inputs, forced, chunk)
    return with_graph(o, path, inputs, edits, forced, chunk)


def hand_out_products(inputs: Inputs, edit: Edit) -> Edits:
    """What a hook makes of the writes that it asks for; nothing that it returns comes from the kernels."""
    positions, edit = wanted(edit, inputs.v.shape[1])
    dtype = accumulator(*inputs)
    k, v = (at(x, positions).to(dtype) for x in (inputs.k, inputs.v))
    written = k.repeat_interleave(v.shape[2] // k.shape[2], dim=2).unsqueeze(-1) * v.unsqueeze(-2)
    before = written.detach().clone()
    returned = edit(written)
    products = written if returned is None else check_edited("writes", returned, before)
    differs = products.detach().ne(before).flatten(2).any(2).any(0).tolist()
    changed = tuple(p for p, differs_there in zip(positions, differs, strict=True) if differs_there)
    return Edits(products_at=positions, changed=changed, products=products)
