"""Everything the platform remembers: jobs, events, checkpoints, models, files, evals.

`Store` is what the server and its worker share; each call that changes something is durable when
it returns. Its parts: jobs and what belongs to them here, files in `store_files`, evals in
`store_evals`, what was made elsewhere in `store_imports`, the plumbing in `database`; no SQL
anywhere else. A `Store` without a home lives in
memory, for tests. Not here: what a request may hold (`api`), what it looks like on the wire
(`wire`), and what a job's folder contains (`worker`).
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
from rftkit.server.store.database import connect, new_id, now, sql_list
from rftkit.server.store.evals import Evals
from rftkit.server.store.files import Files
from rftkit.server.store.imports import Imports
from rftkit.server.store.records import ACTIVE, TERMINAL, Checkpoint, Delivery, Event, Job, Model
from rftkit.wholefile import unwritable

__all__ = ["Store", "new_id", "now"]

RETRY_SECONDS = 600
"""How long a resent create is recognised."""


class Store(Files, Evals):
    """The platform's memory. Open it with `Store.open`; safe to share between threads."""

    def __init__(self, db: sqlite3.Connection, root: Path) -> None:
        """Use `Store.open`."""
        super().__init__(db, root)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._imports: Imports | None = None

    @classmethod
    def open(cls, home: Path | None) -> Store:
        """Open, or make, the store of a home folder; None makes one in memory.

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
        """The part that takes in what was made elsewhere, over a connection of its own."""
        with self._lock:
            if self._imports is None:
                own = self._scratch is None
                db = connect(str(self._root.parent / "platform.sqlite")) if own else self._db
                self._imports = Imports(db, None if own else self._lock)
            return self._imports

    def strangers(self) -> list[str]:
        """What the home holds and the database does not know, in words: it may be an older one."""
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
        """Drop expired files and the leftovers of killed processes; for a server that starts."""
        super().sweep()
        self.imports.sweep()

    def close(self) -> None:
        """Close the connections; an in-memory store loses everything."""
        with self._lock:
            if self._imports is not None:
                self._imports.close()
            self._db.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    # -- jobs ----------------------------------------------------------------------------------

    def add_job(self, job: Job) -> Job:
        """Put a new job at the end of the queue."""
        with self.transaction():
            return self._insert(dataclasses.replace(job, queue_position=self._queue_end()))

    def job(self, job_id: str) -> Job:
        """One job.

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
        """A page of jobs, newest first, that carry all of `metadata`, or none at all.

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
        """Jobs that a worker has or should have: neither ended nor paused."""
        where = f"status IN {sql_list(ACTIVE)} AND origin IS NULL ORDER BY queue_position"
        return self._find(Job, where)

    def jobs_from(self, model: str) -> list[Job]:
        """Jobs that have not ended and start from this model."""
        where = f"model = ? AND origin IS NULL AND status NOT IN {sql_list(TERMINAL)}"
        return self._find(Job, where, model)

    def claim_job(self) -> Job | None:
        """The job to work on now, or None.

        First one that a dead worker left `running` or `pausing`; then the one that has waited
        longest. A `queued` one becomes `running`; one that still has its files to be checked is
        handed out as `validating_files`. An imported one is nobody's work, whatever its status.
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
        """Change fields of a job and return it as it then is.

        A job that has ended keeps its status whatever is asked (it may have been cancelled a
        moment ago); `finished_at` is set with the first terminal status.

        Raises:
            NotFoundError: when there is no such job.
        """
        with self.transaction():
            job = self.job(job_id)
            self._check_own(job, f"job {job_id}")
            if job.is_terminal:
                fields.pop("status", None)
            elif fields.get("status") in TERMINAL:
                fields = {"finished_at": now(), "estimated_finish": None, **fields}
                if not job.is_probe:
                    self._announce(f"fine_tuning.job.{fields['status']}", job_id)
            return self._update(Job, job_id, fields)

    def try_status(self, job_id: str, status: str, **fields: Any) -> bool:
        """Give a job a status and what belongs to it, unless it has ended; whether it was given.

        What else tells of the change (events, models) goes into the same transaction.

        Raises:
            NotFoundError: when there is no such job.
        """
        with self.transaction():
            if self.job(job_id).is_terminal:
                return False
            self.update_job(job_id, status=status, **fields)
            return True

    def cancel_job(self, job_id: str) -> Job:
        """End a job that has not ended; its worker notices between two steps.

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
        """Put a paused job at the end of the queue.

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
        self._check_own(job, f"job {job_id}")
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
        """Add a line to a job's story; the same `key` twice is one event, the first.

        Words of servers that were asked may hold the key that they were sent: it is hidden.
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
        """Whether an event with this key was added."""
        return bool(self._rows("SELECT 1 FROM events WHERE job_id = ? AND key = ?", job_id, key))

    def event_keys(self, job_id: str) -> set[str]:
        """The keys of a job's events."""
        sql = "SELECT key FROM events WHERE job_id = ? AND key IS NOT NULL"
        return {row["key"] for row in self._rows(sql, job_id)}

    def event(self, job_id: str, key: str) -> Event | None:
        """The event with this key, or None."""
        return next(iter(self._find(Event, "job_id = ? AND key = ?", job_id, key)), None)

    def revise_event(self, event_id: str, message: str, data: dict[str, Any]) -> Event:
        """Replace what an event says; its id, its place and its time stay."""
        return self._update(Event, event_id, {"message": message, "data": data})

    def events(
        self, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> tuple[list[Event], bool]:
        """A page of a job's events, newest first."""
        return self._page(
            Event, "job_id = ?", (job_id,), after=after, limit=limit, newest_first=True
        )

    def add_checkpoint(
        self, job_id: str, step: int, model_name: str, metrics: dict[str, Any], folder: str
    ) -> str:
        """List a checkpoint and return its id; the same step and name twice is one checkpoint."""
        with self.transaction():
            checkpoint = Checkpoint(
                id=new_id("ftckpt_"), job_id=job_id, created_at=now(), step=step,
                model_name=model_name, metrics=metrics, folder=str(folder),
            )  # fmt: skip
            self._insert(checkpoint, or_ignore=True)
            where = "job_id = ? AND step = ? AND model_name = ?"
            return self._find(Checkpoint, where, job_id, step, model_name)[0].id

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """A job's checkpoints, highest step first."""
        return self._find(Checkpoint, "job_id = ? ORDER BY step DESC, seq DESC", job_id)

    def measure_checkpoint(self, job_id: str, step: int, metrics: dict[str, Any]) -> None:
        """Replace the metrics of a step's checkpoints, as far as they are still there."""
        with self.transaction():
            for each in self._find(Checkpoint, "job_id = ? AND step = ?", job_id, step):
                self._update(Checkpoint, each.id, {"metrics": metrics})

    def drop_checkpoint(self, checkpoint_id: str) -> None:
        """Forget a checkpoint; its folder is the caller's."""
        with self.transaction() as db:
            db.execute("DELETE FROM checkpoints WHERE id = ?", (checkpoint_id,))

    def drop_checkpoint_of(self, model_name: str) -> None:
        """Forget the checkpoints that a model's name stands for."""
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
        """Make a fine-tuned model known by name; the same name again takes the new folder."""
        with self.transaction() as db:
            db.execute("DELETE FROM models WHERE name = ?", (name,))
            return self._insert(
                Model(
                    name=name, created_at=now(), base=base, job_id=job_id, folder=str(folder),
                    step=step, thinking=thinking,
                )
            )  # fmt: skip

    def used_folders(self) -> set[str]:
        """The folders of all models and checkpoints."""
        models = {model.folder for model in self._find(Model, "1")}
        return models | {checkpoint.folder for checkpoint in self._find(Checkpoint, "1")}

    def users_of_model(self, name: str) -> list[str]:
        """Ids of jobs that have not ended and start from a model, and of eval runs that ask it."""
        jobs = [job.id for job in self.jobs_from(name)]
        return jobs + [run.id for run in self.unfinished_runs() if run.model == name]

    def model(self, name: str) -> Model | None:
        """A fine-tuned model, or None."""
        return next(iter(self._find(Model, "name = ?", name)), None)

    def models(self) -> list[Model]:
        """All fine-tuned models, oldest first."""
        return self._find(Model, "1 ORDER BY seq")

    def delete_model(self, name: str) -> None:
        """Forget a fine-tuned model; its folder is the caller's.

        Raises:
            NotFoundError: when there is none.
        """
        with self.transaction() as db:
            if (model := self.model(name)) is not None:
                self._check_own(model, f"the model {name}")
            if db.execute("DELETE FROM models WHERE name = ?", (name,)).rowcount == 0:
                raise NotFoundError(
                    f"there is no fine-tuned model {name!r}", param="model", code="model_not_found"
                )

    # -- webhooks, resent requests, keys --------------------------------------------------------

    def due_deliveries(self, *, limit: int = 100) -> list[Delivery]:
        """News that has not arrived and is due to be sent, oldest first."""
        return self._find(Delivery, "due_at <= ? ORDER BY seq LIMIT ?", now(), limit)

    def drop_deliveries(self, before: int) -> None:
        """Forget news older than a moment, arrived or not."""
        with self.transaction() as db:
            db.execute("DELETE FROM deliveries WHERE created_at < ?", (before,))

    def update_delivery(self, delivery_id: str, **fields: Any) -> Delivery:
        """Note an attempt to send."""
        return self._update(Delivery, delivery_id, fields)

    def once(self, route: str, digest: str, make: Callable[[], str], *, is_resent: bool) -> str:
        """The id of what `make` makes, or of what the same request made a moment ago.

        Args:
            route: of the create.
            digest: the same for identical requests.
            make: creates the object, in this transaction, and returns its id.
            is_resent: whether the client says that it sends the request again.
        """
        moment = now()
        with self.transaction() as db:
            db.execute("DELETE FROM requests WHERE created_at < ?", (moment - RETRY_SECONDS,))
            known = self._rows(
                "SELECT object_id FROM requests WHERE route = ? AND digest = ? "
                "ORDER BY seq DESC LIMIT 1",
                route,
                digest,
            )
            if is_resent and known:
                return str(known[0]["object_id"])
            made = make()
            db.execute(
                "INSERT INTO requests (route, digest, created_at, object_id) VALUES (?, ?, ?, ?)",
                (route, digest, moment, made),
            )
            return made

    def set_api_key(self, key: str) -> None:
        """Keep the API key of this home, as a salted hash."""
        salt = secrets.token_bytes(16)
        with self.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO secrets (name, salt, hash) VALUES ('api_key', ?, ?)",
                (salt, _hash(key, salt)),
            )

    def has_api_key(self) -> bool:
        """Whether an API key was ever set."""
        return bool(self._rows("SELECT 1 FROM secrets WHERE name = 'api_key'"))

    def check_api_key(self, key: str) -> bool:
        """Whether this is the key (some 50 ms on purpose)."""
        rows = self._rows("SELECT salt, hash FROM secrets WHERE name = 'api_key'")
        return bool(rows) and secrets.compare_digest(
            _hash(key, rows[0]["salt"]), bytes(rows[0]["hash"])
        )


def _unusable(home: Path, error: sqlite3.Error) -> PlatformError:
    """Why a database cannot be opened; only one that is damaged is worth moving away."""
    path, full = home / "platform.sqlite", unwritable(home, error)
    if "is full" in str(full):
        return full
    if isinstance(error, sqlite3.OperationalError):
        return PlatformError(
            f"{path} cannot be opened now ({error}); another program may hold it, or the folder "
            "may be read-only or out of file descriptors. Close that program and start again"
        )
    return PlatformError(
        f"{path} cannot be used as a database ({error}); restore it from a copy. Without one, move "
        "it away to start with an empty list: uploaded files and jobs stay in the home folder"
    )


def _hash(key: str, salt: bytes) -> bytes:
    return hashlib.scrypt(key.encode(), salt=salt, n=2**14, r=8, p=1)
