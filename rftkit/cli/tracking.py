"""`rftkit job watch --track`: a job's metrics, answers and report in an experiment tracker.

The platform starts the same command for a job with `integrations`, so that a tracker is never in
the process that trains or serves. Not here: the trackers (`rftkit.jobs.trackers`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.cli.console import parse_pairs
from rftkit.errors import InputError
from rftkit.integrations import NOTE, TYPES, check_integrations, integration

if TYPE_CHECKING:
    from openai import OpenAI

    from rftkit.jobs import Update

__all__ = ["entries", "follow_tracked"]

Entry = dict[str, Any]


def entries(
    client: OpenAI,
    job_id: str,
    kinds: Sequence[str],
    options: Sequence[str],
    *,
    as_job_says: bool,
) -> list[Entry]:
    """The trackers that are asked for, each with those of the options that it takes.

    Raises:
        InputError: there is no such tracker or option, or its package is not installed.
    """
    if as_job_says:
        job = client.fine_tuning.jobs.retrieve(job_id).to_dict(warnings=False)
        return check_integrations(list(job.get("integrations") or []))  # type: ignore[call-overload]
    pairs = parse_pairs(list(options))
    known = {kind: {*TYPES[kind].options, *TYPES[kind].local} for kind in kinds if kind in TYPES}
    for name in pairs:
        if not any(name in each for each in known.values()):
            raise InputError(
                f"--track-option: no tracker here takes {name!r}; "
                + (
                    "; ".join(
                        f"{kind} takes {', '.join(sorted(each))}" for kind, each in known.items()
                    )
                    or "name one with --track"
                )
            )
    return [
        integration(kind, {name: _value(name, text) for name, text in pairs.items()
                           if name in known.get(kind, ())})
        for kind in kinds
    ]  # fmt: skip


def follow_tracked(client: OpenAI, job_id: str, chosen: Sequence[Entry], *, is_quiet: bool) -> None:
    """Follow a job to its end, and send its updates to trackers."""
    from rftkit import jobs
    from rftkit.jobs.trackers import Tracked

    progress = None if is_quiet else jobs.Progress()
    tracked = Tracked(client, chosen, _warn, _report)

    def on_update(update: Update) -> None:
        if progress is not None:
            progress(update)
        tracked(update)

    try:
        jobs.wait(client, job_id, on_update)
    finally:
        tracked.close()


def _value(name: str, text: str) -> Any:
    return text.split(",") if name == "tags" else text


def _warn(text: str) -> None:
    print(f"{NOTE}{text}", file=sys.stderr, flush=True)


def _report(job_id: str, folder: Path) -> Path:
    from rftkit import reports

    return reports.run("report_job", folder / f"{job_id}.html", job_id=job_id)
