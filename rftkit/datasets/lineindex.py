"""Where the lines of a JSONL file start: found once, kept, mapped back on the next open.

`LineIndex` is fed the bytes of a file block by block and can be asked while it grows. Blank lines
are no rows. Kept indexes lie in `RFTKIT_HOME/cache/rows`, one for each file, named by its path,
size and time of change; the folder may be deleted at any time. Not here: what a line says.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rftkit import settings
from rftkit.wholefile import replacing

__all__ = ["LineIndex", "Stamp", "stamp"]

FIRST_CAPACITY = 4096
PIECE_BYTES = 4 * 1024**2  # compared at once
BLANKS = np.frombuffer(b" \t\r\n\x0b\x0c", dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from another."""

    path: Path
    size: int
    """Bytes."""
    mtime_ns: int

    def kept(self, suffix: str) -> Path:
        """Where what was worked out about this state of the file is kept."""
        return _cache_folder() / f"{self._owner()}-{self.size}-{self.mtime_ns}{suffix}"

    def drop_older(self) -> None:
        """Delete what was kept about other states of the same file."""
        for path in _cache_folder().glob(f"{self._owner()}-*"):
            if f"-{self.size}-{self.mtime_ns}" not in path.name:
                path.unlink(missing_ok=True)

    def _owner(self) -> str:
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:24]


def stamp(path: Path) -> Stamp:
    """The present state of a file; for a folder, of all files in it together."""
    found = [path.stat()] if path.is_file() else [each.stat() for each in sorted(path.iterdir())]
    return Stamp(
        path.resolve(),
        sum(each.st_size for each in found),
        max((each.st_mtime_ns for each in found), default=0),
    )


def _cache_folder() -> Path:
    """Where indexes and unpacked files are kept."""
    return settings.home() / "cache" / "rows"


class LineIndex:
    """Start and line number of every row, in the order of the file."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.end = 0
        """Bytes fed so far; a row ends where the next one starts, the last one here."""
        self._starts: Any = np.empty(FIRST_CAPACITY, dtype=np.int64)
        self._lines: Any = np.empty(FIRST_CAPACITY, dtype=np.int64)
        self._num_lines = 0

    @property
    def starts(self) -> Any:
        """Offsets in bytes, of the rows found so far."""
        num_rows = self.num_rows
        return self._starts[:num_rows]

    @property
    def lines(self) -> Any:
        """Line in the file, from 1, of each of them."""
        return self._lines[: len(self.starts)]

    def line(self, row: int) -> int:
        """The line of a row in its file, from 1."""
        return int(self._lines[row])

    def span(self, first: int, stop: int) -> tuple[int, int]:
        """Where rows `first` to `stop` (not included) stand: from byte, to byte."""
        end = self.end if stop >= self.num_rows else int(self._starts[stop])
        return int(self._starts[first]), end

    def row_at(self, offset: int, after: int) -> int:
        """The first row that starts at `offset` or later, and comes after row `after`."""
        return max(after + 1, int(np.searchsorted(self.starts, offset)))

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the file: whole lines, but for the last line of the file."""
        data = np.frombuffer(block, dtype=np.uint8)
        pieces = range(0, len(data), PIECE_BYTES)
        breaks = [at + 1 + np.flatnonzero(data[at : at + PIECE_BYTES] == 10) for at in pieces]
        starts = np.concatenate([[0], *breaks])
        if starts[-1] == len(data):
            starts = starts[:-1]
        lines = self._num_lines + 1 + np.arange(len(starts), dtype=np.int64)
        self._num_lines += len(starts)
        doubtful = np.flatnonzero(np.isin(data[starts], BLANKS))
        ends = np.append(starts[1:], len(data))
        blank = [i for i in doubtful if not block[starts[i] : ends[i]].strip()]
        starts, lines = np.delete(starts, blank), np.delete(lines, blank)
        self._append(starts + self.end, lines)
        self.end += len(block)

    def _append(self, starts: Any, lines: Any) -> None:
        total = self.num_rows + len(starts)
        if total > len(self._starts):
            capacity = max(total, 2 * len(self._starts))
            self._starts = _grown(self._starts, capacity)
            self._lines = _grown(self._lines, capacity)
        self._starts[self.num_rows : total] = starts
        self._lines[self.num_rows : total] = lines
        self.num_rows = total

    def save(self, path: Path) -> None:
        """Keep it: whole or not at all."""
        with replacing(path) as file:
            np.save(file, np.stack([self._starts, self._lines])[:, : self.num_rows])

    @classmethod
    def load(cls, path: Path, lines_path: Path) -> LineIndex | None:
        """One that was kept for the lines in a file; None when there is none that can be read."""
        try:
            end = lines_path.stat().st_size
            table = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if table.ndim != 2 or len(table) != 2:
            return None
        index = cls()
        index._starts, index._lines = table
        index.num_rows, index.end = int(table.shape[1]), end
        return index


def _grown(array: Any, capacity: int) -> Any:
    larger = np.empty(capacity, dtype=array.dtype)
    larger[: len(array)] = array
    return larger
