"""`/files`: upload, list, retrieve, delete, content. Rows are checked when a job needs them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse

from rftkit.errors import NotFoundError, RequestError
from rftkit.server.api import PlatformDep, Reply, Router, repeated
from rftkit.server.inference.platform import Platform
from rftkit.server.store import wire
from rftkit.server.store.records import File as FileRecord
from rftkit.server.store.store import now

__all__ = ["MAX_FILE_BYTES", "live_file", "output_lifetime", "router"]

MAX_FILE_BYTES = 512 * 1024 * 1024
PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
EXPIRY_SECONDS = (3_600, 2_592_000)

router = Router()


def live_file(platform: Platform, file_id: str, param: str = "id") -> FileRecord:
    """A file that exists and has not expired.

    Raises:
        NotFoundError: naming `param`.
    """
    try:
        file = platform.store.file(file_id)
    except NotFoundError:
        raise NotFoundError(
            f"No such File object: {file_id}", param=param, code="file_not_found"
        ) from None
    if file.is_expired(now()):
        raise NotFoundError(
            f"File {file_id} ({file.filename}) expired at {file.expires_at}; upload it again",
            param=param,
            code="file_expired",
        )
    return file


@router.post("/files")
def create(
    platform: PlatformDep,
    request: Request,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]")] = None,
) -> Reply:
    """Store an uploaded file."""
    if purpose not in PURPOSES:
        raise RequestError(
            f"`purpose` must be one of {', '.join(PURPOSES)}, found {purpose!r}", param="purpose"
        )
    name = file.filename or "file"
    if purpose == "fine-tune" and not name.lower().endswith(".jsonl"):
        raise RequestError(
            f"a file with purpose fine-tune must be called *.jsonl, found {name!r}", param="file"
        )
    if not file.size:
        raise RequestError(f"the file {name!r} is empty", param="file")
    if file.size > MAX_FILE_BYTES:
        raise RequestError(f"the file {name!r} is larger than 512 MB", param="file")
    life = _lifetime(anchor, seconds)
    expires_at = None if life is None else now() + life
    kept = platform.store.add_file(file.file, name, purpose, expires_at=expires_at)
    same = f"{kept.digest} {purpose} {life} {name}"
    try:
        first = platform.store.once("files", same, lambda: kept.id, **repeated(request))
    except RequestError:  # the key belongs to another request, so nothing is stored
        platform.store.delete_file(kept.id)
        raise
    if first != kept.id:
        platform.store.delete_file(kept.id)
    return Reply(wire.file_object(platform.store.file(first)))


def output_lifetime(seconds: int) -> int:
    """How long the files of a batch are kept, in seconds.

    Raises:
        RequestError: it is too short or too long.
    """
    low, high = EXPIRY_SECONDS
    if not low <= seconds <= high:
        raise RequestError(
            f"`output_expires_after.seconds` must be from {low} to {high}, found {seconds}",
            param="output_expires_after.seconds",
        )
    return seconds


def _lifetime(anchor: str | None, seconds: int | None) -> int | None:
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise RequestError(
            f"`expires_after[anchor]` must be created_at, found {anchor!r}",
            param="expires_after[anchor]",
        )
    low, high = EXPIRY_SECONDS
    if seconds is None or not low <= seconds <= high:
        raise RequestError(
            f"`expires_after[seconds]` must be from {low} to {high}, found {seconds}",
            param="expires_after[seconds]",
        )
    return seconds


@router.get("/files")
def index(
    platform: PlatformDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Reply:
    """List the files that have not expired."""
    files, more = platform.store.files(
        purpose=purpose, after=after, limit=limit, newest_first=order == "desc"
    )
    return Reply(wire.page(map(wire.file_object, files), more))


@router.get("/files/{file_id}")
def retrieve(platform: PlatformDep, file_id: str) -> Reply:
    """Return one file."""
    return Reply(wire.file_object(live_file(platform, file_id)))


@router.delete("/files/{file_id}")
def delete(platform: PlatformDep, file_id: str) -> Reply:
    """Delete a file that no unfinished job uses."""
    live_file(platform, file_id)
    platform.store.delete_file(file_id)
    return Reply(wire.deleted(file_id, "file"))


@router.get("/files/{file_id}/content")
def content(platform: PlatformDep, file_id: str) -> FileResponse:
    """Return a file's bytes."""
    file = live_file(platform, file_id)
    return FileResponse(
        platform.store.file_path(file_id),
        media_type="application/octet-stream",
        filename=file.filename,
    )
