"""Compiled graders, cached between requests. Jobs do not use it: they compile their own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from rftkit import graders

__all__ = ["GraderCache"]


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
            evicted = self._graders.popitem(last=False)[1] if len(self) > self._size else None
        if evicted is not None:
            evicted.close()  # one that is still grading starts a new process
        return grader

    def _compile(self, spec: dict[str, Any]) -> graders.CompiledGrader:
        # No judge cache: a user who runs a grader twice wants to see how much its judge varies.
        return graders.compile_grader(spec, workers=1, complete=self._complete, embed=self._embed)

    def close(self, *, now: bool = False) -> None:
        """Close all graders; with `now`, running grades fail instead of finishing."""
        for grader in self._graders.values():
            grader.close(now=now)

    def __len__(self) -> int:
        return len(self._graders)
