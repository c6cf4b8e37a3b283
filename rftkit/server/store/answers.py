"""The store's answers to requests with an `Idempotency-Key`: the same request gets the same answer.

Jobs, files, evals and runs are objects of their own, which `Store.once` finds again; answers of
models are kept here, whole.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rftkit.errors import RequestError
from rftkit.server.store.database import Database, now

__all__ = ["KEY_SECONDS", "Answers", "key_in_use", "key_of"]

KEY_SECONDS = 24 * 3600
"""How long an `Idempotency-Key` is remembered, in seconds."""


class Answers(Database):
    """The part of the store that holds answers by their keys."""

    def kept_answer(self, name: str, digest: str, key: str) -> dict[str, Any] | None:
        """Return the answer that the same request got; None if there is none.

        Args:
            name: of the key (`key_of`).
            digest: of the request.
            key: as the client spells it.

        Raises:
            RequestError: the key belongs to another request.
        """
        oldest = now() - KEY_SECONDS
        rows = self._rows(
            "SELECT digest, body FROM answers WHERE key = ? AND created_at >= ?", name, oldest
        )
        if not rows:
            return None
        if rows[0]["digest"] != digest:
            raise key_in_use(key)
        body: dict[str, Any] = json.loads(rows[0]["body"])
        return body

    def keep_answer(self, name: str, digest: str, body: dict[str, Any]) -> None:
        """Keep an answer for `KEY_SECONDS`."""
        moment = now()
        with self.transaction() as db:
            db.execute("DELETE FROM answers WHERE created_at < ?", (moment - KEY_SECONDS,))
            db.execute(
                "INSERT OR REPLACE INTO answers (key, digest, created_at, body) "
                "VALUES (?, ?, ?, ?)",
                (name, digest, moment, json.dumps(body)),
            )


def key_of(route: str, key: str) -> str:
    """Return the name under which a client's key is kept: each route has its own keys."""
    return f"{route} {hashlib.sha256(key.encode()).hexdigest()}"


def key_in_use(key: str) -> RequestError:
    """Return the refusal of a key that belongs to another request."""
    return RequestError(
        f"the Idempotency-Key {key[:80]!r} was used for another request; choose a new key",
        code="idempotency_key_in_use",
    )
