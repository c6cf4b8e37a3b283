"""The newest jobs of a service as lines of a table: status, reward, when, model and data.

A list of jobs on the wire has no rewards: each comes from the job's last checkpoint, one request a
job, and no second one once the job has ended. Not here: the steps of one job (`metrics`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rftkit.jobs.checkpoints import checkpoints
from rftkit.jobs.jobs import TERMINAL

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Run", "file_name", "runs"]

PAGE = 100


@dataclass(frozen=True, slots=True)
class Run:
    """One job in a list of jobs."""

    id: str
    status: str
    model: str
    dataset: str
    """Name of the training file; its id when the file is gone."""
    method: str
    """reinforcement, supervised or dpo."""
    created_at: float
    """Unix seconds."""
    suffix: str = ""
    reward: float | None = None
    """Mean validation reward of the newest checkpoint; None while there is none."""
    loss: float | None = None
    """The same for the validation loss of a supervised or dpo job."""

    @property
    def name(self) -> str:
        """The name that its owner gave it, or else its id."""
        return self.suffix or self.id


def runs(client: OpenAI, *, limit: int = 50, known: Iterable[Run] = ()) -> list[Run]:
    """The newest jobs, newest first.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        limit: Most jobs.
        known: An earlier result: what cannot change any more is not asked for again.
    """
    before = {run.id: run for run in known}
    listed = islice(client.fine_tuning.jobs.list(limit=min(limit, PAGE)), limit)
    names: dict[str, str] = {}
    found = []
    for job in (each.to_dict(warnings=False) for each in listed):
        old = before.get(str(job["id"]))
        if old is not None and old.status == job["status"] and old.status in TERMINAL:
            found.append(old)
            continue
        file_id = str(job.get("training_file") or "")
        if file_id not in names:
            names[file_id] = file_name(client, file_id)
        found.append(_measured(client, _run(job, names[file_id])))
    return found


def file_name(client: OpenAI, file_id: str) -> str:
    """The name of an uploaded file; its id if the service cannot name it."""
    from openai import OpenAIError

    try:
        return str(client.files.retrieve(file_id).filename) if file_id else ""
    except OpenAIError:  # deleted, or no answer from the service: show the id
        return file_id


def _run(job: dict[str, Any], dataset: str) -> Run:
    return Run(
        id=str(job["id"]),
        status=str(job["status"]),
        model=str(job.get("model") or ""),
        dataset=dataset,
        method=str((job.get("method") or {}).get("type") or "supervised"),
        created_at=float(job.get("created_at") or 0),
        suffix=str(job.get("suffix") or job.get("user_provided_suffix") or ""),
    )


def _measured(client: OpenAI, run: Run) -> Run:
    """Add the measurements of the newest checkpoint; a job that has not begun has none."""
    if run.status in ("validating_files", "queued"):
        return run
    kept = checkpoints(client, run.id)
    if not kept:
        return run
    return replace(run, reward=kept[-1].valid_reward_mean, loss=kept[-1].valid_loss)
