"""The database schema, as numbered functions that are never edited after a release.

Each function migrates the database from one version to the next; SQLite's `user_version` holds the
version of a file. Every table has `seq`, the order in which rows were written. Lists are sorted and
paged by it, so they stay correct if the clock moves backwards.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable

from rftkit.errors import PlatformError

__all__ = ["MIGRATIONS", "migrate"]


def _files_and_jobs(db: sqlite3.Connection) -> None:
    for statement in (
        """CREATE TABLE files (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
            bytes INTEGER NOT NULL, digest TEXT NOT NULL, expires_at INTEGER)""",
        "CREATE INDEX files_digest ON files (digest)",
        """CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, finished_at INTEGER, estimated_finish INTEGER,
            status TEXT NOT NULL, model TEXT NOT NULL, suffix TEXT, seed INTEGER NOT NULL,
            training_file TEXT NOT NULL, validation_file TEXT NOT NULL, method TEXT NOT NULL,
            metadata TEXT, fine_tuned_model TEXT, result_files TEXT NOT NULL,
            trained_tokens INTEGER, error TEXT, eval_id TEXT, usage_metrics TEXT,
            extra TEXT NOT NULL, cancel_requested INTEGER NOT NULL,
            queue_position INTEGER NOT NULL)""",
        "CREATE INDEX jobs_status ON jobs (status, queue_position)",
        """CREATE TABLE events (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            created_at INTEGER NOT NULL, level TEXT NOT NULL, message TEXT NOT NULL,
            type TEXT NOT NULL, data TEXT, key TEXT, UNIQUE (job_id, key))""",
        "CREATE INDEX events_job ON events (job_id, seq)",
        """CREATE TABLE checkpoints (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            created_at INTEGER NOT NULL, step INTEGER NOT NULL, model_name TEXT NOT NULL,
            metrics TEXT NOT NULL, folder TEXT NOT NULL, UNIQUE (job_id, step, model_name))""",
        """CREATE TABLE models (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, base TEXT NOT NULL, job_id TEXT, folder TEXT NOT NULL,
            step INTEGER)""",
        """CREATE TABLE requests (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, route TEXT NOT NULL, digest TEXT NOT NULL,
            created_at INTEGER NOT NULL, object_id TEXT NOT NULL)""",
        "CREATE INDEX requests_digest ON requests (route, digest)",
        "CREATE TABLE secrets (name TEXT PRIMARY KEY, salt BLOB NOT NULL, hash BLOB NOT NULL)",
    ):
        db.execute(statement)


def _evals(db: sqlite3.Connection) -> None:
    for statement in (
        """CREATE TABLE evals (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, name TEXT,
            metadata TEXT, data_source_config TEXT NOT NULL, testing_criteria TEXT NOT NULL,
            extra TEXT NOT NULL)""",
        """CREATE TABLE eval_runs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            eval_id TEXT NOT NULL REFERENCES evals (id) ON DELETE CASCADE,
            created_at INTEGER NOT NULL, status TEXT NOT NULL, name TEXT, model TEXT,
            metadata TEXT, data_source TEXT NOT NULL, result_counts TEXT NOT NULL,
            per_model_usage TEXT, per_testing_criteria_results TEXT, error TEXT,
            extra TEXT NOT NULL, key TEXT, UNIQUE (eval_id, key))""",
        """CREATE TABLE output_items (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            run_id TEXT NOT NULL REFERENCES eval_runs (id) ON DELETE CASCADE,
            eval_id TEXT NOT NULL, created_at INTEGER NOT NULL, status TEXT NOT NULL,
            datasource_item_id INTEGER NOT NULL, datasource_item TEXT NOT NULL,
            results TEXT NOT NULL, sample TEXT NOT NULL)""",
        "CREATE INDEX output_items_run ON output_items (run_id, seq)",
        """CREATE TABLE permissions (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, model_name TEXT NOT NULL, project_id TEXT NOT NULL,
            UNIQUE (model_name, project_id))""",
        """CREATE TABLE responses (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, model TEXT NOT NULL, body TEXT NOT NULL,
            input TEXT NOT NULL)""",
    ):
        db.execute(statement)


def _deliveries(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE deliveries (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, type TEXT NOT NULL, object_id TEXT NOT NULL,
            attempts INTEGER NOT NULL, due_at INTEGER)"""
    )


def _imports(db: sqlite3.Connection) -> None:
    for table in (
        "files",
        "jobs",
        "events",
        "checkpoints",
        "models",
        "evals",
        "eval_runs",
        "output_items",
    ):
        db.execute(f"ALTER TABLE {table} ADD COLUMN origin TEXT")
        db.execute(f"ALTER TABLE {table} ADD COLUMN wire TEXT")
    db.execute(
        """CREATE TABLE imports (
            kind TEXT NOT NULL, id TEXT NOT NULL, created_at INTEGER NOT NULL,
            origin TEXT NOT NULL, digest TEXT NOT NULL, is_final INTEGER NOT NULL,
            PRIMARY KEY (kind, id))"""
    )


def _thinking(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE models ADD COLUMN thinking TEXT")


def _items_by_row(db: sqlite3.Connection) -> None:
    db.execute("CREATE INDEX output_items_row ON output_items (run_id, datasource_item_id, seq)")
    db.execute("DROP INDEX output_items_run")


def _relative_folders(db: sqlite3.Connection) -> None:
    """Make folders relative to the home, wherever it was when they were written."""
    for table in ("models", "checkpoints"):
        for seq, folder in db.execute(f"SELECT seq, folder FROM {table}").fetchall():
            found = re.search(r"(?:^|[\\/])(jobs[\\/][^\\/]+[\\/]checkpoints[\\/][^\\/]+)$", folder)
            if found:
                inside = found[1].replace("\\", "/")
                db.execute(f"UPDATE {table} SET folder = ? WHERE seq = ?", (inside, seq))


def _answers(db: sqlite3.Connection) -> None:
    db.execute(
        """CREATE TABLE answers (
            key TEXT PRIMARY KEY, digest TEXT NOT NULL, created_at INTEGER NOT NULL,
            body TEXT NOT NULL
        )"""
    )


def _batches(db: sqlite3.Connection) -> None:
    for statement in (
        """CREATE TABLE batches (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, endpoint TEXT NOT NULL,
            input_file_id TEXT NOT NULL, completion_window TEXT NOT NULL, metadata TEXT,
            output_expires_after INTEGER, status TEXT NOT NULL, model TEXT, errors TEXT,
            output_file_id TEXT, error_file_id TEXT, request_counts TEXT NOT NULL, usage TEXT,
            moments TEXT NOT NULL)""",
        """CREATE TABLE batch_results (
            batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
            line INTEGER NOT NULL, failed INTEGER NOT NULL, body TEXT NOT NULL,
            PRIMARY KEY (batch_id, line))""",
    ):
        db.execute(statement)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _files_and_jobs,
    _evals,
    _deliveries,
    _imports,
    _thinking,
    _items_by_row,
    _relative_folders,
    _answers,
    _batches,
)


def migrate(db: sqlite3.Connection) -> None:
    """Migrate the database to the newest version, with one transaction per version.

    Raises:
        PlatformError: when the file was written by a newer rftkit.
    """
    for number, migration in enumerate(MIGRATIONS, start=1):
        if _version(db) >= number:
            continue  # no write: the disk may be full, or another program may hold the lock
        db.execute("BEGIN IMMEDIATE")
        try:
            if _version(db) < number:
                migration(db)
                db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
    if _version(db) > len(MIGRATIONS):
        raise PlatformError(
            f"the platform's database has version {_version(db)}, this rftkit knows up to "
            f"{len(MIGRATIONS)}; upgrade rftkit, or set RFTKIT_HOME to another folder"
        )


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
