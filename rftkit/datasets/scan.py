"""Scan every row once: what a worker process counts, and how the counts are added up.

`tally(task)` reads a stretch of rows and counts; `Tally.add` adds two counts. `check` decides what
the numbers mean for a job. Hashes are 64 bits of BLAKE2: the probability that any two of a million
different rows collide is about 3 in 100 million.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from rftkit.datasets.blanks import blanks
from rftkit.datasets.forms import KEYS, answers_in, form_of_row
from rftkit.datasets.pii import kinds_in
from rftkit.datasets.rowlines import NumberedRow, Stretch
from rftkit.datasets.shingles import folded, signatures
from rftkit.errors import RowError
from rftkit.examples import text_of
from rftkit.graders import check_item_paths, reference_answer, types
from rftkit.rows import Row

__all__ = [
    "MALFORMED",
    "MAX_LISTED",
    "Found",
    "KeyTally",
    "ScanTask",
    "Tally",
    "answer_of",
    "prompt_hash",
    "prompt_text",
    "tally",
]

MAX_LISTED = 100
"""How many rows a finding names."""
MAX_VALUES = 50
"""A key with more distinct values than this is free text or an id, not a label."""
MAX_VALUE_CHARS = 60
MALFORMED = ""
"""The name that is shown for a function without a name."""
COLUMNS = ("numbers", "prompts", "folds", "labels", "chars")
"""The lists of a tally with one number for each usable row."""

_canonical = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True)
class ScanTask:
    """Rows to scan and what to look for in them."""

    stretch: Stretch
    grader: Mapping[str, Any] | None
    """Normalised spec."""
    response_format: Mapping[str, Any] | None
    with_signatures: bool
    """Whether near-duplicates will be searched."""


@dataclass(slots=True)
class Found:
    """Rows of one kind: how many, and the first ones."""

    count: int = 0
    numbers: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    """The problem of each of the first rows; empty where it is the same for all."""

    def note(self, number: int, message: str | None = None) -> None:
        """Count a row."""
        self.count += 1
        if len(self.numbers) < MAX_LISTED:
            self.numbers.append(number)
            if message is not None:
                self.messages.append(message)

    def add(self, other: Found) -> None:
        """Add the counts of later rows."""
        room = MAX_LISTED - len(self.numbers)
        self.count += other.count
        self.numbers += other.numbers[:room]
        self.messages += other.messages[:room]


@dataclass(slots=True)
class KeyTally:
    """The values of one key of the rows."""

    present: int = 0
    values: Counter[str] | None = field(default_factory=Counter)
    """Value as text -> number of rows; None when there are too many values to be labels."""

    def note(self, value: Any) -> None:
        """Count a value."""
        self.present += 1
        if self.values is not None:
            shown = value if isinstance(value, str) else _scalar(value)
            if shown is None or len(shown) > MAX_VALUE_CHARS:
                self.values = None
            else:
                self.values[shown] += 1
                self._cap()

    def add(self, other: KeyTally) -> None:
        """Add the counts of other rows."""
        self.present += other.present
        if self.values is None or other.values is None:
            self.values = None
        else:
            self.values.update(other.values)
            self._cap()

    def _cap(self) -> None:
        if self.values is not None and len(self.values) > MAX_VALUES:
            self.values = None


@dataclass(slots=True)
class Tally:
    """Counts over rows. The lists have one array per stretch, in order."""

    num_rows: int = 0
    refused: Found = field(default_factory=Found)
    lacking: dict[str, Found] = field(default_factory=dict)
    """Template path -> rows that lack it."""
    blank: dict[str, Found] = field(default_factory=dict)
    """Kind of missing text (see `blanks`) -> its rows."""
    personal: dict[str, Found] = field(default_factory=dict)
    functions: dict[str, Found] = field(default_factory=dict)
    """Name of a function that rows show their model -> these rows."""
    keys: dict[str, KeyTally] = field(default_factory=dict)
    numbers: list[Any] = field(default_factory=list)
    """Numbers of the usable rows; the arrays below have one entry per usable row."""
    prompts: list[Any] = field(default_factory=list)
    """Hash of `messages`."""
    folds: list[Any] = field(default_factory=list)
    """Hash of the prompt's text without its case, blanks and end mark; 0 when nothing is left."""
    labels: list[Any] = field(default_factory=list)
    """Hash of the reference answer; 0 without one."""
    chars: list[Any] = field(default_factory=list)
    """Characters of the prompt."""
    signatures: list[Any] = field(default_factory=list)
    """MinHash signatures, (rows, NUM_PERM)."""

    def add(self, other: Tally) -> None:
        """Add the counts of later rows."""
        self.num_rows += other.num_rows
        self.refused.add(other.refused)
        for name in ("lacking", "blank", "personal", "functions"):
            mine = getattr(self, name)
            for kind, found in getattr(other, name).items():
                mine.setdefault(kind, Found()).add(found)
        for key, counts in other.keys.items():
            self.keys.setdefault(key, KeyTally()).add(counts)
        for name in (*COLUMNS, "signatures"):
            getattr(self, name).extend(getattr(other, name))

    @property
    def num_usable(self) -> int:
        """The number of rows that were not refused."""
        return self.num_rows - self.refused.count

    def array(self, name: str) -> Any:
        """Return one of the lists of arrays as one array."""
        parts = getattr(self, name)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def tally(task: ScanTask) -> Tally:
    """Scan a stretch of rows."""
    counts, texts = Tally(), list[str]()
    columns: list[tuple[int, int, int, int, int]] = []
    for each in task.stretch:
        counts.num_rows += 1
        for kind in kinds_in(each.raw, each.row and each.row.item):
            counts.personal.setdefault(kind, Found()).note(each.number)
        if each.row is None:
            counts.refused.note(each.number, str(each.refusal))
            continue
        columns.append(_column(each, each.row, task, counts))
        if task.with_signatures:
            texts.append(prompt_text(each.row))
    table = np.array(columns, dtype=np.uint64).reshape(-1, 5).T
    for name, part in zip(COLUMNS, table, strict=True):
        setattr(counts, name, [part])
    if task.with_signatures:
        counts.signatures = [signatures(texts)]
    return counts


def _column(
    each: NumberedRow, row: Row, task: ScanTask, counts: Tally
) -> tuple[int, int, int, int, int]:
    if task.grader is not None and form_of_row(row) == "reinforcement":
        _note_lacking(each.number, row.item, task.grader, counts)
    for name in _functions(row):
        counts.functions.setdefault(name, Found()).note(each.number)
    for kind in blanks(row, task.grader):
        counts.blank.setdefault(kind, Found()).note(each.number)
    for key, value in row.item.items():
        if key not in KEYS[form_of_row(row)]:
            counts.keys.setdefault(key, KeyTally()).note(value)
    answer = answer_of(row, task.response_format, task.grader)
    if answer is None and form_of_row(row) == "reinforcement":
        answer = _read_by_source(row.item, task.grader)
    chars = sum(len(text_of(message)) for message in row.messages)
    return (
        each.number,
        prompt_hash(row),
        _hash(fold.encode("utf-8", "replace")) if (fold := folded(prompt_text(row))) else 0,
        _hash(answer.encode("utf-8", "replace")) if answer else 0,
        chars,
    )


def _functions(row: Row) -> set[str]:
    """The names of the functions that the model is shown."""
    tools = row.tools or []
    functions = [
        tool.get("function", tool) if isinstance(tool, dict) else None
        for tool in (tools if isinstance(tools, list) else [None])
    ]
    names = [each.get("name") if isinstance(each, dict) else None for each in functions]
    return {name if isinstance(name, str) and name else MALFORMED for name in names}


def answer_of(
    row: Row, response_format: Mapping[str, Any] | None, grader: Mapping[str, Any] | None
) -> str | None:
    """The answer that a row holds: its reference answer, or the text it teaches or prefers."""
    if form_of_row(row) == "reinforcement":
        return reference_answer(row.item, response_format, grader=grader)
    message = answers_in(row)[0]
    calls = message.get("tool_calls")
    return text_of(message) or (_canonical(calls).decode("utf-8", "replace") if calls else None)


def _read_by_source(item: Mapping[str, Any], grader: Mapping[str, Any] | None) -> str | None:
    """Return the part of a row that python graders read, and so compare answers with."""
    sources = [leaf["source"] for leaf in types.parts(grader or {}).values()
               if leaf.get("type") == "python"]  # fmt: skip
    keys = {key for source in sources for key in _keys_of(source)} - {"messages", "tools"}
    read = {key: item[key] for key in sorted(keys) if key in item}
    return _canonical(read).decode("utf-8", "replace") if read else None


@functools.cache
def _keys_of(source: str) -> set[str]:
    """The texts in a python grader, some of which are keys of the row; asked for every row.

    The row may have any name there, and a key too (`wanted = row; wanted[KEY]`).
    """
    try:
        nodes = ast.walk(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {each.value for each in nodes
            if isinstance(each, ast.Constant) and isinstance(each.value, str)}  # fmt: skip


def _note_lacking(
    number: int, item: Mapping[str, Any], grader: Mapping[str, Any], counts: Tally
) -> None:
    try:
        check_item_paths(grader, item)
    except RowError as error:
        counts.lacking.setdefault(str(error.param), Found()).note(number, str(error))


def prompt_hash(row: Row) -> int:
    """Hash messages independently of the order of their keys."""
    return _hash(_canonical(row.messages))


def prompt_text(row: Row) -> str:
    """Return the text of a prompt without the instructions, which all rows share."""
    return "\n".join(
        text_of(message)
        for message in row.messages
        if message["role"] not in ("system", "developer")
    )


def _scalar(value: Any) -> str | None:
    return None if isinstance(value, float | dict | list) else msgspec.json.encode(value).decode()


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
