"""A headless Chromium, where there is one."""

import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def screenshot(page: Path, folder: Path, *, width: int, height: int) -> np.ndarray:
    """What the browser shows of a page, [row, column, colour] in 0..1. The picture stays in the folder."""
    picture = folder / "screenshot.png"
    about = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    waiting = "--virtual-time-budget=20000"
    subprocess.run(
        [str(CHROMIUM), *OPTIONS, *about, waiting, f"--screenshot={picture}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return matplotlib.image.imread(picture)[..., :3]
