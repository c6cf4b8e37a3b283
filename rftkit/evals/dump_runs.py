"""Read runs from a dump of `rftkit import`, so that saved runs can still be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError, NotFoundError
from rftkit.evals import saved_runs
from rftkit.evals.items import combine, read_items, settle
from rftkit.evals.runs import Wanted, wanted_run
from rftkit.evals.samples import Samples

if TYPE_CHECKING:
    from rftkit.importer import OpenDump

__all__ = ["from_dump"]

Json = dict[str, Any]


def from_dump(dump: OpenDump | str | Path, *names: str) -> Samples:
    """The samples of runs in a dump of `rftkit import`.

    Args:
        dump: The folder, or the dump opened by `rftkit.importer.open_dump`.
        names: Jobs, evals or runs, as in `fetch`; default every run of the dump.

    Raises:
        InputError: There is no dump, or a name is no job, eval or run.
        NotFoundError: The dump does not hold it.
    """
    from rftkit.importer import open_dump

    opened = open_dump(dump) if isinstance(dump, str | Path) else dump
    wanted = [each for name in names or opened.evals()["id"] for each in _find(opened, name)]
    return saved_runs.samples_of([
        settle(
            read_items(each.run, opened.read_output_items(each.run.id), each.response_format),
            each.combine,
        )
        for each in wanted
    ])  # fmt: skip


def _find(dump: OpenDump, name: str) -> list[Wanted]:
    if name.startswith("ftjob-"):
        return _of_job(dump, name)
    if name.startswith("eval_"):
        return _of_eval(dump, name)
    if name.startswith("evalrun_"):
        every = (each for eval_id in dump.evals()["id"] for each in _of_eval(dump, eval_id))
        found = [each for each in every if each.run.id == name]
        if not found:
            raise NotFoundError(f"the dump holds no run {name}")
        return found
    raise InputError(f"{name!r} names no runs; expected ftjob-…, eval_… or evalrun_…")


def _of_job(dump: OpenDump, job_id: str) -> list[Wanted]:
    job = dump.read_job(job_id)
    if not job.get("eval_id"):
        raise NotFoundError(f"{job_id} has no eval in the dump")
    reinforcement: Mapping[str, Any] = (job.get("method") or {}).get("reinforcement") or {}
    return [
        replace(
            each,
            run=replace(each.run, job_id=job_id),
            combine=combine(reinforcement.get("grader") or {}),
            response_format=reinforcement.get("response_format"),
        )
        for each in _of_eval(dump, job["eval_id"])
    ]


def _of_eval(dump: OpenDump, eval_id: str) -> list[Wanted]:
    frame = dump.runs(eval_id).sort_values("created_at", kind="stable")
    return [wanted_run(_wire(line), "dump") for line in frame.to_dict("records")]


def _wire(line: Mapping[Any, Any]) -> Json:
    """A line of the dump's frame in the form of the service; empty cells are None."""
    known = {str(key): None if value != value else value for key, value in line.items()}
    created = known["created_at"]
    return {**known, "created_at": None if created is None else int(created.timestamp())}
