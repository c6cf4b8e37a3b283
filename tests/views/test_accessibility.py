"""axe-core finds nothing serious on a page made of our views, in light and in dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sample_comparison
from browser import barriers, chromium, opened

from rftkit import datasets, evals, views
from rftkit.widgets import GraderLab, RowBrowser

__all__ = ["chromium"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset check, a comparison of runs, rows, grades and a broken grader on one page."""
    data = datasets.load("security_review")
    shape = {"grader": data.grader, "response_format": data.response_format}
    check = datasets.check(data.valid, near_duplicates=False, **shape)  # type: ignore[arg-type]
    compared = evals.compare(sample_comparison.samples(), slices=["topic"])
    lab = GraderLab(data, rows=[0, 1])
    lab.grade()
    grades = lab.to_html()
    lab.spec = lab.spec | {"calculate_output": "complaint"}
    parts = [
        "<h1>Everything</h1>",
        views.check_page(check),
        "<h2>Runs</h2>",
        views.compare_headline(compared),
        views.compare_runs(compared),
        views.compare_rows(compared),
        "<h2>Rows</h2>",
        RowBrowser(data, row=0).to_html(max_bytes=50_000),
        "<h2>Grades</h2>",
        grades,
        lab.to_html(),
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(views.page("Everything", "".join(map(str, parts))))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_closed_to_keyboard_or_reader(page: Path, chromium: Any, scheme: str) -> None:
    size = {"width": 1280, "height": 900}
    with opened(chromium, page, color_scheme=scheme, viewport=size, bypass_csp=True) as tab:
        assert barriers(tab) == []
        overflow = tab.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow <= 0  # nothing is clipped: what is wider scrolls in its own box
