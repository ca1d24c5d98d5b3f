"""Run tutorials from top to bottom and store them with their outputs: python tutorials/execute.py [name ...]

A name may be a part of the file's, such as "3". Without names: all of them.
"""

import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from tqdm.auto import tqdm

FOLDER = Path(__file__).parent


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # no version: it would differ on every machine
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
    nbformat.write(notebook, path)


def merged(outputs: list) -> list:
    """The outputs: what was printed in one piece, no stderr (progress bars), of a picture a small PNG."""
    found: list = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if "image/png" in output.get("data", {}):
            data = {"image/png": smaller(output.data["image/png"]), "text/plain": output.data["text/plain"]}
            output.data = data
        last = found[-1] if found else None
        if last and output.output_type == last.output_type == "stream":
            last.text += output.text
        else:
            found.append(output)
    return found


def smaller(png: str) -> str:
    """The picture in 128 colours. In base 64, as notebooks have it."""
    buffer = BytesIO()
    picture = Image.open(BytesIO(b64decode(png))).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(buffer, format="PNG", optimize=True)
    return b64encode(buffer.getvalue()).decode()


def main(names: list[str]) -> None:
    paths = sorted(FOLDER.glob("*.ipynb"))
    chosen = [path for path in paths if not names or any(name in path.stem for name in names)]
    if not chosen:
        raise SystemExit(f"no tutorial is called {' or '.join(names)}; there are {[p.stem for p in paths]}.")
    for path in tqdm(chosen, desc="tutorials"):
        execute(path)


if __name__ == "__main__":
    main(sys.argv[1:])
