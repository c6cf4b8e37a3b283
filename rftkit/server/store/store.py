"""The platform's store: jobs, events, checkpoints, models, files, evals.

The server and its worker share the `Store`; each call that changes something is durable when it
returns. This module has the jobs and the tables that belong to them. `files`, `evals` and `imports`
have the other parts, `database` the common methods; no other module has SQL. A `Store` without a
home is in memory, for tests. `api` checks requests, and `wire` makes wire objects of records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rftkit import settings
from rftkit.errors import NotFoundError, PlatformError, RequestError
from rftkit.privacy import make_home
from rftkit.safetext import redacted
from rftkit.server.store.answers import KEY_SECONDS, Answers, key_in_use, key_of
from rftkit.server.store.database import connect, new_id, now, sql_list
from rftkit.server.store.evals import Evals
from rftkit.server.store.files import Files
from rftkit.server.store.imports import Imports
from rftkit.server.store.records import ACTIVE, TERMINAL, Checkpoint, Delivery, Event, Job, Model
from rftkit.wholefile import unwritable

__all__ = ["Store", "new_id", "now"]

RETRY_SECONDS = 600
"""How long the store recognises a create request that is sent again without a key, in seconds."""


class Store(Files, Evals, Answers):
    """The platform's records. Open it with `Store.open`; threads can share one instance."""

    def __init__(self, db: sqlite3.Connection, root: Path) -> None:
        """Use `Store.open`."""
        super().__init__(db, root)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._imports: Imports | None = None

    @classmethod
    def open(cls, home: Path | None) -> Store:
        """Open or create the store of a home folder; None creates one in memory.

        Raises:
            PlatformError: when the home cannot be written or its database cannot be read.
        """
        if home is None:
            scratch = tempfile.TemporaryDirectory(prefix="rftkit-")
            root = Path(scratch.name) / "files"
            root.mkdir()
            store = cls(connect(":memory:"), root)
            store._scratch = scratch
            return store
        try:
            (make_home(home) / "files").mkdir(exist_ok=True)
            return cls(connect(str(home / "platform.sqlite")), home / "files")
        except OSError as error:
            raise unwritable(home, error) from error
        except sqlite3.Error as error:
            raise _unusable(home, error) from error

    @property
    def imports(self) -> Imports:
        """The part that stores imported objects, over a separate connection."""
        with self._lock:
            if self._imports is None:
                own = self._scratch is None
                db = connect(str(self._root.parent / "platform.sqlite")) if own else self._db
                self._imports = Imports(db, None if own else self._lock)
            return self._imports

    def unlisted_contents(self) -> list[str]:
        """Describe what is in the home but not in the database, which may be an older copy."""
        found = []
        if blobs := self.unknown_blobs():
            size = sum(path.stat().st_size for path in blobs) / 1e6
            found.append(
                f"{len(blobs)} uploaded files ({size:.1f} MB) in {self._root} are not in the "
                "database"
            )
        known = {row["id"] for row in self._rows("SELECT id FROM jobs")}
        folders = (self._root.parent / "jobs").glob("ftjob-*")
        if jobs := sorted(path.name for path in folders if path.name not in known):
            found.append(f"{len(jobs)} jobs are not in the database, among them {jobs[0]}")
        return found

    def sweep(self) -> None:
        """Delete expired files and the remains of killed processes, before the worker starts."""
        super().sweep()
        self.imports.sweep()

    def close(self) -> None:
        """Close the connections; an in-memory store loses its content."""
        with self._lock:
            if self._imports is not None:
                self._imports.close()
            self._db.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    # -- jobs ----------------------------------------------------------------------------------

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

    def unfinished_jobs(self) -> list[Job]:
        """Return the jobs that the worker runs or will run: neither ended nor paused."""
        where = f"status IN {sql_list(ACTIVE)} AND origin IS NULL ORDER BY queue_position"
        return self._find(Job, where)

    def jobs_from(self, model: str) -> list[Job]:
        """Return the jobs that have not ended and start from this model."""
        where = f"model = ? AND origin IS NULL AND status NOT IN {sql_list(TERMINAL)}"
        return self._find(Job, where, model)

    def jobs_before(self, job_id: str) -> list[str]:
        """Return the ids of the jobs that are worked on before this one, the first one first."""
        found = self._find(
            Job,
            f"origin IS NULL AND status IN {sql_list(ACTIVE)} "
            "ORDER BY status IN ('running', 'pausing') DESC, queue_position",
        )
        ids = [job.id for job in found]
        return ids[: ids.index(job_id)] if job_id in ids else []

    def claim_job(self) -> Job | None:
        """Return the next job to work on, or None.

        A job that a dead worker left `running` or `pausing` comes first, then the job that has
        waited longest. A `queued` job becomes `running`. A job whose files are not checked yet
        stays `validating_files`. Imported jobs are never returned, whatever their status.
        """
        with self.transaction():
            found = self._find(
                Job,
                f"origin IS NULL AND status IN {sql_list(ACTIVE)} "
                "ORDER BY status IN ('running', 'pausing') DESC, queue_position LIMIT 1",
            )
            if not found:
                return None
            job = found[0]
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
            return self.update_job(job.id, status="queued", queue_position=self._queue_end())

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

    def add_model(
        self,
        name: str,
        base: str,
        job_id: str | None,
        folder: str,
        step: int | None = None,
        thinking: str | None = None,
    ) -> Model:
        """Add a fine-tuned model, replacing one with the same name."""
        with self.transaction() as db:
            db.execute("DELETE FROM models WHERE name = ?", (name,))
            return self._insert(
                Model(
                    name=name, created_at=now(), base=base, job_id=job_id, folder=str(folder),
                    step=step, thinking=thinking,
                )
            )  # fmt: skip

    def used_folders(self) -> set[str]:
        """Return the folders of all models and checkpoints."""
        models = {model.folder for model in self._find(Model, "1")}
        return models | {checkpoint.folder for checkpoint in self._find(Checkpoint, "1")}

    def users_of_model(self, name: str) -> list[str]:
        """Return the ids of unfinished jobs that start from a model and eval runs that use it."""
        jobs = [job.id for job in self.jobs_from(name)]
        return jobs + [run.id for run in self.unfinished_runs() if run.model == name]

    def model(self, name: str) -> Model | None:
        """Return a fine-tuned model, or None."""
        return next(iter(self._find(Model, "name = ?", name)), None)

    def models(self) -> list[Model]:
        """Return all fine-tuned models, oldest first."""
        return self._find(Model, "1 ORDER BY seq")

    def delete_model(self, name: str) -> None:
        """Delete a fine-tuned model's record; the caller deletes its folder.

        Raises:
            NotFoundError: when there is none.
        """
        with self.transaction() as db:
            if (model := self.model(name)) is not None:
                self._check_not_imported(model, f"the model {name}")
            if db.execute("DELETE FROM models WHERE name = ?", (name,)).rowcount == 0:
                raise NotFoundError(
                    f"there is no fine-tuned model {name!r}", param="model", code="model_not_found"
                )

    # -- webhooks, resent requests, keys --------------------------------------------------------

    def due_deliveries(self, *, limit: int = 100) -> list[Delivery]:
        """Return undelivered webhook events that are due, oldest first."""
        return self._find(Delivery, "due_at <= ? ORDER BY seq LIMIT ?", now(), limit)

    def drop_deliveries(self, before: int) -> None:
        """Delete webhook events created before a time, delivered or not."""
        with self.transaction() as db:
            db.execute("DELETE FROM deliveries WHERE created_at < ?", (before,))

    def update_delivery(self, delivery_id: str, **fields: Any) -> Delivery:
        """Record an attempt to send a webhook event."""
        return self._update(Delivery, delivery_id, fields)

    def once(
        self,
        route: str,
        digest: str,
        make: Callable[[], str],
        *,
        is_resent: bool,
        key: str | None = None,
    ) -> str:
        """Return the id of the new object, or of the one that the same request made before.

        Args:
            route: of the create request.
            digest: of the request; identical requests have the same one.
            make: creates the object, in this transaction, and returns its id.
            is_resent: whether the client states that it sends the request again.
            key: what the client calls the request, its `Idempotency-Key`.

        Raises:
            RequestError: the key belongs to another request.
        """
        if key is not None:
            is_resent, route = True, key_of(route, key)
        moment = now()
        with self.transaction() as db:
            db.execute(
                "DELETE FROM requests WHERE created_at < ? - (CASE WHEN instr(route, ' ') "
                "THEN ? ELSE ? END)",
                (moment, KEY_SECONDS, RETRY_SECONDS),
            )
            known = self._rows(
                "SELECT object_id FROM requests WHERE route = ? AND digest = ? "
                "ORDER BY seq DESC LIMIT 1",
                route,
                digest,
            )
            if is_resent and known:
                return str(known[0]["object_id"])
            if key is not None and self._rows("SELECT 1 FROM requests WHERE route = ?", route):
                raise key_in_use(key)
            made = make()
            db.execute(
                "INSERT INTO requests (route, digest, created_at, object_id) VALUES (?, ?, ?, ?)",
                (route, digest, moment, made),
            )
            return made

    def set_api_key(self, key: str) -> None:
        """Store the API key of this home, as a salted hash."""
        salt = secrets.token_bytes(16)
        with self.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO secrets (name, salt, hash) VALUES ('api_key', ?, ?)",
                (salt, _hash(key, salt)),
            )

    def has_api_key(self) -> bool:
        """Return whether an API key was ever set."""
        return bool(self._rows("SELECT 1 FROM secrets WHERE name = 'api_key'"))

    def check_api_key(self, key: str) -> bool:
        """Return whether this is the key; it takes some 50 ms, to slow down guessing."""
        rows = self._rows("SELECT salt, hash FROM secrets WHERE name = 'api_key'")
        return bool(rows) and secrets.compare_digest(
            _hash(key, rows[0]["salt"]), bytes(rows[0]["hash"])
        )


def _unusable(home: Path, error: sqlite3.Error) -> PlatformError:
    """Explain why a database cannot be opened; suggest a move only if it is damaged."""
    path, full = home / "platform.sqlite", unwritable(home, error)
    if "is full" in str(full):
        return full
    if isinstance(error, sqlite3.OperationalError):
        return PlatformError(
            f"{path} cannot be opened now ({error}): another program may have locked it, the "
            "folder may be read-only, or file descriptors may have run out. Close that program and "
            "try again"
        )
    return PlatformError(
        f"{path} cannot be used as a database ({error}); restore it from a backup. Without one, "
        "move it away to start with an empty list: uploaded files and jobs stay in the home folder"
    )


def _hash(key: str, salt: bytes) -> bytes:
    return hashlib.scrypt(key.encode(), salt=salt, n=2**14, r=8, p=1)
