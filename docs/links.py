"""Pages that are named in a text become links when the site is built: `docs/fidelity.md, section 3.1` in a docstring.

In the repository such a name is the path of a file. Names in code stay as they are.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

_PARTS = re.compile(r"(<(code|pre|a|h\d)\b.*?</\2>|<[^>]*>)", re.DOTALL)  # where no link may begin
_NAMED = re.compile(r"docs/([\w/]+\.md)(?:,(\s+)section ([\d.]*\d))?")


def on_page_content(html: str, page: Page, files: Files, **_: Any) -> str:
    """What MkDocs calls with the HTML of each page."""
    link = partial(_link, page=page, files=files)
    parts = _PARTS.split(html)  # a text, what stands behind it, the name of that tag or None, and so on
    for at in range(0, len(parts), 3):
        parts[at] = _NAMED.sub(link, parts[at])
    return "".join(part for at, part in enumerate(parts) if at % 3 < 2)


def _link(found: re.Match[str], page: Page, files: Files) -> str:
    target = files.get_file_from_path(found[1])
    if target is None or target.abs_src_path is None:
        return found[0]
    anchor = f"#{_anchor(target.abs_src_path, found[3])}" if found[3] else ""
    return f'<a href="{get_relative_url(target.url, page.url)}{anchor}">{found[0]}</a>'


def _anchor(path: str, section: str) -> str:
    """What the site calls the heading of a numbered section."""
    headings = re.findall(r"^##+ (.*)$", Path(path).read_text(), re.MULTILINE)
    heading = next((heading for heading in headings if re.match(rf"{re.escape(section)}\.? ", heading)), "")
    return slugify(heading.replace("`", ""), "-")
