"""`rftkit lab`: the platform and JupyterLab, on copies of the notebooks that belong to the user.

A copy is refreshed from a newer rftkit only while it is, byte for byte, what was copied; what the
user has changed, if only by running and saving it, is never touched. JupyterLab gets two settings
as defaults, which the user's own settings override: widgets are saved with the notebook, and no
news are fetched. Not here: the notebooks, and how the platform starts (`client`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit import settings
from rftkit.bundled import bundled_folder
from rftkit.errors import InputError, PlatformError
from rftkit.privacy import (
    has_other_users,
    kept_api_key,
    make_api_key,
    make_home,
    private_file,
)
from rftkit.wholefile import write_whole

__all__ = ["Copies", "copy_notebooks", "run_lab"]

FIRST = "00_tour.ipynb"
RECORD = ".rftkit-copies.json"
"""In the user's folder: name of a notebook -> hash of what was copied."""
CONFIG_DIR = Path(__file__).parents[1] / "widgets"
"""Holds `labconfig/`, where JupyterLab looks for default settings."""
START_SECONDS = 180.0
STOP_SECONDS = 20.0
AWAKE_SECONDS = 600.0
"""How often the platform hears from an open lab, well within its idle hour."""


@dataclass(frozen=True, slots=True)
class Copies:
    """What became of each notebook, by name."""

    new: tuple[str, ...]
    refreshed: tuple[str, ...]
    """Untouched copies of an older version."""
    kept: tuple[str, ...]
    """Changed by the user, while there is a newer version."""

    def __str__(self) -> str:
        counts = {"new": self.new, "refreshed": self.refreshed}
        words = [f"{len(names)} {word}" for word, names in counts.items() if names]
        if self.kept:
            words.append(
                f"yours kept although there is a newer one: {', '.join(self.kept)} "
                "(rename it, and the next start brings the new one)"
            )
        return "; ".join(words)


def copy_notebooks(folder: Path, source: Path | None = None) -> Copies:
    """Bring the user's copies up to date, without ever overwriting work.

    Raises:
        NotFoundError: rftkit was installed without its notebooks.
        InputError: `folder` cannot be written.
    """
    source = source or bundled_folder("notebooks")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _copy(folder, source)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}; name another folder") from error


def run_lab(folder: Path, options: Sequence[str] = ()) -> int:
    """Run JupyterLab until it ends or is interrupted; return its exit status.

    The platform is started with it and ends with it, unless it ran before or a job still trains.
    `options` are handed to JupyterLab.
    """
    from rftkit.client import connect, serve_status

    copies = copy_notebooks(folder)
    server = serve_status()
    ran_before = settings.remote()[0] is not None or server is not None
    if has_other_users() and settings.server_api_key() is None:
        _ask_for_a_key(is_running=server is not None)
    client = connect()
    with _jupyterlab(folder, options) as lab:
        print(f"JupyterLab   {_address(lab, folder)}")
        print(f"platform     {client.base_url}")
        print(f"notebooks    {folder.resolve()}  {copies}".rstrip())
        print(f"log          {_log_path()}")
        print("Ctrl-C stops JupyterLab and the platform; a running job goes on.", flush=True)
        status = _wait(lab)
    if not ran_before:
        _stop_platform(client)
    return status


def _copy(folder: Path, source: Path) -> Copies:
    record_path = folder / RECORD
    try:
        record: dict[str, str] = json.loads(record_path.read_text())
    except (OSError, ValueError):
        record = {}
    done: dict[str, list[str]] = {"new": [], "refreshed": [], "kept": []}
    for original in sorted(source.glob("*.ipynb")):
        name, newest = original.name, _hash(original)
        copy = folder / name
        there = _hash(copy) if copy.exists() else None
        if there == newest:
            record[name] = newest
        elif there is not None and there != record.get(name):
            if newest != record.get(name):
                done["kept"].append(name)
        else:
            write_whole(copy, original.read_bytes())
            record[name] = newest
            done["new" if there is None else "refreshed"].append(name)
    write_whole(record_path, json.dumps(record, indent=1).encode())
    return Copies(**{word: tuple(names) for word, names in done.items()})


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _jupyterlab(folder: Path, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """JupyterLab in a session of its own, so that Ctrl-C reaches it once, as a request to end."""
    command = [sys.executable, "-m", "jupyterlab", str(folder.resolve())]
    if (folder / FIRST).exists():
        command.append(f"--LabApp.default_url=/lab/tree/{FIRST}")
    environment = settings.lab_environment(CONFIG_DIR, token=secrets.token_hex(24))
    make_home(settings.home())
    with os.fdopen(private_file(_log_path()), "wb") as log:
        lab = subprocess.Popen(
            [*command, *options], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.signal(each, lambda *_: lab.terminate()) for each in ends}
    try:
        yield lab
    finally:
        lab.terminate()
        try:
            lab.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            lab.kill()
            lab.wait()
        for each, handler in before.items():
            signal.signal(each, handler)


def _ask_for_a_key(*, is_running: bool) -> None:
    """Give the home a key, which `connect()` finds there; other users cannot read it."""
    if is_running and kept_api_key(settings.home()) is None:
        print(
            "The platform runs without a key, so other users of this machine can use it. Type "
            "`rftkit serve --stop`, then start `rftkit lab` again: it sets a key."
        )
    else:
        make_api_key(settings.home())


def _log_path() -> Path:
    return settings.home() / "logs" / "jupyterlab.log"


def _address(lab: subprocess.Popen[bytes], folder: Path) -> str:
    """Where this JupyterLab listens, token and all, from the record it writes when it does."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (server := _record_of(lab.pid)) is not None:
            place = f"lab/tree/{FIRST}" if (folder / FIRST).exists() else "lab"
            token = f"?token={server['token']}" if server.get("token") else ""
            return f"{server['url']}{place}{token}"
        if lab.poll() is not None:
            said = "\n".join(_log_path().read_text(errors="replace").splitlines()[-12:])
            raise PlatformError(
                f"JupyterLab ended with status {lab.returncode} before it answered; "
                f"{_log_path()} says:\n{said}"
            )
        time.sleep(0.1)
    raise PlatformError(f"JupyterLab did not answer within {START_SECONDS:.0f} seconds")


def _record_of(pid: int) -> dict[str, Any] | None:
    from jupyter_core.paths import jupyter_runtime_dir

    try:
        text = (Path(jupyter_runtime_dir()) / f"jpserver-{pid}.json").read_text()
        record: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return None
    return record


def _wait(lab: subprocess.Popen[bytes]) -> int:
    """Until it ends. An open lab keeps the platform awake."""
    from rftkit.client import connect

    while True:
        try:
            return lab.wait(AWAKE_SECONDS)
        except subprocess.TimeoutExpired:
            if not settings.remote()[0]:
                connect().models.list()


def _stop_platform(client: Any) -> None:
    from rftkit.client import stop_server
    from rftkit.jobs import TERMINAL

    going = [job.id for job in client.fine_tuning.jobs.list(limit=20) if job.status not in TERMINAL]
    if going:
        print(f"the platform goes on with {going[0]}; stop it with: rftkit serve --stop")
    else:
        stop_server()
