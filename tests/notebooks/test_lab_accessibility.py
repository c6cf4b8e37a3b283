"""Every notebook in JupyterLab, live and frozen, in light and dark: axe-core finds nothing serious
in what rftkit draws, and at 1,280 and at 390 pixels nothing is cut off. Screenshots go to
SCREENSHOTS.

JupyterLab's own menus, toolbars and cells are not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser import barriers, chromium, clipped  # noqa: F401  a fixture
from lab_browser import Lab, Notebook, lab  # noqa: F401  a fixture

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "notebooks").glob("*.ipynb")
    if not path.stem.startswith("report_")
)
OURS = ".jp-Notebook .rk-panel, .jp-Notebook .jp-RenderedHTMLCommon .rk"
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_open_to_all_and_nothing_is_cut_off(
    lab: Lab,  # noqa: F811
    chromium: Any,  # noqa: F811
    name: str,
) -> None:
    source = nbformat.read(lab.folder / f"{name}.ipynb", as_version=4)
    live = f"{name}-live.ipynb"
    *cells, freeze = source.cells
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=source.metadata), lab.folder / live)
    with lab.open(chromium, live, width=1280) as notebook:
        notebook.run_all()
        notebook.settle()
        look(notebook, f"{name}-live")
    with lab.open(chromium, f"{name}.ipynb", width=1280) as notebook:
        notebook.run_all()
        look(notebook, f"{name}-frozen")
    assert "freeze(" in freeze.source


def look(notebook: Notebook, name: str) -> None:
    for width in (1280, 390):
        notebook.page.set_viewport_size({"width": width, "height": 1000})
        for theme in ("light", "dark"):
            notebook.dark(theme == "dark")
            notebook.shots_of_outputs(f"{name}-{width}-{theme}")
            assert barriers(notebook.page, OURS) == []
            assert clipped(notebook.page, OURS) == []
