"""The tokens that a job's judges have read and written: every call, whatever became of its grade.

Calls also count if the grade failed, was repeated after a fix, or was for a reference answer or
a final check. The lines are appended as calls end, so that a kill loses none. Cached answers, which
cost nothing, and calls that ended without an answer do not count.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rftkit.graders import Completion, CompletionCall
from rftkit.growing import append_json, json_values

__all__ = ["JudgeAccount"]

Usage = Mapping[str, Mapping[str, int]]
"""Model → name of a count → tokens."""


class JudgeAccount:
    """The file of one job, `judges.jsonl` in its folder. Any thread may add to it."""

    def __init__(self, path: Path, before: Usage | None = None) -> None:
        """`before` is what an older rftkit counted, which kept no file."""
        self._path, self._lock = path, threading.Lock()
        self._totals: dict[str, dict[str, int]] = {}
        if before and not path.is_file():
            append_json(path, before)
        for usage in json_values(path):
            with contextlib.suppress(AttributeError, TypeError):  # a damaged line counts nothing
                self._add(usage)

    @property
    def totals(self) -> dict[str, dict[str, int]]:
        """Tokens by model and kind."""
        with self._lock:
            return {model: dict(counts) for model, counts in self._totals.items()}

    def counted(self, complete: CompletionCall) -> CompletionCall:
        """The same call, but its tokens are counted here."""

        @functools.wraps(complete)
        def call(**question: Any) -> Completion:
            answer = complete(**question)
            if answer.usage:
                with self._lock:
                    usage = {question["model"]: answer.usage}
                    append_json(self._path, usage)
                    self._add(usage)
            return answer

        return call

    def _add(self, usage: Usage) -> None:
        for model, counts in usage.items():
            total = self._totals.setdefault(model, {})
            for name, count in counts.items():
                total[name] = total.get(name, 0) + count
