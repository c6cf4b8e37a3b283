"""Lines of a dataset as numbered rows, each usable or refused, in this process or another.

Not here: where lines start (`lineindex`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rftkit.datasets.unpack import REFUSED
from rftkit.errors import RowError
from rftkit.rows import BOM, Row, parse_row

__all__ = ["NumberedRow", "Stretch", "numbered"]


class NumberedRow(NamedTuple):
    """One row where it stands: usable, or refused with the reason."""

    number: int
    """Place in the dataset, from 0; blank lines are not counted."""
    line: int
    """Line in its file, from 1; in a table the record, the line of names not counted."""
    raw: bytes
    """The line as it stands."""
    row: Row | None
    refusal: RowError | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A run of rows that can be read without the index."""

    name: str
    path: Path
    start: int
    """Byte."""
    end: int
    first: int
    """Number of the first row."""
    starts: Any
    """Where each row starts, in bytes from `start`."""
    lines: Any
    """The line of each row."""

    def __iter__(self) -> Iterator[NumberedRow]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            block = file.read(self.end - self.start)
        bounds = [*self.starts.tolist(), len(block)]
        for at, line in enumerate(self.lines.tolist()):
            yield numbered(block[bounds[at] : bounds[at + 1]], self.first + at, line, self.name)


def numbered(raw: bytes, number: int, line: int, name: str) -> NumberedRow:
    """Read one line with whatever blank lines follow it."""
    raw = raw.split(b"\n", 1)[0]
    if number == 0:
        raw = raw.removeprefix(BOM)
    try:
        if raw.startswith(REFUSED):
            row, refusal = None, RowError(raw[1:].decode("utf-8", "replace"), path=name, line=line)
        else:
            row, refusal = parse_row(raw, line=line, path=name), None
    except RowError as error:
        row, refusal = None, error
    return NumberedRow(number, line, raw, row, refusal)
