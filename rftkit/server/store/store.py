"""The platform's store: jobs, events, checkpoints, models, files, evals.

The server and its worker share the `Store`; each call that changes something is durable when it
returns. This module opens the store and has models, webhooks and keys. `jobs`, `files`, `evals` and
`imports` have the other parts, `database` the common methods; no other module has SQL. A `Store`
without a home is in memory, for tests. `api` checks requests, and `wire` makes wire objects of
records.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rftkit.errors import NotFoundError, PlatformError
from rftkit.graders.types import parts
from rftkit.privacy import make_home
from rftkit.server.store.answers import KEY_SECONDS, Answers, key_in_use, key_of
from rftkit.server.store.batches import Batches
from rftkit.server.store.database import connect, new_id, now
from rftkit.server.store.evals import Evals
from rftkit.server.store.files import Files
from rftkit.server.store.imports import Imports
from rftkit.server.store.jobs import Jobs
from rftkit.server.store.records import Checkpoint, Delivery, Job, Model
from rftkit.wholefile import unwritable

__all__ = ["Store", "new_id", "now"]

RETRY_SECONDS = 600
"""How long the store recognises a create request that is sent again without a key, in seconds."""


class Store(Jobs, Files, Evals, Answers, Batches):
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

    # -- models --------------------------------------------------------------------------------

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
        """Return the ids of unfinished jobs that start from a model or grade with it, and of eval
        runs that sample it or grade with it.
        """
        jobs = [job.id for job in self.open_jobs() if job.model == name or _grades_with(job, name)]
        runs = [
            run.id
            for run in self.unfinished_runs()
            if run.model == name or _asks(self.eval(run.eval_id).testing_criteria, name)
        ]
        return jobs + runs

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
    is_foreign = any(words in str(error) for words in ("already exists", "no such table"))
    if is_foreign or (os.path.lexists(path) and not path.is_file()):
        what = "is the database of another program" if is_foreign else "is not a file"
        return PlatformError(
            f"{path} {what} ({error}); move it away, or set RFTKIT_HOME to another folder"
        )
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


def _grades_with(job: Job, name: str) -> bool:
    graders = [(job.grading or {}).get("grader"), job.method.get("held_out")]
    return _asks([spec for spec in graders if spec], name)


def _asks(graders: Iterable[dict[str, Any]], name: str) -> bool:
    """Whether a model is the judge of one of these graders."""
    return any(part.get("model") == name for spec in graders for part in parts(spec).values())


def _hash(key: str, salt: bytes) -> bytes:
    return hashlib.scrypt(key.encode(), salt=salt, n=2**14, r=8, p=1)
