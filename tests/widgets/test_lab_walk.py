"""A walk through the whole product as a new user takes it: from an own CSV to a colleague's screen.

Every click, choice and text is counted: 25 are allowed. Screenshots of each go to SCREENSHOTS.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened  # noqa: F401  a fixture
from lab_browser import Lab, Notebook, lab  # noqa: F401  a fixture

from rftkit.graders import validate

MOST_ACTIONS = 25
FIRMS = ("Acme Tools", "Blue Fern", "Corvo Print", "Delta Ice", "Elm & Son", "Fjord Freight")
CLIPBOARD = ("clipboard-read", "clipboard-write")
INSPECT = """dataset: str = "invoices.csv"
row: int = 1"""
AUTHOR = """dataset: str = "invoices"
save_as: str = "invoices/grader.json"
format_as: str = "invoices/response_format.json\""""
LAUNCH = """dataset: str = "invoices"
model: str = "rftkit-tiny"
hyperparameters: dict = {"batch_size": 8, "n_epochs": 1, "eval_interval": 3}
metadata: dict = {"max_completion_tokens": "48"}
overridden: list = ["data", "grader", "learnability"]
seed: int = 1"""
SHARE = """from rftkit import reports
reports.run("report_compare", "compare.html", runs=[jobs.latest(client)])"""


@dataclass
class Walk:
    """What the user did so far."""

    notebook: Notebook
    actions: list[str] = field(default_factory=list)

    def act(self, what: str, action: Callable[[], Any]) -> None:
        """One action of the user, and a screenshot of what was there before it."""
        self.actions.append(what)
        self.notebook.shot(f"walk_{len(self.actions):02}_{what.replace(' ', '_')}")
        action()

    def work_in(self, name: str, parameters: str = "") -> None:
        """Open the next notebook, set its parameters, run it."""
        self.act(f"open {name}", lambda: self.notebook.switch(name))
        self.begin(parameters)

    def begin(self, parameters: str) -> None:
        if parameters:
            self.act("set the parameters", lambda: self.notebook.edit(1, parameters))
        self.act("run all cells", self.notebook.run_all)


def invoices(path: Path) -> None:
    """A table as a bookkeeper has it."""
    chance = random.Random(4)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["text", "due_date", "amount"])
        for number in range(80):
            amount = f"{chance.randint(20, 900)}.{chance.choice(('00', '50', '95'))}"
            due = f"2025-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
            firm = chance.choice(FIRMS)
            text = f"{firm}, invoice {4100 + number}: please pay {amount} euro by {due}. Thank you."
            lines.writerow([text, due, amount])


@pytest.mark.slow
def test_from_a_csv_to_a_colleagues_screen(
    lab: Lab,  # noqa: F811
    chromium: Any,  # noqa: F811
) -> None:
    invoices(lab.folder / "invoices.csv")
    first = lab.open(
        chromium, "02_inspect_dataset.ipynb", width=1280, browser_shown=True, permissions=CLIPBOARD
    )
    with first as notebook:
        walk = Walk(notebook, ["open 02_inspect_dataset"])

        # the table becomes rows, in three parts
        walk.begin(INSPECT)
        rows = notebook.cell(6)
        rows.get_by_text("These records are not rows yet").wait_for()
        into = rows.get_by_label("Split into")
        walk.act("name a folder", lambda: into.fill("invoices"))
        walk.act("write the rows", rows.get_by_role("button", name="Write the rows").click)
        rows.get_by_text("split in invoices: 64 train, 8 valid, 8 test").first.wait_for()

        # a grader, and the format that it needs
        walk.work_in("01_author_grader", AUTHOR)
        lab_panel = notebook.cell(4)
        lab_panel.get_by_text("8 answers, mean reward 0.").first.wait_for()
        reference = lab_panel.get_by_role("button", name="reference", exact=True)
        walk.act("compare with right answers", reference.click)
        lab_panel.get_by_text("mean reward 1.000").first.wait_for()
        copy = lab_panel.get_by_role("button", name="Copy as JSON")
        walk.act("copy the grader", copy.click)
        lab_panel.get_by_role("button", name="Copied").wait_for()
        copied = json.loads(notebook.page.evaluate("navigator.clipboard.readText()"))
        saved = json.loads((lab.folder / "invoices" / "grader.json").read_text())
        assert copied == saved
        assert set(validate(saved)["graders"]) == {"due_date", "amount"}
        assert (lab.folder / "invoices" / "response_format.json").exists()

        # check, estimate, start
        walk.work_in("03_launch_job", LAUNCH)
        notebook.cell(2).get_by_text("Started ftjob-").first.wait_for()

        # watch it to its end
        walk.work_in("04_watch_job")
        view = notebook.cell(4)
        view.get_by_text("✓ succeeded").first.wait_for()
        walk.act("look at checkpoints", view.get_by_role("button", name="Checkpoints").click)
        view.get_by_text("ckpt-step").first.wait_for()
        walk.act("list the jobs", view.get_by_text("Choose another job").click)
        view.get_by_role("cell", name="✓ succeeded").first.wait_for()

        # compare what it was with what it became
        walk.work_in("05_compare_runs")
        numbers = notebook.cell(4).locator("button.rk-link")
        walk.act("look behind a number", numbers.first.click)
        notebook.cell(4).get_by_role("button", name="Show all rows").wait_for()

        # one page for a colleague
        walk.act("ask for a page", lambda: notebook.edit(15, SHARE))
        walk.act("make it", lambda: notebook.run(15))
        actions = walk.actions

    # who opens it in another profile, without a network
    with opened(
        chromium, lab.folder / "compare.html", viewport={"width": 1280, "height": 900}
    ) as tab:
        actions.append("open the page")
        row = tab.locator("details.rk-card summary").first
        actions.append("open a row")
        row.click()
        assert tab.get_by_text("please pay").first.is_visible()
        tab.screenshot(path=str(lab.shots / "walk_page.png"))
    assert len(actions) <= MOST_ACTIONS, actions
