"""Runs the notebooks and writes each as a page of the site, with what it printed and drew.

    python docs/run_notebooks.py                # all of notebooks/
    python docs/run_notebooks.py quickstart     # some

The notebooks themselves are kept without output. A page is docs/notebooks/NAME.md; its pictures, and whatever moves, lie
beside it. The page ends with a hash of the cells that it was made from, and a test says which page is older than its
notebook.
"""

import base64
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "notebooks"
_LARGEST = 1_000_000  # bytes of a file: the repository keeps none that is larger
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # of a terminal: colours, a cursor that moves


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook as it lies there."""
    return nbformat.read(path, as_version=4)


def mark(path: Path) -> str:
    """The last line of the page of a notebook: it changes with any cell."""
    text = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in read(path).cells)
    return f"<!-- cells {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def page_of(path: Path) -> Path:
    """Where the page of a notebook lies."""
    return PAGES / f"{path.stem}.md"


def render(path: Path, notebook: nbformat.NotebookNode) -> None:
    """Writes the page of a notebook that was run, in place of the one before.

    Args:
      path: where the notebook lies.
      notebook: its cells, with their outputs.
    """
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.glob(f"{path.stem}_[0-9]*"):
        old.unlink()
    parts, files = [], _Files(path.stem)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", cell.source))
        elif "find_spec" not in cell.source:  # the first cell looks for the package: of no use on a page
            parts.append(f"```python\n{cell.source}\n```")
            parts += [shown for output in _joined(cell.outputs) if (shown := _shown(output, files))]
    title, *rest = parts
    said = f"*`notebooks/{path.name}` with what it printed and drew. The cell that installs the package is left out.*"
    page_of(path).write_text("\n\n".join([*_after_the_title(title, said), *rest, mark(path)]) + "\n")


def _after_the_title(text: str, line: str) -> list[str]:
    title, _, rest = text.partition("\n")
    return [title, line, rest.strip()]


class _Files:
    """The files beside a page, numbered in their order."""

    def __init__(self, stem: str) -> None:
        self.stem, self.count = stem, 0

    def write(self, ending: str, content: bytes) -> str:
        """Keeps one; returns its name. Raises SystemExit for one that is too large to be kept."""
        self.count += 1
        name = f"{self.stem}_{self.count}.{ending}"
        if len(content) > _LARGEST:
            raise SystemExit(f"docs/notebooks/{name} would have {len(content):,} bytes; at most {_LARGEST:,} are kept")
        (PAGES / name).write_bytes(content)
        return name


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs, what was printed without anything between as one of them."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == "stream" and joined[-1].get("name") == output.name:
            joined[-1] = {**joined[-1], "text": joined[-1]["text"] + output.text}
            joined[-1] = nbformat.from_dict(joined[-1])
        else:
            joined.append(output)
    return joined


def _shown(output: Any, files: _Files) -> str:
    """An output as Markdown; empty if a page cannot show it, as a widget."""
    if output.output_type == "stream":
        lines = [line.rsplit("\r", 1)[-1].rstrip() for line in _ESCAPES.sub("", output.text).strip("\n").split("\n")]
        return "" if output.name == "stderr" else "```text\n" + "\n".join(lines) + "\n```"
    data = output.get("data", {})
    if any("widget" in kind for kind in data):
        return ""
    if "image/png" in data:
        name = files.write("png", _smaller(base64.b64decode(data["image/png"])))
        return f"[![what the cell draws]({name})]({name})"  # a click shows it at its full size
    if "text/html" in data:
        if "<script" in data["text/html"]:  # moves by itself: a document of its own, as high as it is
            return _framed(files.write("html", _document(data["text/html"]).encode()))
        return _table(data["text/html"])
    if "text/markdown" in data:
        return data["text/markdown"]
    return f"```text\n{data['text/plain']}\n```" if "text/plain" in data else ""


def _smaller(content: bytes) -> bytes:
    """A picture with 256 colours, which no figure of ours needs more of, if that is smaller."""
    from PIL import Image

    reduced = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        reduced, "PNG", optimize=True
    )
    return min(content, reduced.getvalue(), key=len)


def _document(body: str) -> str:
    """HTML that stands alone, on white in a dark page too, and no wider than a telephone."""
    style = "body {margin: 0; background: #fff; font-family: sans-serif} img, canvas {max-width: 100%; height: auto}"
    head = f'<html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><style>{style}</style>'
    return f"<!doctype html>\n{head}\n<body>{body}</body></html>\n"


def _framed(name: str) -> str:
    grow = "this.style.height = this.contentDocument.documentElement.scrollHeight + 16 + 'px'"
    # MkDocs gives a page a folder of its own, and does not look into HTML for links.
    return f'<iframe src="../{name}" title="what the cell draws" width="100%" onload="{grow}"></iframe>'


def _table(html: str) -> str:
    """The table of pandas without its style and classes, so that it looks and scrolls as all tables of the site."""
    found = re.search(r"<table.*</table>", html, re.DOTALL)
    if not found:
        return html
    table = re.sub(r"<(table|tr)[^>]*>", r"<\1>", found[0])
    return re.sub(r"\s*\n\s*", "\n", table)


def main(names: list[str]) -> None:
    """Runs notebooks and writes their pages.

    Args:
      names: stems of notebooks; empty: all.
    """
    from nbclient import NotebookClient

    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for unknown in set(names) - {path.stem for path in paths}:
        raise SystemExit(f"no notebook {unknown!r}: there are {', '.join(path.stem for path in paths)}")
    for path in paths:
        if not names or path.stem in names:
            notebook = read(path)
            NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(path.parent)}}).execute()
            render(path, notebook)
            print(f"docs/notebooks/{path.stem}.md")


if __name__ == "__main__":
    main(sys.argv[1:])
