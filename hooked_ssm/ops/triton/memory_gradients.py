"""The backward kernels launched: gradients of the inputs, and of what hooks returned.

Those of states and writes are total, through all that follows, as `hooked_ssm.ops.trajectory_edit` asks;
states' are formed at the positions asked for alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .chunk_backward import (
    chunk_input_gradients,
    chunk_state_gradients,
    chunk_write_gradients,
    emit_gradients,
)
from .memory import Forced, Inputs, Path, Sizes, at, index, launch, slots, states_at, walk
from .memory_edits import Edits, Seen, put_known, with_ends
from .plan import runs


class Gradients:
    """The backward pass of one call."""

    def __init__(
        self,
        inputs: Inputs,
        edits: Edits,
        forced: Forced,
        path: Path,
        chunk: int,
        needed: Sequence[bool],
    ):
        self.inputs, self.edits, self.forced, self.path = inputs, edits, forced, path
        self.chunk, self.needed, self.size = chunk, needed, Sizes(inputs, chunk)

    @torch.no_grad()
    def of(
        self, do: Tensor | None, dlast: Tensor | None, dwrites: Tensor | None, dstates: Tensor | None
    ) -> list[Tensor | None]:
        """Of the inputs; of writes and states that hooks returned, and of what they carry; of products."""
        inputs, size = self.inputs, self.size
        if do is None:
            do = torch.zeros_like(inputs.v)
        if self.edits.states.setting.stop:  # nothing but the reads is left
            states = states_at(inputs, self.path, self.forced, tuple(range(size.length)), self.chunk)
            dq = (states @ do.to(size.dtype).unsqueeze(-1)).squeeze(-1)
            zeros = [None if x is None else torch.zeros_like(x) for x in inputs[1:]]
            return [self.by_group(dq, inputs.q), *zeros, *[None] * 5]
        if dstates is not None:
            self.end_chunks_with(
                [p for p, any_of_it in zip(self.edits.states.positions, self.somewhere(dstates)) if any_of_it]
            )
        forced, path = self.forced, self.path

        do = do.contiguous()
        added = dq_ends = None
        if forced.ends:
            do_ends, after = at(do, forced.ends).to(size.dtype), path.state_after(forced.ends)
            dq_ends = (after @ do_ends.unsqueeze(-1)).squeeze(-1)
            do = do.index_fill(1, index(forced.ends, do), 0)
            q_ends = at(inputs.q, forced.ends).to(size.dtype)
            q_ends = q_ends.repeat_interleave(size.heads // size.groups, dim=2)
            added = q_ends.unsqueeze(-1) * do_ends.unsqueeze(-2)
            if dstates is not None:
                place = {p: i for i, p in enumerate(forced.ends)}
                theirs = [(i, place[p]) for i, p in enumerate(self.edits.states.positions) if p in place]
                source, target = (index(column, do) for column in zip(*theirs, strict=True))
                added.index_add_(1, target, dstates.index_select(1, source))
        direct = None
        if dwrites is not None:
            direct = torch.zeros_like(path.u)
            direct[:, index(self.edits.writes.positions, direct)] = dwrites

        du, lams, dinitial, set_total, write_total = self.down_the_chunks(do, dlast, direct, added)
        dq, dk, dv, Y, dbeta, ddecay = self.within_chunks(do, du, lams)
        if dq_ends is not None:
            dq.index_add_(1, index(forced.ends, dq), dq_ends.to(dq.dtype))
        if self.edits.products_at:  # through what was returned
            for gradient in (dk, dv):
                gradient.index_fill_(1, index(self.edits.products_at, gradient), 0)
        to_inputs = [
            self.by_group(dq, inputs.q),
            self.by_group(dk, inputs.k),
            torch.zeros_like(inputs.v) if self.edits.writes.setting.stop else dv.to(inputs.v.dtype),
            torch.zeros_like(inputs.beta) if dbeta is None and inputs.beta is not None else dbeta,
            ddecay,
            dinitial if self.needed[5] else None,
        ]
        if Y is not None:
            Y = at(Y, self.edits.writes.positions)
        to_writes = self.to_edit(self.edits.writes, Y, write_total, forced.alone)
        to_states = [None, None]
        if self.needed[8] or self.needed[9]:
            states = self.edits.states
            total = self.totals_at(states.positions, do, dv, lams)
            to_states = self.to_edit(states, total, set_total, forced.ends)
        to_products = None
        if self.needed[10]:
            if set_total is not None and forced.mask is not None:
                set_total = set_total.masked_fill(forced.mask.bool(), 0)
            to_products = self.totals_at(self.edits.products_at, do, dv, lams)
            to_products = put_known(to_products, self.edits.products_at, set_total, forced.ends)
        return [*to_inputs, *to_writes, *to_states, to_products]

    @property
    def rule(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """beta, T and W; without the delta rule, or where a hook detached its writes, writes are numbers."""
        if self.edits.writes.setting.stop:
            return None, None, None
        return self.inputs.beta, self.path.T, self.path.W

    def end_chunks_with(self, positions: Sequence[int]) -> None:
        """Walks again, if some are not yet ends: where a gradient arrives at a state, it enters at an end."""
        forced = with_ends(self.forced, positions, self.size, self.inputs.v)
        if forced is not self.forced:
            self.forced, (_, self.path) = forced, walk(self.inputs, forced, self.chunk)

    def down_the_chunks(
        self, do: Tensor, dlast: Tensor | None, direct: Tensor | None, added: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """dU and lambda' of all chunks, the gradient of the initial state, and the total gradients at the
        states that chunks are made to end with, and at the writes that are set."""
        size, (q, k, v, *_), forced, path = self.size, self.inputs, self.forced, self.path
        _, _, W = self.rule
        decay, n_chunks = self.inputs.decay, path.plan.n_chunks
        du = torch.empty_like(v, dtype=size.dtype)
        launch(
            chunk_write_gradients,
            (size.rows, n_chunks, size.columns),
            *(q, k, do, direct, decay, path.plan.bounds, du, *size.lengths, n_chunks),
            **size.kernel(),
        )
        lams = path.starts.new_empty(size.batch, size.heads, n_chunks, size.d_key, size.d_value)
        dinitial = lams.new_empty(size.batch, size.heads, size.d_key, size.d_value)
        state_slot, write_slot = slots(path.plan, forced)
        set_total = None if added is None else torch.empty_like(added)
        write_total = None if write_slot is None else torch.zeros_like(forced.write_values)  # pyright: ignore
        launch(
            chunk_state_gradients,
            size.chains,
            *(q, k, do, W, decay, None if dlast is None else dlast.contiguous(), path.plan.bounds),
            *(state_slot, forced.mask, added, set_total, len(forced.ends)),
            *(write_slot, forced.write_mask, write_total, len(forced.alone)),
            *(du, lams, dinitial, *size.lengths, n_chunks),
            **size.kernel("chain"),
        )
        return du, lams, dinitial, set_total, write_total

    def within_chunks(
        self, do: Tensor, du: Tensor, lams: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """dq and dk by head, dv, Y where it is wanted, dbeta and ddecay."""
        size, (q, k, v, *_), path = self.size, self.inputs, self.path
        beta, T, _ = self.rule
        decay, n_chunks = self.inputs.decay, path.plan.n_chunks
        by_head = size.batch, size.length, size.heads, size.d_key
        dq, dk = (q.new_empty(by_head, dtype=size.dtype) for _ in range(2))
        dv = torch.empty_like(v, dtype=size.dtype)
        Y = torch.empty_like(dv) if self.needed[6] or self.needed[7] else None
        dbeta = None if beta is None else torch.empty_like(beta)
        ddecay = None if decay is None else torch.empty_like(decay)
        launch(
            chunk_input_gradients,
            (size.rows, n_chunks),
            *(q, k, v, path.u, beta, decay, T, do, du, path.plan.bounds, path.starts, lams),
            *(dq, dk, dv, Y, dbeta, ddecay, *size.lengths, n_chunks),
            **size.kernel("gradients"),
        )
        return dq, dk, dv, Y, dbeta, ddecay

    def totals_at(self, positions: tuple[int, ...], do: Tensor, dv: Tensor, lams: Tensor) -> Tensor:
        """The total gradients at the states [batch, len(positions), head, d_key, d_value]; at forced ends,
        without what is set or added there."""
        size, path = self.size, self.path
        run = runs(path.plan.edges, positions, do.device)
        totals = lams.new_empty(size.states(len(positions)))
        launch(
            emit_gradients,
            (size.rows, len(run.chunk), size.blocks),
            *(self.inputs.q, self.inputs.k, do, None if self.rule[0] is None else dv),
            *(self.inputs.decay, path.plan.bounds, lams, *run, totals, len(positions)),
            *(*size.lengths, path.plan.n_chunks),
            **size.kernel(),
        )
        return totals

    def to_edit(
        self, seen: Seen, total: Tensor | None, known: Tensor | None, known_at: tuple[int, ...]
    ) -> list[Tensor | None]:
        """The gradients of what a hook returned, and of the share that is carried; see `trajectory_edit`."""
        if total is None:
            return [None, None]
        total = put_known(total, seen.positions, known, known_at)
        set_at = seen.setting.set_at
        return [total, total if set_at is None else total.masked_fill(set_at, 0)]

    def by_group(self, x: Tensor, like: Tensor) -> Tensor:
        """A gradient by head, summed over the heads that share it."""
        return x.unflatten(2, (self.size.groups, -1)).sum(3).to(like.dtype)

    def somewhere(self, x: Tensor) -> list[bool]:
        """For the positions of x [batch, pos, ...], whether anything in them is not 0."""
        return x.ne(0).flatten(2).any(2).any(0).tolist()
