"""Runs of circuits: models in which the edges outside a circuit are ablated, one by one.

Every node b is a function f_b of the nodes that it reads, and is computed anew for every role and part of its
own, from what reaches it there:

    v_b = f_b( v_a where the edge a -> b is in the circuit, else the ablated value of a )

from the embeddings, which are the clean run's, to the logits. The ablated values are those of the corrupted
run, means, or zeros (`Ablation`). What an edge a -> b is, and so what its ablation is, says f_b:

    a an embedding, a mixer's or an MLP's output; b any hook that reads the residual stream, or the logits
        b's norm and weights see a residual stream from which a's write is taken out and its ablated value put
        in: no other reader sees that.
    a -> tap         likewise: the tap t at position p reads the stream at position p - t alone
    tap -> conv      the convolution's output loses what this tap adds
    q, k, v -> z     in attention: scores and softmax of the readers' role see the ablated query, key or value
        of the positions of the writers' role (in the delta rule -> write, in linear attention -> y, alike)
    write -> state   the state read at the reader's position has grown out of writes of which those at the
        writer's role are ablated, under the decays that reach it; states at other positions do not change
    decay -> state   likewise. There is no edge from state to state: a state is what was written, decayed
    state, C -> y    the read at a position is of the ablated state (of that position), or along the ablated C
    x, dt, B, gate, beta, y, z -> what reads them at the same position

With the corrupted run's values, a node that none of the circuit's edges reaches has its corrupted value.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_ssm.attribution.hooks import carries_forward, keep, setting
from hooked_ssm.circuits.edges import EdgeIndex, one_hot
from hooked_ssm.patching.memory import free_bytes
from hooked_ssm.patching.names import layer_of

Ablation = Literal["corrupt", "mean", "zero"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)
DOCS = 64  # documents at a time
EMBEDDINGS = ("hook_embed", "hook_pos_embed")


@dataclass(frozen=True)
class Rows:
    """Readers' places, each to be computed in all documents: of which circuit, at which role and part."""

    circuit: Int[Tensor, " row"]
    role: Int[Tensor, " row"]
    part: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.circuit)

    def split(self, size: int) -> Iterator["Rows"]:
        columns = (each.split(max(1, size)) for each in (self.circuit, self.role, self.part))
        return (Rows(*each) for each in zip(*columns, strict=True))


class CircuitRuns:
    """Circuits' logits for some pairs of documents.

    clean, corrupted: [doc, pos]. role_of: the number of each position's role, [doc, pos].
    ablation: "corrupt": what the corrupted run has there; "mean": the clean run's mean over all documents and
        positions of the same role; "zero".
    """

    def __init__(
        self,
        model: Any,
        index: EdgeIndex,
        clean: Int[Tensor, "doc pos"],
        corrupted: Int[Tensor, "doc pos"],
        role_of: Int[Tensor, "doc pos"],
        answer_pos: Int[Tensor, " doc"],
        ablation: str = "corrupt",
    ):
        if ablation not in ABLATIONS:
            raise ValueError(f"ablation must be one of {', '.join(ABLATIONS)}, got {ablation!r}.")
        self.model, self.index, self.ablation = model, index, ablation
        self.clean, self.corrupted = clean, corrupted
        self.role_of, self.answer_pos = role_of, answer_pos
        self.nodes = index.hooks[:-1]
        self.parents = {b: [a for a, reader in index.pairs if reader == b] for b in range(len(index.hooks))}
        self.means = self._means() if ablation == "mean" else {}
        self.kept: tuple[list[int], dict[str, Tensor], dict[str, Tensor]] = [], {}, {}

    @torch.no_grad()
    def logits(self, circuits: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit doc d_vocab"]:
        """The logits at `answer_pos` of every circuit: a row says which edges are in it."""
        masks = self.index.masks(circuits)
        parts = [
            _Batch(self, masks, len(circuits), docs).logits()
            for docs in torch.arange(len(self.clean)).split(DOCS)
        ]
        return torch.cat(parts, 1)

    def activations(self, tokens: Int[Tensor, "doc pos"], names: list[str]) -> dict[str, Tensor]:
        into: dict[str, Tensor] = {}
        with torch.no_grad(), self.model.hooks(fwd_hooks=keep(names, into)):
            self.model(tokens, return_type=None)
        return into

    def given(self, docs: Int[Tensor, " doc"]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the nodes without parents are, and what each node is where an edge from it is ablated."""
        if self.kept[0] != docs.tolist():
            sources = [self.nodes[number] for number in self.index.sources()]
            self.kept = docs.tolist(), self.activations(self.clean[docs], sources), self._ablated(docs)
        return self.kept[1:]

    def _ablated(self, docs: Int[Tensor, " doc"]) -> dict[str, Tensor]:
        if self.ablation == "mean":
            return {name: mean[self.role_of[docs]] for name, mean in self.means.items()}
        corrupted = self.activations(self.corrupted[docs], self.nodes)
        if self.ablation == "zero":
            return {name: torch.zeros_like(value) for name, value in corrupted.items()}
        return corrupted

    def _means(self) -> dict[str, Float[Tensor, "role ..."]]:
        here = one_hot(self.role_of, len(self.index.roles))
        counts = here.sum((0, 1)).clamp(min=1)
        sums: dict[str, Tensor] = {}
        for docs in torch.arange(len(self.clean)).split(DOCS):
            for name, value in self.activations(self.clean[docs], self.nodes).items():
                each = torch.einsum("dpr,dp...->r...", here[docs].to(value), value)
                sums[name] = sums[name] + each if name in sums else each
        return {name: each / counts.to(each).view(-1, *[1] * (each.ndim - 1)) for name, each in sums.items()}


class _Batch:
    """The circuits on some of the documents.

    values: of each node, [circuit, doc, pos, ...]; None where no circuit needs any but the ablated one.
    """

    def __init__(
        self, runs: CircuitRuns, masks: Mapping[tuple[int, int], Tensor], circuits: int, docs: Tensor
    ):
        self.runs, self.masks, self.circuits, self.docs = runs, masks, circuits, docs
        self.index, self.model = runs.index, runs.model
        self.role_of = runs.role_of[docs]
        self.clean, self.ablated = runs.given(docs)
        self.values: list[Tensor | None] = []
        self.places = [(self.role_of == role).nonzero().unbind(1) for role in range(len(self.index.roles))]

    def logits(self) -> Float[Tensor, "circuit doc d_vocab"]:
        for number, name in enumerate(self.runs.nodes):
            if name in self.clean:
                self.values.append(self.clean[name].expand(self.circuits, *self.clean[name].shape))
            else:
                self.values.append(self._computed(number, name))
        every = torch.arange(self.circuits)
        rows = Rows(every, torch.zeros_like(every), torch.zeros_like(every))
        size = self._rows_at_once(self.runs.nodes[0])
        return torch.cat([self._read(some) for some in rows.split(size)])

    def _computed(self, number: int, name: str) -> Tensor | None:
        """The node where a circuit's edge leads on from it, and elsewhere ablated."""
        rows = self._rows(number)
        if not len(rows):
            return None
        ablated = self.ablated[name]
        value = ablated.expand(self.circuits, *ablated.shape).clone()
        for some in rows.split(self._rows_at_once(name)):
            found = self._local(number, name, some)
            for row, (k, role, part) in enumerate(zip(*map(Tensor.tolist, vars(some).values()), strict=True)):
                doc, pos = self.places[role]
                if self.index.parts[number][0]:
                    value[k, doc, pos, part] = found[row, doc, pos, part]
                else:
                    value[k, doc, pos] = found[row, doc, pos]
        return value

    def _rows(self, number: int) -> Rows:
        needed = torch.zeros(self.circuits, *self.index.shape(number), dtype=torch.bool)
        reached = torch.zeros_like(needed)
        for (a, b), mask in self.masks.items():
            if a == number:
                needed |= mask.flatten(3).any(-1)
            if b == number:
                reached |= mask.flatten(1, 2).any(1)
        if self.runs.ablation == "corrupt":
            needed &= reached
        return Rows(*needed.nonzero().unbind(1))

    def _rows_at_once(self, name: str) -> int:
        """So many that the largest of the tensors about takes a tenth of the free memory at most."""
        number = self.index.hooks.index(name)
        around = [name, *(self.runs.nodes[a] for a in self.runs.parents[number])]
        largest = max(self.ablated[each].numel() * self.ablated[each].element_size() for each in around)
        return int(max(1, min(64, free_bytes(self.ablated[name].device) // 20 // largest)))

    def _mixed(self, a: int, b: int, rows: Rows) -> Float[Tensor, "row doc pos ..."]:
        """What reaches the reader b, at each row's place, of the writer a."""
        value, ablated = self.values[a], self.ablated[self.runs.nodes[a]]
        mask = self.masks[a, b][rows.circuit, :, :, rows.role, rows.part]  # [row, role, part]
        if value is None or not mask.any():
            return ablated.expand(len(rows), *ablated.shape)
        inside = mask[:, self.role_of].to(ablated.device)  # [row, doc, pos, part]
        inside = inside.view(*inside.shape, *[1] * (ablated.ndim - inside.ndim + 1))
        return torch.where(inside if ablated.ndim > 2 else inside[..., 0], value[rows.circuit], ablated)

    def _stream(self, b: int, layer: int, rows: Rows) -> Float[Tensor, "row_doc pos d_model"]:
        """The residual stream before a layer as b sees it."""
        total: Any = 0.0
        for a, name in enumerate(self.runs.nodes):
            of_layer = layer_of(name)
            writes = name in EMBEDDINGS or name.endswith(("hook_mixer_out", "hook_mlp_out"))
            if writes and (of_layer is None or of_layer < layer):
                if (a, b) in self.masks:
                    total = total + self._mixed(a, b, rows)
                else:
                    total = total + self.ablated[name].expand(len(rows), *self.ablated[name].shape)
        return total.flatten(0, 1)

    def _local(self, number: int, name: str, rows: Rows) -> Float[Tensor, "row doc pos ..."]:
        """f_b at every row."""
        layer = layer_of(name)
        assert layer is not None
        hooks: list[tuple[str, Callable]] = []
        for a in self.runs.parents[number]:
            writer = self.runs.nodes[a]
            if layer_of(writer) == layer:
                hooks.append((writer, self._setting(writer, self._mixed(a, number, rows).flatten(0, 1))))
        seen: list[Tensor] = []

        def look(activation: Tensor, hook: Any) -> None:
            seen.append(activation.clone())
            raise _Seen

        with self.model.hooks(fwd_hooks=[*hooks, (name, look)]):
            try:
                self.model.blocks[layer](self._stream(number, layer, rows))
            except _Seen:
                pass
        return seen[0].unflatten(0, (len(rows), len(self.docs)))

    def _setting(self, writer: str, value: Tensor) -> Callable:
        carries = carries_forward(self.model, writer)
        return partial(_set, value=value, carries=carries)

    def _read(self, rows: Rows) -> Float[Tensor, "row doc d_vocab"]:
        layers = self.model.cfg.n_layers
        stream = self._stream(len(self.index.hooks) - 1, layers, rows)
        at = self.runs.answer_pos[self.docs].repeat(len(rows))
        logits = self.model(stream, start_at_layer=layers, logit_positions=at.to(stream.device))
        return logits.unflatten(0, (len(rows), len(self.docs)))


class _Seen(Exception):
    """What was asked for has been computed."""


def _set(activation: Tensor, hook: Any, value: Tensor, carries: bool) -> Any:
    return setting(value, carries)
