"""The runs of a sweep, and their state in its folder.

Not here: making the reports (`sweep`). The state is `sweep.json` and the pages. Every change
rewrites `sweep.json` and `index.html`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rftkit.errors import InputError, ReportError
from rftkit.jsontext import parse_json
from rftkit.reports.index import index_page
from rftkit.wholefile import write_whole

__all__ = ["Ledger", "Run", "content_of", "ledger", "planned"]

Json = dict[str, Any]
STATE = "sweep.json"


@dataclass(frozen=True, slots=True)
class Run:
    """One report of a sweep."""

    settings: Json
    """The settings of this run in the grid."""
    key: str
    """Hash of the notebook and its inputs: a run with another key is another run."""
    page: str
    """File name of its report."""
    status: Literal["waiting", "running", "done", "failed"] = "waiting"
    error: str | None = None
    """Why it failed."""
    seconds: float | None = None
    """How long the report took."""
    figures: Json | None = None
    """The figures that the notebook published."""
    job_id: str | None = None
    """The job that was trained for it."""
    job_key: str | None = None
    """Hash of the job's inputs, with the content of its files."""


class Ledger:
    """The runs of a folder, saved after every change."""

    def __init__(self, folder: Path, title: str, runs: Iterable[Run]) -> None:
        self.folder, self.title = folder, title
        self.comparison: str | None = None
        """File name of a page that compares all runs."""
        self.verdict = ""
        """The verdict of that page: which setting won."""
        self._lock = threading.Lock()
        before = _read(folder / STATE)
        trained = {run.job_key: run for run in before.values() if run.job_key and run.job_id}
        self._runs = {
            run.key: _resumed(run, before.get(run.key) or trained.get(run.job_key or ""), folder)
            for run in runs
        }
        self.write()

    @property
    def runs(self) -> list[Run]:
        """The runs in the order of the grid."""
        return list(self._runs.values())

    @property
    def todo(self) -> list[Run]:
        """The runs without a report."""
        return [run for run in self.runs if run.status != "done"]

    def put(self, run: Run) -> None:
        """Store the state of a run."""
        self._runs[run.key] = run
        self.write()

    def write(self) -> None:
        """Rewrite state and index."""
        with self._lock:
            state = [asdict(run) for run in self.runs]
            write_whole(self.folder / STATE, json.dumps(state, indent=1, default=str) + "\n")
            html = index_page(self.title, state, self.comparison, self.verdict)
            write_whole(self.folder / "index.html", html)


def planned(
    settings: Iterable[tuple[Mapping[str, Any], Any]], jobs: Iterable[Any] | None = None
) -> list[Run]:
    """One run for each setting.

    Args:
        settings: Each setting with the other inputs that identify a run.
        jobs: For each setting the inputs of its job, if jobs are trained.
    """
    runs = {}
    for (each, sources), job in zip(
        settings, jobs or itertools.repeat(None), strict=jobs is not None
    ):
        own = _digest(dict(each))
        job_key = None if job is None else _digest([own, job])
        key = _digest([own, sources, job_key])
        runs[key] = Run(dict(each), key, f"{_slug(each)}-{own[:8]}.html", job_key=job_key)
    return list(runs.values())


def content_of(values: Any) -> Any:
    """The values; a text that is the path of a file also has the digest of its content."""
    if isinstance(values, Mapping):
        return {str(key): content_of(each) for key, each in values.items()}
    if isinstance(values, list | tuple):
        return [content_of(each) for each in values]
    if isinstance(values, str | Path):
        with suppress(RuntimeError):  # `~name`, and there is no such user
            if held := _held(Path(values).expanduser()):
                return [str(values), held]
    return values


def _held(path: Path) -> Any:
    """The digest of a file, or of each file in a folder and below; None for anything else."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if path.is_dir() and path.name:
            return {
                each.relative_to(path).as_posix(): _held(each)
                for each in sorted(path.rglob("*"))
                if each.is_file() and not _is_hidden(each.relative_to(path))
            }
    except (OSError, ValueError):  # too long for a path, or unreadable: treat it as text
        return None
    return None


def _is_hidden(path: Path) -> bool:
    """Whether it is in a folder such as `.git`, where files change by themselves."""
    return any(part.startswith(".") for part in path.parts[:-1])


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
        raise InputError(f"the folder {folder} cannot be created: {error.strerror}") from error
    try:
        with FileLock(folder / ".sweep.lock", timeout=0):
            yield Ledger(folder, title, runs)
    except Timeout as error:
        raise ReportError(f"another sweep is at work in {folder}; wait until it ends") from error


def _resumed(run: Run, before: Run | None, folder: Path) -> Run:
    """The earlier run if its page exists; else a new run with the earlier run's job.

    `before` may be another report on the same job: then only the job is kept.
    """
    if before is None:
        return run
    is_same = before.key == run.key
    if is_same and before.status == "done" and (folder / before.page).is_file():
        return before
    return replace(run, job_id=before.job_id)


def _read(path: Path) -> dict[str, Run]:
    if not path.is_file():
        return {}
    names = {each.name for each in fields(Run)}
    try:
        lines = parse_json(path.read_text(encoding="utf-8"))
        runs = [Run(**{key: line[key] for key in names & line.keys()}) for line in lines]
    except (ValueError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path} is not the state of a sweep: {error}; remove it to start again"
        ) from error
    return {run.key: run for run in runs}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _slug(settings: Mapping[str, Any]) -> str:
    words = "-".join(f"{name}-{value}" for name, value in settings.items())
    kept = "".join(each if each.isalnum() or each in "-_." else "_" for each in words)
    return kept[:60].strip("._-") or "run"
