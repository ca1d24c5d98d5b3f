"""Writes the page that lists every hook, from the code: python docs/generate.py"""

from functools import partial
from pathlib import Path

from hooked_ssm import HookedSSM, zoo

PAGE = Path(__file__).parent / "hooks.md"
INTRO = """# Every hook

Generated from the code by `python docs/generate.py`.
`model.hook_table()` gives the same for one model, with each hook's other names and what keeps it from firing.

Axes are `[batch, pos, ...]`; in matrices `[batch, head, dest, src]`, in filters `[batch, lag, ...]`.
The mixer's `hook_x` is `blocks.{l}.mixer.hook_x`, and also `blocks.{l}.hook_x` and `blocks.{l}.attn.hook_x`.
"""


def hook_page() -> str:
    """The hooks around the mixers, then each mixer's, with every option that a preset of the zoo uses, and
    rotary positions."""
    sections: dict[str, dict[str, tuple[str, str]]] = {"Around the mixers": {}}
    rotary = {"attention": partial(zoo.attention, rotary_dim=2)}
    for presets in (zoo.PRESETS, zoo.paper.PRESETS, rotary):
        for preset in presets.values():
            cfg = preset(d_model=64, d_vocab=8, n_ctx=16, device="meta")
            for hook in HookedSSM(cfg).hook_table().itertuples():
                match str(hook.name).split("."):
                    case ["blocks", layer, "mixer", name]:
                        title = f"`{cfg.mixer_list[int(layer)].name}`"
                    case ["blocks", _, *rest]:
                        title, name = "Around the mixers", ".".join(["blocks.{l}", *rest])
                    case _:
                        title, name = "Around the mixers", str(hook.name)
                sections.setdefault(title, {})[name] = (str(hook.shape), str(hook.meaning))
    return "\n".join([INTRO, *(section(title, rows) for title, rows in sections.items())])


def section(title: str, rows: dict[str, tuple[str, str]]) -> str:
    lines = [f"## {title}", "", "| hook | shape | what it carries |", "|---|---|---|"]
    lines += [f"| `{name}` | `{shape}` | {meaning} |" for name, (shape, meaning) in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(hook_page())
    print(f"wrote {PAGE}")
