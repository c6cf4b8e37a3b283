"""The answers so far, in a file of JSON lines that only grows: a second start resumes from it. The
first line states what the file is for; then come answers and rewritten texts, each as soon as it is
there, and the grades that `rftkit.graders.grade_many` keeps in the same file. An answer is found
again by everything that it depends on, and by how often the same was asked before it. A search with
other settings begins anew in the same file, and loses nothing of the one before. Failed requests
are not kept. Not here: which questions are asked (`search`, `climb`).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rftkit.errors import InputError
from rftkit.graders.frames import SEARCH
from rftkit.growing import append_json, json_values
from rftkit.wording import listed

__all__ = ["Kept", "open_kept"]

PURPOSE, KEY, VALUE = SEARCH, "question", "answer"
Facts = Mapping[str, Any]


class Kept:
    """Answers by question; thread-safe."""

    def __init__(self, path: Path, name: str = "") -> None:
        """`name` separates the answers of one purpose from the others in the same file."""
        self.path, self._name = path, name
        self._lock = threading.Lock()
        self._times: Counter[str] = Counter()
        self._known: dict[str, Any] = {
            line[KEY]: line[VALUE]
            for line in json_values(path)
            if isinstance(line, dict) and VALUE in line and str(line.get(KEY)).startswith(name)
        }

    @property
    def num_known(self) -> int:
        """Answers that the file has."""
        return len(self._known)

    def key(self, question: Any) -> str:
        """The key of a question, which is JSON; repeated, it has another."""
        text = json.dumps(question, sort_keys=True, default=str)
        with self._lock:
            self._times[text] += 1
            number = self._times[text]
        return f"{self._name}{_digest(f'{number} {text}')}"

    def find(self, key: str) -> Any:
        """The answer with a key; None when it is not kept."""
        return self._known.get(key)

    def add(self, key: str, value: Any) -> None:
        """Keep an answer, which is JSON and not null."""
        with self._lock:
            self._known[key] = value
            append_json(self.path, {KEY: key, VALUE: value})


def open_kept(path: Path, purpose: Facts, on_progress: Callable[[str], None]) -> Kept:
    """Open the file of a search, or begin one.

    Args:
        path: The file; it need not exist.
        purpose: What decides the answers, by the names that people know it by.
        on_progress: Gets whether the search resumes, or begins anew because its purpose changed.

    Raises:
        InputError: There is a file that is not of a search.
    """
    wanted = json.loads(json.dumps(purpose, default=str))
    lines = [line for line in json_values(path) if isinstance(line, dict)]
    known = [line[PURPOSE] for line in lines if isinstance(line.get(PURPOSE), dict)]
    if not known and path.exists() and path.stat().st_size:
        raise InputError(
            f"{path} would keep what is tried, and it is a file of something else; rename it, or "
            "choose another --out"
        )
    if wanted not in known:
        if known:
            names = [each for each in {**known[-1], **wanted} if _differs(known[-1], wanted, each)]
            on_progress(
                f"Starting anew, because of other settings than in {path.name}: {listed(names)}."
            )
        append_json(path, {PURPOSE: wanted})
    kept = Kept(path, f"{_digest(json.dumps(wanted, sort_keys=True))[:8]}-")
    if kept.num_known:
        on_progress(f"Resuming: {path.name} has {kept.num_known:,} answers already.")
    return kept


def _differs(one: Facts, other: Facts, name: str) -> bool:
    return bool(one.get(name) != other.get(name))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
