"""The store's imports: objects of other services, stored whole under their own ids, never changed.

An object may have many parts: a job has events, a run has output items. The parts are written
first, in small transactions over a separate connection, so that other requests need not wait. The
object is written last, when all its parts are stored; only then do clients see any of it. The next
import reuses the parts that a killed import left, or `sweep` deletes them. Imported jobs, evals and
files are sorted by their own dates and listed as older than everything created here.
`imported_records` reads the objects.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rftkit.errors import RequestError
from rftkit.server.store.database import Database, now
from rftkit.server.store.imported_records import (
    check_id,
    checkpoint_record,
    eval_record,
    event_record,
    file_record,
    item_record,
    job_record,
    model_records,
    run_record,
)
from rftkit.server.store.records import (
    Checkpoint,
    Eval,
    EvalRun,
    Event,
    File,
    Importable,
    Job,
    Model,
    OutputItem,
)

__all__ = ["KINDS", "PARTS", "Imports", "Known"]

KINDS: dict[str, type[Importable]] = {"file": File, "job": Job, "eval": Eval, "run": EvalRun}
"""The kinds of object that are imported in one transaction."""
PARTS = {"event": "job", "output_item": "run"}
"""Kind of part -> kind of the object that it belongs to."""
FIRST_SEQ = -(2**62)
"""First `seq` of imported rows. They are in order of date, below every row created here."""
PER_SECOND = 2**20
"""How many rows of one table may have the same date, in seconds."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """What the store knows about an id."""

    origin: str | None
    """Service and account that it was imported from; None if it was created here."""
    digest: str | None
    """Digest of the object and its parts, as the importer computed it."""
    is_final: bool
    """Whether it had ended when it was imported; its content must then stay the same."""


class Imports(Database):
    """Writes imported objects."""

    def __init__(self, db: sqlite3.Connection, lock: threading.RLock | None = None) -> None:
        """`db` is a separate connection, or a shared one together with its lock."""
        super().__init__(db)
        self._lock = lock or self._lock

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Like `Database.transaction`, but parts may be written before their object."""
        with self._lock:
            self._db.execute("PRAGMA foreign_keys = OFF")  # has no effect inside a transaction
            try:
                with super().transaction() as db:
                    yield db
            finally:
                if not self._db.in_transaction:
                    self._db.execute("PRAGMA foreign_keys = ON")

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock:
            self._db.close()

    def known(self, kind: str, object_id: str) -> Known | None:
        """Return what the store knows about this id; None if the id is free."""
        table = KINDS[kind].TABLE
        found = self._rows(
            f"SELECT {table}.origin, imports.digest, imports.is_final FROM {table} "
            f"LEFT JOIN imports ON imports.kind = ? AND imports.id = {table}.id "
            f"WHERE {table}.id = ?",
            kind,
            object_id,
        )
        if not found:
            return None
        origin, digest, is_final = found[0]
        return Known(origin, digest, bool(is_final))

    def add_parts(self, kind: str, parent: str, wires: Sequence[Json], origin: str) -> None:
        """Store parts; those that are already stored stay unchanged.

        Raises:
            RequestError: when a part has no usable id.
        """
        if kind == "event":
            events = [event_record(wire, origin, parent) for wire in wires]
            self._insert_all(Event, events, or_ignore=True)
        else:
            items = [item_record(wire, origin, parent) for wire in wires]
            self._insert_all(OutputItem, items, or_ignore=True)

    def put_file(self, wire: Json, origin: str, digest: str, blob: str, size: int) -> None:
        """Store a file whose bytes are already stored.

        Raises:
            RequestError: its id is taken.
        """
        record = file_record(wire, origin, blob, size)
        with self._putting("file", record, origin, digest, is_final=True) as is_new:
            if is_new:
                self._insert_past(record)

    def put_eval(self, wire: Json, origin: str, digest: str) -> None:
        """Store an eval.

        Raises:
            RequestError: its id is taken.
        """
        record = eval_record(wire, origin)
        with self._putting("eval", record, origin, digest, is_final=True) as is_new:
            if is_new:
                self._insert_past(record)

    def put_job(
        self, wire: Json, origin: str, digest: str, num_events: int, checkpoints: Sequence[Json],
        *, is_final: bool,
    ) -> None:  # fmt: skip
        """Store a job whose events are already stored, its checkpoints, and its models' names.

        Raises:
            RequestError: its id, or that of one of its parts, is taken, or events are missing.
        """
        record = job_record(wire, origin)
        kept = [checkpoint_record(each, origin, record.id) for each in checkpoints]
        listed = {each.name: each.wire for each in self._find(Model, "job_id = ?", record.id)}
        models = [
            replace(each, wire=listed.get(each.name) or each.wire)
            for each in model_records(record, kept)
        ]
        with self._putting("job", record, origin, digest, is_final=is_final) as is_new:
            if is_new:
                self._check_count(Event, "job_id", record.id, num_events)
                self._check_free(Checkpoint, "id", [each.id for each in kept])
                self._check_free(Model, "name", [model.name for model in models])
                self._insert_past(record)
                self._insert_all(Checkpoint, kept)
                self._insert_all(Model, models)

    def put_model(self, wire: Json, origin: str) -> None:
        """Store what its service lists of a model that an imported job made, such as its
        `shutdown_date`; a later import may replace it.

        Raises:
            RequestError: no job of this origin made the model.
        """
        name = check_id(wire.get("id"))
        with self.transaction() as db:
            changed = db.execute(
                "UPDATE models SET wire = ? WHERE name = ? AND origin = ?",
                (self._encoded(Model, "wire", wire), name, origin),
            )
            if not changed.rowcount:
                raise RequestError(f"no job that was imported from {origin} made this model")

    def put_run(
        self, wire: Json, origin: str, digest: str, num_items: int, *, is_final: bool
    ) -> None:
        """Store a run whose output items are already stored.

        Raises:
            RequestError: its id, or that of one of its items, is taken, items are missing, or
                there is no imported eval that it belongs to.
        """
        record = run_record(wire, origin)
        with self._putting("run", record, origin, digest, is_final=is_final) as is_new:
            if is_new:
                parent = self.known("eval", record.eval_id)
                if parent is None or parent.origin is None:
                    found = "does not exist" if parent is None else "was created here"
                    raise RequestError(f"its eval {record.eval_id or '(none)'} {found}")
                self._check_count(OutputItem, "run_id", record.id, num_items)
                self._insert(record)

    def sweep(self) -> None:
        """Delete the parts of objects whose import was never finished."""
        with self.transaction() as db:
            for table, parent, parents in (
                ("events", "job_id", "jobs"),
                ("output_items", "run_id", "eval_runs"),
            ):
                left = self._rows(
                    f"SELECT DISTINCT {parent} FROM {table} "
                    f"WHERE {parent} NOT IN (SELECT id FROM {parents})"
                )
                db.executemany(f"DELETE FROM {table} WHERE {parent} = ?", [(r[0],) for r in left])

    @contextlib.contextmanager
    def _putting(
        self, kind: str, record: Any, origin: str, digest: str, *, is_final: bool
    ) -> Iterator[bool]:
        """Record the import after its rows are written; yield False if it is stored already.

        A later import replaces an object that had not ended when it was first imported.
        """
        with self.transaction() as db:
            found = self.known(kind, record.id)
            if found is not None and found.digest == digest:
                yield False
                return
            if found is not None:
                _check_replaceable(found, origin)
                if kind == "job":
                    db.execute("DELETE FROM checkpoints WHERE job_id = ?", (record.id,))
                    db.execute("DELETE FROM models WHERE job_id = ?", (record.id,))
                db.execute(f"DELETE FROM {KINDS[kind].TABLE} WHERE id = ?", (record.id,))
            yield True
            db.execute(
                "INSERT OR REPLACE INTO imports VALUES (?, ?, ?, ?, ?, ?)",
                (kind, record.id, now(), origin, digest, is_final),
            )

    def _insert_past(self, record: File | Job | Eval) -> None:
        """Insert in order of date, below every row created here."""
        low = FIRST_SEQ + min(max(record.created_at, 0), 2**40) * PER_SECOND
        with self.transaction() as db:
            table = record.TABLE
            newest = self._rows(
                f"SELECT max(seq) FROM {table} WHERE seq >= ? AND seq < ?", low, low + PER_SECOND
            )[0][0]
            self._insert(record)
            seq = low if newest is None else newest + 1
            db.execute(f"UPDATE {table} SET seq = ? WHERE id = ?", (seq, record.id))

    def _check_count(self, kind: type[Importable], parent: str, value: str, number: int) -> None:
        sql = f"SELECT count(*) FROM {kind.TABLE} WHERE {parent} = ?"
        found = self._rows(sql, value)[0][0]
        if found != number:
            raise RequestError(
                f"it has {number:,} {kind.TABLE.replace('_', ' ')}, of which {found:,} could be "
                "stored; the ids of the others are already in use or occur twice"
                if found < number
                else f"the home has {found:,} {kind.TABLE.replace('_', ' ')} of it, but the import "
                f"has {number:,}. If an earlier import was killed, restart the platform "
                "(rftkit serve --stop): it then deletes the incomplete import"
            )

    def _check_free(self, kind: type[Importable], column: str, values: list[str]) -> None:
        for value in values:
            if self._rows(f"SELECT 1 FROM {kind.TABLE} WHERE {column} = ?", value):
                raise RequestError(f"its {kind.TABLE.removesuffix('s')} {value} already exists")
        if len(set(values)) < len(values):
            raise RequestError(f"two of its {kind.TABLE} have the same {column}")


def _check_replaceable(found: Known, origin: str) -> None:
    if found.origin is None:
        raise RequestError("an object with this id was created here")
    if found.origin != origin:
        raise RequestError(f"an object with this id was imported from {found.origin}")
    if found.is_final:
        raise RequestError("it was imported before with different content")
