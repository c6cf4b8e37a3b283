"""One interface to rows in memory or in a file: read, search and sort them.

A `DataFrame` is searched in its columns. A file of any size is searched through `datasets.open`,
and its columns are read when you first filter or sort by them. Row numbers count from 0
in the order of the source. `conditions` filters rows, and `neighbours` finds similar ones.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rftkit import datasets
from rftkit.datasets import Dataset, Rows
from rftkit.datasets.unpack import REFUSED as UNREADABLE
from rftkit.errors import InputError, RowError
from rftkit.rows import parse_object
from rftkit.views.markup import missing
from rftkit.views.rows import REFUSED
from rftkit.widgets.conditions import cell_text, column_texts
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["Numbers", "RowSource", "dataset_of", "source_of"]

SHORT = 60
"""Columns of a file with texts below this many characters are read together."""

Numbers = Any
"""Row numbers in some order: a range, a list or an array."""

_BETWEEN = b"\x00"

SAMPLED_ROWS = 200
"""Rows sampled to find the keys and the common words."""


class RowSource(Protocol):
    """The rows behind a browser. Slow methods take a `task` and stop when it is cancelled."""

    name: str

    @property
    def is_complete(self) -> bool:
        """Whether `len` is final."""

    def __len__(self) -> int: ...

    def wait(self) -> None:
        """Wait until every row is indexed."""

    def keys(self) -> list[str]:
        """The keys of the rows indexed so far."""

    def items(self, numbers: Numbers) -> list[dict[str, Any]]:
        """Rows by number; a row that cannot be used is `{REFUSED: why}`."""

    def place(self, number: int) -> str:
        """File and line of a row, such as `train.jsonl:12`."""

    def column(self, key: str, task: Task) -> pd.Series[Any]:
        """One value from every row."""

    def search(self, words: str, task: Task, limit: int | None = None) -> Numbers:
        """Numbers of the rows that contain a text, in order; case is ignored."""

    def frame(self, numbers: Numbers) -> pd.DataFrame:
        """Rows as a table."""

    def warm(self, task: Task) -> None:
        """Prepare the first search in the background."""


def dataset_of(source: Any) -> Dataset | None:
    """The dataset that a panel was given, or that a path or a name means; None for mere rows.

    Raises:
        InputError: there is no such dataset.
    """
    if isinstance(source, str | Path):
        return datasets.load(source)
    return source if isinstance(source, Dataset) else None


def source_of(source: Any) -> RowSource:
    """Open rows: a DataFrame, mappings, a dataset, a path or name, or opened rows.

    Raises:
        InputError: there is no such file.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return FrameSource(source)
    if isinstance(source, Dataset):
        return FileSource(datasets.open(source.train, form=None))
    if isinstance(source, Rows):
        return FileSource(source)
    if isinstance(source, str | Path):
        return FileSource(datasets.open(source, form=None))
    items = [row.item if hasattr(row, "item") else row for row in source]
    columns = {key: [item.get(key) for item in items] for key in _keys(items)}
    return FrameSource(pd.DataFrame(columns))


class FrameSource:
    """Rows of a DataFrame, which is not changed."""

    is_complete: bool = True
    name = "DataFrame"

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self._read: tuple[bytes, np.ndarray[Any, Any]] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._frame)

    def wait(self) -> None:
        """Nothing to wait for."""

    def keys(self) -> list[str]:
        return [str(key) for key in self._frame.columns]

    def items(self, numbers: Numbers) -> list[dict[str, Any]]:
        records = self._frame.iloc[list(numbers)].to_dict("records")
        return [
            {str(key): cell for key, cell in record.items() if not missing(cell)}
            for record in records
        ]

    def place(self, number: int) -> str:
        return f"row {number + 1}"

    def column(self, key: str, task: Task) -> pd.Series[Any]:
        for name in self._frame.columns:
            if str(name) == key:
                column: pd.Series[Any] = self._frame[name].reset_index(drop=True)
                return column
        raise _no_key(key, self.keys())

    def search(self, words: str, task: Task, limit: int | None = None) -> Numbers:
        import numpy as np

        text, starts = self._text(task)
        wanted, at = words.lower().encode("utf-8", "replace"), 0
        hits: list[int] = []
        while (at := text.find(wanted, at)) >= 0 and len(hits) != limit:
            hits.append(at)
            at = text.find(_BETWEEN, at)  # one match per row is enough
            if at < 0:
                break
        rows = np.searchsorted(starts, np.array(hits, dtype=np.int64), side="right") - 1
        return np.unique(rows)

    def frame(self, numbers: Numbers) -> pd.DataFrame:
        return self._frame.take(list(numbers))

    def warm(self, task: Task) -> None:
        """Build the search index after the page is shown."""
        if task.pause(0.5):
            self._text(task)

    def _text(self, task: Task) -> tuple[bytes, np.ndarray[Any, Any]]:
        """All rows as one lower-case text, and the offset of each row; built once."""
        import numpy as np

        with self._lock:
            if self._read is None:
                task.report("Indexing the rows for search …")
                columns = [
                    column_texts(self._frame[key])
                    for key in self._frame.columns
                    if not _is_measure(self._frame[key])
                ]
                texts = map("\n".join, zip(*columns, strict=True)) if columns else iter(())
                rows = [text.lower().encode("utf-8", "replace") for text in texts]
                lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
                starts = np.concatenate([[0], np.cumsum(lengths + len(_BETWEEN))[:-1]])
                self._read = _BETWEEN.join(rows), starts[: len(rows)]
            return self._read


class FileSource:
    """Rows of a file, which may be larger than the memory."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.name = rows.name
        self._columns: dict[str, pd.Series[Any]] = {}
        self._keys: list[str] = []
        self._short: list[str] = []

    @property
    def is_complete(self) -> bool:
        return self.rows.is_complete

    def __len__(self) -> int:
        return len(self.rows)

    def wait(self) -> None:
        self.rows.wait()

    def keys(self) -> list[str]:
        if not self._keys:
            items = [self._item(each) for each in self.rows.page(0, SAMPLED_ROWS)]
            self._keys = _keys(items)
            self._short = [
                key
                for key in self._keys
                if all(len(cell_text(item.get(key))) < SHORT for item in items)
            ]
        return self._keys

    def items(self, numbers: Numbers) -> list[dict[str, Any]]:
        return [self._item(self.rows.page(number, 1)[0]) for number in map(int, numbers)]

    def place(self, number: int) -> str:
        line = self.rows.page(number, 1)[0].line
        return f"{Path(self.name).name}:{line} (row {number + 1})"

    def column(self, key: str, task: Task) -> pd.Series[Any]:
        import pandas as pd

        if key not in self._columns:
            if key not in self.keys():
                raise _no_key(key, self.keys())
            wanted = [key, *(each for each in self._short if each != key)]

            def progress(done: int, total: int) -> None:
                task.raise_if_cancelled()
                task.report(f"Reading {key}: {done:,} of {total:,} rows …")

            found = self.rows.columns(wanted, progress)
            self._columns |= {each: pd.Series(values) for each, values in found.items()}
        return self._columns[key]

    def search(self, words: str, task: Task, limit: int | None = None) -> Numbers:
        def progress(done: int, found: int) -> None:
            task.raise_if_cancelled()
            task.report(f"Searching: {done:,} of {len(self):,} rows …")

        most = limit or 2**62
        return self.rows.search(words, limit=most, progress=progress)

    def frame(self, numbers: Numbers) -> pd.DataFrame:
        return self.rows.frame([int(number) for number in numbers])

    def warm(self, task: Task) -> None:
        """Nothing to do: the lines are searched directly."""

    @staticmethod
    def _item(each: datasets.NumberedRow) -> dict[str, Any]:
        if each.row is not None:
            return each.row.item
        return {REFUSED: str(each.refusal)} | _record(each.raw)


def _record(raw: bytes) -> dict[str, Any]:
    """What can be shown of a line that is not a row: the keys of its object, if it is one."""
    try:
        return {} if raw.startswith(UNREADABLE) else parse_object(raw)
    except RowError:
        return {}


def _keys(items: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for item in items for key in item if key != REFUSED))


def _no_key(key: str, keys: Sequence[str]) -> InputError:
    return InputError(f"the rows have no key {key!r}; they have {', '.join(keys)}")


def _is_measure(column: pd.Series[Any]) -> bool:
    """Whether a column has floats or booleans; these are filtered, not searched."""
    return column.dtype.kind in "fb"
