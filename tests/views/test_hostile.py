"""Hostile strings in every field that a page shows: nothing of them becomes markup."""

from __future__ import annotations

import ast
import importlib.util
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rftkit import views
from rftkit.reports.document import _title
from rftkit.views.grading import grade_in_full, grades, spec_problem
from rftkit.views.rows import cells, row_in_full, row_page

_spec = importlib.util.spec_from_file_location(
    "golden_views", Path(__file__).with_name("test_golden.py")
)
assert _spec is not None
assert _spec.loader is not None
golden: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)

MARK = "hostile"
HOSTILE = (
    f"'\"><img src=x onerror={MARK}()><script>{MARK}()</script></textarea></style>"
    f"[a](javascript:{MARK}()) `{MARK}` <!-- & \u202e"
)
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


class Tags(HTMLParser):
    """Collects what a browser would run."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []
        self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._script = tag == "script" and "json" not in (dict(attrs).get("type") or "")
        for name, value in attrs:
            runs = name.startswith("on") or (value or "").strip().lower().startswith("javascript:")
            if runs and MARK in (value or ""):
                self.ran.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self._script and MARK in data:
            self.ran.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._script = False


def poisoned(value: Any) -> Any:
    """The same with something hostile in every text; texts that choose a form keep it."""
    if isinstance(value, dict):
        kept = ("outcome", "type", "operation", "role")
        return {key: each if key in kept else poisoned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return value + HOSTILE if isinstance(value, str) else value


LEAF = {"type": "string_check", "name": HOSTILE, "operation": "eq", "input": HOSTILE,
        "reference": HOSTILE}  # fmt: skip
SPEC = {"type": "multi", "name": HOSTILE, "graders": {"label": LEAF}, "calculate_output": HOSTILE}
PAGES = {
    "heading": lambda: views.heading(HOSTILE),
    "bullets": lambda: views.bullets([HOSTILE], ""),
    "note": lambda: views.note(HOSTILE),
    "page": lambda: views.page(HOSTILE, views.note(HOSTILE)),
    "table": lambda: views.table(
        poisoned(golden.TABLE), {"step": HOSTILE, "model": "M", "note": "N"}
    ),
    "keyvalues": lambda: views.keyvalues({HOSTILE: HOSTILE, "list": [HOSTILE]}),
    "spec": lambda: views.spec(SPEC, caption=HOSTILE),
    "row_page": lambda: row_page(
        cells(poisoned(golden.ROWS)), ["prompt", "label"], numbers=[4, 5], sort="words", opened=4
    ),
    "row_in_full": lambda: row_in_full(
        poisoned(golden.ROWS[0]), place=HOSTILE, answer=HOSTILE,
        grade={"reward": 0.5, "outcome": "graded", "sub_rewards": {HOSTILE: 1.0}, "errors": {}},
        findings=[HOSTILE], neighbours=[{"row": 9, "alike": 88.0, "prompt": HOSTILE}],
    ),
    "grades": lambda: grades(poisoned(golden.LINES), ["label"], opened=1),
    "grade_in_full": lambda: grade_in_full(
        poisoned(golden.LINES[1]), spec=SPEC, grade=poisoned(golden.GRADE),
        rendered=poisoned(golden.FILLED), item=poisoned(golden.ROWS[0]),
    ),
    "spec_problem": lambda: spec_problem(HOSTILE, HOSTILE),
    "answers": lambda: views.answers(poisoned(golden.answers(8))),
    "events": lambda: views.events(poisoned(golden.events())),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_nothing_that_is_shown_runs(name: str) -> None:
    markup = str(PAGES[name]())
    tags = Tags()
    tags.feed(markup)
    assert tags.ran == []
    assert MARK in markup
    assert f"<img src=x onerror={MARK}" not in markup
    assert f"<script>{MARK}" not in markup


def test_a_heading_gives_the_page_its_title() -> None:
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    data = {"text/html": str(views.heading(HOSTILE)) + "<style></style>"}
    cell = new_code_cell("x", outputs=[new_output("display_data", data=data)])
    assert _title(new_notebook(cells=[cell])) == HOSTILE


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_show_only_fixed_words_as_markdown_or_html(path: Path) -> None:
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = [line for line in "".join(cell["source"]).splitlines() if line[:1] not in "%!"]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Markdown", "HTML"):
                assert all(isinstance(given, ast.Constant) for given in node.args)
