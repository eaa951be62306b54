"""Mathematics of the site as MathML, made when it is built: a reader's browser loads no script for it."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_MARKED = re.compile(r'<(?:span|div) class="arithmatex">(\\\(|\\\[)(.*?)(?:\\\)|\\\])</(?:span|div)>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """What MkDocs calls with the HTML of each page: formulas that pymdownx.arithmatex marked become `<math>`."""
    return _MARKED.sub(_formula, content)


def _formula(found: re.Match[str]) -> str:
    return convert(html.unescape(found[2]), display="block" if found[1] == r"\[" else "inline")
