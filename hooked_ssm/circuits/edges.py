"""The edges of a circuit's graph: from (hook, role of a position, part) to (hook, role, part).

A part is a head or a tap of a convolution, where a hook has such an axis. An edge exists if at some position
of its reader's role the reader depends on the writer at some position of the writer's role other than through
a third node, and if it lies on a way from the embeddings to the logits that are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_ssm.attribution import Graph, edge_attribution, mixer_graph
from hooked_ssm.attribution.edges import LOGITS
from hooked_ssm.attribution.graph import embeddings, sums_of_writes
from hooked_ssm.attribution.hooks import resolve
from hooked_ssm.attribution.result import EdgeAttribution
from hooked_ssm.circuits.roles import ELSEWHERE
from hooked_ssm.patching.names import layer_of

PROBES = 4  # random documents whose derivatives say what depends on what
NOT_NODES = ("hook_mlp_in", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_pattern")


def circuit_graph(model: Any, *, layers: Sequence[int] | None = None, skip: Sequence[str] = ()) -> Graph:
    """Embeddings, what is inside the mixers, and what mixers and MLPs write.

    layers: whose mixers are opened; None for all. skip: hooks that are no nodes, such as "hook_conv".
    """
    nodes = mixer_graph(model, layers=layers, skip=skip).nodes
    return Graph(tuple(name for name in nodes if not name.endswith(NOT_NODES)), ("pos", "head", "tap"))


def check_graph(model: Any, graph: Graph) -> Graph:
    """Raises ValueError for a graph whose edges cannot be ablated one by one."""
    names = resolve(model, graph.nodes)
    if graph.flags or not set(embeddings(model)) <= set(names) or not sums_of_writes(model, names):
        raise ValueError(
            "a circuit's graph has all embeddings, hook_mixer_out and hook_mlp_out among its nodes, and "
            f"needs no flags; got {list(graph.nodes)} with flags {list(graph.flags)}."
        )

    def fits(name: str) -> bool:
        placed = name in embeddings(model) or layer_of(name) is not None
        return placed and not name.endswith(NOT_NODES) and model.hook_dict[name].shape.split()[1] == "pos"

    wrong = [name for name in names if not fits(name)]
    if wrong:
        raise ValueError(
            "nodes of a circuit are the embeddings and hooks of blocks that are [batch, pos, ...], without "
            f"the residual stream, which is a sum of nodes; got {wrong}."
        )
    return Graph(tuple(names), ("pos", "head", "tap"))


@dataclass(frozen=True, eq=False)
class EdgeIndex:
    """All edges, by number.

    hooks: in the order in which they fire, the logits last. parts: how many heads or taps each hook has, and
        what they are called ("" for a hook without). roles: of positions, `ELSEWHERE` last.
    ends: the numbers of writer, its role, its part, reader, its role, its part.
    """

    hooks: list[str]
    parts: list[tuple[str, int]]
    roles: list[str]
    ends: Int[Tensor, "edge 6"]
    pairs: dict[tuple[int, int], Tensor] = field(init=False, repr=False)

    def __post_init__(self):
        pairs = {}
        both = self.ends[:, 0] * len(self.hooks) + self.ends[:, 3]
        for number in both.unique().tolist():
            pairs[divmod(number, len(self.hooks))] = (both == number).nonzero()[:, 0]
        object.__setattr__(self, "pairs", pairs)

    def __len__(self) -> int:
        return len(self.ends)

    def shape(self, hook: int) -> tuple[int, int]:
        return len(self.roles), self.parts[hook][1]

    def part_name(self, hook: int, part: int) -> str:
        """ "tap 2", "head 0"; nothing where there is one part."""
        name, count = self.parts[hook]
        return f"{name} {part}" if count > 1 else ""

    def sources(self) -> list[int]:
        """Hooks that read no other."""
        read = {b for _, b in self.pairs}
        return [hook for hook in range(len(self.hooks)) if hook not in read]

    def masks(
        self, circuits: Bool[Tensor, "circuit edge"]
    ) -> dict[tuple[int, int], Bool[Tensor, "circuit role part reader_role reader_part"]]:
        """Which edges are in each circuit, by pair of hooks."""
        out = {}
        for (a, b), numbers in self.pairs.items():
            mask = torch.zeros(len(circuits), *self.shape(a), *self.shape(b), dtype=torch.bool)
            _, i, s, _, j, t = self.ends[numbers].unbind(1)
            mask[:, i, s, j, t] = circuits[:, numbers]
            out[a, b] = mask
        return out

    def connected(self, edges: Bool[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
        """Those of the edges that lie on a way, through these edges, from an embedding to the logits."""
        a, i, s, b, j, t = self.ends.unbind(1)
        most = max(count for _, count in self.parts)
        tail, head = ((h * len(self.roles) + r) * most + p for h, r, p in ((a, i, s), (b, j, t)))
        size = len(self.hooks) * len(self.roles) * most
        begins, leads = torch.zeros(2, size, dtype=torch.bool)
        for source in self.sources():
            begins.view(len(self.hooks), -1)[source] = True
        leads.view(len(self.hooks), -1)[-1] = True
        # Edges go from earlier to later hooks, so one pass in their order is enough.
        groups = [(edges & (b == hook)).nonzero()[:, 0] for hook in range(len(self.hooks))]
        for group in groups:
            begins[head[group[begins[tail[group]]]]] = True
        groups = [(edges & (a == hook)).nonzero()[:, 0] for hook in reversed(range(len(self.hooks)))]
        for group in groups:
            leads[tail[group[leads[head[group]]]]] = True
        return edges & begins[tail] & leads[head]


def edges_of(
    model: Any,
    graph: Graph,
    roles: Sequence[str],
    role_of: Int[Tensor, "doc pos"],
    answer_pos: Int[Tensor, " doc"],
) -> tuple[EdgeIndex, int]:
    """The edges that exist in such documents, and how many they are with those that lead nowhere."""
    generator, length = torch.Generator().manual_seed(0), role_of.shape[1]
    tokens = torch.randint(model.cfg.d_vocab, (PROBES, length), generator=generator)
    step = 1 + torch.randint(model.cfg.d_vocab - 1, tokens.shape, generator=generator)
    others = (tokens + step) % model.cfg.d_vocab
    device = model.W_E.device
    reads = torch.randn(length, model.cfg.d_vocab, generator=generator).to(model.W_E)
    found = edge_attribution(
        model, others.to(device), tokens.to(device), lambda logits: (logits * reads).sum((1, 2)), graph
    )
    order = [name for name in found.axes if name != LOGITS] + [LOGITS]
    parts = []
    for name in order:
        axes = [axis for axis in found.axes[name] if axis != "pos"]
        point = model.hook_dict.get(name)
        parts.append((axes[0], size_of(found, name)) if axes else ("", 1))
        assert len(axes) < 2 and (not axes or point.shape.split()[2] == axes[0]), name
    here = one_hot(role_of, len(roles) + 1)
    ends = []
    for (a, b), scores in found.edges.by_doc.items():
        depends = (by_place(scores, found, a, b) != 0).any(0).float()
        exists = summed_by_role(depends.expand(len(here), *depends.shape), here, answer_pos, b) > 0
        i, s, j, t = exists.nonzero().unbind(1)
        numbers = [torch.full_like(i, order.index(name)) for name in (a, b)]
        ends.append(torch.stack([numbers[0], i, s, numbers[1], j, t], 1))
    index = EdgeIndex(order, parts, [*roles, ELSEWHERE], torch.cat(ends))
    useful = index.connected(torch.ones(len(index), dtype=torch.bool))
    return EdgeIndex(order, parts, index.roles, index.ends[useful]), len(index)


def scores_of(
    index: EdgeIndex, found: EdgeAttribution, role_of: Int[Tensor, "doc pos"], answer_pos: Int[Tensor, " doc"]
) -> Float[Tensor, " edge"]:
    """The scores of an attribution over positions, summed by role, as means over documents."""
    here = one_hot(role_of, len(index.roles))
    out = torch.zeros(len(index))
    for (a, b), numbers in index.pairs.items():
        names = index.hooks[a], index.hooks[b]
        if names in found.edges.by_doc:
            scores = by_place(found.edges.by_doc[names], found, *names).cpu().float()
            _, i, s, _, j, t = index.ends[numbers].unbind(1)
            out[numbers] = summed_by_role(scores, here, answer_pos, names[1])[i, s, j, t] / len(here)
    return out


def size_of(found: EdgeAttribution, name: str) -> int:
    return found.nodes.by_doc[name].shape[-1]


def one_hot(role_of: Int[Tensor, "doc pos"], count: int) -> Float[Tensor, "doc pos role"]:
    return torch.nn.functional.one_hot(role_of, count).float()


def by_place(scores: Tensor, found: EdgeAttribution, a: str, b: str) -> Float[Tensor, "doc pos part dest to"]:
    """The scores with every axis of both ends there; the logits are read at one place."""
    ends = [
        [scores.shape[1 + k] for k in range(len(found.axes[a]))],
        list(scores.shape[1 + len(found.axes[a]) :]),
    ]
    shape = [size for end in ends for size in (*end, *[1] * (2 - len(end)))]
    return scores.reshape(len(scores), *shape)


def summed_by_role(
    scores: Float[Tensor, "doc pos part dest to"],
    here: Float[Tensor, "doc pos role"],
    answer_pos: Int[Tensor, " doc"],
    reader: str,
) -> Float[Tensor, "role part reader_role to"]:
    if reader == LOGITS:
        at = torch.nn.functional.one_hot(answer_pos, here.shape[1]).to(here)
        summed = torch.einsum("dpsqt,dpi,dp->ist", scores, here, at)
        out = summed.new_zeros(*summed.shape[:2], here.shape[2], summed.shape[2])
        out[:, :, 0] = summed  # the logits have one place, of role 0
        return out
    return torch.einsum("dpsqt,dpi,dqj->isjt", scores, here, here)
