"""The trash: deleted files and weights stay in `HOME/trash` for a week and can be restored.

The name of an entry is the time of its deletion and its old name. On a nearly full disk entries are
deleted at once, because the user wants the space. The callers decide what may be deleted.
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
"""If the disk has less free space than this, the trash keeps nothing."""


def discard(path: Path, trash: Path) -> None:
    """Move a file or folder to the trash; a missing one is no error.

    Paths outside the home are left alone. A record may have an empty path, which would mean the
    current folder (an imported model has no weights here), or a path into another folder.
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
    """Remove entries older than a week, or all entries if the disk is nearly full."""
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
