"""Turn another service's objects into records: the fields that queries need, and the whole object.

These are pure and lenient functions, because hosted services omit fields, send null, or add
undocumented fields. An object is refused only if it has no usable id or is not JSON that can be
sent again. Secrets in graders are masked, as for objects created here. `imports.py` has the SQL.
"""

from __future__ import annotations

from typing import Any

from rftkit.errors import RequestError
from rftkit.graders import mask_secrets
from rftkit.jsontext import parse_json
from rftkit.server.store.records import (
    Checkpoint,
    Eval,
    EvalRun,
    Event,
    File,
    Job,
    Model,
    OutputItem,
)
from rftkit.tools import mask_tools

__all__ = [
    "check_id",
    "checkpoint_record",
    "eval_record",
    "event_record",
    "file_record",
    "item_record",
    "job_record",
    "model_records",
    "parse",
    "run_record",
]

Json = dict[str, Any]

MAX_ID = 512
"""Longest id, in characters."""
EMPTY_COUNTS: dict[str, int] = {}


def parse(line: bytes) -> Json:
    """Parse one JSON object.

    Raises:
        RequestError: the line is not an object, or contains NaN or an infinity.
    """

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        value = parse_json(line, parse_constant=refuse)
    except ValueError as error:
        raise RequestError(f"a line is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"a line must be a JSON object, not {type(value).__name__}")
    return value


def file_record(wire: Json, origin: str, digest: str, size: int) -> File:
    """Return a file's record; it never expires here, and its size is the size of its content."""
    return File(
        id=_id(wire),
        created_at=_number(wire, "created_at"),
        filename=_text(wire, "filename") or "file",
        purpose=_text(wire, "purpose"),
        bytes=size,
        digest=digest,
        origin=origin,
        wire=wire,
    )


def job_record(wire: Json, origin: str) -> Job:
    """Return the record of a job of any method."""
    return Job(
        id=_id(wire),
        created_at=_number(wire, "created_at"),
        finished_at=_number(wire, "finished_at") or None,
        status=_text(wire, "status"),
        model=_text(wire, "model"),
        seed=_number(wire, "seed"),
        training_file=_text(wire, "training_file"),
        validation_file=_text(wire, "validation_file"),
        method={},
        metadata=_metadata(wire),
        fine_tuned_model=_text(wire, "fine_tuned_model") or None,
        eval_id=_text(wire, "eval_id") or None,
        origin=origin,
        wire=_masked_job(wire),
    )


def event_record(wire: Json, origin: str, job_id: str) -> Event:
    """Return the record of a job's event."""
    return Event(
        id=_id(wire),
        job_id=job_id,
        created_at=_number(wire, "created_at"),
        message="",
        origin=origin,
        wire=wire,
    )


def checkpoint_record(wire: Json, origin: str, job_id: str) -> Checkpoint:
    """Return the record of a checkpoint, which has no weights here."""
    return Checkpoint(
        id=_id(wire),
        job_id=job_id,
        created_at=_number(wire, "created_at"),
        step=_number(wire, "step_number"),
        model_name=_text(wire, "fine_tuned_model_checkpoint") or _id(wire),
        metrics={},
        folder="",
        origin=origin,
        wire=wire,
    )


def model_records(job: Job, checkpoints: list[Checkpoint]) -> list[Model]:
    """Return one model record for each name that the job or a checkpoint of it gave to a model."""
    steps: dict[str, int | None] = {
        each.model_name: each.step for each in checkpoints if each.model_name != each.id
    }
    if job.fine_tuned_model:
        steps[job.fine_tuned_model] = None
    created = job.finished_at or job.created_at
    return [
        Model(
            name=name,
            created_at=created,
            base=job.model,
            job_id=job.id,
            folder="",
            step=step,
            origin=job.origin,
            wire={
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": _text(job.wire or {}, "organization_id") or "imported",
                "shutdown_date": None,
            },
        )
        for name, step in steps.items()
    ]


def eval_record(wire: Json, origin: str) -> Eval:
    """Return the record of an eval."""
    given = wire.get("testing_criteria")
    criteria = given if isinstance(given, list) else []
    shown = [mask_secrets(each) if isinstance(each, dict) else each for each in criteria]
    created = _number(wire, "created_at")
    return Eval(
        id=_id(wire),
        created_at=created,
        updated_at=created,
        name=_text(wire, "name"),
        metadata=_metadata(wire),
        data_source_config={},
        testing_criteria=[],
        origin=origin,
        wire={**wire, "testing_criteria": shown},
    )


def run_record(wire: Json, origin: str) -> EvalRun:
    """Return the record of a run of an imported eval."""
    return EvalRun(
        id=_id(wire),
        eval_id=_text(wire, "eval_id"),
        created_at=_number(wire, "created_at"),
        status=_text(wire, "status"),
        name=_text(wire, "name"),
        model=_text(wire, "model") or None,
        metadata=_metadata(wire),
        data_source={},
        result_counts=EMPTY_COUNTS,
        origin=origin,
        wire=wire,
    )


def item_record(wire: Json, origin: str, run_id: str) -> OutputItem:
    """Return the record of an output item."""
    return OutputItem(
        id=_id(wire),
        run_id=run_id,
        eval_id=_text(wire, "eval_id"),
        created_at=_number(wire, "created_at"),
        status=_text(wire, "status"),
        datasource_item_id=_number(wire, "datasource_item_id"),
        datasource_item={},
        results=[],
        sample={},
        origin=origin,
        wire=wire,
    )


def _masked_method(given: Json) -> Json:
    shown = {**given}
    if isinstance(given.get("grader"), dict):
        shown["grader"] = mask_secrets(given["grader"])
    if "tools" in given:
        shown["tools"] = mask_tools(given["tools"])
    return shown


def _masked_job(wire: Json) -> Json:
    method = wire.get("method")
    if not isinstance(method, dict):
        return wire
    shown = {
        name: _masked_method(given) if isinstance(given, dict) else given
        for name, given in method.items()
    }
    return {**wire, "method": shown}


def check_id(value: Any, param: str = "id") -> str:
    """Return an id that can be stored and put into a URL.

    Raises:
        RequestError: the value cannot.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not value.isprintable():
        raise RequestError(
            f"an object must have an `{param}` of 1 to {MAX_ID} characters", param=param
        )
    return value


def _id(wire: Json) -> str:
    return check_id(wire.get("id"))


def _text(wire: Json, name: str) -> str:
    """Return a text field that can be stored; empty if it is missing or not a text."""
    found = wire.get(name)
    if not isinstance(found, str):
        return ""
    return found.encode("utf-8", "replace").decode()


def _number(wire: Json, name: str) -> int:
    """Return a whole number that fits in a column; 0 for anything else."""
    found = wire.get(name)
    fits = isinstance(found, int) and not isinstance(found, bool) and abs(found) < 2**53
    return found if fits and isinstance(found, int) else 0


def _metadata(wire: Json) -> dict[str, str] | None:
    found = wire.get("metadata")
    if not isinstance(found, dict):
        return None
    return {key: value for key, value in found.items() if isinstance(value, str)}
