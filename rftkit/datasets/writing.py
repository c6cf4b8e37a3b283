"""Write dataset files: whole or not at all, and never over a file by accident."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from rftkit.errors import InputError
from rftkit.wholefile import check_output, replacing

__all__ = ["refuse_existing", "sha256", "write_lines"]


def write_lines(path: str | Path, lines: Iterable[bytes]) -> int:
    """Write lines to a new file and return how many there are.

    Raises:
        InputError: The file exists.
    """
    count = 0
    refuse_existing(path)
    with replacing(Path(path)) as file:
        for line in lines:
            file.write(line.rstrip(b"\r\n") + b"\n")
            count += 1
    return count


def refuse_existing(path: str | Path) -> None:
    """Raise InputError when `path` exists, or cannot be written."""
    if os.path.lexists(path):
        raise InputError(f"{path} exists already; give another name, or delete it")
    check_output(path)


def sha256(path: Path) -> str:
    """Hash a file, or the files of a folder one after the other."""
    digest = hashlib.sha256()
    for each in [path] if path.is_file() else sorted(path.iterdir()):
        with each.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
