"""What to know about a dataset before a job: are the rows usable, does the grader fit them?

Checks that cost seconds and need no model: every line, every template path in every row, reference
answers graded, rows shared between train and validation. Not here: whether the base model can
learn from the rows. A finding names the lines it is about and never changes a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rftkit.datasets.answers import reference_answer
from rftkit.datasets.io import existing
from rftkit.errors import InputError, RowError
from rftkit.graders import Grade, Sample, check_item_paths, compile_grader, variables
from rftkit.rows import Row, read_rows

__all__ = ["Check", "Finding", "check"]

MAX_REFERENCES = 500  # rows whose reference answer is graded; more add seconds, not news
CALLS_OUT = frozenset({"score_model", "label_model", "endpoint"})
LISTED_ROWS = 5

Place = tuple[str, dict[str, Any]]
"""`file:line` and the row there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know."""

    severity: Literal["error", "warning", "info"]
    """An error stops a job; a warning spoils it; the rest is good to know."""
    code: str
    """Stable name of the kind of finding."""
    message: str
    rows: tuple[str, ...] = ()
    """Where: `file:line`, every one."""

    def __str__(self) -> str:
        shown = ", ".join(self.rows[:LISTED_ROWS])
        more = f" and {len(self.rows) - LISTED_ROWS} more" if len(self.rows) > LISTED_ROWS else ""
        return f"{self.severity:<8}{self.message}" + (f" [{shown}{more}]" if shown else "")


@dataclass(frozen=True, slots=True)
class Check:
    """Everything found, worst first. Printing it shows one line per finding."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing would stop a job."""
        return not any(finding.severity == "error" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    def raise_for_errors(self) -> None:
        """Raise InputError with every error found, if there is one."""
        if not self.ok:
            errors = [str(each) for each in self.findings if each.severity == "error"]
            raise InputError("the dataset cannot be used:\n" + "\n".join(errors))


def check(
    train: str | Path,
    valid: str | Path | None = None,
    *,
    grader: Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
) -> Check:
    """Check dataset files, and a grader against their rows.

    Args:
        train: JSONL file.
        valid: JSONL file of the validation rows.
        grader: Grader spec, as on the wire; a malformed one raises GraderSpecError.
        response_format: What will constrain the answers.
    """
    findings: list[Finding] = []
    paths = [Path(train)] + ([Path(valid)] if valid is not None else [])
    files: dict[Path, list[Row]] = {path: [] for path in paths}
    for path, rows in files.items():
        findings += _read(path, rows)
    if valid is not None:
        findings += _shared_rows(files[Path(train)], files[Path(valid)], Path(valid))
    if grader is not None:
        places = [(f"{path}:{row.line}", row.item) for path in files for row in files[path]]
        findings += _format_needed(grader, response_format)
        unresolved = list(_unresolved_paths(grader, places))
        findings += unresolved or _reference_rewards(grader, response_format, places)
    order = ("error", "warning", "info")
    return Check(tuple(sorted(findings, key=lambda finding: order.index(finding.severity))))


def _read(path: Path, rows: list[Row]) -> Iterator[Finding]:
    broken: list[RowError] = []
    with existing(path).open("rb") as lines:
        rows += read_rows(lines, path=path, on_error=broken.append)
    for error in broken:
        yield Finding("error", "invalid_row", str(error))
    if not rows and not broken:
        yield Finding("error", "no_rows", f"{path} holds no rows")
    elif rows:
        yield Finding("info", "rows", f"{path}: {len(rows)} usable rows")


def _shared_rows(train: list[Row], valid: list[Row], valid_path: Path) -> Iterator[Finding]:
    seen = {_prompt(row) for row in train}
    shared = tuple(f"{valid_path}:{row.line}" for row in valid if _prompt(row) in seen)
    if shared:
        yield Finding(
            "warning",
            "shared_rows",
            f"{len(shared)} validation prompts stand in the training file too; "
            "the validation reward will be too good to be true",
            shared,
        )


def _prompt(row: Row) -> str:
    return json.dumps(row.messages, sort_keys=True)


def _unresolved_paths(grader: Mapping[str, Any], rows: Sequence[Place]) -> Iterator[Finding]:
    lacking: dict[str, list[tuple[str, str]]] = {}
    for where, item in rows:
        try:
            check_item_paths(grader, item)
        except RowError as error:
            lacking.setdefault(str(error.param), []).append((where, str(error)))
    for found in lacking.values():
        places = tuple(where for where, _ in found)
        yield Finding("error", "unresolved_path", f"{found[0][1]} ({len(found)} rows)", places)


def _format_needed(
    grader: Mapping[str, Any], response_format: Mapping[str, Any] | None
) -> Iterator[Finding]:
    needed = variables(grader)
    if response_format is None and any(path.startswith("sample.output_json") for path in needed):
        yield Finding(
            "warning",
            "no_response_format",
            "the grader reads sample.output_json, which a job fills only under a response format",
        )


def _reference_rewards(
    grader: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
    rows: Sequence[Place],
) -> Iterator[Finding]:
    if not CALLS_OUT.isdisjoint(each["type"] for each in _specs(grader)):
        yield Finding(
            "info", "references_not_graded", "reference answers not graded: it would call a model"
        )
        return
    stride = max(1, len(rows) // MAX_REFERENCES)
    found = [
        (where, item, reference_answer(item, response_format)) for where, item in rows[::stride]
    ]
    tried = [(where, item, text) for where, item, text in found if text is not None]
    with compile_grader(grader) as compiled:
        grades = compiled.grade_many(
            [
                (Sample.from_text(text, response_format=response_format), item)
                for _, item, text in tried
            ]
        )
    rewards: dict[str, float] = {}
    trouble: dict[str, list[str]] = {}
    for (where, _, _), grade in zip(tried, grades, strict=True):
        if grade.outcome == "graded" and grade.reward is not None:
            rewards[where] = grade.reward
        else:
            trouble.setdefault(f"{grade.outcome}: {_reason(grade)}", []).append(where)
    for message, places in trouble.items():
        yield Finding(
            "error", "reference_not_graded", f"the reference answer is {message}", tuple(places)
        )
    if not trouble:
        yield from _reference_findings(rewards)


def _reason(grade: Grade) -> str:
    details = [value for value in grade.errors.values() if isinstance(value, str) and value]
    return "; ".join(details or grade.errors)


def _reference_findings(rewards: Mapping[str, float]) -> Iterator[Finding]:
    if not rewards:
        yield Finding(
            "info", "no_references", "no row holds a reference answer to try the grader on"
        )
        return
    top = max(rewards.values())
    below = tuple(where for where, reward in rewards.items() if reward < top - 1e-9)
    graded = f"{len(rewards)} reference answers graded"
    if below:
        lowest = min(rewards.values())
        message = f"{graded}: {len(below)} earn less than the best ({lowest:.3f} against {top:.3f})"
        yield Finding("warning", "references_differ", message, below)
    else:
        yield Finding("info", "references", f"{graded}: each earns {top:.3f}")


def _specs(grader: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(grader["graders"].values()) if grader.get("type") == "multi" else [grader]
