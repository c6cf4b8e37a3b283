"""The store's jobs, with their events and checkpoints."""

from __future__ import annotations

import dataclasses
from typing import Any

from rftkit import settings
from rftkit.errors import RequestError
from rftkit.safetext import redacted
from rftkit.server.store.database import Database, new_id, now, sql_list
from rftkit.server.store.records import ACTIVE, TERMINAL, Checkpoint, Event, Job

__all__ = ["Jobs"]

NEAR = 20
"""The number of jobs at the head of the queue whose waiting reason is kept up to date."""


class Jobs(Database):
    """The part of the store that holds jobs."""

    def add_job(self, job: Job) -> Job:
        """Add a new job at the end of the queue."""
        with self.transaction():
            return self._insert(dataclasses.replace(job, queue_position=self._queue_end()))

    def job(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            NotFoundError: when there is none.
        """
        return self._one(Job, "id = ?", job_id, missing=job_id)

    def jobs(
        self,
        *,
        metadata: dict[str, str] | None = None,
        without_metadata: bool = False,
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[list[Job], bool]:
        """Return a page of jobs, newest first; `metadata` selects jobs that have all of its pairs.

        Probes are left out unless `metadata` asks for `probe`.
        """
        where, values = "1", []
        if "probe" not in (metadata or {}):
            where += (
                " AND NOT EXISTS (SELECT 1 FROM json_each(jobs.metadata) AS pair"
                " WHERE pair.key = 'probe' AND pair.value = 'true')"
            )
        for key, value in (metadata or {}).items():
            where += (
                " AND EXISTS (SELECT 1 FROM json_each(jobs.metadata) AS pair"
                " WHERE pair.key = ? AND pair.value = ?)"
            )
            values += [key, value]
        if without_metadata:
            where += " AND (metadata IS NULL OR metadata = '{}')"
        return self._page(Job, where, tuple(values), after=after, limit=limit, newest_first=True)

    def tracked_jobs(self, limit: int) -> list[Job]:
        """Return the newest jobs that have integrations."""
        where = "json_extract(extra, '$.integrations') IS NOT NULL AND origin IS NULL"
        return self._find(Job, f"{where} ORDER BY seq DESC LIMIT ?", limit)

    def unfinished_jobs(self) -> list[Job]:
        """Return the jobs that the worker runs or will run: neither ended nor paused."""
        where = f"status IN {sql_list(ACTIVE)} AND origin IS NULL ORDER BY queue_position"
        return self._find(Job, where)

    def open_jobs(self) -> list[Job]:
        """Return the jobs that have not ended, paused ones too."""
        return self._find(Job, f"origin IS NULL AND status NOT IN {sql_list(TERMINAL)}")

    def jobs_before(self, job_id: str) -> list[str]:
        """Return the ids of the jobs that are worked on before this one, the first one first."""
        ids = [job.id for job in self._queue()]
        return ids[: ids.index(job_id)] if job_id in ids else []

    def add_waiting_event(self, job_id: str) -> None:
        """Add the event of a job that is in the queue behind others."""
        if before := self.jobs_before(job_id):
            self._add_waits(self.job(job_id), before)

    def _queue(self, limit: int = -1) -> list[Job]:
        return self._find(
            Job,
            f"origin IS NULL AND status IN {sql_list(ACTIVE)} "
            "ORDER BY status IN ('running', 'pausing') DESC, queue_position LIMIT ?",
            limit,
        )

    def _add_waits(self, job: Job, before: list[str]) -> None:
        """An event for each job at the head of the queue that this one waits for."""
        more = f" and {len(before) - 1} more" if len(before) > 1 else ""
        self.add_event(
            job.id,
            f"Waiting for {before[0]}{more}: only one job trains at a time",
            data={"waits_for": before[0], "jobs_before": len(before)},
            key=f"waits-{before[0]}-{job.queue_position}",
        )

    def claim_job(self) -> Job | None:
        """Return the next job to work on, or None.

        A job that a dead worker left `running` or `pausing` comes first, then the job that has
        waited longest. A `queued` job becomes `running`. A job whose files are not checked yet
        stays `validating_files`. Imported jobs are never returned, whatever their status.
        """
        with self.transaction():
            found = self._queue(NEAR)
            if not found:
                return None
            job = found[0]
            ids = [each.id for each in found]
            for place, waiting in enumerate(found[1:], 1):
                self._add_waits(waiting, ids[:place])
            return self.update_job(job.id, status="running") if job.status == "queued" else job

    def update_job(self, job_id: str, **fields: Any) -> Job:
        """Change fields of a job and return the changed job.

        A job that has ended keeps its status, because it may have been cancelled a moment ago.
        `finished_at` is set together with the first terminal status.

        Raises:
            NotFoundError: when there is no such job.
        """
        with self.transaction():
            job = self.job(job_id)
            self._check_not_imported(job, f"job {job_id}")
            if job.is_terminal:
                fields.pop("status", None)
            elif fields.get("status") in TERMINAL:
                fields = {"finished_at": now(), "estimated_finish": None, **fields}
                if not job.is_probe:
                    self._queue_delivery(f"fine_tuning.job.{fields['status']}", job_id)
            return self._update(Job, job_id, fields)

    def try_status(self, job_id: str, status: str, **fields: Any) -> bool:
        """Change a job's status and fields unless it has ended; return whether they changed.

        Events and models that report the change belong in the same transaction.

        Raises:
            NotFoundError: when there is no such job.
        """
        with self.transaction():
            if self.job(job_id).is_terminal:
                return False
            self.update_job(job_id, status=status, **fields)
            return True

    def cancel_job(self, job_id: str) -> Job:
        """Cancel a job that has not ended; the worker notices it within a step.

        Raises:
            NotFoundError: when there is no such job.
            RequestError: when it has ended.
        """
        with self.transaction():
            job = self._job_in(job_id, ACTIVE | {"paused"}, "cancelled")
            self.add_event(job.id, "The job has been cancelled.", key="cancelled")
            return self.update_job(job.id, status="cancelled", cancel_requested=True)

    def pause_job(self, job_id: str) -> Job:
        """Ask a running job to stop after its step.

        Raises:
            NotFoundError: when there is no such job.
            RequestError: when it is not running.
        """
        with self.transaction():
            job = self._job_in(job_id, frozenset({"running"}), "paused")
            self.add_event(job.id, "Pausing: the step in progress is finished and saved first.")
            return self.update_job(job.id, status="pausing")

    def resume_job(self, job_id: str) -> Job:
        """Move a paused job to the end of the queue.

        Raises:
            NotFoundError: when there is no such job.
            RequestError: when it is not paused.
        """
        with self.transaction():
            job = self._job_in(job_id, frozenset({"paused"}), "resumed")
            self.add_event(job.id, "Resumed: moving the job to the queue.")
            job = self.update_job(job.id, status="queued", queue_position=self._queue_end())
            self.add_waiting_event(job.id)
            return job

    def _job_in(self, job_id: str, states: frozenset[str], verb: str) -> Job:
        job = self.job(job_id)
        self._check_not_imported(job, f"job {job_id}")
        if job.status not in states:
            raise RequestError(
                f"job {job_id} is {job.status}; only a job that is {' or '.join(sorted(states))} "
                f"can be {verb}",
                param="fine_tuning_job_id", code="invalid_job_status",
            )  # fmt: skip
        return job

    def _queue_end(self) -> int:
        return int(self._rows("SELECT coalesce(max(queue_position), 0) + 1 AS n FROM jobs")[0]["n"])

    # -- events, checkpoints, models -----------------------------------------------------------

    def add_event(
        self,
        job_id: str,
        message: str,
        level: str = "info",
        type: str = "message",
        data: dict[str, Any] | None = None,
        created_at: int | None = None,
        key: str | None = None,
    ) -> Event:
        """Add an event to a job; if the `key` exists already, keep the first event.

        API keys in the message are hidden: other servers' messages may repeat the key they got.
        """
        message = redacted(message, settings.keys())
        event = Event(
            id=new_id("ftevent-"), job_id=job_id, created_at=created_at or now(), level=level,
            message=message, type=type, data=data, key=key,
        )  # fmt: skip
        with self.transaction():
            if key is not None:
                known = self._find(Event, "job_id = ? AND key = ?", job_id, key)
                if known:
                    return known[0]
            return self._insert(event)

    def has_event(self, job_id: str, key: str) -> bool:
        """Return whether the job has an event with this key."""
        return bool(self._rows("SELECT 1 FROM events WHERE job_id = ? AND key = ?", job_id, key))

    def event_keys(self, job_id: str) -> set[str]:
        """Return the keys of a job's events."""
        sql = "SELECT key FROM events WHERE job_id = ? AND key IS NOT NULL"
        return {row["key"] for row in self._rows(sql, job_id)}

    def event(self, job_id: str, key: str) -> Event | None:
        """Return the event with this key, or None."""
        return next(iter(self._find(Event, "job_id = ? AND key = ?", job_id, key)), None)

    def revise_event(self, event_id: str, message: str, data: dict[str, Any]) -> Event:
        """Replace an event's content; its id, position and time stay."""
        return self._update(Event, event_id, {"message": message, "data": data})

    def events(
        self, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> tuple[list[Event], bool]:
        """Return a page of a job's events, newest first."""
        return self._page(
            Event, "job_id = ?", (job_id,), after=after, limit=limit, newest_first=True
        )

    def add_checkpoint(
        self, job_id: str, step: int, model_name: str, metrics: dict[str, Any], folder: str
    ) -> str:
        """Add a checkpoint and return its id; one with the same step and name is kept instead."""
        with self.transaction():
            checkpoint = Checkpoint(
                id=new_id("ftckpt_"), job_id=job_id, created_at=now(), step=step,
                model_name=model_name, metrics=metrics, folder=str(folder),
            )  # fmt: skip
            self._insert(checkpoint, or_ignore=True)
            where = "job_id = ? AND step = ? AND model_name = ?"
            return self._find(Checkpoint, where, job_id, step, model_name)[0].id

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Return a job's checkpoints, highest step first."""
        return self._find(Checkpoint, "job_id = ? ORDER BY step DESC, seq DESC", job_id)

    def replace_checkpoint_metrics(self, job_id: str, step: int, metrics: dict[str, Any]) -> None:
        """Replace the metrics of a step's checkpoints that still exist."""
        with self.transaction():
            for each in self._find(Checkpoint, "job_id = ? AND step = ?", job_id, step):
                self._update(Checkpoint, each.id, {"metrics": metrics})

    def drop_checkpoint(self, checkpoint_id: str) -> None:
        """Delete a checkpoint's record; the caller deletes its folder."""
        with self.transaction() as db:
            db.execute("DELETE FROM checkpoints WHERE id = ?", (checkpoint_id,))

    def drop_model_checkpoints(self, model_name: str) -> None:
        """Delete the records of the checkpoints with this model name."""
        with self.transaction() as db:
            db.execute("DELETE FROM checkpoints WHERE model_name = ?", (model_name,))
