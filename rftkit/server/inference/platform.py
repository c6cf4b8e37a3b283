"""What every route holds: the store, the line to the worker, and how the server may be reached.

Made once per process by `app.create_app`. Not here: HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rftkit.graders.calls import if_abandoned
from rftkit.server.inference.grader_cache import GraderCache
from rftkit.server.inference.pool import BoundedPool
from rftkit.server.inference.requests import WorkerRequest, to_json
from rftkit.server.inference.worker_process import (
    DIED,
    HUNG,
    UNAVAILABLE,
    ChatError,
    Hung,
    WorkerClient,
)
from rftkit.server.store.store import Store
from rftkit.server.training.journal import progress

__all__ = ["CRASHES", "Platform"]

CRASHES = 5
"""A job over which the worker died this often in a row, without any progress, has failed; so has a
question that a grader or an eval run asks."""
DEATHS = {UNAVAILABLE: 0, DIED: 1, HUNG: 3}
"""How much what happens to a worker counts against the question that it was asked."""
RETRY_SECONDS = 0.5
"""Between tries to ask a worker that is being started."""
PATIENCE_SECONDS = 120.0
"""How long a grader waits for a worker that is not there."""


class Wakeable(Protocol):
    """Somebody to tell about news in the store."""

    def wake(self) -> None:
        """May be called from any thread."""
        ...


@dataclass
class Platform:
    """One running platform."""

    store: Store
    worker: WorkerClient
    home: Path | None = None
    """Where it keeps things; None in memory."""
    grader_cache: GraderCache = field(default_factory=GraderCache)
    """Compiled graders of `graders/run`."""
    grading: BoundedPool = field(
        default_factory=lambda: BoundedPool("grader", threads=8, waiting=32)
    )
    """Where requests are graded."""
    needs_key: bool = False
    """Whether requests must carry the home's API key."""
    last_request: float = field(default_factory=time.monotonic)
    """Monotonic seconds of the last request that was not a health check."""
    loop: asyncio.AbstractEventLoop | None = None
    exporting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while weights are exported."""
    runner: Wakeable | None = None
    """Who works on eval runs."""
    worker_trouble: Callable[[], str | None] = lambda: None
    """Why there is no worker to ask; None when there is one."""
    _alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    _crashes: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def idle_seconds(self) -> float:
        """Seconds since the last request, and since a job or an eval run last waited or ran."""
        if self.store.unfinished_jobs() or self.store.unfinished_runs():
            self.last_request = time.monotonic()
        return time.monotonic() - self.last_request

    def stream(self, request: WorkerRequest) -> AsyncGenerator[dict[str, Any], None]:
        """The worker's messages for one request: see `Link.chat`."""
        return self.worker.chat(to_json(request))

    async def complete(self, request: WorkerRequest) -> dict[str, Any]:
        """The whole answer to one request: what the worker sends in `done`.

        Raises:
            ChatError: when the worker refuses or fails.
        """
        async for message in self.stream(request):
            if "done" in message:
                done: dict[str, Any] = message["done"]
                return done
        raise ChatError("the model worker ended the chat without an answer")

    async def complete_surely(
        self, request: WorkerRequest, is_wanted: Callable[[float], bool]
    ) -> dict[str, Any]:
        """`complete`, asked again of the next worker when one dies over it.

        One that dies time after time over several questions gets them one by one, so that only the
        question that is to blame fails.

        Args:
            request: asked.
            is_wanted: whether to wait longer, after so many seconds.

        Raises:
            ChatError: when the worker refuses, has died `CRASHES` times, or it is not wanted.
        """
        deaths, since = 0, time.monotonic()
        while True:
            try:
                async with self._alone if deaths > 1 else contextlib.nullcontext():
                    return await self.complete(request)
            except ChatError as error:
                if error.code not in DEATHS:
                    raise
                deaths += DEATHS[error.code]
                if deaths >= CRASHES:
                    raise
                if not await asyncio.to_thread(is_wanted, time.monotonic() - since):
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    def complete_in_thread(self, request: WorkerRequest) -> dict[str, Any]:
        """`complete`, for a thread that grades; a grade that is abandoned ends the chat."""
        assert self.loop is not None
        chat = asyncio.run_coroutine_threadsafe(self._for_a_grader(request), self.loop)
        with if_abandoned(chat.cancel):
            return chat.result()

    async def _for_a_grader(self, request: WorkerRequest) -> dict[str, Any]:
        return await self.complete_surely(request, lambda seconds: seconds < PATIENCE_SECONDS)

    def worker_died(self, status: int) -> None:
        """Note a death of the worker; fail the job that keeps killing it."""
        hung: Hung | None = getattr(self.worker, "hung", None)
        for job in self.store.unfinished_jobs():
            if job.status not in ("running", "pausing"):
                continue
            if hung is not None:
                if hung.job == job.id:
                    self._fail(job.id, f"{hung}. The worker was replaced.", "worker_hung")
                continue
            events, _ = self.store.events(job.id, limit=1)
            folder = (self.home or Path()) / "jobs" / job.id
            newest = (events[0].id if events else "", progress(folder))
            seen, count = self._crashes.get(job.id, ("", 0))
            count = count + 1 if seen == newest else 1
            self._crashes[job.id] = (newest, count)
            if count >= CRASHES:
                message = (
                    f"The worker ended {CRASHES} times in a row over this job without progress "
                    f"(last exit status {status}; -9 usually means that memory ran out). See "
                    "logs/worker.log in the platform's home."
                )
                self._fail(job.id, message, "worker_crashed")

    def _fail(self, job_id: str, message: str, code: str) -> None:
        error = {"code": code, "message": message, "param": None}
        with self.store.transaction():
            if self.store.try_status(job_id, "failed", error=error):
                self.store.add_event(job_id, message, level="error", key=code)
