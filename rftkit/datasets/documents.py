"""JSON arrays, and JSON over several lines, opened like a file with one object on each line.

The objects are written to a temporary file of lines, each on the line that it begins in where it
has that line to itself. Not here: recognising such a file (`strictjson`), and what its objects
mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rftkit.datasets.forms import KEYS
from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.unpack import is_document, text_of
from rftkit.datasets.writing import write_lines
from rftkit.jsondocuments import read_entries

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["opened"]

OF_ROWS = frozenset().union(*KEYS.values())


@contextmanager
def opened(source: str | Path | pd.DataFrame) -> Iterator[Rows]:
    """Open a source as `open` does. The objects of a JSON document count as its lines.

    Raises:
        InputError: as from `open`, or the document cannot be read.
    """
    if not isinstance(source, str | Path) or not is_document(path := Path(source).expanduser()):
        with open(source) as rows:
            yield rows
        return
    with TemporaryDirectory() as folder:
        lines_path = Path(folder) / "rows.jsonl"
        write_lines(lines_path, _lines(read_entries(text_of(path), path)))
        with open(lines_path) as rows:
            rows.name = str(source)
            yield rows


def _lines(entries: Iterable[tuple[int, Any]]) -> Iterator[bytes]:
    """Entries as lines, after blank ones in place of the lines between them."""
    written = 0
    for line, value in entries:
        blank = max(0, line - 1 - written)
        yield from [b""] * blank
        objects = _objects(value)
        yield from (json.dumps(each, ensure_ascii=False).encode() for each in objects)
        written += blank + len(objects)


def _objects(value: Any) -> list[Any]:
    """An entry, or the objects in the list that an object without any other key holds."""
    [key, inner] = next(iter(value.items())) if _has_one_key(value) else (None, None)
    is_wrapper = isinstance(inner, list) and all(isinstance(each, dict) for each in inner)
    return inner if is_wrapper and inner and key not in OF_ROWS else [value]


def _has_one_key(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1
