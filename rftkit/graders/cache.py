"""The answers of judges, kept between runs. Not here: when two questions are the same (`judge`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from rftkit.growing import append_json, json_values

__all__ = ["JudgeCache"]


class JudgeCache(MutableMapping[str, str]):
    """Answers of judges in a file of JSON lines that only grows.

    Several processes may write to one file. Each sees the lines that existed when it opened the
    file, and its own. A line truncated by a crash is ignored.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        self._entries: dict[str, str] = {}
        self._entries.update(_read_entries(self._path))

    def __getitem__(self, key: str) -> str:
        return self._entries[key]

    def __setitem__(self, key: str, value: str) -> None:
        with self._lock:
            self._entries[key] = value
            append_json(self._path, [key, value])

    def __delitem__(self, key: str) -> None:
        raise TypeError("a judge cache only grows; delete its file to empty it")

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def _read_entries(path: Path) -> Iterator[tuple[str, str]]:
    for entry in json_values(path):
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry):
            yield entry[0], entry[1]
