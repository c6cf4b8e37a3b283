"""What people see, held in small files: `UPDATE_GOLDEN=1 pytest tests/test_views_golden.py`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from sample_job import GRADER, answers, events

from rftkit import views
from rftkit.reports import summary

FOLDER = Path(__file__).parent / "golden"
BLOCKS = (
    "article|caption|details|div|figure|h4|li|p|pre|script|summary|table|tbody|td|th|thead|tr|ul"
)
TABLE = [
    {"step": 0, "reward": None, "model": "smollm2-135m-instruct", "note": "<b>not graded</b>"},
    {"step": 12_000, "reward": 0.41739, "model": "ft:…:ckpt-step-12", "note": "long " * 50},
]

GOLDEN = {
    "table": lambda: views.table(TABLE, {"step": "Step", "reward": "Reward", "note": "Note"}),
    "answers": lambda: views.answers(answers(8) | {"rows": answers(8)["rows"][2:8]}),
    "headline": lambda: views.headline(summary(events(), answers())),
    "keyvalues": lambda: views.keyvalues({"seed": 42, "rate": 3e-4, "suffix": None, "on": True}),
    "events": lambda: views.events(events()),
    "spec": lambda: views.spec(GRADER, caption="Grader"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_view_is_as_it_was(name):
    found = re.sub(rf"(?=<(?:{BLOCKS})\b)", "\n", GOLDEN[name]()).lstrip() + "\n"
    path = FOLDER / f"views_{name}.html"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")

    assert found == path.read_text(encoding="utf-8")
