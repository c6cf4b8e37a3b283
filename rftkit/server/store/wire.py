"""Wire objects: pages, objects and errors exactly as the OpenAI SDK expects them.

These are pure functions from records to JSON-ready dicts. The shapes come from the public API
reference and from responses of the hosted service. One differs on purpose: `error` is null until a
job fails. The hosted service sends `{}`, which clients mistake for an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from rftkit.graders import mask_secrets
from rftkit.server.store.records import (
    Batch,
    Checkpoint,
    Eval,
    EvalRun,
    Event,
    File,
    Importable,
    Job,
    Model,
    OutputItem,
    Permission,
)
from rftkit.tools import mask_tools

__all__ = [
    "ORGANIZATION",
    "checkpoint_object",
    "deleted",
    "error_body",
    "eval_object",
    "event_object",
    "file_object",
    "item_object",
    "job_object",
    "model_object",
    "page",
    "permission_object",
    "run_object",
    "tuned_model_object",
]

ORGANIZATION = "org-local"

Json = dict[str, Any]
R = TypeVar("R", bound=Importable)

SAMPLE_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "output_text": {"type": "string"},
        "output_json": {"type": "object"},
        "output_tools": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["model", "choices"],
}
"""Schema of the fields under `sample` that templates of testing criteria may read."""


def error_body(
    message: str,
    *,
    type: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> Json:
    """Return the error body that every route uses."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def page(objects: Iterable[Json], has_more: bool) -> Json:
    """Return a cursor page; the next page starts `after` its `last_id`."""
    data = list(objects)
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def deleted(object_id: str, kind: str) -> Json:
    """Return the response to a delete."""
    return {"id": object_id, "object": kind, "deleted": True}


def _or_imported(make: Callable[[R], Json]) -> Callable[[R], Json]:
    """Return an imported record as its service returned it, with its origin in `imported_from`."""

    @functools.wraps(make)
    def shape(record: R) -> Json:
        if record.wire is None:
            return make(record)
        return {**record.wire, "imported_from": record.origin}

    return shape


@_or_imported
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


def batch_object(batch: Batch) -> Json:
    """`batch`."""
    moments = (
        "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled",
    )  # fmt: skip
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": None if batch.errors is None else {"object": "list", "data": batch.errors},
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        **{f"{each}_at": batch.moments.get(f"{each}_at") for each in moments},
        "request_counts": batch.request_counts,
        "usage": batch.usage,
        "metadata": batch.metadata,
    }


@_or_imported
def job_object(job: Job) -> Json:
    """`fine_tuning.job`; `hyperparameters` is absent for reinforcement jobs, null for dpo."""
    return {
        **job.extra,
        **_old_hyperparameters(job),
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
        "validation_file": job.validation_file or None,
        "result_files": job.result_files,
        "trained_tokens": job.trained_tokens,
        "seed": job.seed,
        "error": job.error,
        "integrations": job.integrations,
        "metadata": job.metadata,
        "method": _method(job.method),
        **_measured_by(job),
        "user_provided_suffix": job.suffix,
        "usage_metrics": job.usage_metrics,
        "shared_with_openai": False,
        "eval_id": job.eval_id,
    }


@_or_imported
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


@_or_imported
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


@_or_imported
def tuned_model_object(model: Model) -> Json:
    """`model`, for a model that was fine-tuned here."""
    return model_object(model.name, model.created_at, ORGANIZATION)


def _old_hyperparameters(job: Job) -> Json:
    """Hyperparameters in the place where they were before methods existed: still used for
    supervised jobs.
    """
    if job.method_type == "reinforcement":
        return {}
    return {"hyperparameters": job.hyperparameters if job.method_type == "supervised" else None}


def _measured_by(job: Job) -> Json:
    """An addition of rftkit: the grader and response format that measure a job which does not learn
    from them.
    """
    given = job.method.get("measure")
    return {"measured_by": {**given, "grader": mask_secrets(given["grader"])}} if given else {}


def _method(method: Json) -> Json:
    shown = {name: value for name, value in method.items() if name not in ("measure", "held_out")}
    if (given := method.get("reinforcement")) is not None:
        shown["reinforcement"] = {**given, "grader": mask_secrets(given["grader"])}
        if given.get("tools"):
            shown["reinforcement"]["tools"] = mask_tools(given["tools"])
    return shown


@_or_imported
def eval_object(record: Eval) -> Json:
    """`eval`; its config shows the combined schema of items and samples."""
    config = record.data_source_config
    properties: Json = {"item": config.get("item_schema", {"type": "object"})}
    if config.get("include_sample_schema"):
        properties["sample"] = SAMPLE_SCHEMA
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        **record.extra,
        "id": record.id,
        "object": "eval",
        "created_at": record.created_at,
        "name": record.name,
        "metadata": record.metadata,
        "data_source_config": {
            "type": config["type"],
            "schema": schema,
            **({} if config["type"] == "custom" else {"metadata": config.get("metadata")}),
        },
        "testing_criteria": [mask_secrets(spec) for spec in record.testing_criteria],
    }


@_or_imported
def run_object(run: EvalRun) -> Json:
    """`eval.run`; the routes make `report_url` absolute, as a client reaches it."""
    return {
        **run.extra,
        "id": run.id,
        "object": "eval.run",
        "eval_id": run.eval_id,
        "report_url": f"/v1/evals/{run.eval_id}/runs/{run.id}/report",
        "status": run.status,
        "model": run.model,
        "name": run.name,
        "created_at": run.created_at,
        "result_counts": run.result_counts,
        "per_model_usage": run.per_model_usage,
        "per_testing_criteria_results": run.per_testing_criteria_results,
        "data_source": _data_source(run.data_source),
        "metadata": run.metadata,
        "error": run.error,
        "shared_with_openai": False,
    }


def _data_source(source: Json) -> Json:
    """The data source without the secrets of tool servers."""
    sampling = source.get("sampling_params") or {}
    if not sampling.get("tools"):
        return source
    return {**source, "sampling_params": {**sampling, "tools": mask_tools(sampling["tools"])}}


@_or_imported
def item_object(item: OutputItem) -> Json:
    """`eval.run.output_item`."""
    return {
        "id": item.id,
        "object": "eval.run.output_item",
        "run_id": item.run_id,
        "eval_id": item.eval_id,
        "created_at": item.created_at,
        "status": item.status,
        "datasource_item_id": item.datasource_item_id,
        "datasource_item": item.datasource_item,
        "results": item.results,
        "sample": item.sample,
    }


def permission_object(permission: Permission) -> Json:
    """`checkpoint.permission`."""
    return {
        "id": permission.id,
        "object": "checkpoint.permission",
        "created_at": permission.created_at,
        "project_id": permission.project_id,
    }
