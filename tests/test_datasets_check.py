"""What is found in a dataset before a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rftkit import datasets
from rftkit.errors import GraderSpecError, InputError

EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


def row(prompt: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **keys}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in rows)
    )
    return path


def codes(check: datasets.Check) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in check.findings]


@pytest.mark.parametrize("name", ["security_review", "contract_facts", "tiny_copy"])
def test_the_bundled_datasets_are_sound(name: str) -> None:
    data = datasets.bundled(name)
    check = datasets.check(
        data.train, data.valid, grader=data.grader, response_format=data.response_format
    )
    assert codes(check) == [("info", "rows"), ("info", "rows"), ("info", "references")]
    assert "each earns 1.000" in str(check)


def test_every_broken_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", row("a"), "{\n", row("b"), "[]\n")
    check = datasets.check(path)
    assert not check.ok
    assert codes(check) == [("error", "invalid_row")] * 2 + [("info", "rows")]
    assert "t.jsonl:2: " in str(check)
    assert "t.jsonl:4: " in str(check)
    with pytest.raises(InputError, match=r"(?s)t\.jsonl:2: .*t\.jsonl:4: "):
        check.raise_for_errors()


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    assert codes(datasets.check(write(tmp_path / "t.jsonl"))) == [("error", "no_rows")]


def test_a_missing_path_names_rows_and_their_keys(tmp_path: Path) -> None:
    rows = [row("0", answer="x"), *(row(str(number), anser="x") for number in range(1, 8))]
    check = datasets.check(write(tmp_path / "t.jsonl", *rows), grader=EXACT)
    [finding] = [each for each in check.findings if each.severity == "error"]
    assert finding.code == "unresolved_path"
    assert "item.answer" in finding.message
    assert "anser" in finding.message
    assert len(finding.rows) == 7
    assert str(finding).endswith("t.jsonl:6 and 2 more]")


def test_rows_shared_with_validation(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", row("a", answer="x"), row("b", answer="y"))
    valid = write(tmp_path / "v.jsonl", row("c", answer="z"), row("b", answer="other"))
    check = datasets.check(train, valid)
    [finding] = [each for each in check.findings if each.code == "shared_rows"]
    assert finding.severity == "warning"
    assert finding.rows == (f"{valid}:2",)
    assert check.ok


def test_reference_answers_below_the_top(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", row("a", answer="x"), row("b", answer="y", reference="no"))
    check = datasets.check(path, grader=EXACT)
    [finding] = [each for each in check.findings if each.code == "references_differ"]
    assert finding.rows == (f"{path}:2",)
    assert "0.000 against 1.000" in finding.message


def test_a_grader_that_breaks_on_the_reference_is_an_error(tmp_path: Path) -> None:
    broken = {
        "type": "python",
        "name": "p",
        "source": "def grade(sample, item):\n    return 1 / 0\n",
    }
    path = write(tmp_path / "t.jsonl", row("a", answer="x"), row("b", answer="y"))
    check = datasets.check(path, grader=broken)
    [finding] = [each for each in check.findings if each.severity == "error"]
    assert finding.code == "reference_not_graded"
    assert "ZeroDivisionError" in finding.message
    assert len(finding.rows) == 2


def test_json_paths_without_a_response_format(tmp_path: Path) -> None:
    grader = {**EXACT, "input": "{{sample.output_json.a}}"}
    path = write(tmp_path / "t.jsonl", row("a", answer="x", reference={"a": "x"}))
    assert ("warning", "no_response_format") in codes(datasets.check(path, grader=grader))
    found = datasets.check(path, grader=grader, response_format={"type": "json_object"})
    assert codes(found) == [("info", "rows"), ("info", "references")]


def test_a_judge_is_not_called(tmp_path: Path) -> None:
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "any",
        "input": [{"role": "user", "content": "{{item.answer}}: {{sample.output_text}}"}],
    }
    check = datasets.check(write(tmp_path / "t.jsonl", row("a", answer="x")), grader=judge)
    assert codes(check) == [("info", "rows"), ("info", "references_not_graded")]


def test_a_malformed_grader_raises(tmp_path: Path) -> None:
    with pytest.raises(GraderSpecError):
        datasets.check(write(tmp_path / "t.jsonl", row("a")), grader={"type": "nope"})
