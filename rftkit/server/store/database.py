"""The database layer of the store: one connection, transactions, records in and out, pages.

The server and its worker use the same SQLite database in WAL mode. Each process has one connection,
guarded by a lock. Each change is one `BEGIN IMMEDIATE` transaction, durable when the call returns.
This module knows records only as dataclasses (`records.py`); the store gives them meaning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rftkit.errors import NotFoundError, RequestError
from rftkit.server.store.migrations import migrate
from rftkit.server.store.records import (
    Batch,
    Checkpoint,
    Delivery,
    Eval,
    EvalRun,
    Event,
    File,
    Importable,
    Job,
    Model,
    OutputItem,
    Permission,
    Record,
    StoredResponse,
)

__all__ = ["Database", "connect", "new_id", "now", "sql_list"]

R = TypeVar("R", bound=Record)

BUSY_SECONDS = 30.0
"""How long a transaction waits for one of the other process."""
TRY_SECONDS = 0.05
"""How long it waits at a time, before this process may do something else."""


def now() -> int:
    """Return the unix time in whole seconds."""
    return int(time.time())


def new_id(prefix: str) -> str:
    """Return a new id such as `ftjob-4f…`; `prefix` includes its separator."""
    return prefix + secrets.token_hex(12)


class Database:
    """Reads and writes records in tables. Threads can share one instance."""

    def __init__(self, db: sqlite3.Connection, home: Path | None = None) -> None:
        """`db` comes from `connect`; its paths are relative to `home`."""
        self._db = db
        self._home = home or Path()
        self._lock = threading.RLock()
        self.on_wait: Callable[[], None] = lambda: time.sleep(0.01)
        """Called again and again while another process has locked the database for writing."""

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit every change of the block or none; a nested transaction joins the outer one."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._begin()
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have rolled it back already
                    self._db.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        """Begin a transaction; other threads can read while another process locks the database."""
        deadline = time.monotonic() + BUSY_SECONDS
        while not self._has_begun(deadline):
            self._lock.release()
            try:
                self.on_wait()
            finally:
                self._lock.acquire()

    def _has_begun(self, deadline: float) -> bool:
        try:
            with self._busy_timeout(TRY_SECONDS):
                self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            return False
        return True

    @contextlib.contextmanager
    def _busy_timeout(self, seconds: float) -> Iterator[None]:
        self._db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        try:
            yield
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")

    def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _insert(self, record: R, *, or_ignore: bool = False) -> R:
        self._insert_all(type(record), [record], or_ignore=or_ignore)
        return record

    def _insert_all(self, kind: type[R], records: Iterable[R], *, or_ignore: bool = False) -> None:
        names = [f.name for f in dataclasses.fields(kind)]
        verb = "INSERT OR IGNORE" if or_ignore else "INSERT"
        marks = ", ".join("?" for _ in names)
        sql = f"{verb} INTO {kind.TABLE} ({', '.join(names)}) VALUES ({marks})"
        rows = ([self._encoded(kind, n, getattr(record, n)) for n in names] for record in records)
        with self.transaction() as db:
            db.executemany(sql, rows)

    def _update(self, kind: type[R], record_id: str, fields: dict[str, Any]) -> R:
        unknown = set(fields) - {f.name for f in dataclasses.fields(kind)}
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
        with self.transaction() as db:
            if fields:
                settings = ", ".join(f"{name} = ?" for name in fields)
                encoded = [self._encoded(kind, name, value) for name, value in fields.items()]
                db.execute(
                    f"UPDATE {kind.TABLE} SET {settings} WHERE id = ?", (*encoded, record_id)
                )
            return self._one(kind, "id = ?", record_id, missing=record_id)

    def _find(self, kind: type[R], where: str, *values: Any) -> list[R]:
        return [self._decoded(kind, row) for row in self._rows(_select(kind, where), *values)]

    def _one(self, kind: type[R], where: str, *values: Any, missing: str) -> R:
        found = self._find(kind, where, *values)
        if not found:
            raise NotFoundError(f"there is no {_LABEL[kind]} with id {missing!r}", param="id")
        return found[0]

    def _check_not_imported(self, record: Importable, name: str) -> None:
        """Refuse to change an imported record.

        Raises:
            RequestError: the record was imported.
        """
        if record.origin is not None:
            raise RequestError(
                f"{name} was imported from {record.origin} and is read-only here: it is stored as "
                "that service returned it. To build on it, run its job again on a local model: "
                "rftkit job rerun ID --model NAME",
                code="imported_object",
            )

    def _queue_delivery(self, kind: str, object_id: str) -> None:
        """Queue a webhook event, in the same transaction that ends the job or run."""
        moment = now()
        self._insert(
            Delivery(
                id=new_id("evt_"), created_at=moment, type=kind, object_id=object_id, due_at=moment
            )
        )

    def _page(
        self,
        kind: type[R],
        where: str,
        values: tuple[Any, ...],
        *,
        after: str | None,
        limit: int,
        newest_first: bool,
        order: tuple[str, ...] = ("seq",),
    ) -> tuple[list[R], bool]:
        """Return a page after the record with id `after`, and whether more records follow.

        `order` names the columns that sort the list; together they must be unique.
        """
        direction, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        columns = ", ".join(order)
        if after is not None:
            cursor = self._rows(
                f"SELECT {columns} FROM {kind.TABLE} WHERE id = ? AND ({where})", after, *values
            )
            if not cursor:
                raise RequestError(
                    f"`after` is {after!r}, which is not in this list; pass the id of the last "
                    "element of the page before",
                    param="after",
                )
            marks = ", ".join("?" for _ in order)
            where = f"({where}) AND ({columns}) {beyond} ({marks})"
            values = (*values, *cursor[0])
        sorting = ", ".join(f"{column} {direction}" for column in order)
        sql = f"{_select(kind, where)} ORDER BY {sorting} LIMIT ?"
        rows = self._rows(sql, *values, limit + 1)
        return [self._decoded(kind, row) for row in rows[:limit]], len(rows) > limit

    def _encoded(self, kind: type[Record], name: str, value: Any) -> Any:
        if name in kind.JSON and value is not None:
            return json.dumps(value, allow_nan=False)
        if name in kind.PATHS and Path(value).is_relative_to(self._home):
            return Path(value).relative_to(self._home).as_posix()
        return value

    def _decoded(self, kind: type[R], row: sqlite3.Row) -> R:
        values: dict[str, Any] = dict(zip(row.keys(), row, strict=True))
        for name in kind.JSON & values.keys():
            values[name] = None if values[name] is None else json.loads(values[name])
        for name in kind.PATHS & values.keys():
            values[name] = values[name] and str(self._home / values[name])
        if kind is Job:
            values["cancel_requested"] = bool(values["cancel_requested"])
        return kind(**values)


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
    Delivery: "delivery",
    Batch: "batch",
}


def connect(path: str) -> sqlite3.Connection:
    """Open or create the database file, at the newest version; `:memory:` is a new database."""
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


def sql_list(words: frozenset[str]) -> str:
    """Return a fixed set of state names as an SQL list."""
    return "(" + ", ".join(f"'{word}'" for word in sorted(words)) + ")"
