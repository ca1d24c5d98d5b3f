"""Runs that differ from a base run in one activation, started where they begin to differ.

The base run is kept at two kinds of places: its residual stream before every layer, and, where it saves time,
the mixers' states at a few positions. A run that differs in layer l from position p on starts in layer l at
the last such position before p. What it skips is what it shares with the base run, so this changes nothing
but rounding.
"""

import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_ssm.patching.between import silent_error
from hooked_ssm.patching.memory import free_bytes
from hooked_ssm.patching.names import layer_of

STARTS = 8  # positions at which the base run's states are kept, at most
# Starting late is done if the second half of the documents takes at most this share of the time of all: large
# states (Based, H3), and models so small that only the number of calls counts, take more.
PAYS = 0.8
Edit = Callable[[Tensor, Any], Any]


class BaseRun:
    """The base run of some documents.

    tokens: [doc, pos].
    slots: mask [doc, pos] of the logits that are wanted. They are numbered in row order.
    whole: run whole documents only, as hooks want that index positions in a way of their own.
    moved: hooks whose edits have been seen to change how a run ends, more than by rounding.

    Runs end with `final` tensors [slot, d]: what `unembed` makes logits of. That is the residual stream after
    the final norm, unless hooks may want to see what comes after it, or the model does not hand it out: then
    it is the logits themselves.

    Only models that can start at a layer and unembed chosen positions are run in part. TransformerLens 4.3's
    bridges take `start_at_layer` too, but run every layer, the Mamba bridge all of them on the given residual
    stream: its logits are then wrong.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "doc pos"],
        slots: Bool[Tensor, "doc pos"],
        *,
        whole: bool = False,
    ):
        self.model, self.tokens = model, tokens
        self.moved: set[str] = set()
        accepted = inspect.signature(model.forward).parameters
        parts = {"logit_positions", "start_at_layer", "stop_at_layer"}
        self.starts_late = parts <= set(accepted) and not module_hooks(model)
        self.unembeds_late = self.starts_late and unembeds_late(model)
        self.whole = whole or not self.starts_late or has_hooks(model)
        wanted_at = slots.any(0).nonzero()
        # A causal model reads nothing after the last wanted logit.
        last = int(wanted_at.max()) + 1 if len(wanted_at) else 1
        self.stop = tokens.shape[1] if self.whole else last
        self.slots = slots[:, : self.stop]
        self.slot_number = (self.slots.flatten().cumsum(0) - 1).view_as(self.slots)
        self.starts, self.resid, self.states = [0], [], []
        if self.starts_late:
            self._run_layers()

    def _run_layers(self) -> None:
        """The residual stream before every layer, and the states of every layer at `starts`.

        The stream is of whole documents run at once, as a clean run is: where those do not differ, the
        activations then mostly are the same to the last bit, and need not be patched.
        """
        resid = self.model(self.tokens, stop_at_layer=0)
        blocks = list(self.model.blocks)
        flags = (getattr(self.model.cfg, flag, False) for flag in ("use_split_qkv_input", "use_attn_in"))
        if not self.whole and all(hasattr(block, "extend") for block in blocks) and not any(flags):
            self.starts = self._choose_starts(resid)
        self.resid = [resid]
        half = len(self.starts) // 2
        late = whole = 0.0
        for layer, block in enumerate(blocks):
            states: list[Any] = [None]
            for start, stop in itertools.pairwise(self.starts):
                states.append(block.extend(resid[:, start:stop], states[-1])[1])
            self.states.append(states)
            if half:
                piece = resid[:, self.starts[half] : self.stop]
                late += seconds(piece.device, partial(block.extend, piece, states[half]))
                whole += seconds(resid.device, partial(block.extend, resid[:, : self.stop]))
            resid = self.model(resid, start_at_layer=layer, stop_at_layer=layer + 1)
            self.resid.append(resid)
        if late > PAYS * whole:
            self.starts, self.states = [0], [states[:1] for states in self.states]

    def _choose_starts(self, resid: Tensor) -> list[int]:
        """Evenly spaced positions, as many as states can be kept for in an eighth of the free memory."""
        size = 1
        for block in self.model.blocks:
            one, two = (state_bytes(block.extend(resid[:, :n])[1]) for n in (1, 2))
            size += one + (two - one) * self.stop  # keys and values grow with the document
        count = max(1, min(STARTS, self.stop, free_bytes(resid.device) // 8 // size))
        return sorted({self.stop * k // count for k in range(count)})

    @cached_property
    def final(self) -> Float[Tensor, "slot d"]:
        """Of the base run itself."""
        if not self.starts_late:
            return self.model.run_with_hooks(self.tokens, fwd_hooks=[])[self.slots]
        return self._final(self.resid[-1][:, : self.stop], self.slots)

    def unembed(self, final: Float[Tensor, "*some d"]) -> Float[Tensor, "*some d_vocab"]:
        """The logits."""
        return self.model.unembedded(final) if self.unembeds_late else final

    @property
    def logits_a_run(self) -> int:
        """How many a run of one document makes."""
        if self.unembeds_late:
            return 0
        return int(self.slots.sum(1).max()) if self.starts_late else self.slots.shape[1]

    def activations(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What these hooks, all of one layer, carry in the base run."""
        seen: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any, name: str) -> None:
            seen[name] = activation.clone()

        layer = self.start_layer(names[0])
        for name in names:
            if layer is not None and name.endswith(".hook_resid_post"):
                seen[name] = self.resid[layer].clone()
        names = [name for name in names if name not in seen]
        if not names:
            return seen
        hooks = [(name, partial(keep, name=name)) for name in names]
        if layer is None:
            self.model.run_with_hooks(self.tokens, fwd_hooks=hooks)
        else:
            stop = layer + 1 if layer < len(self.resid) - 1 else None
            options = {"stop_at_layer": stop} if stop is not None else {"return_type": None}
            self.model.run_with_hooks(self.resid[layer], fwd_hooks=hooks, start_at_layer=layer, **options)
        silent = [name for name in names if name not in seen]
        if silent:
            raise silent_error(self.model, self.tokens, silent)
        return seen

    def start_layer(self, name: str) -> int | None:
        """The layer to start at for an edit of this hook; None for the tokens."""
        if not self.starts_late:
            return None
        if name.startswith("ln_final."):
            return len(self.resid) - 1
        layer = layer_of(name)
        return layer + 1 if layer is not None and name.endswith(".hook_resid_post") else layer

    def start_before(self, position: int, name: str) -> int:
        """The last position, up to this one, at which a run that edits this hook can start."""
        if self.start_layer(name) is None:
            return 0
        return max(start for start in self.starts if start <= position)

    def edited(
        self,
        name: str,
        edit: Edit,
        docs: Int[Tensor, " row"],
        start: int,
        wanted: Bool[Tensor, "row pos"],
    ) -> Float[Tensor, "slot d"]:
        """Rows of documents under a hook, run from position `start` on, where `wanted`.

        `wanted` is for the positions from `start`, as is what the hook is given.
        """
        final = self.run(name, edit, docs, start, wanted)
        if name not in self.moved:
            before = self.final[self.slot_number[docs, start:][wanted]]
            rounding = torch.finfo(before.dtype).eps ** 0.5 * before.abs().amax() if len(before) else 0.0
            if not ((final == before) | ((final - before).abs() <= rounding)).all():
                self.moved.add(name)
        return final

    def run(
        self,
        name: str,
        edit: Edit,
        docs: Int[Tensor, " row"],
        start: int,
        wanted: Bool[Tensor, "row pos"],
    ) -> Float[Tensor, "slot d"]:
        """`edited`, without a look at what comes of it."""
        layer = self.start_layer(name)
        tokens = self.tokens[docs, : self.stop]
        if not self.starts_late:
            return self.model.run_with_hooks(tokens, fwd_hooks=[(name, edit)])[wanted]
        if layer is None:
            layers = self.model.cfg.n_layers
            resid = self.model.run_with_hooks(tokens, fwd_hooks=[(name, edit)], stop_at_layer=layers)
            return self._final(resid, wanted)
        resid = self.resid[layer][docs, start : self.stop]
        if name.endswith(".hook_resid_post"):  # what the next layer starts with
            resid = edit(resid, self.model.hook_dict[name])
            attach = nullcontext()
        else:
            attach = attached(self.model, name, edit)
        at = self.starts.index(start)
        with attach:
            if start == 0:
                resid = self.model(resid, start_at_layer=layer, stop_at_layer=self.model.cfg.n_layers)
            else:
                for block, states in zip(self.model.blocks[layer:], self.states[layer:], strict=True):
                    resid, _ = block.extend(resid, state_rows(states[at], docs))
            return self._final(resid, wanted)

    def _final(self, resid: Tensor, wanted: Tensor) -> Tensor:
        if self.unembeds_late:
            return self.model.ln_final(resid)[wanted]
        return self.model(resid, start_at_layer=self.model.cfg.n_layers, logit_positions=wanted)


def seconds(device: torch.device, call: Callable[[], Any]) -> float:
    """How long the call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def has_hooks(model: Any) -> bool:
    """Whether anything but our own edits would see what modules, hook points among them, give."""
    return any(module._forward_hooks for module in model.modules())


def module_hooks(module: torch.nn.Module) -> bool:
    """Whether the module itself has hooks, as PyTorch has them."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def unembeds_late(model: Any) -> bool:
    """Whether logits can be made of a few rows: the model says how, and no hook sees what is around them."""
    return hasattr(model, "unembedded") and not any(
        module_hooks(module) for part in (model.ln_final, model.unembed) for module in part.modules()
    )


@contextmanager
def attached(model: Any, name: str, edit: Edit) -> Iterator[None]:
    """The hook, on one hook point and without a look at all the others."""
    handle = model.hook_dict[name].register_forward_hook(lambda point, _, output: edit(output, point))
    try:
        yield
    finally:
        handle.remove()


def state_rows(state: Any, docs: Int[Tensor, " row"]) -> Any:
    """A mixer's state for these rows of its batch."""
    return map_tensors(lambda tensor: tensor[docs], state)


def state_bytes(state: Any) -> int:
    sizes: list[int] = []
    map_tensors(lambda tensor: sizes.append(tensor.numel() * tensor.element_size()), state)
    return sum(sizes)


def map_tensors(function: Callable[[Tensor], Any], state: Any) -> Any:
    """`function` of every tensor in a state: nested tuples, named or not, lists and dictionaries."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(map_tensors(function, part) for part in state))
    if isinstance(state, list | tuple):
        return type(state)(map_tensors(function, part) for part in state)
    if isinstance(state, dict):
        return {name: map_tensors(function, part) for name, part in state.items()}
    return state
