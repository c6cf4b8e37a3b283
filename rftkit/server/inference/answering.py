"""Answers to requests with an `Idempotency-Key`: a request that is sent twice is sampled once.

The same key and body get the answer that was made before; a request that comes while the first is
answered waits for it. A key with another body is refused. An answer that failed, or whose client
disconnected, is not kept. Without a key nothing here has an effect.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from rftkit.server.inference.body import digest_of
from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store.answers import Answers, key_in_use, key_of
from rftkit.wholefile import temporary_problem

__all__ = ["Answering", "Turn", "storing"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """The time in which a request is answered."""

    made: Json | None
    """The answer that was made before; None when it is still to be made."""
    keep: Callable[[Json], Awaitable[None]]
    """Keeps the answer for later requests with the same key."""


@dataclass
class _UnderWay:
    """A request that is being answered, and how many clients wait for it."""

    digest: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_requests: int = 0


class Answering:
    """The requests with keys that are being answered."""

    def __init__(self) -> None:
        self._under_way: dict[str, _UnderWay] = {}

    @asynccontextmanager
    async def turn(
        self, store: Answers, route: str, key: str | None, body: BaseModel
    ) -> AsyncIterator[Turn]:
        """Wait for the turn of a request; it lasts as long as the block.

        Args:
            store: keeps the answers.
            route: of the request.
            key: its `Idempotency-Key`, if it has one.
            body: of the request.

        Raises:
            RequestError: the key belongs to another request.
        """
        if key is None:
            yield Turn(None, _forget)
            return
        digest = await asyncio.to_thread(digest_of, body)
        name = key_of(route, key)
        entry = self._under_way.setdefault(name, _UnderWay(digest))
        if entry.digest != digest:
            raise key_in_use(key)

        async def keep(made: Json) -> None:
            await asyncio.to_thread(store.keep_answer, name, digest, made)

        entry.num_requests += 1
        try:
            async with entry.lock:
                yield Turn(await asyncio.to_thread(store.kept_answer, name, digest, key), keep)
        finally:
            entry.num_requests -= 1
            if not entry.num_requests:
                self._under_way.pop(name, None)


@contextmanager
def storing() -> Iterator[None]:
    """Say in words that an answer could not be stored; its stream has begun, and must end so.

    Raises:
        ChatError: the disk is full, or another program has locked the database.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = temporary_problem(error) or "The database cannot be used"
        raise ChatError(
            f"the answer was made and could not be stored. {reason} ({error})",
            code="platform_unavailable",
        ) from error


async def _forget(made: Json) -> None:
    """Keep nothing: the request has no key."""
