"""Where the seconds of a step go: sampling, training, validation, and all of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

__all__ = ["Clock"]

Part = Literal["sampling", "training", "eval"]


class Clock:
    """Measures how long the parts of a step take, one step at a time."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A step begins."""
        self._started = time.perf_counter()
        self.waiting = 0.0
        """Seconds of sampling in which all that was left waited for tools."""
        self._parts: dict[str, float] = {"sampling": 0.0, "training": 0.0, "eval": 0.0}

    def add(self, part: Part, seconds: float) -> None:
        """Count seconds that were measured elsewhere, perhaps by a worker that was killed since."""
        self._parts[part] += seconds

    @contextlib.contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the seconds of the block."""
        before = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - before)

    def timing(self, *, overlaps: bool = False) -> dict[str, float]:
        """The parts, and `full_iteration` from the start of the step until now.

        What a killed worker did before is in the parts only, so that the whole is never less than
        their sum, unless they may overlap.
        """
        elapsed = time.perf_counter() - self._started
        whole = elapsed if overlaps else max(elapsed, sum(self._parts.values()))
        return {**self._parts, "full_iteration": whole}
