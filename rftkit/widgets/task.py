"""Slow work of a panel, which can report progress and be cancelled.

`panel` runs it in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Cancelled", "Task"]


class Cancelled(Exception):
    """Raised in work that was cancelled."""


class Task:
    """One piece of slow work; newer work of the same kind cancels it."""

    def __init__(self, show_progress: Callable[[str], None]) -> None:
        self._show_progress = show_progress
        self._cancelled = threading.Event()
        self._reporting, self._has_ended = threading.Lock(), False
        self.done = threading.Event()
        """Set when it has ended, with or without a result."""

    def report(self, line: str) -> None:
        """Show the progress, unless it has ended: threads of the work may still call this then."""
        with self._reporting:
            if not (self.cancelled or self._has_ended):
                self._show_progress(line)

    def end(self) -> None:
        """Show no more progress from now on."""
        with self._reporting:
            self._has_ended = True

    def pause(self, seconds: float) -> bool:
        """Wait this long. Returns False as soon as it is cancelled."""
        return not self._cancelled.wait(seconds)

    @property
    def cancelled(self) -> bool:
        """Whether the result is no longer needed."""
        return self._cancelled.is_set()

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` if the result is no longer needed."""
        if self.cancelled:
            raise Cancelled

    def cancel(self) -> None:
        """Ask the work to stop; its result will not be shown."""
        self._cancelled.set()
