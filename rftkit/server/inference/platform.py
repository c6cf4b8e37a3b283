"""The platform that every route uses: the store, the worker process, and the graders.

`__main__` creates one per process. It has no HTTP.
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
from rftkit.server.inference.answering import Answering
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

__all__ = ["CRASHES", "DEATHS", "Platform"]

CRASHES = 5
"""How often in a row the worker may die on a job without progress. Then a job with durable records
is paused, so that a machine that was short of memory for a while costs none of them; a job without
any fails, because there is nothing to resume. A request of a grader or an eval run fails likewise.
"""
DEATHS = {UNAVAILABLE: 0, DIED: 1, HUNG: 3}
"""Error code -> how many deaths it counts for the request that it ended."""
RETRY_SECONDS = 0.5
"""Pause between attempts while a worker is being started."""
PATIENCE_SECONDS = 120.0
"""How long a grader waits for a worker that is not running."""


class Wakeable(Protocol):
    """A background task that can be woken to check the store."""

    def wake(self) -> None:
        """Check the store. Any thread may call it."""
        ...


@dataclass
class Platform:
    """One running platform."""

    store: Store
    worker: WorkerClient
    home: Path | None = None
    """The home folder; None in memory."""
    grader_cache: GraderCache = field(default_factory=GraderCache)
    """Compiled graders of `graders/run`."""
    grading: BoundedPool = field(
        default_factory=lambda: BoundedPool("grader", threads=8, waiting=32)
    )
    """The threads that grade requests."""
    log_place: str = "its log"
    """Where the server writes its errors, as error messages name it."""
    needs_key: bool = False
    """Whether requests must carry the home's API key."""
    private_tools: bool = True
    """Whether tools may be at addresses of this machine and network."""
    last_request: float = field(default_factory=time.monotonic)
    """Monotonic seconds of the last request that was not a health check."""
    loop: asyncio.AbstractEventLoop | None = None
    answering: Answering = field(default_factory=Answering)
    """Requests with an `Idempotency-Key` that are being answered."""
    exporting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while weights are exported."""
    runner: Wakeable | None = None
    """The eval runner, which samples and grades eval runs."""
    batches: Wakeable | None = None
    """The batch runner, which answers the requests of batches."""
    worker_trouble: Callable[[], str | None] = lambda: None
    """Explains why no worker is running; None if one is."""
    _alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    _crashes: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def idle_seconds(self) -> float:
        """Return the seconds since the last request, or since something was unfinished."""
        unfinished = (
            self.store.unfinished_jobs, self.store.unfinished_runs, self.store.unfinished_batches,
        )  # fmt: skip
        if any(find() for find in unfinished):
            self.last_request = time.monotonic()
        return time.monotonic() - self.last_request

    def stream(self, request: WorkerRequest) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the worker's messages for one request: see `WorkerClient.chat`."""
        return self.worker.chat(to_json(request))

    async def complete(self, request: WorkerRequest) -> dict[str, Any]:
        """Return the whole answer to one request: what the worker sends in `done`.

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
        """Like `complete`, but repeat the request with the next worker if one dies.

        A request that was hit by several deaths is repeated alone, so that only the request that
        kills the worker fails. A death that hit others too counts half.

        Args:
            request: what to answer.
            is_wanted: given the seconds waited, returns whether to keep waiting.

        Raises:
            ChatError: when the worker refuses, has died `CRASHES` times, or `is_wanted` is false.
        """
        deaths, since = 0.0, time.monotonic()
        while True:
            is_alone = deaths >= 1
            try:
                async with self._alone if is_alone else contextlib.nullcontext():
                    return await self.complete(request)
            except ChatError as error:
                if error.code not in DEATHS:
                    raise
                is_clear = is_alone or error.code == HUNG
                deaths += DEATHS[error.code] if is_clear else DEATHS[error.code] / 2
                if deaths >= CRASHES:
                    raise
                if not await asyncio.to_thread(is_wanted, time.monotonic() - since):
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    def complete_in_thread(self, request: WorkerRequest) -> dict[str, Any]:
        """Like `complete`, for a grading thread; abandoning the grade ends the chat."""
        assert self.loop is not None
        chat = asyncio.run_coroutine_threadsafe(self._for_a_grader(request), self.loop)
        with if_abandoned(chat.cancel):
            return chat.result()

    async def _for_a_grader(self, request: WorkerRequest) -> dict[str, Any]:
        return await self.complete_surely(request, lambda seconds: seconds < PATIENCE_SECONDS)

    def worker_died(self, status: int) -> None:
        """Count a death of the worker; stop a job that keeps killing it."""
        hung: Hung | None = getattr(self.worker, "hung", None)
        for job in self.store.unfinished_jobs():
            if job.status not in ("running", "pausing"):
                continue
            if hung is not None:
                if hung.job == job.id:
                    self._fail(job.id, f"{hung}. The worker was replaced.", "worker_hung")
                continue
            events, _ = self.store.events(job.id, limit=1)
            done = progress((self.home or Path()) / "jobs" / job.id)
            newest = (events[0].id if events else "", done)
            seen, count = self._crashes.get(job.id, ("", 0))
            count = count + 1 if seen == newest else 1
            self._crashes[job.id] = (newest, count)
            if count >= CRASHES:
                del self._crashes[job.id]
                work: Hung | None = getattr(self.worker, "died_at", None)
                at = f", last in {work.what.rstrip(',')}" if work and work.job == job.id else ""
                message = (
                    f"The worker died {CRASHES} times in a row on this job without progress{at} "
                    f"(last exit status {status}; -9 usually means that memory ran out). See "
                    "logs/worker.log in the platform's home."
                )
                if any(done):
                    self._pause(job.id, message)
                else:
                    advice = (
                        " It has no records to resume from. Free memory, or choose a smaller "
                        "model or batch size; then create it again: "
                        f"rftkit job rerun {job.id}"
                    )
                    self._fail(job.id, message + advice, "worker_crashed")

    def _pause(self, job_id: str, message: str) -> None:
        message += (
            " The job is paused, and its records are kept: when the cause is gone, such as another "
            "program that needs the memory, resume it."
        )
        with self.store.transaction():
            if self.store.try_status(job_id, "paused"):
                key = f"worker-crashed-{time.time_ns()}"
                self.store.add_event(job_id, message, level="error", key=key)

    def _fail(self, job_id: str, message: str, code: str) -> None:
        error = {"code": code, "message": message, "param": None}
        with self.store.transaction():
            if self.store.try_status(job_id, "failed", error=error):
                self.store.add_event(job_id, message, level="error", key=code)
