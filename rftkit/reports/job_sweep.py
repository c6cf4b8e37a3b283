"""A sweep of jobs: train one for each setting, report on each, and compare all on one page.

Not here: training, which the platform does. All jobs are created first, in the order of the grid,
and recorded in the folder. A second start finds its jobs there. It creates again those that failed,
were cancelled or have other input files, and it only makes the report again if only the notebook or
its parameters changed. A setting is a field of the job
(`model`, `seed`, …), a hyperparameter by its name, or `metadata.<name>`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError, JobFailedError, ReportError, nearest_name
from rftkit.hyperparameters import check_names
from rftkit.reports.document import read_summary
from rftkit.reports.execute import read_notebook
from rftkit.reports.grid import read_grid
from rftkit.reports.ledger import Ledger, Run, content_of, ledger, planned
from rftkit.reports.parameters import checked, declared, default_files
from rftkit.reports.render import notebook_path, run
from rftkit.reports.sweep import Sweep, make_all

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["sweep_jobs"]

Json = dict[str, Any]
FILES = ("train", "valid")
SPECS = ("grader", "response_format")
FIELDS = ("model", "dataset", "suffix", "seed", *FILES, *SPECS)
COMPARISON = "comparison.html"


def sweep_jobs(
    client: OpenAI,
    notebook: str | Path,
    grid: str | Path | Mapping[str, Any],
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
    """Train a job for each setting, make `notebook` for each, and compare all of them.

    Args:
        client: From `rftkit.connect()`.
        notebook: A notebook with the parameter `job_id`, such as `report_job`.
        grid: A grid with `job:`, see `rftkit.reports.grid`. A job's `train` and `valid` are paths
            or file ids, `grader` and `response_format` paths or the JSON itself. `dataset` is a
            folder with them or the name of a bundled dataset.
        out: The folder of the pages; a second start resumes with its jobs.
        processes: How many reports to make at a time; default one for each core.
        on_progress: Gets a line for every job and report.
        csv: Write full tables beside each page.
        timeout_seconds: Limit for each cell.
        parameters: Parameters of the notebook for all jobs, by name.
        **more: More parameters, as keywords that are no option above.

    Raises:
        InputError: The grid or the folder cannot be used; nothing was trained.
        ReportError: The notebook does not take these parameters, or the folder is in use.
    """
    found, source = read_grid(grid), notebook_path(notebook)
    if found.job is None:
        raise InputError("this grid has no `job:`, so there is nothing to train; see reports.sweep")
    known = declared(read_notebook(source), source.name)
    # checked before minutes are spent on training
    values = checked(known, {**(parameters or {}), **more, "job_id": "ftjob-"}, source.name)
    given = [_complete(found.job | each) for each in found.settings]
    report = [source.read_bytes(), content_of(default_files(known) | values), csv]
    runs = planned([(each, report) for each in found.settings], map(content_of, given))
    options = {"csv": csv, "timeout_seconds": timeout_seconds}
    with ledger(out, source.stem, runs) as book:
        _create(
            client, book, dict(zip([each.key for each in runs], given, strict=True)), on_progress
        )
        make_all(
            book,
            source,
            _ended(client, book, values),
            options,
            processes=processes,
            on_progress=on_progress,
        )
        _compare(book, client, on_progress)
    return Sweep(Path(out) / "index.html", tuple(book.runs))


def _complete(given: Mapping[str, Any]) -> Json:
    """The arguments of `jobs.create`, with files still as paths.

    Raises:
        InputError: A field is missing, or a file cannot be read.
    """
    from rftkit import datasets
    from rftkit.datasets.io import existing

    fields = {name: given[name] for name in FIELDS if name in given}
    if (name := fields.pop("dataset", None)) is not None:
        data = datasets.load(name)
        data.need(*(part for part in ("valid", "grader") if part not in fields))
        loaded: Json = {"train": data.train, "valid": data.valid, "grader": data.grader}
        loaded |= {"tools": data.tools} if data.tools else {}
        fields = {**loaded, "response_format": data.response_format, **fields}
    for name in SPECS:
        if isinstance(fields.get(name), str | Path):
            fields[name] = datasets.read_json(fields[name])
    if absent := [name for name in ("model", *FILES, "grader") if not fields.get(name)]:
        raise InputError(
            f"the grid's job lacks {', '.join(absent)}; give them under `job:`, or a `dataset`"
        )
    for name in FILES:
        if not str(fields[name]).startswith("file-"):
            fields[name] = existing(fields[name])
    metadata = {k.partition(".")[2]: str(v) for k, v in given.items() if k.startswith("metadata.")}
    rest = {k: v for k, v in given.items() if k not in FIELDS and not k.startswith("metadata.")}
    _check_settings(rest, metadata)
    return fields | {"metadata": metadata or None, "hyperparameters": rest or None}


def _check_settings(hyperparameters: Json, metadata: Json) -> None:
    """Refuse what would train with other settings than meant.

    Raises:
        InputError: Names the setting, and how it is written.
    """
    for name in ("hyperparameters", "metadata"):
        if name in hyperparameters:
            prefix = "metadata." if name == "metadata" else ""
            inner = hyperparameters[name]
            pairs = inner.items() if isinstance(inner, Mapping) else [("name", "value")]
            lines = "; ".join(f"{prefix}{key}: {value}" for key, value in pairs)
            raise InputError(
                f"a sweep has each setting on a line of its own, not under `{name}:`; write {lines}"
            )
    try:
        check_names(hyperparameters, metadata)
    except InputError as error:
        near = nearest_name((error.param or "").partition(".")[2], FIELDS)
        hint = f"; as a field of the job, {near}" if near.startswith("did") else ""
        raise InputError(f"the sweep: {error}{hint}") from None


def _create(
    client: OpenAI, book: Ledger, given: Mapping[str, Json], on_progress: Callable[[str], None]
) -> None:
    from rftkit import datasets, jobs

    uploaded: dict[str, str] = {}
    for each in book.todo:
        if each.job_id is not None and (lost := _lost(client, each.job_id)) is None:
            continue
        if each.job_id is not None:
            on_progress(f"{each.job_id}  {lost}: it is created again")
        fields = dict(given[each.key])
        for name in FILES:
            path = str(fields.pop(name))
            if path not in uploaded:
                known = path.startswith("file-")
                uploaded[path] = path if known else datasets.upload(client, path).id
            fields["training_file" if name == "train" else "validation_file"] = uploaded[path]
        job = jobs.create(client, **fields)
        book.put(replace(each, job_id=job.id))
        on_progress(f"{job.id}  created for {_settings_text(each.settings)}")


def _lost(client: OpenAI, job_id: str) -> str | None:
    """Why a job of an earlier sweep cannot succeed any more; None while it can."""
    from openai import NotFoundError

    try:
        status = str(client.fine_tuning.jobs.retrieve(job_id).status)
    except NotFoundError:
        return "the service no longer has it"
    return status if status in ("failed", "cancelled") else None


def _ended(
    client: OpenAI, book: Ledger, parameters: Json
) -> Iterator[tuple[Run, Json, str | None]]:
    """Yield each run with its parameters once its job has ended."""
    from rftkit import jobs

    for each in book.todo:
        assert each.job_id is not None
        failure = None
        try:
            job = jobs.wait(client, each.job_id)
            if str(job.status) == "paused":
                failure = f"{job.id} is paused; to resume it: rftkit job resume {job.id}"
        except JobFailedError as error:
            failure = str(error).partition("\n")[0]
        yield each, parameters | {"job_id": each.job_id, "base_url": str(client.base_url)}, failure


def _compare(book: Ledger, client: OpenAI, on_progress: Callable[[str], None]) -> None:
    """One page over all jobs that succeeded."""
    trained = [each.job_id for each in book.runs if each.status == "done"]
    if not trained:
        return
    try:
        run(
            "report_compare",
            book.folder / COMPARISON,
            runs=trained,
            base_url=str(client.base_url),
        )
        book.verdict = (read_summary(book.folder / COMPARISON) or {}).get("sentence", "")
    except ReportError as error:
        on_progress(f"{COMPARISON}  failed: {error}")
    book.comparison = COMPARISON
    book.write()


def _settings_text(settings: Json) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "the job"
