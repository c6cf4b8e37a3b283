"""Deleted files and weights, kept for a while in `HOME/trash` in case somebody wants them back.

An entry is named by the time of its deletion and its old name. It goes for good after a week, or at
once where the disk has little room: then whoever deletes wants the space. Not here: what may be
deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

__all__ = ["discard", "empty_trash"]

KEPT_SECONDS = 7 * 86_400
LEAST_FREE_BYTES = 2 << 30
"""With less room than this on the disk nothing is kept."""


def discard(path: Path, trash: Path) -> None:
    """Move a file or folder to the trash; one that is not there is no error.

    Only what is inside the home is touched: a record may hold an empty path (an imported model has
    no weights here), which would mean the current folder, or a path into somebody else's.
    """
    home = trash.parent.resolve()
    if path == Path() or home not in path.resolve().parents:
        return
    with contextlib.suppress(OSError):
        trash.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(trash).free >= LEAST_FREE_BYTES:
            os.replace(path, trash / f"{time.time_ns()}-{path.parent.name}-{path.name}")
            return
    _remove(path)


def empty_trash(trash: Path) -> None:
    """Remove what was deleted long ago, or all of it where the disk has little room."""
    with contextlib.suppress(OSError):
        is_tight = shutil.disk_usage(trash).free < LEAST_FREE_BYTES
        oldest = time.time_ns() - KEPT_SECONDS * 10**9
        for entry in trash.iterdir():
            moment = entry.name.partition("-")[0]
            if moment.isdigit() and (is_tight or int(moment) < oldest):
                _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
