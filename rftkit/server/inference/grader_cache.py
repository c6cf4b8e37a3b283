"""Compiled graders, kept warm between requests. Jobs do not use it: they hold their own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from rftkit import graders

__all__ = ["GraderCache"]


class GraderCache:
    """The graders compiled last, so that a python grader keeps its warm process between calls."""

    def __init__(
        self,
        complete: graders.CompletionCall | None = None,
        embed: graders.EmbeddingCall | None = None,
        size: int = 4,
    ) -> None:
        """`complete` asks the judge of model graders, `embed` serves `cosine`."""
        self._complete, self._embed = complete, embed
        self._size = size
        self._lock = threading.Lock()
        self._graders: OrderedDict[str, graders.CompiledGrader] = OrderedDict()

    def get(self, spec: dict[str, Any]) -> graders.CompiledGrader:
        """The compiled grader of a spec.

        Raises:
            GraderSpecError: `param` names the field.
        """
        key = repr(spec)
        with self._lock:
            grader = self._graders.pop(key, None) or self._compile(spec)
            self._graders[key] = grader
            evicted = self._graders.popitem(last=False)[1] if len(self) > self._size else None
        if evicted is not None:
            evicted.close()  # one still grading starts its process anew
        return grader

    def _compile(self, spec: dict[str, Any]) -> graders.CompiledGrader:
        # No cache of answers: who runs a grader twice here wants to see how far its judge strays.
        return graders.compile_grader(spec, workers=1, complete=self._complete, embed=self._embed)

    def close(self, *, now: bool = False) -> None:
        """End all their processes; with `now`, what is graded ends too, as failed."""
        for grader in self._graders.values():
            grader.close(now=now)

    def __len__(self) -> int:
        return len(self._graders)
