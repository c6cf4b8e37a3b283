"""Everything the platform remembers: all SQL of the project, and the blobs beside it.

One SQLite file in WAL mode, used by the server and its worker at the same time; each process has
one connection behind a lock, each change is one `BEGIN IMMEDIATE` transaction, durable when the
call returns. A `Store` without a home lives in memory, for tests. Not here: what a request may
hold (`api`), what it looks like on the wire (`wire`), and what a job's folder contains (`worker`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from rftkit.errors import NotFoundError, PlatformError, RequestError
from rftkit.server.migrations import migrate
from rftkit.server.records import (
    ACTIVE,
    TERMINAL,
    Checkpoint,
    Eval,
    EvalRun,
    Event,
    File,
    Job,
    Model,
    OutputItem,
    Permission,
    Record,
    StoredResponse,
)

__all__ = ["Store", "new_id", "now"]

R = TypeVar("R", bound=Record)

BUSY_SECONDS = 30.0
"""How long a change waits for the other process's transaction."""
RETRY_SECONDS = 600
"""How long a resent create is recognised."""


def now() -> int:
    """Unix time in whole seconds."""
    return int(time.time())


def new_id(prefix: str) -> str:
    """A fresh id such as `ftjob-4f…`; `prefix` brings its own separator."""
    return prefix + secrets.token_hex(12)


class Store:
    """The platform's memory. Open it with `Store.open`; safe to share between threads."""

    def __init__(self, db: sqlite3.Connection, root: Path) -> None:
        """Use `Store.open`; `root` is the folder of the blobs."""
        self._db = db
        self._lock = threading.RLock()
        self._root = root
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, home: Path | None) -> Store:
        """Open, or make, the store of a home folder; None makes one in memory.

        Raises:
            PlatformError: when the home cannot be written or its database cannot be read.
        """
        if home is None:
            scratch = tempfile.TemporaryDirectory(prefix="rftkit-")
            store = cls(_connect(":memory:"), Path(scratch.name))
            store._scratch = scratch
            return store
        try:
            (home / "files").mkdir(parents=True, exist_ok=True)
            return cls(_connect(str(home / "platform.sqlite")), home / "files")
        except OSError as error:
            raise PlatformError(
                f"the home folder {home} cannot be written ({error.strerror or error}); "
                "set RFTKIT_HOME to a folder you own"
            ) from error
        except sqlite3.DatabaseError as error:
            raise PlatformError(
                f"{home / 'platform.sqlite'} cannot be used as a database ({error}); restore it "
                "from a copy, or move it away to start anew"
            ) from error

    def close(self) -> None:
        """Close the connection; an in-memory store loses everything."""
        with self._lock:
            self._db.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    # -- plumbing ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; a transaction inside another one is part of it."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _insert(self, record: R, *, or_ignore: bool = False) -> R:
        values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
        columns = ", ".join(values)
        marks = ", ".join("?" for _ in values)
        verb = "INSERT OR IGNORE" if or_ignore else "INSERT"
        encoded = [_encoded(record, name, value) for name, value in values.items()]
        with self.transaction() as db:
            db.execute(f"{verb} INTO {record.TABLE} ({columns}) VALUES ({marks})", encoded)
        return record

    def _update(self, kind: type[R], record_id: str, fields: dict[str, Any]) -> R:
        unknown = set(fields) - {f.name for f in dataclasses.fields(kind)}
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
        with self.transaction() as db:
            if fields:
                settings = ", ".join(f"{name} = ?" for name in fields)
                encoded = [_encoded(kind, name, value) for name, value in fields.items()]
                db.execute(
                    f"UPDATE {kind.TABLE} SET {settings} WHERE id = ?", (*encoded, record_id)
                )
            return self._one(kind, "id = ?", record_id, missing=record_id)

    def _find(self, kind: type[R], where: str, *values: Any) -> list[R]:
        return [_decoded(kind, row) for row in self._rows(_select(kind, where), *values)]

    def _one(self, kind: type[R], where: str, *values: Any, missing: str) -> R:
        found = self._find(kind, where, *values)
        if not found:
            raise NotFoundError(f"there is no {_LABEL[kind]} with id {missing!r}", param="id")
        return found[0]

    def _page(
        self,
        kind: type[R],
        where: str,
        values: tuple[Any, ...],
        *,
        after: str | None,
        limit: int,
        newest_first: bool,
    ) -> tuple[list[R], bool]:
        """A page after the record with id `after`, and whether more follows."""
        direction, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        if after is not None:
            cursor = self._rows(
                f"SELECT seq FROM {kind.TABLE} WHERE id = ? AND ({where})", after, *values
            )
            if not cursor:
                raise RequestError(
                    f"`after` is {after!r}, which is not in this list; pass the id of the last "
                    "element of the page before",
                    param="after",
                )
            where, values = f"({where}) AND seq {beyond} ?", (*values, cursor[0]["seq"])
        sql = f"{_select(kind, where)} ORDER BY seq {direction} LIMIT ?"
        rows = self._rows(sql, *values, limit + 1)
        return [_decoded(kind, row) for row in rows[:limit]], len(rows) > limit

    # -- files ---------------------------------------------------------------------------------

    def add_file(
        self,
        data: bytes | BinaryIO,
        filename: str,
        purpose: str,
        *,
        expires_at: int | None = None,
    ) -> File:
        """Keep a file: written beside its place, synced, renamed, then listed."""
        part = self._root / f"{secrets.token_hex(8)}.part"
        try:
            digest, size = _write_blob(part, data)
            file = File(
                id=new_id("file-"), created_at=now(), filename=filename, purpose=purpose,
                bytes=size, digest=digest, expires_at=expires_at,
            )  # fmt: skip
            with self.transaction():
                blob = self._blob(digest)
                blob.parent.mkdir(exist_ok=True)
                os.replace(part, blob)
                _sync_folder(blob.parent)
                return self._insert(file)
        except OSError as error:
            raise PlatformError(
                f"the file {filename!r} could not be kept in {self._root} "
                f"({error.strerror or error}); nothing was stored"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def file(self, file_id: str) -> File:
        """One file, expired or not.

        Raises:
            NotFoundError: when there is none.
        """
        return self._one(File, "id = ?", file_id, missing=file_id)

    def file_path(self, file_id: str) -> Path:
        """Where the file's bytes lie.

        Raises:
            NotFoundError: when there is no such file.
            PlatformError: when its blob is missing or was changed in size.
        """
        file = self.file(file_id)
        path = self._blob(file.digest)
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise PlatformError(
                f"the content of {file_id} ({file.filename}) is damaged: {path} should hold "
                f"{file.bytes} bytes; upload the file again"
            )
        return path

    def files(
        self,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
    ) -> tuple[list[File], bool]:
        """A page of the files that have not expired."""
        where, values = "(expires_at IS NULL OR expires_at > ?)", (now(),)
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", (*values, purpose)  # type: ignore[assignment]
        return self._page(File, where, values, after=after, limit=limit, newest_first=newest_first)

    def delete_file(self, file_id: str) -> None:
        """Forget a file, and its bytes when no other file has the same.

        Raises:
            NotFoundError: when there is none.
            RequestError: when a job that has not ended uses it.
        """
        with self.transaction() as db:
            file = self.file(file_id)
            users = self._unfinished_users(file_id)
            if users:
                raise RequestError(
                    f"file {file_id} is used by job {users[0]}, which has not ended; cancel the "
                    "job or wait for it",
                    param="file_id", code="file_in_use",
                )  # fmt: skip
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
            if not self._rows("SELECT 1 FROM files WHERE digest = ? LIMIT 1", file.digest):
                self._blob(file.digest).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Drop expired files that no unfinished job uses, and the leftovers of a killed process.

        Only for a server that has its home to itself and no worker yet.
        """
        for file in self._find(File, "expires_at <= ?", now()):
            with contextlib.suppress(RequestError):
                self.delete_file(file.id)
        known = {row["digest"] for row in self._rows("SELECT digest FROM files")}
        for path in self._root.rglob("*"):
            if path.is_file() and path.name not in known:
                path.unlink(missing_ok=True)

    def _blob(self, digest: str) -> Path:
        return self._root / digest[:2] / digest

    def _unfinished_users(self, file_id: str) -> list[str]:
        rows = self._rows(
            f"SELECT id FROM jobs WHERE (training_file = ? OR validation_file = ?) "
            f"AND status NOT IN {_tuple(TERMINAL)}",
            file_id, file_id,
        )  # fmt: skip
        return [row["id"] for row in rows]

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
        """A page of jobs, newest first, that carry all of `metadata`, or none at all."""
        where, values = "1", []
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
        return self._find(Job, f"status IN {_tuple(ACTIVE)} ORDER BY queue_position")

    def jobs_from(self, model: str) -> list[Job]:
        """Jobs that have not ended and start from this model."""
        return self._find(Job, f"model = ? AND status NOT IN {_tuple(TERMINAL)}", model)

    def claim_job(self) -> Job | None:
        """The job to work on now, or None.

        First one that a dead worker left `running` or `pausing`; then the one that has waited
        longest. A `queued` one becomes `running`; one that still has its files to be checked is
        handed out as `validating_files`.
        """
        with self.transaction():
            found = self._find(
                Job,
                f"status IN {_tuple(ACTIVE)} "
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
            if job.is_terminal:
                fields.pop("status", None)
            elif fields.get("status") in TERMINAL:
                fields = {"finished_at": now(), "estimated_finish": None, **fields}
            return self._update(Job, job_id, fields)

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
        """Add a line to a job's story; the same `key` twice is one event, the first."""
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

    def drop_checkpoint(self, checkpoint_id: str) -> None:
        """Forget a checkpoint; its folder is the caller's."""
        with self.transaction() as db:
            db.execute("DELETE FROM checkpoints WHERE id = ?", (checkpoint_id,))

    def add_model(
        self, name: str, base: str, job_id: str | None, folder: str, step: int | None = None
    ) -> Model:
        """Make a fine-tuned model known by name; the same name again takes the new folder."""
        with self.transaction() as db:
            db.execute("DELETE FROM models WHERE name = ?", (name,))
            return self._insert(
                Model(
                    name=name, created_at=now(), base=base, job_id=job_id, folder=str(folder),
                    step=step,
                )
            )  # fmt: skip

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
            if db.execute("DELETE FROM models WHERE name = ?", (name,)).rowcount == 0:
                raise NotFoundError(
                    f"there is no fine-tuned model {name!r}", param="model", code="model_not_found"
                )

    # -- resent requests and keys --------------------------------------------------------------

    def remember_request(self, route: str, digest: str, object_id: str) -> None:
        """Note what a create made, so that a resent one can be recognised."""
        with self.transaction() as db:
            db.execute("DELETE FROM requests WHERE created_at < ?", (now() - RETRY_SECONDS,))
            db.execute(
                "INSERT INTO requests (route, digest, created_at, object_id) VALUES (?, ?, ?, ?)",
                (route, digest, now(), object_id),
            )

    def remembered_request(self, route: str, digest: str) -> str | None:
        """What the same create made within the last ten minutes."""
        rows = self._rows(
            "SELECT object_id FROM requests WHERE route = ? AND digest = ? AND created_at >= ? "
            "ORDER BY seq DESC LIMIT 1",
            route, digest, now() - RETRY_SECONDS,
        )  # fmt: skip
        return str(rows[0]["object_id"]) if rows else None

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


_LABEL: dict[type[Record], str] = {
    File: "file",
    Job: "fine-tuning job",
    Event: "event",
    Checkpoint: "checkpoint",
    Model: "model",
    Eval: "eval",
    EvalRun: "eval run",
    OutputItem: "output item",
    Permission: "checkpoint permission",
    StoredResponse: "response",
}


def _connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _select(kind: type[Record], where: str) -> str:
    columns = ", ".join(f.name for f in dataclasses.fields(kind))
    return f"SELECT {columns} FROM {kind.TABLE} WHERE {where}"


def _tuple(words: frozenset[str]) -> str:
    """Our own state names as an SQL list."""
    return "(" + ", ".join(f"'{word}'" for word in sorted(words)) + ")"


def _encoded(kind: type[Record] | Record, name: str, value: Any) -> Any:
    if name in kind.JSON and value is not None:
        return json.dumps(value, allow_nan=False)
    return value


def _decoded(kind: type[R], row: sqlite3.Row) -> R:
    values = {
        name: json.loads(row[name]) if name in kind.JSON and row[name] is not None else row[name]
        for name in row.keys()  # noqa: SIM118  a Row iterates over its values
    }
    if kind is Job:
        values["cancel_requested"] = bool(values["cancel_requested"])
    return kind(**values)


def _write_blob(path: Path, data: bytes | BinaryIO) -> tuple[str, int]:
    """Write and sync; returns the SHA-256 and the number of bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as out:
        if isinstance(data, bytes):
            digest.update(data)
            size = out.write(data)
        else:
            while chunk := data.read(1 << 20):
                digest.update(chunk)
                size += out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest(), size


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _hash(key: str, salt: bytes) -> bytes:
    return hashlib.scrypt(key.encode(), salt=salt, n=2**14, r=8, p=1)
