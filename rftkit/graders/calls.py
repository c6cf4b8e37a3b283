"""Work that may hang, and how to abandon it: calls of judges and endpoints, grades in progress.

Every call runs in its own daemon thread, so the caller can stop waiting: at a time limit, when the
grader is closed, or when the request it belongs to is dropped. The thread of an abandoned call ends
when its connection does, and keeps no process alive. Not here: when a call is repeated (`judge`,
`endpoint`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["Abandoned", "Calls", "Work", "calling", "if_abandoned"]

T = TypeVar("T")

_POLL_SECONDS = 0.1
_here = threading.local()


class Abandoned(Exception):
    """The call was abandoned before it had an answer."""


class Work:
    """Work in progress that any thread can abandon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], Any]] = []
        self._is_abandoned = False

    def abandon(self) -> None:
        """Stop waiting for the call, and run what it registered with `if_abandoned`."""
        with self._lock:
            self._is_abandoned = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    @contextmanager
    def here(self) -> Iterator[None]:
        """Inside this context, what the thread does belongs to the work."""
        before = getattr(_here, "work", None)
        _here.work = self
        try:
            yield
        finally:
            _here.work = before

    @contextmanager
    def watched(self, callback: Callable[[], Any]) -> Iterator[None]:
        """Call `callback` if the work is abandoned, now or later."""
        with self._lock:
            self._callbacks.append(callback)
            is_abandoned = self._is_abandoned
        if is_abandoned:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)


@contextmanager
def if_abandoned(callback: Callable[[], Any]) -> Iterator[None]:
    """Call `callback` from another thread if the work of this thread is abandoned.

    Does nothing in a thread that runs no such work. The callback must not block.
    """
    work = getattr(_here, "work", None)
    if work is None:
        yield
    else:
        with work.watched(callback):
            yield


class Calls:
    """The calls of one grader: a limited number at once, all abandoned when it is closed."""

    def __init__(self, at_once: int = 8) -> None:
        """At most `at_once` calls run concurrently; the others wait."""
        self._turns = threading.Semaphore(at_once)
        self._all = Work()

    def run(self, call: Callable[[], T], seconds: float | None) -> T:
        """Return or raise what the call does. The time limit does not include waiting for a slot;
        None is for a call that has a limit of its own.

        Raises:
            Abandoned: the grader was closed, or the work of this thread was abandoned.
            TimeoutError: there is no answer after `seconds`.
        """
        results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        work = Work()

        def run() -> None:
            with work.here():
                try:
                    results.put((call(), None))
                except BaseException as error:
                    results.put((None, error))

        with self.watched(lambda: results.put((None, Abandoned("given up")))):
            self._take_turn(results)
            try:
                if results.empty():
                    threading.Thread(target=run, name="grader-call", daemon=True).start()
                value, error = results.get(timeout=None if seconds is None else max(0.0, seconds))
            except BaseException as interrupted:
                work.abandon()
                if isinstance(interrupted, queue.Empty):
                    raise TimeoutError(f"no answer within {seconds:g} s") from None
                raise
            finally:
                self._turns.release()
        if isinstance(error, Abandoned):
            work.abandon()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def pause(self, seconds: float) -> None:
        """Sleep, unless the work is abandoned.

        Raises:
            Abandoned: it was.
        """
        ended = threading.Event()
        with self.watched(ended.set):
            if ended.wait(max(0.0, seconds)):
                raise Abandoned("given up")

    def close(self, *, now: bool = False) -> None:
        """Close; with `now`, abandon the calls in progress and refuse further ones."""
        if now:
            self._all.abandon()

    @contextmanager
    def watched(self, callback: Callable[[], Any]) -> Iterator[None]:
        """Call `callback` if these calls are closed, or the work of this thread is abandoned."""
        with self._all.watched(callback), if_abandoned(callback):
            yield

    def _take_turn(self, results: queue.SimpleQueue[Any]) -> None:
        while not self._turns.acquire(timeout=_POLL_SECONDS):
            if not results.empty():
                raise Abandoned("given up")


@contextmanager
def calling(at_once: int) -> Iterator[tuple[ThreadPoolExecutor, Calls]]:
    """A pool, and the calls that its threads make. Whoever interrupts waits for none of them."""
    calls = Calls(at_once)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            yield pool, calls
        except BaseException:
            calls.close(now=True)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
