"""Work that the server has accepted and not finished, such as eval runs: oldest first, one at once.

The store says what is unfinished, so that a server that starts resumes what an earlier one left.
Not here: the work itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from rftkit.server.inference.platform import Platform

__all__ = ["Backlog", "poll_forever"]

log = logging.getLogger("rftkit.server")

RETRY_SECONDS = 5.0
"""Seconds to wait after an error: another program may hold the database, or the disk may be full.
"""

T = TypeVar("T")


async def poll_forever(what: str, poll: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Look for work every few seconds until cancelled; an error costs one look, never the task."""
    while True:
        try:
            await poll()
        except Exception:
            log.exception("%s wait", what)
            await asyncio.sleep(RETRY_SECONDS)
        await asyncio.sleep(seconds)


class Backlog(Generic[T]):
    """One task of the server's loop that works whenever there is something unfinished."""

    def __init__(
        self,
        platform: Platform,
        what: str,
        unfinished: Callable[[], Sequence[T]],
        finish: Callable[[T], Awaitable[Any]],
    ) -> None:
        """Name what it works on, for the log.

        Args:
            platform: whose loop it is.
            what: the work, in the plural.
            unfinished: reads the store, oldest first; called in a thread.
            finish: does one piece of work; whatever it raises, it is tried again after a while.
        """
        self._platform, self._what = platform, what
        self._unfinished, self._finish = unfinished, finish
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start; what an earlier server left unfinished is resumed."""
        self._news.set()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop; the work in progress stays unfinished."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Check for new work. Any thread may call it."""
        if self._platform.loop is not None:
            self._platform.loop.call_soon_threadsafe(self._news.set)

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                while some := await asyncio.to_thread(self._unfinished):
                    await self._finish(some[0])
            except Exception:  # this task must never end, or all later work would wait forever
                log.exception("%s wait", self._what)
                await asyncio.sleep(RETRY_SECONDS)
                self._news.set()
