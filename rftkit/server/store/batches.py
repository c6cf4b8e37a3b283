"""The store's batches: one row each, and one for every request of a batch that has been answered.

A result is kept as soon as it is there, so that after a kill a batch resumes with the rest. The
files that a client reads are made of the results when the batch ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rftkit.errors import RequestError
from rftkit.server.store.database import Database, new_id, now, sql_list
from rftkit.server.store.records import Batch

__all__ = ["ENDED", "Batches"]

ENDED = frozenset({"failed", "completed", "expired", "cancelled"})
WINDOW_SECONDS = 24 * 3600
PAGE = 500


class Batches(Database):
    """The part of the store that holds batches."""

    def add_batch(self, **fields: Any) -> Batch:
        """Store a batch that is to be validated; it expires after its window."""
        moment = now()
        return self._insert(
            Batch(
                id=new_id("batch_"),
                created_at=moment,
                expires_at=moment + WINDOW_SECONDS,
                **fields,
            )
        )

    def batch(self, batch_id: str) -> Batch:
        """Return one batch.

        Raises:
            NotFoundError: when there is none.
        """
        return self._one(Batch, "id = ?", batch_id, missing=batch_id)

    def batches(self, *, after: str | None = None, limit: int = 20) -> tuple[list[Batch], bool]:
        """Return a page of batches, newest first."""
        return self._page(Batch, "1", (), after=after, limit=limit, newest_first=True)

    def unfinished_batches(self) -> list[Batch]:
        """Return the batches that have not ended, oldest first."""
        return self._find(Batch, f"status NOT IN {sql_list(ENDED)} ORDER BY seq")

    def move_batch(self, batch_id: str, status: str, **fields: Any) -> Batch:
        """Change the status, and when that was; a batch that has ended keeps its own.

        One that is being cancelled can only end.
        """
        with self.transaction():
            batch = self.batch(batch_id)
            if batch.status in ENDED or (batch.status == "cancelling" and status not in ENDED):
                return batch
            moments = {**batch.moments, f"{status}_at": now()}
            if status in ENDED:
                self._queue_delivery(f"batch.{status}", batch_id)
            return self._update(Batch, batch_id, {"status": status, "moments": moments, **fields})

    def count_batch(self, batch_id: str) -> Batch:
        """Let clients see how many requests are answered, and return the batch."""
        with self.transaction():
            batch = self.batch(batch_id)
            counts = {**batch.request_counts, **self._count_results(batch_id)}
            if counts == batch.request_counts:
                return batch
            return self._update(Batch, batch_id, {"request_counts": counts})

    def cancel_batch(self, batch_id: str) -> Batch:
        """Mark a batch as being cancelled; the runner ends it, if it has begun.

        Raises:
            NotFoundError: when there is none.
            RequestError: when it has ended.
        """
        with self.transaction():
            batch = self.batch(batch_id)
            if batch.status in ENDED:
                raise RequestError(
                    f"Cannot cancel a batch with status '{batch.status}'.", param="batch_id"
                )
            waits = batch.status == "validating"
            batch = self.move_batch(batch_id, "cancelling")
            return self.move_batch(batch_id, "cancelled") if waits else batch

    def add_result(self, batch_id: str, line: int, *, failed: bool, body: dict[str, Any]) -> None:
        """Keep the answer to one request, once."""
        with self.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO batch_results (batch_id, line, failed, body) "
                "VALUES (?, ?, ?, ?)",
                (batch_id, line, failed, json.dumps(body)),
            )

    def answered_lines(self, batch_id: str) -> set[int]:
        """Return the lines of the input file that have a result."""
        rows = self._rows("SELECT line FROM batch_results WHERE batch_id = ?", batch_id)
        return {row["line"] for row in rows}

    def _count_results(self, batch_id: str) -> dict[str, int]:
        rows = self._rows(
            "SELECT failed, COUNT(*) AS num FROM batch_results WHERE batch_id = ? GROUP BY failed",
            batch_id,
        )
        found = {bool(row["failed"]): row["num"] for row in rows}
        return {"completed": found.get(False, 0), "failed": found.get(True, 0)}

    def results(self, batch_id: str, *, failed: bool) -> Iterator[dict[str, Any]]:
        """Yield the results of one kind, in the order of their lines."""
        after = -1
        while rows := self._rows(
            "SELECT line, body FROM batch_results WHERE batch_id = ? AND failed = ? AND line > ? "
            f"ORDER BY line LIMIT {PAGE}",
            batch_id, failed, after,
        ):  # fmt: skip
            yield from (json.loads(row["body"]) for row in rows)
            after = rows[-1]["line"]

    def drop_results(self, batch_id: str) -> None:
        """Forget the results of a batch whose files are made."""
        with self.transaction() as db:
            db.execute("DELETE FROM batch_results WHERE batch_id = ?", (batch_id,))
