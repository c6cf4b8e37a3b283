"""Numbers of other libraries in rows and rewards, and the names of a judge's token limit."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rftkit import graders
from rftkit.errors import GraderSpecError, RowError

EQUAL = {"type": "string_check", "name": "equal", "operation": "eq"}
JUDGE = {"type": "score_model", "model": "m", "input": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_completions_tokens"])
def test_a_token_limit_may_have_each_documented_name(name: str) -> None:
    spec = graders.validate(JUDGE | {"sampling_params": {name: 5}})
    assert spec["sampling_params"] == {"max_completions_tokens": 5}


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"type": "python", "source": "def grade(sample, item):\n    return 1"}, "python grader"),
        (JUDGE, "score model grader"),
        (JUDGE | {"name": "mine"}, "mine"),
    ],
)
def test_a_grader_without_a_name_is_called_by_its_type(spec: dict[str, Any], name: str) -> None:
    assert graders.validate(spec)["name"] == name


def test_a_wrong_sampling_parameter_names_the_right_ones() -> None:
    with pytest.raises(GraderSpecError, match="max_completions_tokens") as caught:
        graders.validate(JUDGE | {"sampling_params": {"zzzz": 5}})
    assert "pass_threshold" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int64(3), "3"),
        (np.bool_(True), "true"),
        (np.array(2.5), "2.5"),
        (np.array([1, 2]), "[1, 2]"),
        (Decimal("1.5"), "1.5"),
        (pd.Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    ],
)
def test_values_of_other_libraries_in_rows(value: Any, text: str) -> None:
    spec = {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}",
            "reference": "{{item.x}}"}  # fmt: skip
    grade = graders.grade(spec, text.strip('"'), {"x": value})
    assert (grade.outcome, grade.errors) == ("graded", {})
    source = "def grade(sample, item):\n    return float(item['x'] is not None)\n"
    assert graders.grade({"type": "python", "source": source}, "a", {"x": value}).reward == 1.0


RETURNS = """
from decimal import Decimal

class Zero(int):
    pass

class Scalar:  # as numpy.bool_, a 0-d array, a tensor of torch: neither needs to be installed
    shape = ()

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value

class Array(Scalar):
    shape = (1,)

def grade(sample, item):
    return RESULT
"""


@pytest.mark.parametrize(
    "result", ["Decimal('1')", "Zero(1)", "True", "Scalar(True)", "Scalar(1)", "Scalar(1.0)"]
)
def test_a_python_grader_may_return_any_number(result: str) -> None:
    source = RETURNS.replace("RESULT", result)
    assert graders.grade({"type": "python", "source": source}, "a", {}).reward == 1.0


@pytest.mark.parametrize("result", ["None", "'1'", "[1]", "Scalar('1')", "Scalar(1j)", "Array(1)"])
def test_what_is_no_number_is_a_failed_grade(result: str) -> None:
    source = RETURNS.replace("RESULT", result)
    grade = graders.grade({"type": "python", "source": source}, "a", {})
    assert (grade.reward, grade.outcome) == (None, "failed")
    assert "expected a number" in str(grade.errors["python_grader_runtime_error_details"])


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_a_missing_cell_of_a_table_is_an_empty_answer(missing: Any) -> None:
    spec = {**EQUAL, "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    table = pd.DataFrame({"output_text": ["x", missing], "answer": ["x", "y"]}, dtype=object)
    found = graders.grade_many(spec, table)
    assert found["outcome"].tolist() == ["graded", "graded"]
    assert found["reward"].tolist() == [1.0, 0.0]


def test_answers_that_pandas_made_numbers_are_refused_with_advice() -> None:
    spec = {**EQUAL, "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    for values in ([7, 8], [0.5, 1.5], ["x", 7]):
        table = pd.DataFrame({"said": values, "answer": ["007", "8"]})
        with pytest.raises(RowError, match=r"row:\d.*dtype=\{'said': str\}"):
            graders.grade_many(spec, table, answer="said")
