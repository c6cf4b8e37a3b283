"""`rftkit lab`: start the platform and JupyterLab with the user's own copies of the notebooks.

A newer rftkit replaces a copy only if the user has not changed it, not even by running and saving
it. JupyterLab gets two default settings, which the user's own settings override: it saves widgets
with the notebook, and it fetches no news. `client` starts the platform.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rftkit import settings
from rftkit.bundled import bundled_folder
from rftkit.errors import InputError, PlatformError
from rftkit.jsontext import parse_json
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
"""A file in the user's folder that maps the name of each notebook to the hash of the content that
was copied. Earlier versions wrote the hash of the file."""
CONFIG_DIR = Path(__file__).parents[1] / "widgets"
"""Holds `labconfig/`, where JupyterLab looks for default settings, and the server's configuration:
a notebook is printed and exported with the static copy of a panel, because a live one is drawn by
scripts that come from the network."""
START_SECONDS = 180.0
STOP_SECONDS = 20.0
AWAKE_SECONDS = 600.0
"""How often an open lab sends a request, so that the platform does not stop as idle."""


@dataclass(frozen=True, slots=True)
class Copies:
    """What happened to each notebook, by name."""

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
                f"not updated, because you changed them: {', '.join(self.kept)} "
                "(rename yours, and the next start copies the new version)"
            )
        return "; ".join(words)


def copy_notebooks(folder: Path, source: Path | None = None) -> Copies:
    """Update the user's copies, but never one that the user has changed.

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

    It starts the platform and stops it at the end, unless it ran before or a job is still
    training. A paused job waits in the home, and needs no platform. `options` are passed to
    JupyterLab.
    """
    from rftkit.client import connect, serve_status

    copies = copy_notebooks(folder)
    server = serve_status()
    ran_before = settings.remote()[0] is not None or server is not None
    if has_other_users() and settings.server_api_key() is None:
        _require_api_key(is_running=server is not None)
    client = connect()
    with _jupyterlab(folder, options) as lab:
        print(f"JupyterLab   {_address(lab, folder)}")
        print(f"platform     {client.base_url}")
        print(f"notebooks    {folder.resolve()}  {copies}".rstrip())
        print(f"log          {_log_path()}")
        print("Ctrl-C stops JupyterLab and the platform; a running job continues.", flush=True)
        status = _wait(lab)
    if not ran_before:
        _stop_platform(client)
    return status


def _copy(folder: Path, source: Path) -> Copies:
    record_path = folder / RECORD
    try:
        record: dict[str, str] = parse_json(record_path.read_text())
    except (OSError, ValueError):
        record = {}
    done: dict[str, list[str]] = {"new": [], "refreshed": [], "kept": []}
    for original in sorted(source.glob("*.ipynb")):
        name, newest = original.name, _content(original)
        copy = folder / name
        there = _content(copy) if copy.exists() else None
        known = record.get(name)
        if there == newest:
            record[name] = newest
        elif there is not None and known not in (there, _hash(copy)):
            if known not in (newest, _hash(original)):
                done["kept"].append(name)
        else:
            write_whole(copy, original.read_bytes())
            record[name] = newest
            done["new" if there is None else "refreshed"].append(name)
    write_whole(record_path, json.dumps(record, indent=1).encode())
    return Copies(**{word: tuple(names) for word, names in done.items()})


def _content(path: Path) -> str:
    """The hash of what a person reads in a notebook: sources and outputs.

    JupyterLab writes metadata of its own when it saves a notebook that was only opened.
    """
    try:
        cells = parse_json(path.read_bytes())["cells"]
        read = [[c["cell_type"], "".join(c["source"]), c.get("outputs") or []] for c in cells]
    except (ValueError, KeyError, TypeError):
        return _hash(path)
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _jupyterlab(folder: Path, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run JupyterLab in its own session, so that Ctrl-C reaches it once, as a request to end."""
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


def _require_api_key(*, is_running: bool) -> None:
    """Create an API key in the home folder, where `connect()` finds it and other users do not."""
    if is_running and kept_api_key(settings.home()) is None:
        print(
            "The platform runs without an API key, so other users of this machine can use it. Type "
            "`rftkit serve --stop`, then start `rftkit lab` again, which sets a key."
        )
    else:
        make_api_key(settings.home())


def _log_path() -> Path:
    return settings.home() / "logs" / "jupyterlab.log"


def _address(lab: subprocess.Popen[bytes], folder: Path) -> str:
    """The URL of this JupyterLab with its token.

    JupyterLab writes a record of both a moment before it listens.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (server := _record_of(lab.pid)) is not None and _listens(server["url"]):
            place = f"lab/tree/{FIRST}" if (folder / FIRST).exists() else "lab"
            token = f"?token={server['token']}" if server.get("token") else ""
            return f"{server['url']}{place}{token}"
        if lab.poll() is not None:
            log_end = "\n".join(_log_path().read_text(errors="replace").splitlines()[-12:])
            raise PlatformError(
                f"JupyterLab ended with status {lab.returncode} before it answered; "
                f"{_log_path()} ends with:\n{log_end}"
            )
        time.sleep(0.1)
    raise PlatformError(f"JupyterLab did not answer within {START_SECONDS:.0f} seconds")


def _record_of(pid: int) -> dict[str, Any] | None:
    from jupyter_core.paths import jupyter_runtime_dir

    try:
        text = (Path(jupyter_runtime_dir()) / f"jpserver-{pid}.json").read_text()
        record: dict[str, Any] = parse_json(text)
    except (OSError, ValueError):
        return None
    return record


def _listens(url: str) -> bool:
    """Whether something takes connections there."""
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname, place.port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait(lab: subprocess.Popen[bytes]) -> int:
    """Wait until JupyterLab ends, and keep the platform from stopping as idle."""
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

    jobs = {
        job.id: str(job.status)
        for job in client.fine_tuning.jobs.list(limit=100)
        if not getattr(job, "imported_from", None)
    }
    running = [name for name, status in jobs.items() if status not in (*TERMINAL, "paused")]
    if running:
        print(f"the platform continues with {running[0]}; stop it with: rftkit serve --stop")
        return
    stop_server()
    for name in (each for each, status in jobs.items() if status == "paused"):
        print(f"{name} is paused and saved; continue it with: rftkit job resume {name}")
