"""*Copy* in a browser: with permission it copies; without, the text is selected and it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened

from rftkit import views
from rftkit.views.markup import copyable

__all__ = ["chromium"]

WORDS = 'client = rftkit.connect()\n<b>"not bold"</b>'
GRANTED = ["clipboard-read", "clipboard-write"]
REFUSES = "() => { document.execCommand = () => false; }"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(views.page("Copy", views.markup.wrap(copyable("Copy as code", WORDS))))
    return path


def test_what_is_copied_is_the_text(page: Path, chromium: Any) -> None:
    with opened(chromium, page, permissions=GRANTED) as tab:
        tab.get_by_role("button", name="Copy as code").click()
        tab.get_by_role("button", name="Copied").wait_for()
        assert tab.evaluate("navigator.clipboard.readText()") == WORDS
        tab.get_by_role("button", name="Copy as code").wait_for()  # ready for the next time


@pytest.mark.parametrize("missing", ["permission", "clipboard"])
def test_without_permission_the_text_is_selected(page: Path, chromium: Any, missing: str) -> None:
    denied = "() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }"
    absent = "() => { Object.defineProperty(navigator, 'clipboard', {value: undefined}); }"
    with opened(chromium, page) as tab:
        tab.evaluate(denied if missing == "permission" else absent)
        tab.evaluate(REFUSES)
        tab.get_by_role("button", name="Copy as code").click()
        tab.get_by_role("button", name="Selected: press Ctrl+C to copy").wait_for()
        assert tab.locator("details").get_attribute("open") is not None
        assert tab.evaluate("getSelection().toString()").strip() == WORDS
