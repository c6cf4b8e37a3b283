"""Where each line of a JSONL file starts: found once, saved, and mapped into memory the next time.

`LineIndex` gets the bytes of a file block by block and can be used while it grows. Blank lines are
not rows. Saved indexes are in `RFTKIT_HOME/cache/rows`, one for each file, named by its path, size
and modification time; you can delete the folder at any time. Not here: the content of a line.
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
PIECE_BYTES = 4 * 1024**2  # bytes compared in one operation
BLANKS = np.frombuffer(b" \t\r\n\x0b\x0c", dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Stamp:
    """Identifies one state of a file."""

    path: Path
    size: int
    """Bytes."""
    mtime_ns: int

    def kept(self, suffix: str) -> Path:
        """Return the path at which something derived from this state of the file is saved."""
        return _cache_folder() / f"{self._owner()}-{self.size}-{self.mtime_ns}{suffix}"

    def drop_older(self) -> None:
        """Delete what was saved for other states of the same file."""
        for path in _cache_folder().glob(f"{self._owner()}-*"):
            if f"-{self.size}-{self.mtime_ns}" not in path.name:
                path.unlink(missing_ok=True)

    def _owner(self) -> str:
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:24]


def stamp(path: Path) -> Stamp:
    """Return the current state of a file, or of all files of a folder together."""
    found = [path.stat()] if path.is_file() else [each.stat() for each in sorted(path.iterdir())]
    return Stamp(
        path.resolve(),
        sum(each.st_size for each in found),
        max((each.st_mtime_ns for each in found), default=0),
    )


def _cache_folder() -> Path:
    """Return the folder of saved indexes and unpacked files."""
    return settings.home() / "cache" / "rows"


class LineIndex:
    """The start and the line number of every row, in the order of the file."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.end = 0
        """Bytes fed so far; a row ends where the next one starts, the last one here."""
        self._starts: Any = np.empty(FIRST_CAPACITY, dtype=np.int64)
        self._lines: Any = np.empty(FIRST_CAPACITY, dtype=np.int64)
        self._num_lines = 0

    @property
    def starts(self) -> Any:
        """Byte offsets of the rows found so far."""
        num_rows = self.num_rows
        return self._starts[:num_rows]

    @property
    def lines(self) -> Any:
        """The line of each of them, counted from 1."""
        return self._lines[: len(self.starts)]

    def line(self, row: int) -> int:
        """Return the line of a row, counted from 1."""
        return int(self._lines[row])

    def span(self, first: int, stop: int) -> tuple[int, int]:
        """Return the first byte of row `first` and the byte after row `stop - 1`."""
        end = self.end if stop >= self.num_rows else int(self._starts[stop])
        return int(self._starts[first]), end

    def row_at(self, offset: int, after: int) -> int:
        """Return the first row after row `after` that starts at `offset` or later."""
        return max(after + 1, int(np.searchsorted(self.starts, offset)))

    def feed(self, block: bytes) -> None:
        """Add the next bytes of the file: whole lines, except at the end of the file."""
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
        """Save it, whole or not at all."""
        with replacing(path) as file:
            np.save(file, np.stack([self._starts, self._lines])[:, : self.num_rows])

    @classmethod
    def load(cls, path: Path, lines_path: Path) -> LineIndex | None:
        """Load the index saved for a file; None when there is none, or it cannot be read."""
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
