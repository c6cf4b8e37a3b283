"""`/rftkit/imports`: store objects of other services; a route that only this platform has.

A client asks what is `known`, sends the `content` of files, and then lines of JSON: the parts of an
object first, the object last (`rftkit.server.store.imports` says why). Handlers run in threads and
bodies have a few megabytes, so other requests are served in between. The client reads the dumps.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Annotated, Any

from fastapi import Depends, File, Query, Request, UploadFile

from rftkit import settings
from rftkit.errors import RequestError
from rftkit.server.api import PlatformDep, Reply, Router
from rftkit.server.inference.body import Body
from rftkit.server.inference.platform import Platform
from rftkit.server.store.imported_records import check_id, parse
from rftkit.server.store.imports import KINDS, PARTS

__all__ = ["router"]

router = Router(prefix="/rftkit/imports")

Json = dict[str, Any]
SHA256 = re.compile("[0-9a-f]{64}")
Origin = Annotated[str, Query(min_length=1, max_length=500)]


async def _lines(request: Request) -> list[bytes]:
    return [line for line in (await request.body()).split(b"\n") if line.strip()]


class KnownBody(Body):
    """The body of `POST /rftkit/imports/known`: ids by kind."""

    file: list[str] = []
    job: list[str] = []
    eval: list[str] = []
    run: list[str] = []


@router.get("")
def about() -> Reply:
    """Return the settings that decide whether imported graders can run here."""
    return Reply({"object": "rftkit.imports", "judge_base_url": settings.judge().base_url})


@router.post("/known")
def known(platform: PlatformDep, body: KnownBody) -> Reply:
    """Return which of these ids exist here, their origin, and the digest of their content."""
    found: Json = {}
    for kind in KINDS:
        ids = {each: platform.store.imports.known(kind, each) for each in getattr(body, kind)}
        found[kind] = {
            each: {"origin": is_.origin, "digest": is_.digest, "is_final": is_.is_final}
            for each, is_ in ids.items()
            if is_ is not None
        }
    return Reply(found)


@router.post("/content")
def content(platform: PlatformDep, file: Annotated[UploadFile, File()]) -> Reply:
    """Store the bytes of a file; the line that lists the file must follow."""
    return Reply({"content": platform.store.add_blob(file.file, file.filename or "file")})


@router.post("")
def create(
    platform: PlatformDep, origin: Origin, lines: Annotated[list[bytes], Depends(_lines)]
) -> Reply:
    """Take in lines: `{kind, parent, object}` for parts, `{kind, object, digest, …}` for objects,
    and `{kind, object}` for what a list of models says of one that an imported job made.

    Answers with what was refused and why; everything else is kept.
    """
    refused: list[Json] = []
    parsed = [parse(line) for line in lines]
    for (kind, parent), group in groupby(
        parsed, lambda line: (line.get("kind"), line.get("parent"))
    ):
        if isinstance(kind, str) and kind in PARTS:
            check_id(parent, "parent")
            try:
                wires = [_object(line) for line in group]
                platform.store.imports.add_parts(kind, parent, wires, origin)
            except RequestError as error:
                reason = f"one of its parts cannot be used: {error.message}"
                refused.append({"kind": PARTS[kind], "id": parent, "reason": reason})
            continue
        for line in group:
            try:
                _put(platform, line, origin)
            except RequestError as error:
                refusal = {"kind": kind, "id": _object(line).get("id"), "reason": error.message}
                refused.append(refusal)
    return Reply({"object": "rftkit.import", "refused": refused})


def _put(platform: Platform, line: Json, origin: str) -> None:
    wire, kind, imports = _object(line), line.get("kind"), platform.store.imports
    if kind == "model":
        imports.put_model(wire, origin)
        return
    digest, is_final = _digest(line), line.get("is_final") is True
    match kind:
        case "file":
            blob = _digest(line, "content")
            size = platform.store.blob_size(blob)
            if size is None:
                raise RequestError("its content was not sent")
            imports.put_file(wire, origin, digest, blob, size)
        case "eval":
            imports.put_eval(wire, origin, digest)
        case "job":
            kept = line.get("checkpoints") or []
            if not isinstance(kept, list) or not all(isinstance(each, dict) for each in kept):
                raise RequestError("its checkpoints are not objects")
            imports.put_job(wire, origin, digest, _count(line), kept, is_final=is_final)
        case "run":
            imports.put_run(wire, origin, digest, _count(line), is_final=is_final)
        case _:
            raise RequestError(
                f"`kind` must be one of {', '.join((*KINDS, *PARTS, 'model'))}, found {kind!r}"
            )


def _object(line: Json) -> Json:
    wire = line.get("object")
    if not isinstance(wire, dict):
        raise RequestError("`object` must be an object", param="object")
    return wire


def _digest(line: Json, name: str = "digest") -> str:
    digest = line.get(name)
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise RequestError(f"`{name}` must be 64 hexadecimal digits", param=name)
    return digest


def _count(line: Json) -> int:
    number = line.get("num_parts")
    if not isinstance(number, int) or isinstance(number, bool):
        raise RequestError("`num_parts` must be a number", param="num_parts")
    return number
