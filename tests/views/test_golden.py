"""What people see, held in small files: `UPDATE_GOLDEN=1 pytest tests/views/test_golden.py`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from sample_job import GRADER, answers, events

from rftkit import views
from rftkit.reports import summary
from rftkit.views.grading import grade_in_full, grades, spec_problem
from rftkit.views.rows import REFUSED, cells, row_in_full, row_page

FOLDER = Path(__file__).parents[1] / "golden"
BLOCKS = (
    "article|caption|details|div|figure|h4|li|p|pre|script|summary|table|tbody|td|th|thead|tr|ul"
)
TABLE = [
    {"step": 0, "reward": None, "model": "smollm2-135m-instruct", "note": "<b>not graded</b>"},
    {"step": 12_000, "reward": 0.41739, "model": "ft:…:ckpt-step-12", "note": "long " * 50},
]

ROWS = [
    {"messages": [{"role": "user", "content": "May <b>he</b>?"}], "label": "no", "words": 7},
    {REFUSED: "rows.jsonl:3: not valid JSON at column 2"},
]
LEAF = {
    "type": "string_check", "name": "label", "operation": "eq",
    "input": "{{sample.output_text}}", "reference": "{{item.label}}",
}  # fmt: skip
SOURCE = "def grade(sample, item):\n    return 1 / 0\n"
BOTH = {
    "type": "multi",
    "name": "both",
    "graders": {"label": LEAF, "mine": {"type": "python", "name": "mine", "source": SOURCE}},
    "calculate_output": "0.5 * label + mine",
}
TRACE = 'Traceback:\n  File "grader.py", line 2, in grade\nZeroDivisionError: division by zero'
RUNTIME = {"python_grader_runtime_error": True, "python_grader_runtime_error_details": TRACE}
LINES = [
    {"row": 0, "answer": "no", "reward": 1.0, "before": 0.25, "outcome": "graded", "details": "",
     "reward/label": 1.0},
    {"row": 1, "answer": "<i>", "reward": None, "before": 1.0, "outcome": "failed",
     "details": "ZeroDivisionError: division by zero", "reward/label": None},
]  # fmt: skip
GRADE = {
    "reward": None, "outcome": "failed", "sub_rewards": {"label": 1.0, "mine": None},
    "errors": RUNTIME, "seconds": 0.02, "token_usage": {}, "sub_errors": {"mine": RUNTIME},
    "sub_seconds": {"label": 0.00002, "mine": 1.5}, "sub_token_usage": {},
}  # fmt: skip
FILLED = [
    {"key": "label", "field": "input", "template": LEAF["input"], "text": "<i>", "problem": ""},
    {"key": "label", "field": "reference", "template": LEAF["reference"], "text": None,
     "problem": "`item.label` is missing"},
]  # fmt: skip

GOLDEN = {
    "row_page": lambda: row_page(
        cells(ROWS), ["prompt", "label", "words"], numbers=[4, 5], sort="words", opened=4
    ),
    "row_in_full": lambda: row_in_full(
        ROWS[0],
        place="rows.jsonl:1 (row 1)",
        answer='{"label": "no"}',
        grade={"reward": 0.5, "outcome": "graded", "sub_rewards": {}, "errors": {}},
        findings=["2 rows have the same prompt"],
        neighbours=[{"row": 9, "alike": 88.0, "prompt": "May <b>she</b>?"}],
    ),
    "grades": lambda: grades(LINES, ["label"], opened=1),
    "grade_in_full": lambda: grade_in_full(
        LINES[1], spec=BOTH, grade=GRADE, rendered=FILLED, item=ROWS[0]
    ),
    "grader_spec_problem": lambda: spec_problem(
        "line 2 of the JSON, column 3: oops", '{\n  <"type"\n}'
    ),
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
