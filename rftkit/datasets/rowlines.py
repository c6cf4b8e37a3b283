"""Lines of a dataset as numbered rows, each usable or refused, in this process or another.

Not here: where lines start (`lineindex`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rftkit.datasets.forms import row_in
from rftkit.datasets.unpack import REFUSED
from rftkit.errors import RowError
from rftkit.examples import Form
from rftkit.rows import BOM, Row, decode_lines, parse_object

__all__ = ["NumberedRow", "Stretch", "batched", "lines_in", "numbered_rows", "picker"]

BATCH_BYTES = 4 * 1024**2
AT_ONCE = 100  # rows decoded together; when one fails, these are decoded again one by one


class NumberedRow(msgspec.Struct, frozen=True, gc=False):
    """One row with its place in the file: usable, or refused with the reason."""

    number: int
    """Number in the dataset, from 0; blank lines do not count."""
    line: int
    """Line of the file, from 1, where the row starts; in Parquet or a frame the record."""
    raw: bytes
    """The raw line."""
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
    lines: Any
    """The line of each row."""
    form: Form = "reinforcement"
    """The form that every row must have."""

    def __iter__(self) -> Iterator[NumberedRow]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            found = numbered_rows(
                file.read(self.end - self.start),
                self.first,
                self.lines.tolist(),
                self.name,
                self.form,
            )
        yield from found


def numbered_rows(
    block: bytes, first: int, lines: Sequence[int], name: str, form: Form = "reinforcement"
) -> Iterator[NumberedRow]:
    """Yield the rows in a run of bytes; the first has number `first`."""
    raws = lines_in(block)
    del block  # free it: the lines are copies
    if raws and first == 0:
        raws[0] = raws[0].removeprefix(BOM)
    for start in range(0, len(raws), AT_ONCE):
        some = raws[start : start + AT_ONCE]
        items = decode_lines(some)
        for at, raw in enumerate(some):
            number = first + start + at
            item = items[at] if items else None
            yield _numbered(raw, item, number, lines[start + at], name, form)


def batched(rows: Iterable[NumberedRow], most: int) -> Iterator[list[NumberedRow]]:
    """Yield rows in lists that end at a number of rows or at `BATCH_BYTES`."""
    batch, size = list[NumberedRow](), 0
    for each in rows:
        batch.append(each)
        size += len(each.raw)
        if len(batch) == most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def lines_in(block: bytes) -> list[bytes]:
    """Return the lines of a run of bytes that are not blank."""
    return [raw for raw in block.split(b"\n") if raw and not raw.isspace()]


def picker(keys: Sequence[str]) -> Callable[[bytes], tuple[Any, ...]]:
    """Return a function from a line to its values of some keys; None for a missing key."""
    names = {f"key{at}": key for at, key in enumerate(keys)}
    fields = [(name, Any, None) for name in names]
    decode = msgspec.json.Decoder(msgspec.defstruct("Picked", fields, rename=names)).decode
    nothing = (None,) * len(keys)

    def pick(line: bytes) -> tuple[Any, ...]:
        try:
            return msgspec.structs.astuple(decode(line.removeprefix(BOM)))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return nothing

    return pick


def _numbered(
    raw: bytes, item: dict[str, Any] | None, number: int, line: int, name: str, form: Form
) -> NumberedRow:
    try:
        found = _read(raw, line, name) if item is None else item
        row = row_in(form, found, line=line, path=name)
    except RowError as error:
        return NumberedRow(number, line, raw, None, error)
    return NumberedRow(number, line, raw, row, None)


def _read(raw: bytes, line: int, name: str) -> dict[str, Any]:
    if raw.startswith(REFUSED):
        raise RowError(raw[1:].decode("utf-8", "replace"), path=name, line=line)
    return parse_object(raw, line=line, path=name)
