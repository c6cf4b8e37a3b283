"""Rows in memory or in a file, asked in the same way: find, read, sort by, compare.

A `DataFrame` is searched in its columns; a file of any size through `datasets.open`, and its
columns are read when somebody first filters or sorts by them. Row numbers count from 0 in the
order of the source. Not here: what is shown of a row.
"""

from __future__ import annotations

import json
import operator
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rftkit import datasets
from rftkit.datasets import Dataset, Rows
from rftkit.errors import InputError
from rftkit.evals.samples import prompt_of
from rftkit.views.markup import missing
from rftkit.widgets.panel import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = [
    "Condition",
    "Numbers",
    "RowSource",
    "column_texts",
    "nearest",
    "parse_conditions",
    "prompt_text",
    "source_of",
]

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
        """Rows; one that cannot be used is `{"refused": why}`."""

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


class Cancelled(Exception):
    """Nobody waits for the result any more."""


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
            values: dict[str, list[Any]] = {each: [] for each in wanted}
            for done, row in enumerate(self.rows):
                item = self._item(row)
                for each in wanted:
                    values[each].append(item.get(each))
                if done % 5000 == 0:
                    _go_on(task)
                    task.say(f"Reading {key}: {done:,} of {len(self.rows):,} rows …")
            self._columns |= {each: pd.Series(column) for each, column in values.items()}
        return self._columns[key]

    def search(self, words: str, task: Task, limit: int | None = None) -> Numbers:
        def progress(done: int, found: int) -> None:
            _go_on(task)
            task.say(f"Searching: {done:,} of {len(self):,} rows …")

        most = limit or 2**62
        return self.rows.search(words, limit=most, progress=progress)

    def frame(self, numbers: Numbers) -> pd.DataFrame:
        return self.rows.frame([int(number) for number in numbers])

    def warm(self, task: Task) -> None:
        """Nothing: the lines are searched as they stand."""

    @staticmethod
    def _item(each: datasets.NumberedRow) -> dict[str, Any]:
        return each.row.item if each.row else {"refused": str(each.refusal)}


@dataclass(frozen=True, slots=True)
class Condition:
    """`key op value`, as `topic~privacy` or `score<0.5`."""

    key: str
    op: str
    value: str

    def holds(self, column: pd.Series[Any]) -> np.ndarray[Any, Any]:
        """Which rows it holds for, as an array of bool. Rows without the key are left out.

        Raises:
            InputError: `<` and its like with something that is no number.
        """
        import pandas as pd

        if self.op in _ORDERS or pd.api.types.is_numeric_dtype(column):
            return self._holds_of_numbers(column)
        is_text = pd.api.types.is_string_dtype(column) and column.dtype != object
        texts = column if is_text else pd.Series(column_texts(column))
        if self.op in ("~", "!~"):
            held = texts.str.contains(self.value, case=False, regex=False)
        else:
            held = texts.str.lower() == self.value.lower()
        holds = held.to_numpy(dtype=bool, na_value=False)
        present = column.notna().to_numpy(dtype=bool)
        return present & ~holds if self.op.startswith("!") else present & holds

    def _holds_of_numbers(self, column: pd.Series[Any]) -> np.ndarray[Any, Any]:
        import pandas as pd

        words = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
        try:
            wanted = words.get(self.value.lower())
            wanted = float(self.value) if wanted is None else wanted
        except ValueError:
            raise InputError(
                f"{self.key}{self.op}{self.value}: {self.value!r} is not a number; for text write "
                f"{self.key}={self.value} or {self.key}~{self.value}"
            ) from None
        numbers = pd.to_numeric(column, errors="coerce")
        held = _COMPARE[self.op](numbers, wanted) & numbers.notna()
        array: np.ndarray[Any, Any] = held.to_numpy(dtype=bool, na_value=False)
        return array


_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = _ORDERS | {
    "=": operator.eq,
    "!=": operator.ne,
    "~": operator.eq,
    "!~": operator.ne,
}
_CONDITION = re.compile(r'\s*([^\s=!<>~"]+|"[^"]*")\s*(!=|!~|<=|>=|=|<|>|~)\s*("[^"]*"|\S+)\s*')


def parse_conditions(text: str) -> list[Condition]:
    """Conditions that must all hold: `compliant=no topic~"data export" words>20`.

    Raises:
        InputError: what does not read as `key op value`.
    """
    found, position = [], 0
    while position < len(text.rstrip()):
        match = _CONDITION.match(text, position)
        if match is None:
            raise InputError(
                f"cannot read the filter at {text[position:].strip()!r}; write key=value, with "
                '= != ~ (holds) !~ < <= > >=, and "quotes" round what has spaces'
            )
        key, op, value = (part.strip('"') for part in match.groups())
        found.append(Condition(key, op, value))
        position = match.end()
    return found


def nearest(
    source: RowSource, number: int, task: Task, *, count: int = 5, floor: float = 70.0
) -> list[tuple[int, float]]:
    """The rows whose prompts are most like that of row `number`, with how alike (0 to 100).

    Candidates share one of the row's rarest runs of three words, so this costs a few searches and
    not a comparison with every row; a near copy that shares no such run is missed.
    """
    from rapidfuzz import fuzz

    own = prompt_text(source.items([number])[0])
    candidates: set[int] = set()
    for shingle in _rare_shingles(own, source):
        _go_on(task)
        candidates.update(map(int, source.search(shingle, task, limit=100)))
    candidates.discard(number)
    picked = sorted(candidates)
    scored = [
        (each, fuzz.ratio(own, prompt_text(item)))
        for each, item in zip(picked, source.items(picked), strict=True)
    ]
    return sorted(((n, s) for n, s in scored if s >= floor), key=lambda pair: -pair[1])[:count]


def prompt_text(item: dict[str, Any]) -> str:
    """What a row asks: the last thing the user said, else its first text."""
    texts = (value for value in item.values() if isinstance(value, str))
    return prompt_of(item) or next(texts, "")


def _rare_shingles(text: str, source: RowSource, count: int = 3) -> list[str]:
    """Runs of three words on one line of a text, those first that few other rows have."""
    shingles = [
        " ".join(words[start : start + 3])
        for line in text.splitlines()
        for words in [line.split(" ")]
        for start in range(max(1, len(words) - 2))
        if line.strip()
    ]
    size = len(source)
    sampled = range(0, size, max(1, size // 50))
    others = [prompt_text(item) for item in source.items(list(sampled)[:50])]
    by_rarity = sorted(
        dict.fromkeys(shingles), key=lambda s: (sum(s in other for other in others), -len(s))
    )
    return by_rarity[:count]


def _go_on(task: Task) -> None:
    if task.cancelled:
        raise Cancelled


def _keys(items: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for item in items for key in item if key != "refused"))


def _no_key(key: str, keys: Sequence[str]) -> InputError:
    return InputError(f"the rows have no key {key!r}; they have {', '.join(keys)}")


def _is_measure(column: pd.Series[Any]) -> bool:
    """Numbers with a fraction, and yes or no: filtered by, not searched for."""
    return column.dtype.kind in "fb"


def column_texts(column: pd.Series[Any]) -> list[str]:
    """Every cell as text: `yes` and `no`, JSON for what has parts, nothing for what is missing."""
    values = column.to_list()
    if column.dtype.kind in "iu":
        return list(map(str, values))
    return [value if type(value) is str else cell_text(value) for value in values]


def cell_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if missing(value) else str(value)
