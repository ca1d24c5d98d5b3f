"""What mixers do over positions: attention, states, taps."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from torch import Tensor

from hooked_ssm.plotting.heat import label_tokens
from hooked_ssm.plotting.picture import Picture


def attention_map(
    matrices: Float[Tensor, "head dest src"] | Float[Tensor, "dest src"],
    tokens: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    title: str = "",
    limit: float | None = None,
) -> Picture:
    """Attention patterns, or causal matrices of other mixers (`effective_attention`), one beside the other:
    the position that reads from top to bottom, those it reads from left to right. What lies in the future is
    blank. Raises ValueError for matrices that do not fit the tokens.
    """
    each = matrices.detach().cpu().double()
    each = each[None] if each.ndim == 2 else each
    if each.shape[1:] != (len(tokens), len(tokens)):
        raise ValueError(
            f"matrices must be [head, dest, src] with {len(tokens)} tokens, got {list(matrices.shape)}."
        )
    names = list(names) if names is not None else [f"head {k}" for k in range(len(each))]
    if len(names) != len(each):
        raise ValueError(f"{len(each)} matrices need as many names, got {len(names)}.")
    bound = limit or float(each.abs().max()) or 1.0
    signed = bool((each < 0).any())
    columns = min(4, len(each))
    rows = -(-len(each) // columns)
    side = max(2.4, 0.24 * len(tokens))
    figure = Picture(figsize=(0.9 + columns * (side + 0.4), 0.5 + rows * (side + 0.5)), layout="constrained")
    future = np.triu(np.ones((len(tokens), len(tokens)), dtype=bool), 1)
    for number, (matrix, name) in enumerate(zip(each.numpy(), names, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(
            np.ma.masked_where(future, matrix),
            cmap=matplotlib.colormaps["RdBu" if signed else "Blues"],
            vmin=-bound if signed else 0,
            vmax=bound,
        )
        label_tokens(axes, tokens, upright=len(tokens) > 8)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=9)
        axes.tick_params(length=0)
        axes.set_title(name if len(each) > 1 else title or name, fontsize=10)
    if len(each) > 1:
        figure.suptitle(title, fontsize=11)
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.8)
    return figure


def state_map(
    states: Float[Tensor, "pos *dims"],
    tokens: Sequence[str],
    *,
    entries: int = 32,
    title: str = "",
) -> Picture:
    """A recurrent state on its way through one document.

    Above: its length, and how far it moves at every token. Below: the entries that vary most, each in units
    of its own largest value, in the order of the position where they move most.
    Raises ValueError for states that do not fit the tokens.
    """
    if states.ndim < 2 or len(states) != len(tokens):
        raise ValueError(
            f"states must be those of one document, [pos, ...] with {len(tokens)} tokens, "
            f"got {list(states.shape)}."
        )
    flat = states.detach().cpu().double().flatten(1)
    moved = flat.diff(dim=0, prepend=flat.new_zeros(1, flat.shape[1]))
    most = flat.var(0, correction=0).argsort(descending=True)[:entries]
    most = most[moved[:, most].abs().argmax(0).argsort(stable=True)]
    shown = flat[:, most] / flat[:, most].abs().amax(0).clamp(min=1e-12)

    figure = Picture(figsize=(2.2 + 0.42 * len(tokens), 3.0 + 0.09 * len(most)), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.2])
    x = range(len(tokens))
    top.plot(x, flat.norm(dim=1).numpy(), marker="o", markersize=3, label="length")
    top.bar(x, moved.norm(dim=1).numpy(), color="0.8", label="moved")
    top.legend(frameon=False, fontsize=8)
    top.spines[["top", "right"]].set_visible(False)
    top.set_title(title, fontsize=11)
    image = below.imshow(
        shown.T.numpy(),
        cmap=matplotlib.colormaps["RdBu"],
        vmin=-1,
        vmax=1,
        aspect="auto",
        interpolation="none",
    )
    below.set_yticks([])
    below.set_ylabel(f"{len(most)} of {flat.shape[1]} entries", fontsize=9)
    label_tokens(below, tokens)
    top.tick_params(labelbottom=False)
    figure.colorbar(image, ax=below, shrink=0.9)
    return figure


def tap_map(
    taps: Float[Tensor, "pos tap channel"], tokens: Sequence[str], *, title: str = "", label: str = "length"
) -> Picture:
    """What each tap of a short convolution adds to its output, as the length over channels: of one document,
    or of the difference of two. Raises ValueError for taps that do not fit the tokens."""
    if len(taps) != len(tokens):
        raise ValueError(
            f"taps must be those of one document, [pos, tap, channel] with {len(tokens)} tokens, "
            f"got {list(taps.shape)}."
        )
    lengths = taps.detach().cpu().double().norm(dim=-1).T.numpy()
    figure = Picture(figsize=(2.4 + 0.42 * len(tokens), 1.4 + 0.34 * len(lengths)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(lengths, cmap=matplotlib.colormaps["Blues"], vmin=0, aspect="auto")
    label_tokens(axes, tokens)
    axes.set_yticks(range(len(lengths)), [f"tap {k}" for k in range(len(lengths))])
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    return figure
