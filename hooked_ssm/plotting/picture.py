"""A matplotlib figure that shows itself."""

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from hooked_ssm.saving import write_atomically


class Picture(Figure):
    """A figure that a notebook shows as it is, without pyplot."""

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self) -> bytes:
        """The picture as a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Into a .png or .svg file, in one step."""
        path = Path(path)
        if path.suffix not in (".png", ".svg"):
            raise ValueError(f"a picture is saved as .png or .svg, got {path.name!r}.")
        data = self.png() if path.suffix == ".png" else self.svg()
        write_atomically(path, lambda beside: beside.write_bytes(data))

    def svg(self) -> bytes:
        """The picture as an SVG file: the same bytes for the same picture."""
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "hooked_ssm"}):
            self.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()
