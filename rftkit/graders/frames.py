"""Many samples as a table: a DataFrame, a JSONL file or pairs in, one tidy DataFrame out.

One row a sample, in order: `reward` (missing when the grader failed), `outcome`, `reward/KEY` for
each sub-grader, `criterion/TEXT` for each criterion of a rubric (1 met, 0 not), `error/FLAG` for
each flag that occurred, `details`, `seconds`, `tokens`. With a `journal`, grades are written as
they come and a second run continues where the first stopped.
Not here: means, intervals or comparisons of runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError, RowError
from rftkit.graders.engine import CompiledGrader, compile_grader
from rftkit.graders.given import given_sample
from rftkit.graders.outcome import Grade, Sample
from rftkit.graders.rubric import criterion_columns
from rftkit.growing import append_json, json_values
from rftkit.jsondocuments import FORM_BYTES, document_form
from rftkit.rows import BOM, objects_in, parse_object
from rftkit.strictjson import decoded, readable
from rftkit.wholefile import check_output

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["grade_many", "read_pairs", "to_frame"]

Pair = tuple[Sample, Any]

TABLES = {".csv": "read_csv", ".tsv": "read_table", ".parquet": "read_parquet"}
"""Ending of a table -> the function of pandas that reads it, packed or not."""


def grade_many(
    spec: Mapping[str, Any],
    samples: Any,
    *,
    answer: str = "output_text",
    response_format: Mapping[str, Any] | None = None,
    journal: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Grade many samples into a table (see the module for its columns).

    Args:
        spec: a grader in the wire's form.
        samples: pairs of (Sample, item); or a DataFrame, a JSONL file or mappings, whose rows are
            `{"item": …, "sample": …}` as in eval files, or flat, with the answer under `answer`
            and every other key part of the item. Missing cells of a DataFrame are left out.
        answer: key of the answer in flat rows.
        response_format: as in a job: then what is not JSON is unscorable.
        journal: JSONL file of grades; what it holds is not graded again, failures are.
        progress: show a bar.
        options: of `compile_grader`.

    Raises:
        GraderSpecError: the spec is malformed.
        RowError: a row holds no answer, with its number.
    """
    if journal is not None and isinstance(samples, str | os.PathLike):
        check_output(journal, [Path(samples)])
    pairs = read_pairs(samples, answer=answer, response_format=response_format)
    with compile_grader(spec, **options) as grader:
        book = _Journal(Path(journal), grader.spec) if journal is not None else None
        grades = _grade(grader, pairs, book, progress)
    return to_frame(grades, index=samples.index if _is_table(samples) else None)


def read_pairs(
    samples: Any, *, answer: str = "output_text", response_format: Mapping[str, Any] | None = None
) -> list[Pair]:
    """Pairs of (Sample, item) from any of the sources of `grade_many`.

    Raises:
        RowError: a row holds no answer, with its number.
    """
    path = Path(samples) if isinstance(samples, str | os.PathLike) else None
    return [
        row if isinstance(row, tuple) else _pair(row, answer, response_format, path, number)
        for number, row in _rows(samples, path, answer)
    ]


def to_frame(grades: Iterable[Grade], *, index: Any = None) -> pd.DataFrame:
    """Grades as a table, one row each."""
    import pandas as pd

    grades = list(grades)
    keys = dict.fromkeys(key for grade in grades for key in grade.sub_rewards)
    flags = dict.fromkeys(
        flag for grade in grades for flag, value in grade.errors.items() if value is True
    )
    columns: dict[str, Any] = {
        "reward": pd.array([grade.reward for grade in grades], dtype="Float64"),
        "outcome": [grade.outcome for grade in grades],
    }
    for key in keys:
        rewards = [grade.sub_rewards.get(key) for grade in grades]
        columns[f"reward/{key}"] = pd.array(rewards, dtype="Float64")
    columns |= criterion_columns([grade.judged for grade in grades])
    for flag in flags:
        columns[f"error/{flag}"] = [flag in grade.errors for grade in grades]
    columns["details"] = [_details(grade) for grade in grades]
    columns["seconds"] = [grade.seconds for grade in grades]
    columns["tokens"] = [
        sum(usage.get("total_tokens", 0) for usage in grade.token_usage.values())
        for grade in grades
    ]
    return pd.DataFrame(columns, index=index)


SEARCH = "search"
"""Key of what a search is for, in the first line of its file."""


class _Journal:
    """Grades by what was graded, in a file that only grows."""

    def __init__(self, path: Path, spec: Mapping[str, Any]) -> None:
        self._path, self._lock = path, threading.Lock()
        self._spec = json.dumps(spec, sort_keys=True)
        self._known: dict[str, Grade] = {}
        for number, entry in enumerate(json_values(path)):
            if number == 0 and not _begins_journal(entry):
                raise InputError(f"{path} holds something else than grades; name another journal")
            with contextlib.suppress(TypeError, KeyError):
                self._known[entry["key"]] = Grade(**entry["grade"])

    def key(self, pair: Pair) -> str:
        sample, item = pair
        said = dataclasses.asdict(sample)
        if sample.model is None:  # so that grades kept by an older rftkit are still found
            del said["model"]
        question = [self._spec, said, item]
        text = json.dumps(question, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def find(self, key: str) -> Grade | None:
        grade = self._known.get(key)
        return grade if grade and grade.outcome != "failed" else None

    def add(self, key: str, grade: Grade) -> None:
        with self._lock:
            append_json(self._path, {"key": key, "grade": dataclasses.asdict(grade)})


def _begins_journal(entry: Any) -> bool:
    """Whether it is a grade, or the purpose of a search, whose file has grades as well."""
    return isinstance(entry, dict) and (SEARCH in entry or {"key", "grade"} <= entry.keys())


def _grade(
    grader: CompiledGrader, pairs: list[Pair], book: _Journal | None, progress: bool
) -> list[Grade]:
    keys = [book.key(pair) for pair in pairs] if book else []
    grades: list[Grade | None] = [book.find(key) for key in keys] if book else [None] * len(pairs)
    todo = [place for place, grade in enumerate(grades) if grade is None]
    advance, close = _bar(len(todo)) if progress else (_nothing, _nothing)

    def done(place: int, grade: Grade) -> None:
        if book:
            book.add(keys[todo[place]], grade)
        advance()

    try:
        fresh = grader.grade_many(
            [pairs[place] for place in todo], progress=done if book or progress else None
        )
    finally:
        close()
    for place, grade in zip(todo, fresh, strict=True):
        grades[place] = grade
    return [grade for grade in grades if grade is not None]


def _bar(total: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from tqdm.auto import tqdm

    bar = tqdm(total=total, unit="sample", desc="grading")
    return bar.update, bar.close


def _nothing() -> None:
    pass


def _rows(samples: Any, path: Path | None, answer: str) -> Iterable[tuple[int, Any]]:
    """Rows with their numbers, from 1. pandas reads an empty text of a CSV file as missing."""
    if path is not None:
        return _read_lines(path)
    if _is_table(samples):
        samples = [
            {
                key: "" if _is_missing(cell) else cell
                for key, cell in row.items()
                if key == answer or not _is_missing(cell)
            }
            for row in samples.to_dict("records")
        ]
        _check_texts(samples, answer)
    return enumerate(samples, start=1)


def _check_texts(rows: Sequence[Mapping[str, Any]], answer: str) -> None:
    """Refuse answers that pandas has made numbers: `007` would be graded as `7`.

    Raises:
        RowError: with the number of the row.
    """
    for number, row in enumerate(rows, start=1):
        if isinstance(row.get(answer), int | float):
            raise RowError(
                f"the answer {row[answer]!r} is a number in this table; to keep answers as they "
                f"were written: pandas.read_csv(…, dtype={{{answer!r}: str}})",
                line=number,
            )


def _read_lines(path: Path) -> Iterable[tuple[int, Any]]:
    if not path.exists():
        raise InputError(f"there is no file {path}")
    ending, name = path.suffix.lower(), path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if (reader := TABLES.get(Path(name).suffix)) is not None:
        raise InputError(f"{path} is a table: pass pandas.{reader}({str(path)!r}), or rftkit grade")
    if ending == ".zst":
        raise InputError(
            f"{path} is packed with zstd: pass rftkit.datasets.read_samples({str(path)!r})"
        )
    with readable(path), gzip.open(path, "rb") if ending == ".gz" else path.open("rb") as file:
        form = document_form(file.read(FORM_BYTES))
        file.seek(0)
        if form is not None:
            yield from objects_in(decoded(file.read(), path), path)
            return
        for number, line in enumerate(file, start=1):
            raw = line.removeprefix(BOM) if number == 1 else line
            if raw.strip():
                yield number, parse_object(raw, line=number, path=path)


def _pair(
    row: Any,
    answer: str,
    response_format: Mapping[str, Any] | None,
    path: Path | None,
    number: int,
) -> Pair:
    def fail(message: str) -> RowError:
        return RowError(message, path=path, line=number)

    if not isinstance(row, Mapping):
        raise fail(f"expected an object, found {type(row).__name__}")
    if "item" in row and "sample" in row:
        item, said = row["item"], row["sample"]
    elif answer in row:
        item, said = {key: value for key, value in row.items() if key != answer}, row[answer]
    else:
        keys = ", ".join(map(str, row)) or "none"
        raise fail(
            f"no answer to grade: expected `item` and `sample`, or the key {answer!r} (pass "
            f"answer= to name another); found the keys {keys}"
        )
    try:
        return given_sample(said, response_format=response_format), item
    except InputError as error:
        raise fail(error.message) from None


def _is_table(samples: Any) -> bool:
    """A DataFrame; asking for its class would import pandas."""
    return hasattr(samples, "to_dict")


def _is_missing(cell: Any) -> bool:
    is_nan = isinstance(cell, float) and cell != cell
    return cell is None or is_nan or type(cell).__name__ in ("NAType", "NaTType")


def _details(grade: Grade) -> str:
    return "; ".join(value for value in grade.errors.values() if isinstance(value, str))
