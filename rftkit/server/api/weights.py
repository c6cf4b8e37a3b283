"""`/rftkit/models/{name}/weights`: a model's files as a tar stream. No hosted service has this.

The files are made in a folder of the server's own choosing and deleted when the stream ends: no
path of a request becomes a path on disk. Not here: what the files are (`server.weights`).
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
from collections.abc import Iterator
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from rftkit import settings
from rftkit.errors import NotFoundError, PlatformError
from rftkit.server.api import Here
from rftkit.server.inference.models import check_model

__all__ = ["router"]

router = APIRouter(prefix="/rftkit/models")

CHUNK_BYTES = 1 << 20


@router.get("/{model:path}/weights")
async def weights(here: Here, model: str, merged: bool = False) -> StreamingResponse:
    """The adapter of a fine-tuned model, or with `merged` a whole model."""
    await asyncio.to_thread(check_model, here, model)
    if here.home is None:
        raise NotFoundError("this platform lives in memory and has no files", param="model")
    (here.home / "exports").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=here.home / "exports"))
    try:
        await _make(here.home, model, folder, merged=merged)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return StreamingResponse(_packed(folder), media_type="application/x-tar")


async def _make(home: Path, model: str, folder: Path, *, merged: bool) -> None:
    command = [sys.executable, "-m", "rftkit.server.worker.export", "--home", str(home)]
    command += ["--model", model, "--out", str(folder), *(["--merged"] if merged else [])]
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
        last = (said.decode(errors="replace").strip().splitlines() or ["no word why"])[-1]
        raise PlatformError(f"the weights of {model} could not be exported: {last}")


def _packed(folder: Path) -> Iterator[bytes]:
    """A tar of a folder's files; the folder is deleted at the end, read or not."""
    reader, writer = os.pipe()

    def write() -> None:
        with (
            contextlib.suppress(BrokenPipeError),  # the client hung up
            os.fdopen(writer, "wb") as pipe,
            tarfile.open(mode="w|", fileobj=pipe) as tar,
        ):
            for path in sorted(folder.iterdir()):
                tar.add(path, arcname=path.name)

    thread = threading.Thread(target=write, name="tar", daemon=True)
    thread.start()
    try:
        with os.fdopen(reader, "rb") as pipe:
            while chunk := pipe.read(CHUNK_BYTES):
                yield chunk
    finally:
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)
