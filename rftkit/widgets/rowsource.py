"""Rows in memory or in a file, asked in the same way: find, read, sort by, compare.

A `DataFrame` is searched in its columns; a file of any size through `datasets.open`, and its
columns are read when somebody first filters or sorts by them. Row numbers count from 0 in the
order of the source. Not here: conditions (`conditions`), which rows are alike (`neighbours`), and
what is shown of a row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rftkit import datasets
from rftkit.datasets import Dataset, Rows
from rftkit.errors import InputError
from rftkit.views.markup import missing
from rftkit.views.rows import REFUSED
from rftkit.widgets.conditions import cell_text, column_texts
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["Numbers", "RowSource", "source_of"]

SHORT = 60
"""Keys of a file with texts under so many characters are read together, at the first need."""

Numbers = Any
"""Row numbers in some order: a range, a list or an array."""

_BETWEEN = b"\x00"

SAMPLED_ROWS = 200
"""Rows looked at to learn which keys there are, and which words are common."""


class RowSource(Protocol):
    """What a browser asks. Whatever may take long gets a `task` and stops when it is cancelled."""

    name: str

    @property
    def is_complete(self) -> bool:
        """Whether `len` is final."""

    def __len__(self) -> int: ...

    def wait(self) -> None:
        """Until every row is known."""

    def keys(self) -> list[str]:
        """The keys of the rows, as far as they are known."""

    def items(self, numbers: Numbers) -> list[dict[str, Any]]:
        """Rows; one that cannot be used is `{REFUSED: why}`."""

    def place(self, number: int) -> str:
        """Where a row stands, for people: `train.jsonl:12`."""

    def column(self, key: str, task: Task) -> pd.Series[Any]:
        """One value of every row."""

    def search(self, words: str, task: Task, limit: int | None = None) -> Numbers:
        """Numbers of the rows that hold a text, in order, without regard to case."""

    def frame(self, numbers: Numbers) -> pd.DataFrame:
        """Rows as a table."""

    def warm(self, task: Task) -> None:
        """Do in the background what would make the first search slow."""


def source_of(source: Any) -> RowSource:
    """Open what may be given for rows: a frame, mappings, a dataset, a path, or opened rows.

    Raises:
        InputError: there is no such file.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return FrameSource(source)
    if isinstance(source, Dataset):
        return FileSource(datasets.open(source.train))
    if isinstance(source, Rows):
        return FileSource(source)
    if isinstance(source, str | Path):
        return FileSource(datasets.open(source))
    items = [row.item if hasattr(row, "item") else row for row in source]
    columns = {key: [item.get(key) for item in items] for key in _keys(items)}
    return FrameSource(pd.DataFrame(columns))


class FrameSource:
    """Rows of a DataFrame, which stays as it is."""

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
        return f"row {number}"

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
            at = text.find(_BETWEEN, at)  # once a row is enough
            if at < 0:
                break
        rows = np.searchsorted(starts, np.array(hits, dtype=np.int64), side="right") - 1
        return np.unique(rows)

    def frame(self, numbers: Numbers) -> pd.DataFrame:
        return self._frame.take(list(numbers))

    def warm(self, task: Task) -> None:
        """Make the first search as quick as the later ones, once the page is shown."""
        if task.pause(0.5):
            self._text(task)

    def _text(self, task: Task) -> tuple[bytes, np.ndarray[Any, Any]]:
        """All rows as one text in small letters, and where each starts; made once."""
        import numpy as np

        with self._lock:
            if self._read is None:
                task.say("Reading every row once, for this and later searches …")
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
        return f"{Path(self.name).name}:{line} (row {number})"

    def column(self, key: str, task: Task) -> pd.Series[Any]:
        import pandas as pd

        if key not in self._columns:
            if key not in self.keys():
                raise _no_key(key, self.keys())
            wanted = [key, *(each for each in self._short if each != key)]

            def progress(done: int, total: int) -> None:
                task.go_on()
                task.say(f"Reading {key}: {done:,} of {total:,} rows …")

            found = self.rows.columns(wanted, progress)
            self._columns |= {each: pd.Series(values) for each, values in found.items()}
        return self._columns[key]

    def search(self, words: str, task: Task, limit: int | None = None) -> Numbers:
        def progress(done: int, found: int) -> None:
            task.go_on()
            task.say(f"Searching: {done:,} of {len(self):,} rows …")

        most = limit or 2**62
        return self.rows.search(words, limit=most, progress=progress)

    def frame(self, numbers: Numbers) -> pd.DataFrame:
        return self.rows.frame([int(number) for number in numbers])

    def warm(self, task: Task) -> None:
        """Nothing: the lines are searched as they stand."""

    @staticmethod
    def _item(each: datasets.NumberedRow) -> dict[str, Any]:
        return each.row.item if each.row else {REFUSED: str(each.refusal)}


def _keys(items: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for item in items for key in item if key != REFUSED))


def _no_key(key: str, keys: Sequence[str]) -> InputError:
    return InputError(f"the rows have no key {key!r}; they have {', '.join(keys)}")


def _is_measure(column: pd.Series[Any]) -> bool:
    """Numbers with a fraction, and yes or no: filtered by, not searched for."""
    return column.dtype.kind in "fb"
