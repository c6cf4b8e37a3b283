"""From the output items of an eval run, as any service sends them, to columns of samples.

The quirks of the services end here: `-<uuid>` behind result names, rewards of multi graders that
come combined or only in parts, repeats without a number, keys added to rows. What is not a finite
number is no reward: such a sample is *failed*, and is never a zero. Not here: requests (`runs`),
files (`saved_runs`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rftkit.evals.samples import Run, row_key
from rftkit.jsontext import parse_json
from rftkit.outputitems import answer_text, error_text, grader_name

__all__ = ["Combine", "Record", "combine", "read_items", "settle"]

Json = dict[str, Any]
Combine = Callable[[Mapping[str, float]], float | None]
"""Scores by grader name -> the reward, or None when it is unknown."""

_SAMPLE_AT_FAULT = ("truncated_observation_error", "sample_parse_error")


@dataclass(frozen=True, slots=True)
class Record:
    """One run's samples as columns, as they are kept on disk; `row` counts into `keys`."""

    run: Run
    columns: dict[str, list[Any]]
    """The columns of `samples.COLUMNS` that differ between samples, without run and step."""
    scores: dict[str, list[float | None]]
    """Per grader name."""
    keys: list[str]
    """Key of each row."""
    numbers: list[int]
    """Number of each row in its data source."""
    items: list[str]
    """Each row as JSON text, which is parsed on first use."""
    uncombined: list[int] = field(default_factory=list)
    """Samples with several scores, where the service did not report how they are combined."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know, each a sentence about this run."""
    response_format: dict[str, Any] | None = None
    """The response format of the answers, if known."""


def read_items(
    run: Run, items: Iterable[Json], response_format: Mapping[str, Any] | None = None
) -> Record:
    """The samples of a run, from its output items in the order of the service."""
    reader = _Reader(run)
    for item in items:
        reader.add(item)
    return reader.record(dict(response_format) if response_format else None)


def settle(record: Record, combine: Combine | None) -> Record:
    """Give a reward to samples with several scores: by the formula, or their mean with a note."""
    if not record.uncombined:
        return record
    columns = {name: list(column) for name, column in record.columns.items()}
    for at in record.uncombined:
        given = ((name, column[at]) for name, column in record.scores.items())
        scores = {name: score for name, score in given if score is not None}
        reward = combine(scores) if combine else sum(scores.values()) / len(scores)
        columns["reward"][at] = reward
        if reward is None:
            columns["outcome"][at], columns["passed"][at] = "failed", None
            columns["error"][at] = "the formula has no value for these scores"
    notes = record.notes if combine else [*record.notes, (
        f"{record.run.label} has several graders and no combined score: their mean is taken as "
        "the reward. Name the job, or pass grader=, to combine them as it did."
    )]  # fmt: skip
    return replace(record, columns=columns, notes=notes, uncombined=[])


def combine(grader: Mapping[str, Any]) -> Combine | None:
    """The formula of a multi grader over the *names* of its graders; None for other graders."""
    if grader.get("type") != "multi" or not isinstance(grader.get("graders"), Mapping):
        return None
    from rftkit.graders.formula import compile_formula
    from rftkit.graders.outcome import Fault

    parts = grader["graders"]
    formula = compile_formula(grader["calculate_output"], parts)

    def reward(scores: Mapping[str, float]) -> float | None:
        by_key = {key: scores.get(part.get("name"), scores.get(key)) for key, part in parts.items()}
        known = {key: score for key, score in by_key.items() if score is not None}
        try:
            return formula(known) if len(known) == len(by_key) else None
        except Fault:
            return None

    return reward


class _Reader:
    """Columns that grow item by item."""

    def __init__(self, run: Run) -> None:
        self._run = run
        names = ("row", "sample", "reward", "passed", "outcome", "truncated", "tokens", "answer")
        self._columns: dict[str, list[Any]] = {name: [] for name in (*names, "error", "judge")}
        self._scores: dict[str, list[float | None]] = {}
        self._rows: dict[str, int] = {}
        self._numbers: list[int] = []
        self._items: list[str] = []
        self._seen: list[int] = []  # samples of each row so far
        self._uncombined: list[int] = []
        self._anonymous = 0

    def add(self, item: Json) -> None:
        row = self._row(item)
        sample = item.get("sample") or {}
        results = [each for each in item.get("results") or [] if isinstance(each, dict)]
        scores, combined, flags = _results(results)
        error = error_text(sample.get("error"))
        known = [score for score in scores.values() if score is not None]
        is_combined = any(_is_combined(each) for each in results)
        has_failed = is_combined and combined is None  # a part of the grader, whatever the others
        is_readable = not any(flag in flags for flag in _SAMPLE_AT_FAULT)
        unscorable = error is None and not has_failed and not is_readable
        reward = combined if is_combined else known[0] if len(known) == len(scores) == 1 else None
        if unscorable and reward is None:
            reward = 0.0  # the floor of every grader without a range
        uncombined = not (error or unscorable or is_combined) and len(known) == len(scores) > 1
        if uncombined:
            self._uncombined.append(len(self._columns["row"]))
        if error:
            reward = None
        graded = reward is not None or uncombined
        outcome = "unscorable" if unscorable else "graded" if graded else "failed"
        truncated = sample.get("finish_reason") == "length"
        self._append(
            row=row,
            sample=self._seen[row],
            reward=reward,
            passed=None if outcome == "failed" else _passed(item, results, unscorable),
            outcome=outcome,
            truncated=truncated or "truncated_observation_error" in flags,
            tokens=(sample.get("usage") or {}).get("completion_tokens"),
            answer=answer_text(sample.get("output")) or "",
            error=error or _why(flags, outcome),
            judge=_reasons(results),
        )
        self._seen[row] += 1
        for name in [name for name in scores if name not in self._scores]:
            self._scores[name] = [None] * (len(self._columns["row"]) - 1)
        for name, column in self._scores.items():
            column.append(scores.get(name))

    def record(self, response_format: dict[str, Any] | None) -> Record:
        notes = []
        if self._anonymous:
            notes.append(
                f"{self._anonymous:,} items of {self._run.label} do not hold their row: they are "
                "paired by its number."
            )
        return Record(
            self._run, self._columns, self._scores, list(self._rows), self._numbers, self._items,
            self._uncombined, notes, response_format,
        )  # fmt: skip

    def _row(self, item: Json) -> int:
        number, content = item.get("datasource_item_id"), item.get("datasource_item")
        if not isinstance(content, dict) or not content:
            self._anonymous += 1
            key, content = f"#{number}", {}
        else:
            key = row_key(content)
        at = self._rows.setdefault(key, len(self._rows))
        if at == len(self._numbers):
            self._numbers.append(number if isinstance(number, int) else at)
            self._items.append(json.dumps(content, ensure_ascii=False))
            self._seen.append(0)
        return at

    def _append(self, **values: Any) -> None:
        for name, value in values.items():
            self._columns[name].append(value)


def _results(
    results: list[Json],
) -> tuple[dict[str, float | None], float | None, dict[str, Any]]:
    """Scores by name, the combined score of a multi grader, and every flag that is set."""
    scores: dict[str, float | None] = {}
    combined: float | None = None
    flags: dict[str, Any] = {}
    for result in results:
        score = _number(result.get("score"))
        if _is_combined(result):
            combined = score
        else:
            scores[grader_name(result.get("name")) or "grader"] = score
        for flag, value in (result.get("errors") or {}).items():
            if value:
                flags.setdefault(flag, value)
    return scores, combined, flags


def _is_combined(result: Json) -> bool:
    """Whether it is the reward of a multi grader, as the local platform adds it."""
    return result.get("type") == "multi"


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _passed(item: Json, results: list[Json], unscorable: bool) -> bool | None:
    if unscorable:
        return False
    combined = [each for each in results if _is_combined(each) and each.get("passed") is not None]
    decided = combined or [each for each in results if each.get("passed") is not None]
    if decided:
        return all(bool(each["passed"]) for each in decided)
    status = item.get("status")
    return status == "pass" if status in ("pass", "fail", "passed", "failed") else None


def _why(flags: Mapping[str, Any], outcome: str) -> str | None:
    if outcome == "graded":
        return None
    details = [str(value) for value in flags.values() if isinstance(value, str)]
    return "; ".join(details or flags) or ("no score" if outcome == "failed" else None)


def _reasons(results: list[Json]) -> str | None:
    """The reasons that model graders gave for their scores, if the service keeps them."""
    texts = [answer_text((result.get("sample") or {}).get("output")) for result in results]
    return "\n".join(_steps(text) for text in texts if text) or None


def _steps(text: str) -> str:
    """The steps of a judge's answer as lines; the answer itself when it has none."""
    try:
        steps = parse_json(text)["steps"]
        return "\n".join(f"{step['description']} → {step['conclusion']}" for step in steps) or text
    except (ValueError, TypeError, KeyError):
        return text
