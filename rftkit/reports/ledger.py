"""The runs of a sweep and the folder that remembers them.

Not here: making the reports (`sweep`). The folder is the state: `sweep.json` and the pages, both
rewritten after every change together with `index.html`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rftkit.errors import InputError, ReportError
from rftkit.reports.index import index_page
from rftkit.wholefile import write_whole

__all__ = ["Ledger", "Run", "ledger", "planned"]

Json = dict[str, Any]
STATE = "sweep.json"


@dataclass(frozen=True, slots=True)
class Run:
    """One report of a sweep."""

    settings: Json
    """What the grid says of it."""
    key: str
    """Of notebook and all it is given: a run with another key is another run."""
    page: str
    """File name of its report."""
    status: Literal["waiting", "running", "done", "failed"] = "waiting"
    error: str | None = None
    """Why it failed."""
    seconds: float | None = None
    """Making the report took so long."""
    figures: Json | None = None
    """What the notebook published."""
    job_id: str | None = None
    """The job that was trained for it."""


class Ledger:
    """The runs of a folder, written down after every change."""

    def __init__(self, folder: Path, title: str, runs: Iterable[Run]) -> None:
        self.folder, self.title = folder, title
        self.comparison: str | None = None
        """File name of a page that compares all runs."""
        self._lock = threading.Lock()
        before = _read(folder / STATE)
        self._runs = {run.key: _resumed(run, before.get(run.key), folder) for run in runs}
        self.write()

    @property
    def runs(self) -> list[Run]:
        """In the order of the grid."""
        return list(self._runs.values())

    @property
    def todo(self) -> list[Run]:
        """Those without a report."""
        return [run for run in self.runs if run.status != "done"]

    def put(self, run: Run) -> None:
        """Take over the state of a run."""
        self._runs[run.key] = run
        self.write()

    def write(self) -> None:
        """Rewrite state and index."""
        with self._lock:
            state = [asdict(run) for run in self.runs]
            write_whole(self.folder / STATE, json.dumps(state, indent=1, default=str) + "\n")
            html = index_page(self.title, state, self.comparison)
            write_whole(self.folder / "index.html", html)


def planned(settings: Iterable[Mapping[str, Any]], *sources: bytes) -> list[Run]:
    """One run for each setting; `sources` is what else makes a run the run it is."""
    runs = {}
    for each in settings:
        own = json.dumps(dict(each), sort_keys=True, default=str).encode()
        key = _digest(own, *sources)[:12]
        runs[key] = Run(dict(each), key, f"{_slug(each)}-{_digest(own)[:4]}.html")
    return list(runs.values())


@contextmanager
def ledger(out: str | Path, title: str, runs: Iterable[Run]) -> Iterator[Ledger]:
    """The ledger of a folder, for one sweep at a time.

    Raises:
        InputError: the folder cannot be made.
        ReportError: another sweep is at work in it.
    """
    from filelock import FileLock, Timeout

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder: {error.strerror}") from error
    try:
        with FileLock(folder / ".sweep.lock", timeout=0):
            yield Ledger(folder, title, runs)
    except Timeout as error:
        raise ReportError(f"another sweep is at work in {folder}; wait for its end") from error


def _resumed(run: Run, before: Run | None, folder: Path) -> Run:
    """A run as it was left when its page is there; else to be made, with the job it had."""
    if before is None:
        return run
    if before.status == "done" and (folder / before.page).is_file():
        return before
    return replace(run, job_id=before.job_id)


def _read(path: Path) -> dict[str, Run]:
    if not path.is_file():
        return {}
    names = {each.name for each in fields(Run)}
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
        runs = [Run(**{key: line[key] for key in names & line.keys()}) for line in lines]
    except (ValueError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path} is not the state of a sweep: {error}; remove it to start afresh"
        ) from error
    return {run.key: run for run in runs}


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _slug(settings: Mapping[str, Any]) -> str:
    words = "-".join(f"{name}-{value}" for name, value in settings.items())
    kept = "".join(each if each.isalnum() or each in "-_." else "_" for each in words)
    return kept[:60].strip("._-") or "run"
