"""Where the name is: streams, mixers' writes, taps of the convolution, and states, patched one at a time.

Every number is a share of the difference that the corruption makes,

    restored = (patched - corrupted) / (clean - corrupted)

of the mean logit of the clean answer less that of the corrupted one. `lost` is the same with the roles
swapped: the clean run with one activation of the corrupted one. Where an activation alone carries the name,
both are 1.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from experiments.ioi.prompts import Prompts
from hooked_ssm.mixers import ShortConv
from hooked_ssm.patching import patch_sweep

STREAMS = ("hook_resid_pre", "hook_mixer_out")


@torch.no_grad()
def logit_difference(model: Any, prompts: Prompts, tokens: Tensor) -> Float[Tensor, " doc"]:
    """The clean answer's logit less the corrupted one's."""
    last = torch.full((len(tokens),), prompts.end, device=tokens.device)
    return difference(prompts, model(tokens, logit_positions=last))


def difference(prompts: Prompts, logits: Float[Tensor, "doc d_vocab"]) -> Float[Tensor, " doc"]:
    answer, other = (logits.gather(1, each[:, None])[:, 0] for each in (prompts.answer, prompts.other))
    return answer - other


@torch.no_grad()
def behaviour(model: Any, groups: Sequence[Prompts]) -> pd.DataFrame:
    """How well the model does the task: a row a group, of as many documents each, and one for all.

    right: the share of the documents whose answer has the largest logit of the names in them.
    """
    rows = []
    for prompts in groups:
        last = torch.full((len(prompts.clean),), prompts.end, device=prompts.clean.device)
        logits = model(prompts.clean, logit_positions=last)
        names = prompts.clean[:, list(prompts.places.values())]
        best = logits.gather(1, names).max(1).values
        right = logits.gather(1, prompts.answer[:, None])[:, 0] >= best
        rows.append(
            {
                "text": prompts.text,
                "pattern": prompts.pattern,
                "right": float(right.double().mean()),
                "clean": float(difference(prompts, logits).mean()),
                "corrupted": float(logit_difference(model, prompts, prompts.corrupted).mean()),
                "docs": len(logits),
            }
        )
    mean = pd.DataFrame(rows)[["right", "clean", "corrupted"]].mean().to_dict()
    total = {"text": "all", "pattern": "", **mean, "docs": sum(row["docs"] for row in rows)}
    return pd.DataFrame([*rows, total])


def streams(model: Any, groups: Sequence[Prompts]) -> pd.DataFrame:
    """Residual streams and mixers' writes, by layer and named position."""
    shares = Shares(model, groups)
    for prompts in groups:
        places = prompts.labelled()
        for hook in STREAMS:
            cells = pd.DataFrame(
                [(layer, at) for layer in range(model.cfg.n_layers) for at in places.values()],
                columns=["layer", "pos"],
            )
            names = [f"blocks.{layer}.{hook}" for layer in range(model.cfg.n_layers)]
            labels = {at: label for label, at in places.items()}
            keys = [(hook, layer, labels[at]) for layer, at in cells.itertuples(index=False)]
            shares.sweep(prompts, names, hook.removeprefix("hook_"), cells, keys)
    return shares.table("hook", "layer", "position")


def taps(model: Any, groups: Sequence[Prompts]) -> pd.DataFrame:
    """The convolution's taps tau at tau tokens after the changed name: what moves it so far, by layer."""
    shares, layers = Shares(model, groups), layers_with(model, "hook_conv_taps")
    widths = {layer: width_of_convolution(model, layer) for layer in layers}
    for prompts in groups:
        start = prompts.places[prompts.changed]
        cells = pd.DataFrame(
            [
                (layer, start + tap, tap)
                for layer in layers
                for tap in range(widths[layer])
                if start + tap <= prompts.end
            ],
            columns=["layer", "pos", "tap"],
        )
        names = [f"blocks.{layer}.mixer.hook_conv_taps" for layer in layers]
        keys = [(layer, tap) for layer, _, tap in cells.itertuples(index=False)]
        shares.sweep(prompts, names, "conv_taps", cells, keys)
    return shares.table("layer", "tap")


def states(model: Any, groups: Sequence[Prompts]) -> pd.DataFrame:
    """The recurrent state at one position, from which all later ones grow, by layer and named position."""
    shares, layers = Shares(model, groups), layers_with(model, "hook_ssm_state")
    for prompts, layer in progress([(p, layer) for p in groups for layer in layers], "states"):
        places, name = prompts.labelled(), f"blocks.{layer}.mixer.hook_ssm_state"
        cells = pd.DataFrame({"pos": list(places.values())})
        shares.sweep(prompts, [name], name, cells, [(layer, label) for label in places], verbose=False)
    return shares.table("layer", "position")


class Shares:
    """Patched logit differences of documents by key, put together over groups."""

    def __init__(self, model: Any, groups: Sequence[Prompts]):
        self.model = model
        self.base = {
            id(prompts): {
                kind: logit_difference(model, prompts, getattr(prompts, kind))
                for kind in ("clean", "corrupted")
            }
            for prompts in groups
        }
        self.found: dict[tuple[Any, ...], list[Float[Tensor, "quantity doc"]]] = {}

    @torch.no_grad()
    def sweep(
        self,
        prompts: Prompts,
        names: list[str],
        activation: str,
        cells: pd.DataFrame,
        keys: list[tuple[Any, ...]],
        verbose: bool = True,
    ) -> None:
        """One sweep each way. names: the hooks that it patches; keys: what each cell is called."""
        base, patched = self.base[id(prompts)], {}
        for kind, tokens, source in (
            ("restored", prompts.corrupted, prompts.clean),
            ("lost", prompts.clean, prompts.corrupted),
        ):
            _, cache = self.model.run_with_cache(source, names_filter=names)
            patched[kind] = patch_sweep(
                self.model,
                tokens,
                cache,
                lambda logits: difference(prompts, logits),
                activation,
                index_df=cells,
                reduce="none",
                logit_positions=prompts.end,
                verbose=verbose,
            ).values  # type: ignore[union-attr]
            del cache
        for key, restored, lost in zip(keys, patched["restored"], patched["lost"], strict=True):
            four = torch.stack([base["clean"], base["corrupted"], restored, lost]).double().cpu()
            self.found.setdefault(key, []).append(four)

    def table(self, *names: str) -> pd.DataFrame:
        """A row a key: restored and lost, of the documents that have it."""
        rows = []
        for key, parts in self.found.items():
            clean, corrupted, restored, lost = torch.cat(parts, dim=1).mean(1).tolist()
            gap, docs = clean - corrupted, sum(part.shape[1] for part in parts)
            rows.append((*key, (restored - corrupted) / gap, (clean - lost) / gap, docs))
        return pd.DataFrame(rows, columns=[*names, "restored", "lost", "docs"])


def layers_with(model: Any, hook: str) -> list[int]:
    """The layers whose mixer has this hook. Raises ValueError if none has."""
    layers = [layer for layer, block in enumerate(model.blocks) if hasattr(block.mixer, hook)]
    if not layers:
        raise ValueError(f"the model has no layer with {hook}.")
    return layers


def width_of_convolution(model: Any, layer: int) -> int:
    return next(conv.d_conv for conv in model.blocks[layer].mixer.modules() if isinstance(conv, ShortConv))


def progress(items: Sequence[Any], what: str) -> Iterator[Any]:
    return iter(tqdm(items, desc=what, delay=2.0))
