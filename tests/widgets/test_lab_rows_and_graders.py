"""Journeys in JupyterLab: the first graded row, author and fix a grader, find a bad row, come back.

Screenshots of each go to the folder named by SCREENSHOTS.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import sample_comparison
from browser import chromium  # noqa: F401  a fixture
from lab_browser import Lab, lab  # noqa: F401  a fixture

from rftkit.evals import saved_runs

pytestmark = pytest.mark.slow


def test_from_the_address_to_the_first_graded_row(lab: Lab, chromium: Any) -> None:  # noqa: F811
    """What a new user does: open the notebook, run it by the menu, scroll up. As README says it."""
    with lab.open(chromium, "00_tour.ipynb", browser_shown=True) as notebook:
        page = notebook.page
        page.locator(".jp-DirListing-item", has_text="01_author_grader").dblclick()  # 1
        notebook.ready()
        notebook.shot("first_1_open")
        page.get_by_role("menuitem", name="Run", exact=True).click()  # 2
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()  # 3
        graded = notebook.cell(4).get_by_text("8 answers, mean reward 0.")
        graded.wait_for()
        notebook.ready()
        graded.scroll_into_view_if_needed()  # 4: JupyterLab has gone to the last cell
        notebook.shot("first_2_graded")


def test_author_and_fix_a_grader(lab: Lab, chromium: Any) -> None:  # noqa: F811
    with lab.open(chromium, "01_author_grader.ipynb") as notebook:
        notebook.run_all()
        first = notebook.cell(4)
        first.get_by_text("8 answers, mean reward 0.").first.wait_for()
        notebook.shot("author_light", first)
        notebook.dark()
        notebook.shot("author_dark", first)

        # a formula is edited in the form: JSON and rewards follow
        first.get_by_role("button", name="pasted").click()
        first.get_by_label("Answer", exact=True).fill('{"compliant": "no", "explanation": "No."}')
        first.get_by_label("Answer", exact=True).blur()
        first.get_by_text("8 answers, mean reward 0.").first.wait_for()
        first.get_by_label("Formula").fill("compliant * explanation")
        first.get_by_label("Formula").press("Enter")
        first.get_by_text("compared with the previous grader").first.wait_for()
        first.get_by_text("▼").first.wait_for()
        notebook.shot("author_changed", first)

        # the python grader fails at a line of its own, is mended, and grades
        mine = notebook.cell(8)
        mine.get_by_text("▶   7      right = words(item").first.wait_for()
        notebook.shot("author_traceback", mine)
        source = mine.get_by_label("grade(…)")
        source.fill(source.input_value().replace('item["answer"]', 'item["explanation"]'))
        source.blur()
        mine.get_by_text("8 answers, mean reward").first.wait_for()
        notebook.shot("author_fixed", mine)


BAD = {"messages": [{"role": "user", "content": "Is the needle allowed?"}], "answer": "maybe"}
FIND = """from rftkit import datasets, widgets
found = datasets.check("bad.jsonl")
rows = widgets.RowBrowser("bad.jsonl", check=found)
rows"""


def test_find_a_bad_row(lab: Lab, chromium: Any) -> None:  # noqa: F811
    good = [
        {"messages": [{"role": "user", "content": f"Is case {n} allowed?"}], "answer": "yes"}
        for n in range(300)
    ]
    lines = [json.dumps(row) for row in [*good, BAD, *good]]
    lines[77] = '{"messages": "not a list"}'
    (lab.folder / "bad.jsonl").write_text("\n".join(lines))
    lab.write("find.ipynb", [FIND, "rows.data()['answer'].tolist()"])
    with lab.open(chromium, "find.ipynb") as notebook:
        notebook.run_all()
        browser = notebook.cell(0)
        browser.get_by_text("1 to 15 of 601 rows").first.wait_for()
        browser.get_by_label("Search").fill("needle")
        browser.get_by_label("Search").press("Enter")
        browser.get_by_text("1 to 1 of 1 of 601 rows").first.wait_for()
        browser.get_by_role("button", name="301", exact=True).click()
        browser.get_by_text("bad.jsonl:301 (row 301)").wait_for()
        notebook.shot("find_light", browser)
        notebook.run(1)
        notebook.cell(1).get_by_text("['maybe']").first.wait_for()
        browser.get_by_label("Search").fill("")
        browser.get_by_label("Search").press("Enter")
        findings = browser.get_by_label("Findings")
        unusable = findings.locator("option", has_text="1 of 601 lines unusable").inner_text()
        findings.select_option(label=unusable)
        browser.get_by_text("✗ not usable").first.wait_for()
        notebook.dark()
        notebook.shot("find_dark", browser)


def test_a_saved_notebook_is_never_an_empty_box(lab: Lab, chromium: Any) -> None:  # noqa: F811
    """Saved live, opened again without its kernel; then frozen, saved and opened again."""
    lab.write("shared.ipynb", [FIND.replace("bad", "few"), "widgets.freeze()"])
    (lab.folder / "few.jsonl").write_text("\n".join([json.dumps(BAD)] * 30))
    with lab.open(chromium, "shared.ipynb") as notebook:
        notebook.run_all()
        notebook.cell(0).get_by_text("1 to 15 of 30 rows").first.wait_for()
        notebook.save()
    with lab.open(chromium, "shared.ipynb") as notebook:
        notebook.cell(0).get_by_text("Is the needle allowed?").first.wait_for()
        assert "model not found" not in notebook.cell(0).inner_text()
        notebook.shot("shared_reopened")
        notebook.run_all()
        notebook.cell(1).get_by_role("button").click()
        notebook.cell(1).get_by_text("static copies").first.wait_for()
        notebook.save()
    with lab.open(chromium, "shared.ipynb") as notebook:
        notebook.cell(0).get_by_label("Filter rows").fill("needle")
        assert "model not found" not in notebook.cell(0).inner_text()
        notebook.shot("shared_frozen")
    assert "widget-view" not in (lab.folder / "shared.ipynb").read_text()


POINTS = "from rftkit import evals, widgets\nwidgets.RunCompare(evals.kept(), section='curves')"


def test_a_point_of_a_chart_leads_to_its_rows(
    lab: Lab,  # noqa: F811
    chromium: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RFTKIT_HOME", str(lab.home))
    found = sample_comparison.samples()
    runs = tuple(
        replace(run, id=f"{saved_runs.LOCAL_PREFIX}{run.step}", job_id=None) for run in found.runs
    )
    found = replace(found, runs=runs)
    for label in found.labels:
        saved_runs.save(saved_runs.record_of(found, label))
    lab.write("points.ipynb", [POINTS])
    with lab.open(chromium, "points.ipynb", width=1280) as notebook:
        notebook.run_all()
        panel = notebook.cell(0)
        charts = panel.locator(".rk-svg:has(.rk-pt[data-act])")
        assert charts.count() >= 3
        for at in range(charts.count()):
            point = charts.nth(at).locator(".rk-pt[data-act]").last
            words = str(point.get_attribute("data-act")).removeprefix("jump ")
            point.click()
            panel.get_by_text(re.compile(f"^Rows? {re.escape(words)}$")).wait_for()
            panel.get_by_role("button", name="Show all rows").click()
        point.focus()
        notebook.page.keyboard.press("ArrowLeft")
        notebook.page.keyboard.press("Enter")
        panel.get_by_role("button", name="Show all rows").wait_for()
        notebook.shot("points", panel)
