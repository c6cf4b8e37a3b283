"""What goes over the wire: ids, pages, objects and errors exactly as the OpenAI SDK expects them.

Pure functions from records to JSON-ready dicts; no request, no store. Shapes: the public API
reference and what its live answers showed (`error` is null until a job failed, although the
hosted service sends `{}`, which clients mistake for an error).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rftkit.server.records import Checkpoint, Event, File, Job, Model

__all__ = [
    "ORGANIZATION",
    "checkpoint_object",
    "deleted",
    "error_body",
    "event_object",
    "file_object",
    "job_object",
    "masked",
    "model_object",
    "page",
]

ORGANIZATION = "org-local"

Json = dict[str, Any]


def error_body(
    message: str,
    *,
    type: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> Json:
    """The one error shape of the API."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def page(objects: Iterable[Json], has_more: bool) -> Json:
    """A cursor page; the next one starts `after` its `last_id`."""
    data = list(objects)
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def deleted(object_id: str, kind: str) -> Json:
    """The answer to a delete."""
    return {"id": object_id, "object": kind, "deleted": True}


def file_object(file: File) -> Json:
    """`file`."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def job_object(job: Job) -> Json:
    """`fine_tuning.job`; `hyperparameters` is absent, as for every reinforcement job."""
    return {
        **job.extra,
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "estimated_finish": job.estimated_finish,
        "status": job.status,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": ORGANIZATION,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": job.result_files,
        "trained_tokens": job.trained_tokens,
        "seed": job.seed,
        "error": job.error,
        "integrations": [],
        "metadata": job.metadata,
        "method": masked(job.method),
        "user_provided_suffix": job.suffix,
        "usage_metrics": job.usage_metrics,
        "shared_with_openai": False,
        "eval_id": job.eval_id,
    }


def event_object(event: Event) -> Json:
    """`fine_tuning.job.event`."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_object(checkpoint: Checkpoint) -> Json:
    """`fine_tuning.job.checkpoint`."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.model_name,
        "fine_tuning_job_id": checkpoint.job_id,
        "step_number": checkpoint.step,
        "metrics": {"step": checkpoint.step, **checkpoint.metrics},
    }


def model_object(name: str, created: int, owned_by: str) -> Json:
    """`model`."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owned_by,
        "shutdown_date": None,
    }


def tuned_model_object(model: Model) -> Json:
    """`model`, for one that was made here."""
    return model_object(model.name, model.created_at, ORGANIZATION)


def masked(value: Any) -> Any:
    """A copy in which the headers of endpoint graders and tool servers are asterisks."""
    if isinstance(value, dict):
        speaks_http = value.get("type") == "endpoint" or "server_url" in value
        return {
            key: dict.fromkeys(inner, "********")
            if speaks_http and key == "headers" and isinstance(inner, dict)
            else masked(inner)
            for key, inner in value.items()
        }
    return [masked(inner) for inner in value] if isinstance(value, list) else value
