"""The study of arXiv:2407.14008, of any checkpoint: `python -m experiments.ioi MODEL --out DIR`.

Where is the name of the indirect object, position by position and layer by layer; which tap of which layer's
convolution moves it on; and does the recurrent state hold it so that it can be replaced there?

MODEL is what `HookedSSM.from_pretrained` takes: a name on the Hugging Face Hub or a folder.
Tables (CSV), heat maps (PNG) and report.html are written into DIR, each in one step. Tables that are there
are kept: a study that was cut off goes on.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape

from experiments.ioi import sweeps
from experiments.ioi.averages import averages
from experiments.ioi.prompts import CORRUPTIONS, TEMPLATES, Prompts, Words, draw, roles
from experiments.ioi.report import print_tables, write_report
from hooked_ssm import HookedSSM
from hooked_ssm.saving import write_atomically


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked of one model. docs: documents of each template and pattern. names, averaged: how many
    names are averaged over how many documents each.

    Raises ValueError for patterns that are none or of different lengths, and for sizes below 1.
    """

    model: str
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "float32"
    patterns: tuple[str, ...] = ("ABB", "BAB")
    corruption: str = "answer"
    docs: int = 8
    names: int = 6
    averaged: int = 16
    seed: int = 0

    def __post_init__(self):
        if not self.patterns or len({len(roles(pattern)) for pattern in self.patterns}) != 1:
            raise ValueError(f"patterns must have one number of names, got {list(self.patterns)}.")
        if self.corruption not in CORRUPTIONS:
            raise ValueError(f"corruption must be one of {CORRUPTIONS}, got {self.corruption!r}.")
        for name in ("docs", "averaged"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.names < 2:
            raise ValueError(f"names must be at least 2, got {self.names}.")

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Every template with every pattern."""
        return [(text, pattern) for text in TEMPLATES[len(self.patterns[0])] for pattern in self.patterns]


def run_study(model: HookedSSM, study: Study, folder: Path, console: Console) -> Path:
    """All tables that are not there yet, the heat maps and the report, whose path is returned.

    Raises ValueError if the folder holds another study, or if the tokenizer has too few of the words.
    """
    keep_config(study, folder)
    words = Words.of(model, people=len(set(study.patterns[0])))
    if words.left_out:
        left_out = f"Left out, as they are not one token each: {', '.join(words.left_out)}."
        console.print(left_out, markup=False, highlight=False)
    groups = documents(model, study, words)
    steps: dict[str, Callable[[], pd.DataFrame]] = {
        "behaviour": lambda: sweeps.behaviour(model, groups),
        "streams": lambda: sweeps.streams(model, groups),
    }
    mixers = [block.mixer for block in model.blocks]
    if any(hasattr(mixer, "hook_conv_taps") for mixer in mixers):
        steps["taps"] = lambda: sweeps.taps(model, groups)
    if any(hasattr(mixer, "hook_ssm_state") for mixer in mixers):
        steps["states"] = lambda: sweeps.states(model, groups)
        steps["averages"] = lambda: averages(
            model,
            words,
            study.asked,
            docs=study.docs,
            names=min(study.names, len(words.names)),
            averaged=study.averaged,
            seed=study.seed,
        )
    tables = {name: kept_or_made(folder / f"{name}.csv", make) for name, make in steps.items()}
    print_tables(tables, console)
    return write_report(model, study, groups[0], tables, words.left_out, folder)


def documents(model: HookedSSM, study: Study, words: Words) -> list[Prompts]:
    """The documents of every template and pattern, drawn with the study's seed."""
    generator = torch.Generator().manual_seed(study.seed)
    return [
        draw(model, words, template, pattern, study.docs, generator, corruption=study.corruption)
        for template, pattern in study.asked
    ]


def keep_config(study: Study, folder: Path) -> None:
    path, config = folder / "study.json", json.loads(json.dumps(asdict(study)))
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if before != config:
            raise ValueError(f"{folder} holds another study: {before}, asked for is {config}.")
    else:
        write_atomically(path, lambda file: file.write_text(json.dumps(config, indent=2)))


def kept_or_made(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table in this file, made and written if it is not there: read back, so that both are the same."""
    if not path.is_file():
        text = make().to_csv(index=False)
        write_atomically(path, lambda file: file.write_text(text))
    return pd.read_csv(path, keep_default_na=False, na_values=["nan"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. What the user got wrong is one line on standard error, and exit code 2."""
    try:
        run(parsed(arguments))
    except (ValueError, TypeError, OSError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        line = " ".join(str(message).split())
        Console(stderr=True).print(f"[red]error:[/red] {escape(line)}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = Study(model="")
    parser = argparse.ArgumentParser("python -m experiments.ioi", description=__doc__)
    parser.add_argument("model", help="name on the Hugging Face Hub, or folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--patterns", nargs="+", default=list(defaults.patterns), help="such as ABB, ABCAC")
    parser.add_argument("--corruption", choices=CORRUPTIONS, default=defaults.corruption)
    for name in ("docs", "names", "averaged", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--revision", help="of the checkpoint")
    parser.add_argument("--tokenizer", help="name or folder, where there is none beside the weights")
    parser.add_argument("--local-files-only", action="store_true", help="download nothing")
    parser.add_argument("--dtype", default=defaults.dtype, choices=("float32", "float64", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="by default as many as torch likes")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"threads must be at least 1, got {args.threads}.")
        torch.set_num_threads(args.threads)
    study = Study(
        model=args.model,
        revision=args.revision,
        tokenizer=args.tokenizer,
        dtype=args.dtype,
        patterns=tuple(args.patterns),
        corruption=args.corruption,
        **{name: getattr(args, name) for name in ("docs", "names", "averaged", "seed")},
    )
    options: dict[str, Any] = {"revision": study.revision, "local_files_only": args.local_files_only}
    options |= {"tokenizer": study.tokenizer, "dtype": getattr(torch, study.dtype), "device": args.device}
    model = HookedSSM.from_pretrained(args.model, **options)
    if model.tokenizer is None:
        raise ValueError(f"{args.model!r} has no tokenizer beside its weights: name one with --tokenizer.")
    console = Console()
    page = run_study(model, study, args.out, console)
    console.print(f"Report: {page.resolve()}", soft_wrap=True, markup=False, highlight=False)
