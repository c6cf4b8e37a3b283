"""The notebooks of jobs from top to bottom, headless, on one platform; then their pages offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import nbformat
import openai
import pytest
from browser import chromium, opened  # noqa: F401  a fixture

from rftkit import reports

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN = {
    "00_tour": ("no cheat pays", "✓ succeeded", "What changed from base to final"),
    "03_launch_job": ("the base model earns", "fine_tuning.jobs.create(", "Started ftjob-"),
    "04_watch_job": ("95 % interval", "64 completions in 16 groups", "‖ paused|✓ succeeded"),
    "06_try_checkpoint": ("What the grader knows", "not graded", "largest loss first"),
}
"""What each notebook must show, in the order in which they run."""


@pytest.fixture(scope="module")
def pages(platform: openai.OpenAI, tmp_path_factory: Any) -> Iterator[dict[str, Path]]:
    """Notebook -> its page, with the executed notebook beside it."""
    health: Any = platform.get(urljoin(str(platform.base_url), "/health"), cast_to=object)
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFTKIT_HOME", health["home"])
        yield {
            name: reports.run(
                NOTEBOOKS / f"{name}.ipynb", folder / f"{name}.html", keep_notebook=True
            )
            for name in SHOWN
        }


@pytest.mark.parametrize("name", SHOWN)
def test_a_headless_run_shows_what_a_person_would_see(pages: dict[str, Path], name: str) -> None:
    html = pages[name].read_text()
    for words in SHOWN[name]:
        assert any(each in html for each in words.split("|")), words
    executed = nbformat.read(pages[name].with_suffix(".ipynb"), as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    data = [output["data"] for output in outputs if "data" in output]
    assert not any(WIDGET in each for each in data)
    assert all("text/plain" in each for each in data)
    assert "widgets" not in executed.metadata
    assert all(len(each.get("text/html", "")) < 1_000_000 for each in data)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_watched_job_works_offline(
    pages: dict[str, Path],
    chromium: Any,  # noqa: F811
    scheme: str,
) -> None:
    with opened(chromium, pages["04_watch_job"], color_scheme=scheme) as tab:
        assert tab.get_by_text("✓ succeeded").first.is_visible()
        cards = tab.locator(".rk-list", has=tab.locator(".rk-card")).first
        cards.get_by_label("Order").select_option(label="widest spread first")
        cards.locator("summary").first.click()
        assert tab.get_by_text("Completions, best first").first.is_visible()
