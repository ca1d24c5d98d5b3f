"""The study's tables in a terminal, as heat maps, and as one self-contained HTML page."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.ioi.prompts import Prompts
from experiments.report import environment
from hooked_ssm import plotting
from hooked_ssm.plotting import Picture, fixed
from hooked_ssm.saving import write_atomically

PARTS = {
    "streams": "Streams: what is written here, from the clean document into the corrupted one",
    "taps": "Convolution: what the name adds to the position so many tokens after it, by tap",
    "states": "States: the recurrent state at one position, and all that grows out of it",
    "averages": "Average states: one name's mean in place of another's, so many tokens after the name",
}


def heat_maps(tables: dict[str, pd.DataFrame]) -> dict[str, Picture]:
    """Layers are rows. By file name, in the order of the page."""
    maps: dict[str, Picture] = {}

    def add(name: str, frame: pd.DataFrame, column: str, value: str, title: str) -> None:
        grid = frame.pivot(index="layer", columns=column, values=value)
        grid = grid[in_order(list(dict.fromkeys(frame[column])))]
        labels = [each if isinstance(each, str) else f"{column} {each}" for each in grid.columns]
        maps[name] = plotting.heatmap(
            grid.to_numpy(float),
            rows=[f"layer {layer}" for layer in grid.index],
            columns=[label.replace(" again", "\nagain").replace(" +", "\n+") for label in labels],
            title=title,
            limit=1.0,
            label=value,
        )

    for hook, frame in tables["streams"].groupby("hook", sort=False):
        what = {"hook_resid_pre": "residual stream before the layer", "hook_mixer_out": "mixer's write"}
        add(f"streams-{hook}", frame, "position", "restored", f"{what[str(hook)]}: restored")
    if "taps" in tables:
        for value in ("restored", "lost"):
            add(f"taps-{value}", tables["taps"], "tap", value, f"tap, at the name plus tap: {value}")
    if "states" in tables:
        add("states", tables["states"], "position", "restored", "state at the position: restored")
        frame = tables["averages"].rename(columns={"after": "name +"})
        for value in ("moved", "switched"):
            add(f"averages-{value}", frame, "name +", value, f"average name in the state: {value}")
    return maps


def in_order(columns: list[Any]) -> list[Any]:
    """Positions as they stand in the document, each name's followers after it; numbers as they are."""
    names = list(dict.fromkeys(str(each).split(" +")[0] for each in columns if each != "end"))
    return sorted(columns, key=lambda each: names.index(str(each).split(" +")[0]) if each != "end" else 99)


def strongest(table: pd.DataFrame, value: str, rows: int = 5) -> pd.DataFrame:
    """The rows with the largest values."""
    return table.sort_values(value, ascending=False, kind="stable").head(rows)


def print_tables(tables: dict[str, pd.DataFrame], console: Console) -> None:
    """The behaviour, and the strongest cells of each part."""
    console.print(as_table("Behaviour: logit of the clean answer less the other", tables["behaviour"]))
    for name, title in PARTS.items():
        if name in tables:
            value = "switched" if name == "averages" else "restored"
            console.print(as_table(f"{title}; strongest", strongest(tables[name], value)))


def as_table(title: str, frame: pd.DataFrame) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for column in frame.columns:
        table.add_column(str(column), justify="right" if frame[column].dtype.kind in "fi" else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(fixed(cell, 3) if isinstance(cell, float) else str(cell) for cell in row))
    return table


def write_report(
    model: Any,
    study: Any,
    example: Prompts,
    tables: dict[str, pd.DataFrame],
    left_out: tuple[str, ...],
    folder: Path,
) -> Path:
    """Write report.html and a PNG a heat map into the folder; return the page's path."""
    pictures = {name: picture.png() for name, picture in heat_maps(tables).items()}
    for name, data in pictures.items():
        write_atomically(folder / f"{name}.png", lambda file, data=data: file.write_bytes(data))
    parts = [
        {
            "title": title,
            "pictures": {key: data for key, data in pictures.items() if key.split("-")[0] == name},
            "rows": tables[name].to_dict("records"),
            "columns": list(tables[name].columns),
        }
        for name, title in PARTS.items()
        if name in tables
    ]
    places = {place: role for role, place in example.places.items()}
    page = (
        environment()
        .get_template("ioi.html.j2")
        .render(
            study=study,
            cfg=model.cfg,
            example=[
                (token, places.get(place, ""))
                for place, token in enumerate(model.to_str_tokens(example.clean[-1]))
            ],
            behaviour=tables["behaviour"].to_dict("records"),
            parts=parts,
            left_out=left_out,
        )
    )
    path = folder / "report.html"
    write_atomically(path, lambda file: file.write_text(page))
    return path
