"""`/batches`: create, retrieve, list, cancel. The requests are answered by `api.batch_runner`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request

from rftkit.errors import RequestError
from rftkit.server.api import PlatformDep, Reply, Router, repeated
from rftkit.server.api.batch_lines import MAX_BYTES
from rftkit.server.api.files import live_file, output_lifetime
from rftkit.server.inference.body import Body, Metadata
from rftkit.server.store import wire

__all__ = ["ENDPOINTS", "router"]

router = Router(prefix="/batches")

ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings")


class OutputExpiresAfter(Body):
    """`output_expires_after`."""

    anchor: Literal["created_at"]
    seconds: int


class BatchBody(Body):
    """The body of `POST /batches`."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


@router.post("")
def create(platform: PlatformDep, request: Request, body: BatchBody) -> Reply:
    """Queue a batch. What is wrong with the lines of its file is found by the runner."""
    if body.endpoint not in ENDPOINTS:
        raise RequestError(
            f"Invalid value: '{body.endpoint}'. Supported values are: "
            f"{', '.join(map(repr, ENDPOINTS))}.",
            param="endpoint",
            code="invalid_value",
        )
    file = live_file(platform, body.input_file_id, param="input_file_id")
    if file.purpose != "batch":
        raise RequestError(
            f"Invalid file purpose: {file.id} has '{file.purpose}'. Upload the file with the "
            "purpose 'batch'.",
            param="input_file_id",
            code="invalid_file_purpose",
        )
    if file.bytes > MAX_BYTES:
        raise RequestError(
            f"The input file has {file.bytes:,} bytes; a batch takes at most {MAX_BYTES:,}. "
            "Split it.",
            param="input_file_id",
            code="file_too_large",
        )
    life = body.output_expires_after
    fields: dict[str, Any] = {
        "endpoint": body.endpoint,
        "input_file_id": file.id,
        "completion_window": body.completion_window,
        "metadata": body.metadata,
        "output_expires_after": None if life is None else output_lifetime(life.seconds),
    }
    make = platform.store.add_batch
    batch_id = platform.store.once(
        "batches", body.model_dump_json(), lambda: make(**fields).id, **repeated(request)
    )
    batch = platform.store.batch(batch_id)  # as it was made: a runner that is awake may begin it
    if platform.batches is not None:
        platform.batches.wake()
    return Reply(wire.batch_object(batch))


@router.get("")
def index(
    platform: PlatformDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Reply:
    """List batches, newest first."""
    batches, more = platform.store.batches(after=after, limit=limit)
    return Reply(wire.page(map(wire.batch_object, batches), more))


@router.get("/{batch_id}")
def retrieve(platform: PlatformDep, batch_id: str) -> Reply:
    """Return one batch."""
    return Reply(wire.batch_object(platform.store.batch(batch_id)))


@router.post("/{batch_id}/cancel")
def cancel(platform: PlatformDep, batch_id: str) -> Reply:
    """Cancel a batch; what was answered until then is in its output file."""
    batch = platform.store.cancel_batch(batch_id)
    if platform.batches is not None:
        platform.batches.wake()
    return Reply(wire.batch_object(batch))
