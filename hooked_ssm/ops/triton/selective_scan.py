"""The selective scan on a GPU, under the edits of the reference, `hooked_ssm.ops.selective_scan`.

Without edits: one kernel forward, one backward. Decays and writes are made, at the positions asked for, by a
kernel of their own, handed to their hooks, and loaded at these positions from then on. States take two parts:

    _Trajectory   the raw states at the positions asked for; by the way y, and the last state
    the hook
    _Scan         its result -> y and the last state. If nothing was set those of the trajectory; else another
                  run, from the first chunk of positions that may have been set

_Scan's backward gives everything its gradient, h_t being cut from h_{t-1} where it was set, and sends back
through the hook the total derivative lambda at the positions asked for. The trajectory expects to hear just
that, of entries that were not set (`carried` tells which part that is), and passes on what it hears beyond,
as `scan_with_edits` does, whose semantics these are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..at import At
from ..state_edit import StateEdit, _beyond, _check_mask, _same_view, check_edited, differing
from .common import accumulator, check_runnable, on_device_once, slots
from .scan_launch import (
    Given,
    Problem,
    Scanned,
    Tile,
    by_slot,
    choose_tile,
    empty_by_slot,
    gradients,
    make_decay,
    make_write,
    scan,
)

Edit = Callable[[Tensor], object]


def triton_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None = None,
    *,
    edit_decay: Edit | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """The reads y, in the dtype of x, and the last state, in what is computed in: float32, or float64.

    An edit that is an `At` has only its positions made; all others are handed all. `tile`: for tests; it
    changes numbers by rounding.
    """
    check_runnable(x, dt, A, B, C, initial)
    dtype = accumulator(x, dt, A, B, C, initial)
    tile = tile or choose_tile(*x.shape[1:])
    decay = write = decay_slot = write_slot = None
    if edit_decay is not None:
        at = _At(edit_decay, x)
        decay = at.hand("decay", _Decay.apply(at.pick(dt), A, dtype))
        decay_slot = at.slot
    if edit_write is not None:
        at = _At(edit_write, x)
        write = at.hand("write", _Write.apply(*map(at.pick, (dt, x, B)), dtype))
        write_slot = at.slot
    inputs = (x, dt, A, B, C, initial, decay, write)
    plan = _Plan(tile, decay_slot, write_slot, torch.is_grad_enabled())
    if edit_state is None:
        return _Scan.apply(*inputs, None, None, None, plan)  # pyright: ignore[reportReturnType]
    return _with_states(inputs, plan, _At(edit_state, x))


class _At:
    """An edit, and the positions it is handed."""

    def __init__(self, edit: Edit, like: Tensor):
        length = like.shape[1]
        self.whole = not isinstance(edit, At)
        self.edit: Edit = edit.edit if isinstance(edit, At) else edit
        self.positions = edit.positions if isinstance(edit, At) else range(length)
        self.slot = slots(self.positions, length, like.device)
        self.index = None
        if isinstance(edit, At):
            self.index = on_device_once(edit.positions, torch.int64, like.device)

    def pick(self, tensor: Tensor) -> Tensor:
        return tensor if self.index is None else tensor.index_select(1, self.index)

    def hand(self, name: str, tensor: Tensor) -> Tensor:
        returned = self.edit(tensor)
        return tensor if returned is None else check_edited(name, returned, tensor)


@dataclass(frozen=True)
class _Plan:
    """What besides tensors determines a run.

    grad_enabled: seen from outside; a Function always runs without. at: positions of a hook on states. stop:
    whether gradients stop there. run: what came out with nothing set.
    """

    tile: Tile
    decay_slot: Tensor | None
    write_slot: Tensor | None
    grad_enabled: bool
    at: _At | None = None
    stop: bool = False
    run: Scanned | None = None

    def problem(self, inputs: Any, values: Tensor | None = None, is_set: Tensor | None = None) -> Problem:
        x, dt, A, B, C, initial, decay, write = inputs

        def given(tensor: Tensor | None, slot: Tensor | None) -> Given | None:
            return None if tensor is None or slot is None else Given(by_slot(tensor), slot)

        return Problem(
            x,
            dt,
            A,
            B,
            C,
            initial,
            given(decay, self.decay_slot),
            given(write, self.write_slot),
            None if self.at is None else given(values, self.at.slot),
            None if is_set is None else by_slot(is_set),
            self.stop,
        )

    @property
    def first(self) -> int:
        """The first chunk in which states may be set."""
        return 0 if self.at is None else self.at.positions[0] // self.tile.pos

    def empty(self, problem: Problem) -> Given:
        """Room for states at the positions of the hook."""
        assert self.at is not None
        size = (len(self.at.positions), problem.x.shape[2], problem.A.shape[1])
        return Given(empty_by_slot(problem.x, *size, problem.dtype), self.at.slot)


def _with_states(inputs: Any, plan: _Plan, at: _At) -> tuple[Tensor, Tensor]:
    plan = replace(plan, at=at)
    runs: list[Scanned] = []
    seen, carried = _Trajectory.apply(*inputs, plan, runs)  # pyright: ignore[reportGeneralTypeIssues]
    version = None if seen.is_inference() else seen._version
    # Few positions are copied, to see what is set in place. A whole trajectory is rather computed again.
    copy = seen.detach().clone() if version is None or not at.whole else None
    returned = at.edit(seen)
    values, mask = (returned.states, returned.mask) if isinstance(returned, StateEdit) else (returned, None)
    values = seen if values is None else check_edited("states", values, seen)
    if mask is not None:
        _check_mask(mask, seen)

    untouched = version is not None and seen._version == version
    is_set = None
    if not (untouched and _same_view(values, seen)):
        raw = copy
        if raw is None:
            raw = seen.detach() if untouched else _raw_states(inputs, plan)
        is_set = differing(values.detach(), raw)
    if mask is not None:
        is_set = mask.expand_as(values) if is_set is None else mask | is_set
    # Of an `At` the rest of the trajectory still takes part: it is never detached as a whole.
    stop = at.whole and seen.requires_grad and not values.requires_grad
    plan = replace(plan, stop=stop, run=runs[0])
    return _Scan.apply(*inputs, values, carried, is_set, plan)  # pyright: ignore[reportReturnType]


def _raw_states(inputs: Any, plan: _Plan) -> Tensor:
    problem = plan.problem([tensor if tensor is None else tensor.detach() for tensor in inputs])
    states = plan.empty(problem)
    scan(problem, plan.tile, keep=False, states=states)
    return states.values


class _Trajectory(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, initial, decay, write, plan, runs):
        inputs = (x, dt, A, B, C, initial, decay, write)
        problem = plan.problem(inputs)
        states = plan.empty(problem)
        keep = plan.grad_enabled and any(ctx.needs_input_grad)
        run = scan(problem, plan.tile, keep=keep or plan.first > 0, states=states)
        runs.append(run)
        if keep:
            ctx.save_for_backward(*inputs, run.starts)
            ctx.plan = plan
        ctx.set_materialize_grads(False)
        return states.values, x.new_zeros((), dtype=problem.dtype).expand(states.values.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, through_hook, carried):  # pyright: ignore[reportIncompatibleMethodOverride]
        further = through_hook if None in (through_hook, carried) else _beyond(through_hook, carried)
        if further is None:
            return (None,) * 10
        *inputs, starts = ctx.saved_tensors
        direct = Given(by_slot(further), ctx.plan.at.slot)
        grads = gradients(ctx.plan.problem(inputs), ctx.plan.tile, starts, None, None, direct)
        return *grads, None, None


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, initial, decay, write, values, carried, is_set, plan):
        inputs = (x, dt, A, B, C, initial, decay, write)
        if is_set is None:
            values = None
        problem = plan.problem(inputs, values, is_set)
        keep = plan.grad_enabled and any(ctx.needs_input_grad)
        run = plan.run
        if run is None or (keep and run.starts is None):
            run = scan(problem, plan.tile, keep=keep)
        elif is_set is not None and plan.first == 0:
            run = scan(problem, plan.tile, keep=keep)
        elif is_set is not None:
            # From where states may be set; before that nothing has changed.
            later = problem._replace(initial=run.starts[plan.first].transpose(1, 2))
            into = run._replace(starts=run.starts.clone() if keep else None)
            run = scan(later, plan.tile, keep=keep, first=plan.first, into=into)
        if keep:
            ctx.save_for_backward(*inputs, values, is_set, run.starts)
            ctx.plan = plan
        ctx.set_materialize_grads(False)
        return run.y, run.last

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_last):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, values, is_set, starts = ctx.saved_tensors
        plan = ctx.plan
        problem = plan.problem(inputs, values, is_set)
        totals = None if plan.at is None else plan.empty(problem)
        if plan.stop and values is None:  # cut where nothing is set
            nothing = torch.zeros_like(totals.values, dtype=torch.bool)  # pyright: ignore
            problem = plan.problem(inputs, totals.values, nothing)  # pyright: ignore
        grads = gradients(problem, plan.tile, starts, grad_y, grad_last, totals=totals)
        of_values = carried = None
        if totals is not None:
            of_values = totals.values
            carried = of_values if is_set is None else of_values.masked_fill(is_set, 0)
        return *grads, of_values, carried, None, None


class _Decay(torch.autograd.Function):
    """exp(dt A). Its backward computes it again, so that a hook may write into it."""

    @staticmethod
    def forward(ctx, dt, A, dtype):
        ctx.save_for_backward(dt, A)
        ctx.dtype = dtype
        return make_decay(dt, A, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        dt, A = ctx.saved_tensors
        of_exponent = make_decay(dt, A, ctx.dtype).mul_(grad)
        of_dt = (of_exponent * A).sum(3)
        of_A = of_exponent.mul_(dt.unsqueeze(3)).sum((0, 1))
        return of_dt.to(dt.dtype), of_A.to(A.dtype), None


class _Write(torch.autograd.Function):
    """dt x B."""

    @staticmethod
    def forward(ctx, dt, x, B, dtype):
        ctx.save_for_backward(dt, x, B)
        return make_write(dt, x, B, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        dt, x, B = (tensor.to(grad.dtype) for tensor in ctx.saved_tensors)
        of_u = (grad * (B if B.ndim == 4 else B.unsqueeze(2))).sum(3)
        of_B = grad * (dt * x).unsqueeze(3)
        of_B = of_B if B.ndim == 4 else of_B.sum(2)
        grads = (of_u * x, of_u * dt, of_B)
        return *(g.to(t.dtype) for g, t in zip(grads, ctx.saved_tensors)), None
