"""Compiled graders, cached between requests. Jobs do not use it: they compile their own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from rftkit import graders

__all__ = ["GraderCache"]

MOST_PROCESSES = 8
"""Most processes of all graders together, except that the newest grader may have more; each takes
memory."""


class GraderCache:
    """The last graders compiled, so that a Python grader keeps its running process."""

    def __init__(
        self,
        complete: graders.CompletionCall | None = None,
        embed: graders.EmbeddingCall | None = None,
        size: int = 4,
    ) -> None:
        """`complete` calls the judge of model graders; `embed` returns vectors for `cosine`."""
        self._complete, self._embed = complete, embed
        self._size = size
        self._lock = threading.Lock()
        self._graders: OrderedDict[str, graders.CompiledGrader] = OrderedDict()

    def get(self, spec: dict[str, Any]) -> graders.CompiledGrader:
        """Return the compiled grader of a spec.

        Raises:
            GraderSpecError: `param` names the field.
        """
        key = repr(spec)
        with self._lock:
            grader = self._graders.pop(key, None) or self._compile(spec)
            self._graders[key] = grader
            evicted = []
            while len(self) > 1 and (len(self) > self._size or self.num_processes > MOST_PROCESSES):
                evicted.append(self._graders.popitem(last=False)[1])
        for each in evicted:
            each.close()  # one that is still grading starts a new process
        return grader

    @property
    def num_processes(self) -> int:
        """How many processes the graders may keep: one for each python grader."""
        leaves = (leaf for grader in self._graders.values() for leaf in grader.leaves)
        return sum(leaf.type == "python" for leaf in leaves)

    def _compile(self, spec: dict[str, Any]) -> graders.CompiledGrader:
        # No judge cache: a user who runs a grader twice wants to see how much its judge varies.
        return graders.compile_grader(spec, workers=1, complete=self._complete, embed=self._embed)

    def close(self, *, now: bool = False) -> None:
        """Close all graders; with `now`, running grades fail instead of finishing."""
        for grader in self._graders.values():
            grader.close(now=now)

    def __len__(self) -> int:
        return len(self._graders)
