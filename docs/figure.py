"""Draws the README's figure from the trained models in tutorials/models: python docs/figure.py"""

from pathlib import Path

import matplotlib
import torch

from hooked_ssm import HookedSSM
from hooked_ssm.interchange import interchange
from hooked_ssm.plotting import Picture, fixed
from tasks import AssociativeRecall

ROOT = Path(__file__).parents[1]
FIGURE = Path(__file__).parent / "pictures/two_mechanisms.png"
PLACES = ("key", "value", "value+1", "value+2", "query")
ROWS = {
    "attention": {f"block {l} input": f"blocks.{l}.hook_resid_pre" for l in (0, 1)},
    "mamba": {
        f"block {l} {what}": f"blocks.{l}.{hook}"
        for l in (0, 1)
        for what, hook in (("input", "hook_resid_pre"), ("convolution", "hook_conv"))
    },
}
TITLES = {
    "attention": "Attention, {:.1%} right: block 0 stores the key at the value",
    "mamba": "Mamba, {:.1%} right: block 1's convolution joins key and value",
}


def draw() -> Picture:
    task = AssociativeRecall(n_keys=32, n_values=32, n_pairs=4)
    docs = task.sample(400, generator=1, split="test")
    docs = docs[docs.positions["value"] < 2 * task.n_pairs]  # value+2 is not the query
    corrupted = task.corrupt(docs, "key", generator=3)
    where = {name: docs.positions[name] for name in ("key", "value", "query")}
    where |= {f"value+{n}": where["value"] + n for n in (1, 2)}
    figure = Picture(figsize=(6.4, 4.9), layout="constrained")
    panels = figure.subplots(2, 1, height_ratios=[2, 4])
    for panel, (name, rows) in zip(panels, ROWS.items(), strict=True):
        model = HookedSSM.load(ROOT / "tutorials/models" / name)
        with torch.no_grad():
            right = docs.is_correct(model(docs.tokens)).float().mean().item()
        grid = interchange(
            model,
            docs.tokens,
            corrupted.tokens,
            answer=docs.answer,
            answer_pos=docs.answer_pos,
            hooks=list(rows.values()),
            positions={place: where[place] for place in PLACES},
        ).attrib()
        panel.imshow(grid, cmap=matplotlib.colormaps["RdBu"], vmin=-1, vmax=1, aspect="auto")
        panel.set_xticks(range(len(PLACES)), PLACES)
        panel.set_yticks(range(len(rows)), list(rows))
        panel.tick_params(length=0)
        for row, values in enumerate(grid.tolist()):
            for column, value in enumerate(values):
                colour = "white" if abs(value) > 0.6 else "black"
                panel.text(column, row, fixed(value, 2), ha="center", va="center", color=colour)
        panel.set_title(TITLES[name].format(right), fontsize=11)
    return figure


if __name__ == "__main__":
    FIGURE.write_bytes(draw().png())
    print(f"wrote {FIGURE}")
