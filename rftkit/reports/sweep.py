"""Run a notebook once for each setting of a grid; an index page compares the results.

Not here: one report (`render`), the grid (`grid`), the state of the folder (`ledger`), training
(`job_sweep`). Worker processes make the reports and live as long as the sweep. So imports happen
once per process, and a report that crashes does not affect the others.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rftkit.errors import InputError
from rftkit.reports.execute import read_notebook
from rftkit.reports.grid import read_grid
from rftkit.reports.ledger import Ledger, Run, content_of, ledger, planned
from rftkit.reports.parameters import checked, declared, default_files
from rftkit.reports.render import notebook_path

__all__ = ["Sweep", "make_all", "sweep"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The result of a sweep."""

    index: Path
    """The page that compares the runs."""
    runs: tuple[Run, ...]

    @property
    def failed(self) -> tuple[Run, ...]:
        """The runs that failed; their pages show where."""
        return tuple(run for run in self.runs if run.status == "failed")


def sweep(
    notebook: str | Path,
    grid: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    out: str | Path,
    /,
    *,
    processes: int | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
    csv: bool = False,
    timeout_seconds: int = 600,
    parameters: Mapping[str, Any] | None = None,
    **more: Any,
) -> Sweep:
    """Make one report for each setting of `grid`, and `out/index.html` over all of them.

    A second start on the same folder keeps finished reports. It makes those that failed, are
    missing or have new inputs: other values, an edited notebook, or changed content of a file that
    a parameter names.

    Args:
        notebook: A path, or the name of a bundled notebook.
        grid: Path of a YAML file, or its content; see `rftkit.reports.grid`.
        out: The folder of the pages.
        processes: How many reports to make at a time; default one for each core.
        on_progress: Gets a line after every run.
        csv: Write full tables beside each page.
        timeout_seconds: Limit for each cell.
        parameters: Parameters of the notebook for all runs, by name.
        **more: More parameters, as keywords that are no option above.

    Returns:
        The index and the runs; failed runs raise nothing, see `Sweep.failed`.

    Raises:
        InputError: The grid or the folder cannot be used.
        ReportError: a parameter is unknown or has the wrong type (nothing was run), or another
            sweep is at work in the folder.
    """
    found, source = read_grid(grid), notebook_path(notebook)
    if found.job is not None:
        raise InputError("this grid trains jobs; use reports.sweep_jobs")
    known = declared(read_notebook(source), source.name)
    common = checked(known, {**(parameters or {}), **more}, source.name)
    settings = [checked(known, each, source.name) for each in found.settings]
    known_values = default_files(known) | common
    runs = planned(
        (each, [source.read_bytes(), content_of(known_values | each), csv]) for each in settings
    )
    options = {"csv": csv, "timeout_seconds": timeout_seconds}
    with ledger(out, source.stem, runs) as book:
        todo = ((run, common | run.settings, None) for run in book.todo)
        make_all(book, source, todo, options, processes=processes, on_progress=on_progress)
    return Sweep(Path(out) / "index.html", tuple(book.runs))


def make_all(
    book: Ledger,
    notebook: Path,
    todo: Iterable[tuple[Run, Json, str | None]],
    options: Json,
    *,
    processes: int | None,
    on_progress: Callable[[str], None],
) -> None:
    """Make reports, several at a time.

    Args:
        book: Stores the state of every run.
        notebook: The notebook to run.
        todo: Runs with the notebook's parameters, and the reason if a run has failed already.
        options: Options of `reports.run`.
        processes: How many reports to make at a time; default one for each core.
        on_progress: Gets a line after every run.
    """
    total = len(book.runs)
    if kept := total - len(book.todo):
        on_progress(f"{kept} of {total} runs are done already")
    workers = [_Worker() for _ in range(min(processes or os.cpu_count() or 1, len(book.todo)))]
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def make(run: Run, parameters: Json, failure: str | None) -> None:
        worker = free.get()
        try:
            book.put(replace(run, status="running"))
            task = {"notebook": str(notebook.resolve()), "out": str(book.folder / run.page)}
            answer = worker.make(task | {"parameters": parameters, "options": options})
            answer["error"] = failure or answer["error"]
            made = replace(run, status="failed" if answer["error"] else "done", **answer)
            book.put(made)
        finally:
            free.put(worker)
        ended = sum(each.status in ("done", "failed") for each in book.runs)
        outcome = f"failed: {made.error}" if made.error else f"{made.seconds:.1f} s"
        on_progress(f"{ended} of {total}  {made.page}  {outcome}")

    pool = ThreadPoolExecutor(max(1, len(workers)))
    try:
        for future in [pool.submit(make, *each) for each in todo]:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()
        pool.shutdown()
        for run in book.runs:
            if run.status == "running":  # interrupted: the next sweep makes this report
                book.put(replace(run, status="waiting"))


class _Worker:
    """A process that makes one report at a time; see `rftkit.reports.worker`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def make(self, task: Json) -> Json:
        """Make one report; a process that dies is replaced for the next report."""
        if self._process is None or self._process.poll() is not None:
            if self._stopped:
                raise InterruptedError("the sweep was stopped")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rftkit.reports.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: Json = json.loads(line)
            return answer
        status = self._process.wait()
        if self._stopped:
            raise InterruptedError("the sweep was stopped")
        died = f"the process that made this report ended with status {status}"
        return {"error": died, "figures": None, "seconds": None}

    def stop(self) -> None:
        """End the process, even in the middle of a report."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
