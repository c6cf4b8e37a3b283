"""Headless Chromium for tests of what people open in a browser.

`from browser import chromium, opened` and ask for the fixture `chromium`. A machine without a
browser skips these tests; under CI that is a failure, since a skip would hide that nobody looked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--no-sandbox",  # needed as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A running browser, for one module: while it runs, nothing else can call `asyncio.run`."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    if path is None:
        absent = "no Chromium found; on Debian: apt-get install -y chromium"
        pytest.fail(absent) if os.environ.get("CI") else pytest.skip(absent)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


def barriers(page: Any, within: str = "") -> list[str]:
    """What axe-core finds serious or critical on a page, for people who do not see or point.

    A page with a content security policy must have been opened with `bypass_csp=True`, as no script
    may be added otherwise. `within` is a selector: only what is inside is looked at.
    """
    try:
        script = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        absent = "axe-playwright-python is not installed: pip install -e '.[dev]'"
        pytest.fail(absent) if os.environ.get("CI") else pytest.skip(absent)
    page.evaluate(script)
    if within and not page.locator(within).count():
        return []
    found = page.evaluate("where => axe.run(where ? {include: [[where]]} : document)", within)
    return [
        f"{each['id']}: {each['help']} ({node['target']} {node['html'][:200]})"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


CLIPPED = """where => {
  const found = [];
  const scrolls = e => e.matches('.rk-scroll, pre, select, textarea, .jp-OutputArea-output');
  for (const root of document.querySelectorAll(where)) {
    const limit = root.getBoundingClientRect().right + 1;
    for (const e of root.querySelectorAll('*')) {
      const box = e.getBoundingClientRect(), style = getComputedStyle(e);
      if (!box.width || !box.height || style.visibility === 'hidden') continue;
      let inner = false;
      for (let up = e.parentElement; up && up !== root; up = up.parentElement)
        inner ||= scrolls(up);
      const named = e.matches('button, .widget-label');
      const cut = style.overflowX !== 'visible' && (named || style.textOverflow !== 'ellipsis')
        && !scrolls(e) && !e.matches('input') && e.scrollWidth > e.clientWidth + 1;
      if (!inner && (box.right > limit || cut))
        found.push(`${e.tagName}.${e.className}: ${(e.innerText ?? '').slice(0, 60)}`);
    }
  }
  return found;
}"""


def clipped(page: Any, within: str) -> list[str]:
    """Elements of which a part is cut off at the side, inside those that the selector finds.

    What scrolls in a box of its own is not cut off, and an ellipsis says that there is more, but
    not in the names of controls.
    """
    found: list[str] = page.evaluate(CLIPPED, within)
    return found


@contextmanager
def opened(chromium: Any, path: Path, **options: Any) -> Iterator[Any]:
    """A page of a local file with the network off; at the end nothing may have gone wrong.

    `options` go to the browser context: `color_scheme="dark"`, `java_script_enabled=False`, …
    """
    context = chromium.new_context(offline=True, **options)
    try:
        page = context.new_page()
        problems: list[str] = []
        requests: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
        page.goto(path.as_uri())
        yield page
        assert problems == []
        outside = [url for url in requests if not url.startswith(("data:", "file:"))]
        assert outside == []
        assert [url for url in requests if url.startswith("file:")] == [path.as_uri()]
    finally:
        context.close()
