"""Files and folders that appear whole or not at all: written under a temporary name, then renamed.

A reader finds the old file or the new one, never half; after a crash too. A folder has the digests
of its files, so that damage is found later. Not here: files that grow (the journals append).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from rftkit.errors import InputError, PlatformError
from rftkit.jsontext import parse_json

__all__ = [
    "check_output", "damage", "has_no_room", "is_full", "replacing", "sha256", "sync",
    "temporary_problem", "unwritable", "write_folder", "write_whole",
]  # fmt: skip

SUMS = "sha256.json"
"""The file in each folder written as a whole: file name → digest."""
SYSTEM = ("/dev/", "/proc/", "/sys/")
"""Folders whose entries are no files, whatever they look like."""
LEAST_BYTES = 1 << 20
"""If a disk has less space than this, it counts as full whatever error a library reports."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file atomically; if that fails, the old contents stay."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_output(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> Path:
    """Check before any work that a command can write here: a file, and not one of its inputs.

    Symbolic links, hard links and names that the file system takes for the same are seen through.
    Of a folder among the inputs no file may be replaced.

    Raises:
        InputError: it is one of `inputs` or in one, or it cannot be written.
    """
    target = Path(path).expanduser()
    _check_name(target)
    _check_kind(target)
    for given in inputs:
        if given is not None and _is_same(target, Path(given).expanduser()):
            raise InputError(
                f"{target} is what is read here, and writing would destroy it; name another file"
            )
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the path of a file")
    if not folder.is_dir():
        raise InputError(f"the folder of {target} cannot be made: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{target} cannot be written: no permission to write in {folder}")
    return target


def _check_kind(target: Path) -> None:
    """Refuse what is not a user's file: renaming a draft over `/dev/null` would remove the device.

    Raises:
        InputError: it is a device, a pipe or a socket, or in a folder of the system.
    """
    place = os.path.abspath(target)
    is_of_system = place.startswith(SYSTEM) and not place.startswith("/dev/shm/")
    if is_of_system or (target.exists() and not (target.is_file() or target.is_dir())):
        raise InputError(
            f"{target} is a device or a pipe, not a file that can be replaced; give the path of a "
            "file"
        )


def _check_name(target: Path) -> None:
    try:
        target.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            length = len(os.fsencode(target.name))
            raise InputError(
                f"the name {target.name[:40]}… is too long for a file ({length} bytes; most disks "
                "allow 255): give a shorter one with --out"
            ) from None


def _is_same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        if one.samefile(other):
            return True
    place, given = os.path.realpath(one), os.path.realpath(other)
    is_within = os.path.isdir(given) and place.startswith(os.path.join(given, ""))
    return place == given or (is_within and os.path.lexists(place))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when all went well; makes its folder.

    Raises:
        InputError: `path` is a device, a pipe or a socket.
    """
    _check_kind(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the draft's name is not longer: a name may be as long as the disk allows
    draft = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.part")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if os.name != "posix" and path.is_dir():
        return  # such a folder cannot be opened
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_folder(
    target: Path, save: Callable[[Path], None], scratch_prefix: str = ".writing-"
) -> None:
    """Put a folder in its place when `save` has filled it, with the digests of its files."""
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=scratch_prefix))
    try:
        save(scratch)
        sums = {path.name: sha256(path) for path in sorted(scratch.iterdir()) if path.is_file()}
        (scratch / SUMS).write_text(json.dumps(sums))
        for path in scratch.iterdir():
            sync(path)
        sync(scratch)
        os.replace(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync(target.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_folder` made, or None."""
    if folder.is_dir() and not (folder / SUMS).is_file():
        # a version without digests may have written it
        return None if any(folder.iterdir()) else f"{folder} is empty"
    try:
        sums = parse_json((folder / SUMS).read_bytes())
        for name, digest in sums.items():
            if sha256(folder / name) != digest:
                return f"{folder / name} does not have the bytes that were written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder} cannot be read ({error})"
    return None


def sha256(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_full(error: BaseException | None) -> bool:
    """Whether an error was caused by a full disk, however it was wrapped."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(error)
        if any(words in text for words in ("No space left", "disk is full", "os error 28")):
            return True
        error = error.__cause__ or error.__context__
    return False


def temporary_problem(error: BaseException | None) -> str | None:
    """Name a temporary problem of this machine and what it interrupted; None for other errors."""
    if is_full(error):
        return "The disk is full"
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return "The platform has too many open files"
        if isinstance(error, sqlite3.OperationalError) and any(
            words in str(error) for words in ("locked", "unable to open", "disk I/O")
        ):
            return "The database is temporarily unavailable"
        error = error.__cause__ or error.__context__
    return None


def unwritable(home: Path, error: BaseException) -> PlatformError:
    """Why a home folder cannot be used, and what to do about it."""
    reason = getattr(error, "strerror", None) or error
    if is_full(error) or has_no_room(home):
        return PlatformError(
            f"the disk that holds the home folder {home} is full ({reason}); free some space and "
            "start again. Nothing that was stored is lost"
        )
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return PlatformError(
            f"too many files are open to use the home folder {home} ({reason}); raise the limit "
            "with `ulimit -n 4096` and start again"
        )
    return PlatformError(
        f"the home folder {home} cannot be written ({reason}); set RFTKIT_HOME to a folder you own"
    )


def has_no_room(folder: Path) -> bool:
    """Whether the disk of a folder, which need not exist yet, is full."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        return usage.total > 0 and usage.free < LEAST_BYTES  # /proc has no disk that could be full
    return False
