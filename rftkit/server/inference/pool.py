"""A thread pool with a bounded queue, for work that a client may drop: grading on request.

Routes share one small pool of threads, so slow work in it would delay every other request. This
pool has its own threads. It refuses work when its queue is full, and abandons the work of clients
that disconnect.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from rftkit.graders.calls import Work
from rftkit.server.inference.worker_process import STOPPING, UNAVAILABLE, ChatError

__all__ = ["BoundedPool"]

T = TypeVar("T")


class BoundedPool:
    """A fixed number of threads, and a limit of how much work may wait for one."""

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        """`name` is what the pool runs, for refusals."""
        self._name, self._room = name, threads + waiting
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._under_way: dict[Future[Any], Work] = {}
        self._is_closed = False

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function and return its result. Cancelling the call abandons its work.

        Raises:
            ChatError: status 429 when the queue is full, 503 when the pool is closed.
        """
        work = Work()

        def run() -> T:
            with work.here():
                return function()

        with self._lock:
            if self._is_closed:
                raise ChatError(STOPPING, code=UNAVAILABLE)
            if len(self._under_way) >= self._room:
                raise ChatError(
                    f"{len(self._under_way)} {self._name} requests are under way or waiting, which "
                    "is the most; try again in a few seconds",
                    status=429,
                    type="requests",
                    code="rate_limit_exceeded",
                )
            future = self._threads.submit(run)
            self._under_way[future] = work
        future.add_done_callback(self._done)
        try:
            found = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            work.abandon()
            if not self._is_closed:
                raise
        if self._is_closed:  # closed: whatever the thread returns is no longer wanted
            raise ChatError(STOPPING, code=UNAVAILABLE)
        return found

    def close(self) -> None:
        """Abandon running work and start no more; requests that wait for it get an error."""
        with self._lock:
            self._is_closed = True
            under_way = list(self._under_way.values())
        self._threads.shutdown(wait=False, cancel_futures=True)
        for work in under_way:
            work.abandon()

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._under_way.pop(future, None)
