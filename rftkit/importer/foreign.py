"""Evals of other tools as objects of the API: a file of rows, an eval with its graders, runs.

`promptfoo` and `inspect_logs` read their tools' files into the values here, and name what has no
counterpart. Ids are made of the content, so that a second import changes nothing. A result without
a number is no result: an answer that was not graded stays ungraded. Not here: uploads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from rftkit.importer.units import LeftOut, Unit
from rftkit.jsontext import digest_of

__all__ = ["Answer", "ForeignEval", "ForeignRun", "Result", "number_of", "seconds_of", "units_of"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What one grader of the other tool gave to an answer."""

    name: str
    score: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to a row."""

    item: Json
    """The row: `messages` and what graders read."""
    text: str | None
    """The answer; None if there was none."""
    results: Sequence[Result]
    """One for each grader that gave a number."""
    model: str
    finish_reason: str | None = None
    usage: Json | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ForeignRun:
    """One model's answers."""

    name: str
    model: str
    answers: Sequence[Answer]


@dataclass(slots=True)
class ForeignEval:
    """An eval of another tool."""

    name: str
    tool: str
    """`promptfoo` or `inspect`."""
    created_at: int
    """Unix seconds; 0 if unknown."""
    graders: list[Json]
    rows: list[Json]
    runs: list[ForeignRun] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    """Sentences about what has no counterpart here."""


def units_of(found: ForeignEval, path: str) -> Iterator[Unit | LeftOut]:
    """The objects of an eval, in the order of an upload; last, what did not fit."""
    said = [[run.name, [answer.text for answer in run.answers]] for run in found.runs]
    whole = [found.tool, found.name, found.created_at, found.rows, found.graders, said]
    digest = digest_of(whole)[:24]
    places = {digest_of(row): place for place, row in enumerate(found.rows)}
    if found.rows:
        yield _rows_file(found, digest)
    yield Unit("eval", f"eval_{digest}", _eval_wire(found, digest))
    for number, run in enumerate(found.runs):
        yield _run_unit(found, run, digest, number, places)
    for sentence in dict.fromkeys(found.unfit):
        yield LeftOut(path, sentence, is_harmless=True, is_unfit=True)


def number_of(value: Any) -> float | None:
    """A score as a number; None if it is not one, such as NaN."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float) and abs(value) < 1e15 and math.isfinite(value):
        return float(value)
    return None


def seconds_of(moment: Any) -> int:
    """Unix seconds of a moment in ISO form; 0 for anything else."""
    if not isinstance(moment, str):
        return 0
    try:
        found = datetime.fromisoformat(moment)
        return max(0, int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()))
    except (ValueError, OverflowError, OSError):
        return 0


def _rows_file(found: ForeignEval, digest: str) -> Unit:
    content = "".join(json.dumps(row, allow_nan=False) + "\n" for row in found.rows).encode()
    wire = {
        "object": "file",
        "id": f"file-{digest}",
        "bytes": len(content),
        "created_at": found.created_at,
        "expires_at": None,
        "filename": f"{_file_name(found.name)}.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
    }
    return Unit("file", f"file-{digest}", wire, content=lambda: BytesIO(content))


def _eval_wire(found: ForeignEval, digest: str) -> Json:
    schema = {"type": "object", "properties": {"item": {"type": "object"}}, "required": ["item"]}
    return {
        "object": "eval",
        "id": f"eval_{digest}",
        "name": found.name,
        "created_at": found.created_at,
        "data_source_config": {"type": "custom", "schema": schema},
        "testing_criteria": found.graders,
        "metadata": {"made_by": found.tool},
    }


def _run_unit(
    found: ForeignEval, run: ForeignRun, digest: str, number: int, places: dict[str, int]
) -> Unit:
    run_id = f"evalrun_{digest}_{number}"
    shared = {"object": "eval.run.output_item", "run_id": run_id, "eval_id": f"eval_{digest}"}
    items = [
        {
            **shared,
            "id": f"outputitem_{digest}_{number}_{place:06}",
            "created_at": found.created_at,
            "status": _status(answer),
            "datasource_item_id": places.get(digest_of(answer.item), place),
            "datasource_item": answer.item,
            "results": [
                {"name": each.name, "score": each.score, "passed": each.passed}
                for each in answer.results
            ],
            "sample": _sample(answer),
        }
        for place, answer in enumerate(run.answers)
    ]
    wire = {
        "object": "eval.run",
        "id": run_id,
        "eval_id": f"eval_{digest}",
        "status": "completed",
        "model": run.model,
        "name": run.name,
        "created_at": found.created_at,
        "result_counts": _counts(items),
        "per_testing_criteria_results": _by_grader(items),
        "error": None,
        "metadata": {},
        "data_source": {
            "type": "jsonl",
            "source": {"type": "file_id", "id": f"file-{digest}"},
        },
    }
    lines = [json.dumps(item, allow_nan=False).encode() for item in items]
    return Unit("run", run_id, wire, lambda: iter(lines))


def _sample(answer: Answer) -> Json:
    output = [] if answer.text is None else [{"role": "assistant", "content": answer.text}]
    return {
        "input": answer.item.get("messages", []),
        "output": output,
        "finish_reason": answer.finish_reason,
        "model": answer.model,
        "usage": answer.usage or {},
        "error": {"code": "error", "message": answer.error} if answer.error else None,
    }


def _status(answer: Answer) -> str:
    if answer.error or not answer.results:
        return "error"
    return "pass" if all(each.passed for each in answer.results) else "fail"


def _counts(items: Sequence[Json]) -> Json:
    counts = {"total": len(items), "errored": 0, "failed": 0, "passed": 0}
    for item in items:
        counts[{"error": "errored", "fail": "failed", "pass": "passed"}[item["status"]]] += 1
    return counts


def _by_grader(items: Sequence[Json]) -> list[Json]:
    found: dict[str, Json] = {}
    for result in (each for item in items for each in item["results"]):
        name = result["name"]
        tally = found.setdefault(name, {"testing_criteria": name, "passed": 0, "failed": 0})
        tally["passed" if result["passed"] else "failed"] += 1
    return list(found.values())


def _file_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return kept.strip("-")[:60] or "rows"
