"""Checks and times everything that has a form for GPUs, and prints one table:

    python -m benchmarks.gpu                 on a GPU; writes the table to benchmarks/gpu/results.md
    python -m benchmarks.gpu --check         the checks alone, at tiny sizes; on a CPU Triton is interpreted

Ours and the peer's are captured as CUDA graphs where that is possible, take turns, and are timed by events:
medians. "bandwidth" is the time that a copy of the bytes takes that have to be read and written, over the
time taken. Forward and backward of an operator are checked against the reference in float64 first.

Exit codes: 0 done; 1 a check failed; 2 there is no GPU to time anything on.
"""

import argparse
import datetime
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks.gpu.rows import Row, markdown, show

RESULTS = Path(__file__).parent / "results.md"
PACKAGES = {
    "triton": "triton",
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
    "fla": "flash-linear-attention",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="check at tiny sizes, and time nothing")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--out", type=Path, help=f"the table's file; on a GPU {RESULTS.name} beside this one")
    args = parser.parse_args()
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    from rich.console import Console

    from benchmarks.gpu import models, operator_rows

    console = Console(width=190)
    if args.check:
        return checks(console, args.only, "cuda" if on_gpu else "cpu")
    if on_gpu:
        rows, notes, failed = measure(console, args.only)
    else:
        rows = [row for row in operator_rows.planned() + models.planned() if args.only in row.what]
        notes, failed = ["**Not measured: this was never run on a GPU.**"], False
    hours = models.grid_hours(rows)
    grid = "not measured" if hours is None else f"{hours:.2f} hours on this GPU"
    notes.append(
        "The paper's associative recall (7 architectures, 5 widths, 7 learning rates, 50,016 steps each), "
        f"from the steps a second of {models.AT_ONCE} runs at a time: {grid}."
    )
    show(rows, notes, console)
    out = args.out or (RESULTS if on_gpu else None)
    if out is not None:
        out.write_text(markdown(rows, notes))
    if not on_gpu:
        console.print(
            f"No GPU: torch {torch.__version__} sees no CUDA device, so nothing was timed. "
            "`python -m benchmarks.gpu --check` checks the kernels here, interpreted."
        )
        return 2
    return int(failed)


def checks(console, only: str, device: str) -> int:
    """All that is measured, at tiny sizes, and not timed on a CPU."""
    from rich.progress import track

    from benchmarks.gpu import models, operator_rows
    from benchmarks.gpu.operators import OPERATORS
    from tasks import AssociativeRecall

    task = AssociativeRecall(n_keys=6, n_values=6, n_pairs=2)
    work = [(o.name, lambda o=o: operator_rows.measured(o, o.tiny, math.nan, device)) for o in OPERATORS]
    work += [
        (f"mixer: {preset}", lambda p=preset: models.measured_mixer(p, (1, 3, 64), device))
        for preset in models.PRESETS
    ]
    work += [
        (f"training: {preset}", lambda p=preset: models.measured_training(p, 8, device, task))
        for preset in models.ARCHITECTURES
    ]
    failed = 0
    for name, call in track([item for item in work if only in item[0]], "checking", console=console):
        rows, problem = attempt(name, call)
        failed += problem is not None
        errors = [row.error for row in rows if row.error is not None]
        backend = rows[0].backend if rows else ""
        note = (
            " (the reference in this dtype: no kernel can run here)" if errors and backend == "torch" else ""
        )
        said = problem or f"ok: {name}, {backend}" + (f", error {max(errors):.0e}{note}" if errors else "")
        console.print(said)
    return int(failed > 0)


def measure(console, only: str):
    """All rows on this GPU, what to say of them, and whether any check failed."""
    import torch
    from rich.progress import track

    from benchmarks.gpu import models, operator_rows
    from benchmarks.gpu.measuring import copy_bandwidth
    from benchmarks.gpu.operators import OPERATORS

    bandwidth = copy_bandwidth()
    work = [
        (o.name, lambda o=o, size=size: operator_rows.measured(o, size, bandwidth, "cuda"))
        for o in OPERATORS
        for size in o.sizes
    ]
    work += [
        (f"mixer: {preset}", lambda p=preset, size=size: models.measured_mixer(p, size, "cuda"))
        for preset in models.PRESETS
        for size in models.SIZES
    ]
    work += [
        (f"training: {preset}", lambda p=preset, width=width: models.measured_training(p, width, "cuda"))
        for preset in models.ARCHITECTURES
        for width in models.WIDTHS
    ]
    rows, failures = [], []
    for name, call in track([item for item in work if only in item[0]], "measuring", console=console):
        found, problem = attempt(name, call)
        rows += found
        failures += [problem] if problem else []
        torch.cuda.empty_cache()
    versions = [f"torch {torch.__version__}"]
    for module, package in PACKAGES.items():
        versions.append(
            f"{package} {version(package) if importlib.util.find_spec(module) else 'not installed'}"
        )
    notes = [
        f"{torch.cuda.get_device_name()}, {datetime.date.today().isoformat()}; {', '.join(versions)}.",
        f"A large copy moves {bandwidth / 1e6:.0f} GB/s, read and written.",
        *failures,
    ]
    return rows, notes, bool(failures)


def attempt(name: str, call: Callable[[], list[Row]]) -> tuple[list[Row], str | None]:
    """The rows, and what was wrong. One that fails leaves the others their time on the GPU."""
    from benchmarks.gpu.operators import OPERATORS, TOLERANCE

    try:
        rows = call()
    except Exception as error:
        return [], f"FAILED: {name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    limits = {operator.name: TOLERANCE[operator.dtype] for operator in OPERATORS}
    worst = max((row.error for row in rows if row.error is not None), default=0.0)
    return rows, None if worst <= limits.get(name, 0.0) else f"FAILED: {name}: its error is {worst:.0e}"


if __name__ == "__main__":
    sys.exit(main())
