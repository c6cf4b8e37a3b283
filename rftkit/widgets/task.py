"""A piece of slow work of a panel: it says how far it is, and learns when nobody waits for it.

Not here: the threads that run it (`panel`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Cancelled", "Task"]


class Cancelled(Exception):
    """Ends work whose result nobody waits for."""


class Task:
    """One piece of slow work of a panel; a newer one makes it `cancelled`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._cancelled = threading.Event()
        self.done = threading.Event()
        """Set when it has ended, in whichever way."""

    def say(self, line: str) -> None:
        """Show how far it is."""
        if not self.cancelled:
            self._say(line)

    def pause(self, seconds: float) -> bool:
        """Wait so long; False as soon as it is cancelled."""
        return not self._cancelled.wait(seconds)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self._cancelled.is_set()

    def go_on(self) -> None:
        """Nothing, but raise `Cancelled` when nobody waits for the result any more."""
        if self.cancelled:
            raise Cancelled

    def cancel(self) -> None:
        """Ask the work to stop; its result will not be shown."""
        self._cancelled.set()
