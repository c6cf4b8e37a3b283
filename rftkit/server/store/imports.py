"""The store's imports: objects of other services, kept whole, under their own ids, never changed.

An object may have many parts (a job its events, a run its output items). Parts come first, in
small transactions over a connection of its own, so that nobody waits for them; the object comes
last, when all its parts are there, and only then can any of it be seen. What a killed import left
behind is taken up by the next one, or swept away. Imported jobs, evals and files are listed by
their own dates, as older than all that was made here. Not here: what the objects hold (`imported`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.errors import RequestError
from rftkit.server.store.database import Database, now
from rftkit.server.store.imported_records import (
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
"""Objects that are imported as one."""
PARTS = {"event": "job", "output_item": "run"}
"""Kind of part -> of what."""
PAST = -(2**62)
"""Imported rows are ordered by their date, counted up from here: below all that is made here."""
PER_SECOND = 2**20
"""Rows of one table that may have the same second."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """What the store has under an id."""

    origin: str | None
    """None: it was made here."""
    digest: str | None
    """Of the object and its parts, as its importer counts."""
    is_final: bool
    """It had ended when it was imported; another content is then another object."""


class Imports(Database):
    """Writes what was made elsewhere."""

    def __init__(self, db: sqlite3.Connection, lock: threading.RLock | None = None) -> None:
        """`db` is a connection of its own, or one that is shared, with the lock that guards it."""
        super().__init__(db)
        self._lock = lock or self._lock

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """As everywhere, but parts may come before what they belong to."""
        with self._lock:
            self._db.execute("PRAGMA foreign_keys = OFF")  # means nothing inside a transaction
            try:
                with super().transaction() as db:
                    yield db
            finally:
                if not self._db.in_transaction:
                    self._db.execute("PRAGMA foreign_keys = ON")

    def close(self) -> None:
        """Close the connection; twice is once."""
        with self._lock:
            self._db.close()

    def known(self, kind: str, object_id: str) -> Known | None:
        """What is there under this id."""
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
        """Keep parts; those that are there already stay as they are.

        Raises:
            RequestError: one has no usable id.
        """
        if kind == "event":
            events = [event_record(wire, origin, parent) for wire in wires]
            self._insert_all(Event, events, or_ignore=True)
        else:
            items = [item_record(wire, origin, parent) for wire in wires]
            self._insert_all(OutputItem, items, or_ignore=True)

    def put_file(self, wire: Json, origin: str, digest: str, blob: str, size: int) -> None:
        """Keep a file whose bytes are there.

        Raises:
            RequestError: its id is taken.
        """
        record = file_record(wire, origin, blob, size)
        with self._putting("file", record, origin, digest, is_final=True) as is_new:
            if is_new:
                self._insert_past(record)

    def put_eval(self, wire: Json, origin: str, digest: str) -> None:
        """Keep an eval.

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
        """Keep a job whose events are there, with its checkpoints and the names of its models.

        Raises:
            RequestError: its id, or that of one of its parts, is taken, or events are missing.
        """
        record = job_record(wire, origin)
        kept = [checkpoint_record(each, origin, record.id) for each in checkpoints]
        models = model_records(record, kept)
        with self._putting("job", record, origin, digest, is_final=is_final) as is_new:
            if is_new:
                self._check_count(Event, "job_id", record.id, num_events)
                self._check_free(Checkpoint, "id", [each.id for each in kept])
                self._check_free(Model, "name", [model.name for model in models])
                self._insert_past(record)
                self._insert_all(Checkpoint, kept)
                self._insert_all(Model, models)

    def put_run(
        self, wire: Json, origin: str, digest: str, num_items: int, *, is_final: bool
    ) -> None:
        """Keep a run whose output items are there.

        Raises:
            RequestError: its id, or that of one of its items, is taken, items are missing, or
                there is no imported eval that it belongs to.
        """
        record = run_record(wire, origin)
        with self._putting("run", record, origin, digest, is_final=is_final) as is_new:
            if is_new:
                parent = self.known("eval", record.eval_id)
                if parent is None or parent.origin is None:
                    found = "is not here" if parent is None else "was made here"
                    raise RequestError(f"its eval {record.eval_id or '(none)'} {found}")
                self._check_count(OutputItem, "run_id", record.id, num_items)
                self._insert(record)

    def sweep(self) -> None:
        """Drop the parts of objects whose import was never finished."""
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
        """Note the import, once its writing went well; False when it is here already.

        An object that had not ended when it was imported is replaced by what its service says
        later.
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
        """Insert by date, below everything that was made here."""
        low = PAST + min(max(record.created_at, 0), 2**40) * PER_SECOND
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
                "kept: ids of the others are taken, or they stand twice"
                if found < number
                else f"there are {found:,} {kind.TABLE.replace('_', ' ')} of it here, and the "
                f"import has {number:,}; if an earlier import was killed, restart the platform "
                "(rftkit serve --stop), which drops what it left"
            )

    def _check_free(self, kind: type[Importable], column: str, values: list[str]) -> None:
        for value in values:
            if self._rows(f"SELECT 1 FROM {kind.TABLE} WHERE {column} = ?", value):
                raise RequestError(f"its {kind.TABLE.removesuffix('s')} {value} is here already")
        if len(set(values)) < len(values):
            raise RequestError(f"two of its {kind.TABLE} have the same {column}")


def _check_replaceable(found: Known, origin: str) -> None:
    if found.origin is None:
        raise RequestError("an object with this id was made here")
    if found.origin != origin:
        raise RequestError(f"an object with this id was imported from {found.origin}")
    if found.is_final:
        raise RequestError("it was imported before with other content")
