"""Answers stored in files: samples made elsewhere, or the reference answers of rows.

Not here: getting answers from a model (`rftkit.evals`), and grading them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rftkit.datasets.documents import opened
from rftkit.datasets.io import existing
from rftkit.datasets.rowlines import NumberedRow
from rftkit.datasets.unpack import REFUSED
from rftkit.errors import InputError, RowError
from rftkit.graders import Sample, given_sample, reference_answer
from rftkit.rows import parse_object

__all__ = ["each_sample", "read_samples"]


def read_samples(
    path: str | Path, *, response_format: Mapping[str, Any] | None = None
) -> list[tuple[Sample, dict[str, Any]]]:
    """Read answers with their rows into memory, ready for `grade_many`; see `each_sample`.

    Raises:
        RowError: At the first line that has no answer, with file and line.
    """
    return list(each_sample(path, response_format=response_format))


def each_sample(
    path: str | Path, *, response_format: Mapping[str, Any] | None = None
) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """Yield answers with their rows, one at a time, from any form that `open` takes.

    A line is `{"item": {…}, "sample": "the answer"}`, as in eval files, where `sample` may also be
    an object with `output_text`; or it is flat, with the answer as `output_text`; or it is a
    dataset row, whose reference answer is taken.

    Raises:
        RowError: At the first line that is none of these, with file and line.
    """
    with opened(existing(path)) as rows:
        for each in rows:
            yield _pair(each, rows.name, response_format)


def _pair(
    each: NumberedRow, name: str, response_format: Mapping[str, Any] | None
) -> tuple[Sample, dict[str, Any]]:
    if each.raw.startswith(REFUSED):
        raise each.refusal or RowError("it cannot be read", path=name, line=each.line)
    value = parse_object(each.raw, line=each.line, path=name)
    if isinstance(value.get("item"), dict) and "sample" in value:
        said, item = value["sample"], value["item"]
    elif "output_text" in value:
        said, item = value["output_text"], {k: v for k, v in value.items() if k != "output_text"}
    elif each.row is None:
        raise each.refusal or RowError("it cannot be used", path=name, line=each.line)
    else:
        said, item = reference_answer(value, response_format), value
    if said is None:
        raise RowError(
            "there is no answer to grade: expected `item` and `sample`, or `output_text`, or a row "
            "with a `reference_answer`, or with the keys of the response format",
            path=name,
            line=each.line,
        )
    try:
        return given_sample(said, response_format=response_format), item
    except InputError as error:
        raise RowError(error.message, path=name, line=each.line) from None
