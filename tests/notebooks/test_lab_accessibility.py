"""Every notebook in JupyterLab, live and frozen, in light and dark: axe-core finds nothing serious
in what rftkit draws, and at 1,280 and at 390 pixels nothing is cut off, nor on paper. Screenshots
and printed sheets go to SCREENSHOTS.

JupyterLab's own menus, toolbars and cells are not looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from browser import barriers, chromium, clipped  # noqa: F401  a fixture
from lab_browser import Lab, Notebook, lab  # noqa: F401  a fixture

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "notebooks").glob("*.ipynb")
    if not path.stem.startswith("report_")
)
PANEL = ".jp-Notebook .rk-panel"
OURS = f"{PANEL}, .jp-Notebook .jp-RenderedHTMLCommon .rk"
FROZEN = """panel => [...document.querySelectorAll(panel)]
  .every(e => e.innerText.includes('static copies'))"""
SHEET = 688
"""Pixels between the margins of a sheet of A4."""
WIDE = """() => [...document.querySelectorAll('.rk .rk-scroll, pre')]
  .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"""
"""On paper nothing scrolls."""


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_open_to_all_and_nothing_is_cut_off(
    lab: Lab,  # noqa: F811
    chromium: Any,  # noqa: F811
    name: str,
) -> None:
    with lab.open(chromium, f"{name}.ipynb", width=1280) as notebook:
        notebook.run_all()
        notebook.settle()
        look(notebook, f"{name}-live")
        on_paper(notebook, name, f"{name}-live")
        notebook.page.get_by_role("button", name="Freeze the panels for sharing").click()
        notebook.page.get_by_text("The panels above are static copies").wait_for()
        notebook.page.wait_for_function(FROZEN, arg=PANEL)
        look(notebook, f"{name}-frozen")
        on_paper(notebook, name, f"{name}-frozen")


def look(notebook: Notebook, name: str) -> None:
    for width in (1280, 390):
        notebook.page.set_viewport_size({"width": width, "height": 1000})
        for theme in ("light", "dark"):
            notebook.dark(theme == "dark")
            notebook.shots_of_outputs(f"{name}-{width}-{theme}")
            assert barriers(notebook.page, OURS) == []
            assert clipped(notebook.page, OURS) == []


def on_paper(notebook: Notebook, stem: str, name: str) -> None:
    """What *Print* of JupyterLab prints: the server's export of the saved notebook."""
    notebook.save()
    page = notebook.page.context.new_page()
    page.set_viewport_size({"width": SHEET, "height": 1000})
    asker = notebook.page.url  # the server wants to know
    page.goto(urljoin(asker, f"/nbconvert/html/{stem}.ipynb?download=false"), referer=asker)
    page.emulate_media(media="print")
    if "SCREENSHOTS" in os.environ:
        page.pdf(path=notebook.shots / f"{name}.pdf", format="A4", prefer_css_page_size=True)
    assert page.locator(OURS).count()
    assert clipped(page, OURS) == []
    assert page.evaluate(WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= SHEET
    page.close()
