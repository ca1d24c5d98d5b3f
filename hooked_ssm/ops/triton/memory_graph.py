"""A matrix memory as a differentiable function of its inputs and of what hooks returned."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .memory import Forced, Inputs, Path, at, states_at
from .memory_edits import Edits
from .memory_gradients import Gradients


def with_graph(
    o: Tensor, path: Path, inputs: Inputs, edits: Edits, forced: Forced, chunk: int
) -> tuple[Tensor, Tensor]:
    """o and the last state, as functions of the inputs and of what hooks returned."""
    return _apply(inputs, edits, forced, path, chunk, o, None)[:2]


def to_hand_out(
    kind: str, o: Tensor, path: Path, inputs: Inputs, edits: Edits, forced: Forced, chunk: int
) -> Tensor:
    """The "writes" or "states" at the positions that `edits` has for them, as such functions."""
    return _apply(inputs, edits, forced, path, chunk, o, kind)[2]


def _apply(inputs: Inputs, edits: Edits, *rest: Any) -> Any:
    seen = edits.writes.setting, edits.states.setting
    returned = (tensor for setting in seen for tensor in (setting.values, setting.carried))
    return _Path.apply(*inputs, *returned, edits.products, edits, *rest)


class _Path(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        inputs = Inputs(*arguments[:6])
        edits, forced, path, chunk, o, hand = arguments[11:]
        ctx.edits = edits._replace(writes=edits.writes.kept(), states=edits.states.kept(), products=None)
        ctx.chunk, ctx.hand, ctx.plan = chunk, hand, path.plan
        ctx.ends, ctx.rest = forced.ends, (forced.dropped, forced.alone)
        ctx.save_for_backward(*inputs, *path[:4], *forced[1:4], *forced[6:])
        ctx.set_materialize_grads(False)
        handed = None
        if hand == "writes":
            handed = at(path.u, edits.writes.positions)
        elif hand == "states":
            handed = states_at(inputs, path, forced, edits.states.positions, chunk)
        return o.detach(), path.starts[:, :, -1].clone(), handed

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dlast, dhanded):  # pyright: ignore[reportIncompatibleMethodOverride]
        if do is None and dlast is None and dhanded is None:
            return (None,) * 17
        saved = ctx.saved_tensors
        inputs = Inputs(*saved[:6])
        T, W, u, starts, values, mask, added, write_values, write_mask = saved[6:]
        path, (dropped, alone) = Path(T, W, u, starts, ctx.plan), ctx.rest
        forced = Forced(ctx.ends, values, mask, added, dropped, alone, write_values, write_mask)
        arriving = {"writes": None, "states": None, ctx.hand: dhanded}
        gradients = Gradients(inputs, ctx.edits, forced, path, ctx.chunk, ctx.needs_input_grad)
        return *gradients.of(do, dlast, arriving["writes"], arriving["states"]), *[None] * 6
