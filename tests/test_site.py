"""Each page of the site in a real browser: it logs no error, loads nothing from elsewhere, and nothing is wider than it.

The site is built first, unless `LASA_JAX_SITE` names a folder with it. The browser is the one on PATH; without one the
tests are skipped, or fail where `LASA_JAX_BROWSER=required`, as in `.ci/run`.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# What is wrong with a page, one line for each fault. What a box scrolls or hides is not wider than its page; but code and
# formulas must be seen whole, without scrolling, and pictures must have arrived.
FAULTS = """async () => {
  await Promise.all(document.getAnimations().map(moving => moving.finished.catch(() => null)));
  const width = document.documentElement.clientWidth, faults = [];
  const says = (what, element) => faults.push(`${what}: ${element.tagName} ${element.textContent.trim().slice(0, 60)}`);
  const isBoxed = element => {
    for (let box = element.parentElement; box; box = box.parentElement)
      if (getComputedStyle(box).overflowX !== "visible") return true;
    return false;
  };
  if (document.documentElement.scrollWidth > width) faults.push(`scrolls to ${document.documentElement.scrollWidth}`);
  for (const element of document.querySelectorAll(".md-main *")) {
    const at = element.getBoundingClientRect();
    if (at.width && (at.left < -1 || at.right > width + 1) && !isBoxed(element)) says("wider than its page", element);
  }
  for (const element of document.querySelectorAll("article pre, article pre > code, article math"))
    if (element.clientWidth && element.scrollWidth > element.clientWidth + 1) says("cut at the right", element);
  for (const image of document.images)
    if (image.loading !== "lazy" && !image.naturalWidth) faults.push(`no picture: ${image.src}`);
  return faults;
}"""


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason='the site is tested with: pip install -e ".[dev]"')
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        line = "no browser on PATH to test the site in: apt-get install chromium (Debian), or Chrome from its page"
        (pytest.fail if os.environ.get("LASA_JAX_BROWSER") == "required" else pytest.skip)(line)
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("LASA_JAX_SITE"):
        return Path(built)
    pytest.importorskip("mkdocs", reason='the site is built with: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_links_lead_to_pages_and_headings(site):
    """MkDocs does not look into the HTML that our hooks write, nor for headings."""
    texts = {path: path.read_text() for path in site.rglob("*.html") if path.name == "index.html"}
    names = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    lost = []
    for path, text in texts.items():
        for href in re.findall(r'<a [^>]*href="([^":]+)"', text):
            target, _, anchor = href.partition("#")
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists() or (anchor and file in names and anchor not in names[file]):
                lost.append(f"{path.relative_to(site)}: {href}")
    assert not lost


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page(browser, site, address, width):
    """As a laptop and a telephone show it."""
    faults: dict[str, list[str]] = {}
    with browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce") as page:
        found: list[str] = []
        page.on("console", lambda said: found.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith((address, "data:")) else found.append(sent.url))
        files = sorted(site.rglob("*.html"))
        assert len(files) > 30
        for file in files:
            found.clear()
            page.goto(address + file.relative_to(site).as_posix().removesuffix("index.html"))
            found += page.evaluate(FAULTS)
            if found:
                faults[file.parent.relative_to(site).as_posix()] = list(found)
    assert not faults, "\n".join(f"{page}: {line}" for page, lines in faults.items() for line in lines)
