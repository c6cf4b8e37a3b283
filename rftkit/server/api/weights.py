"""`/rftkit/models/{name}/weights`: a model's files as a tar stream. No hosted service has this.

The files are made in a folder of the server's own choosing and deleted when the stream ends: no
path of a request becomes a path on disk. Not here: what the files are, and the check that they are
the model (`worker.exports`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from rftkit import settings
from rftkit.errors import NotFoundError, PlatformError
from rftkit.server.api import PlatformDep, Reply, Router
from rftkit.server.inference.models import check_model
from rftkit.server.store import wire

__all__ = ["router"]

router = Router(prefix="/rftkit/models")

CHUNK_BYTES = 1 << 20
HANG_UP_SECONDS = 0.5
"""How often the server checks whether a waiting client has disconnected."""
ROWS, MAX_ROWS = 16, 10_000
"""The default and the largest number of rows that an export is checked on."""


FormatName = Literal["peft", "merged", "gguf"]


@router.post("/{model:path}/weights")
async def weights(
    platform: PlatformDep,
    request: Request,
    model: str,
    merged: bool = False,
    format: FormatName | None = None,
    quantize: Annotated[str | None, Query(max_length=40)] = None,
    rows: Annotated[int, Query(ge=0, le=MAX_ROWS)] = ROWS,
) -> Response:
    """The adapter of a fine-tuned model, a whole model, or a GGUF file. One at a time.

    `merged` is the older spelling of `format=merged`. `rows` of the job's rows are answered by what
    was written and compared; 0 leaves the check out. A POST, because it starts a process and fills
    a folder: no link and no picture does that.
    """
    form = format or ("merged" if merged else "peft")
    wanted = [
        "--format",
        form,
        "--rows",
        str(rows),
        *([f"--quantize={quantize.lower()}"] if quantize else []),
    ]
    await asyncio.to_thread(check_model, platform, model)
    if platform.home is None:
        raise NotFoundError(
            "this platform keeps everything in memory, so it has no files to export", param="model"
        )
    if platform.exporting.locked():
        return _busy()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(platform.exporting)
        (platform.home / "exports").mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=platform.home / "exports"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if not await _make_for(request, platform.home, model, folder, wanted):
            return Response(status_code=499)  # the client has disconnected
        return _Export(_packed(folder), stack.pop_all())
    raise AssertionError("unreachable")


def _busy() -> Reply:
    message = "another export is running; this platform runs one at a time, so try again later"
    body = wire.error_body(message, type="rate_limit_error", code="export_under_way")
    return Reply(body, status_code=429, headers={"retry-after": "10"})


class _Export(StreamingResponse):
    """A stream that tidies up when it ends, and when the client hangs up."""

    def __init__(self, chunks: Iterator[bytes], after: contextlib.AsyncExitStack) -> None:
        super().__init__(chunks, media_type="application/x-tar")
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(self._after.aclose())


async def _make_for(
    request: Request, home: Path, model: str, folder: Path, wanted: Sequence[str]
) -> bool:
    """Make the files unless the client hangs up first; whether they are made."""
    making = asyncio.create_task(_make(home, model, folder, wanted))
    while not making.done():
        await asyncio.wait([making], timeout=HANG_UP_SECONDS)
        if not making.done() and await request.is_disconnected():
            making.cancel()
            await asyncio.wait([making])
            return False
    await making
    return True


async def _make(home: Path, model: str, folder: Path, wanted: Sequence[str]) -> None:
    command = [sys.executable, "-m", "rftkit.server.worker.exports", "--home", str(home)]
    command += ["--model", model, "--out", str(folder), *wanted]
    process = await asyncio.create_subprocess_exec(
        *command,
        env=settings.child_environment(),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        last = (said.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise PlatformError(f"cannot export the weights of {model}: {last}")


def _packed(folder: Path) -> Iterator[bytes]:
    """A tar of a folder's files."""
    reader, writer = os.pipe()

    def write() -> None:
        with (
            contextlib.suppress(OSError),  # the client hung up, and the folder may be gone
            os.fdopen(writer, "wb") as pipe,
            tarfile.open(mode="w|", fileobj=pipe) as tar,
        ):
            for path in sorted(folder.iterdir()):
                tar.add(path, arcname=path.name)

    threading.Thread(target=write, name="tar", daemon=True).start()
    with os.fdopen(reader, "rb") as pipe:
        while chunk := pipe.read(CHUNK_BYTES):
            yield chunk
