"""Circuits as JSON, and their pictures as files."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hooked_ssm.circuits.edges import EdgeIndex
from hooked_ssm.saving import write_atomically

FORMAT = "hooked_ssm circuit"


def save(circuit: Any, path: Path, title: str) -> None:
    match path.suffix:
        case ".json":
            text = json.dumps(as_json(circuit), indent=1)
            write_atomically(path, lambda beside: beside.write_text(text))
        case ".png" | ".svg":
            data = getattr(circuit.draw(title), path.suffix[1:])()
            write_atomically(path, lambda beside: beside.write_bytes(data))
        case ".html":
            page = circuit.html(title)
            write_atomically(path, lambda beside: beside.write_text(page))
        case _:
            raise ValueError(f"a circuit is saved as .json, .png, .svg or .html, got {path.name!r}.")


def as_json(circuit: Any) -> dict[str, Any]:
    """The circuit's edges by name, for readers; and all edges by number."""
    if not isinstance(circuit.metric, str):
        raise ValueError(
            "a circuit whose metric is a function cannot be saved as JSON; use 'logprob', 'prob' or 'logit'."
        )
    index = circuit.index
    return {
        "format": FORMAT,
        "edges": circuit.edges().to_dict("records"),
        "sites": list(circuit.sites),
        "metric": circuit.metric,
        "ablation": circuit.ablation,
        "found": circuit.found.to_dict("records"),
        "edges_in_graph": circuit.n_graph,
        "hooks": index.hooks,
        "parts": index.parts,
        "roles": index.roles,
        "all_edges": {
            "ends": index.ends.tolist(),
            "kept": circuit.kept.nonzero()[:, 0].tolist(),
            "scores": [float(f"{score:.9g}") for score in circuit.scores.tolist()],
        },
    }


def load(cls: type, path: Path, model: Any, task: Any) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}.")
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON (truncated?): {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f'{path} is no circuit: it has no "format": "{FORMAT}".')
    try:
        numbers = values["all_edges"]
        ends = torch.tensor(numbers["ends"]).view(-1, 6)
        parts = [(str(name), int(count)) for name, count in values["parts"]]
        index = EdgeIndex(list(values["hooks"]), parts, list(values["roles"]), ends)
        kept = torch.zeros(len(ends), dtype=torch.bool)
        kept[numbers["kept"]] = True
        circuit = cls(
            index,
            kept,
            torch.tensor(numbers["scores"]),
            tuple(values["sites"]),
            values["metric"],
            values["ablation"],
            pd.DataFrame(values["found"]),
            values["edges_in_graph"],
            model,
            task,
        )
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no circuit as it was saved: {error!r}") from error
    missing = [] if model is None else [name for name in index.hooks[:-1] if name not in model.hook_dict]
    if missing:
        raise ValueError(f"{path} is not a circuit of this model, which has no hook {missing[0]!r}.")
    return circuit
