"""Answers that stand in files: samples made elsewhere, or the reference answers of rows.

Not here: asking a model for answers (`rftkit.evals`), and grading them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rftkit.datasets.io import existing
from rftkit.errors import RowError
from rftkit.graders import Sample, reference_answer
from rftkit.rows import parse_row

__all__ = ["read_samples"]


def read_samples(
    path: str | Path, *, response_format: Mapping[str, Any] | None = None
) -> list[tuple[Sample, dict[str, Any]]]:
    """Read answers with the rows they answer, ready for `grade_many`.

    A line is `{"item": {…}, "sample": "the answer"}`, as in eval files, where `sample` may also be
    an object with `output_text`; or it is a dataset row, whose reference answer is taken.

    Raises:
        RowError: At the first line that is neither, with file and line.
    """
    path = existing(path)
    pairs = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                text, item = _parse(line, number, path, response_format)
                pairs.append((Sample.from_text(text, response_format=response_format), item))
    return pairs


def _parse(
    line: bytes, number: int, path: Path, response_format: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise RowError(f"not valid JSON: {error}", path=path, line=number) from None
    if isinstance(value, dict) and isinstance(value.get("item"), dict) and "sample" in value:
        sample = value["sample"]
        text = sample.get("output_text") if isinstance(sample, dict) else sample
        item = value["item"]
    else:
        item = parse_row(line.decode("utf-8-sig"), line=number, path=path).item
        text = reference_answer(item, response_format)
    if not isinstance(text, str):
        raise RowError(
            "there is no answer to grade: expected `item` and `sample`, or a row with a "
            "`reference_answer`, or with the keys of the response format",
            path=path,
            line=number,
        )
    return text, item
