"""A dataset as a tidy frame with one line per row, for further work in pandas.

Not here: charts of it (`rftkit.views`), and judgements (`check`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.datasets.forms import KEYS
from rftkit.datasets.learnability import Preview
from rftkit.datasets.rowfile import open
from rftkit.datasets.rowlines import NumberedRow, batched
from rftkit.datasets.scan import MAX_VALUE_CHARS, answer_of, prompt_hash, prompt_text
from rftkit.datasets.tokens import find_counter
from rftkit.graders import validate

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "profile"]

COLUMNS = {
    "line": "line in the file",
    "usable": "whether a job can use the row",
    "prompt_chars": "characters of the messages that are no instructions",
    "messages": "how many messages the prompt has",
    "tools": "how many functions the model may call",
    "answer_chars": "characters of the reference or preferred answer; missing when there is none",
    "label": "that answer, when it is short",
    "prompt_hash": "the same for rows with the same messages",
    "tokens": "tokens of the prompt, when a model was named",
    "pass_rate": "share of right completions, for rows of a preview",
    "spread": "highest minus lowest reward, for rows of a preview",
}
"""The columns of `profile`; short values of other keys follow as `item.<key>`."""

AT_ONCE = 256
OWN_KEYS = frozenset[str]().union(*KEYS.values()) - {"input"}


def profile(
    source: str | Path | pd.DataFrame,
    *,
    grader: Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
    model: str | None = None,
    preview: Preview | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Return one line per row, indexed by row number; `COLUMNS` describes the columns.

    Args:
        source: As for `open`.
        grader: Helps to find the reference answers, as does `response_format`.
        response_format: See `grader`.
        model: Counts tokens as `check` does; `frame.attrs["counted_by"]` says how.
        preview: Adds its pass rates and spreads.
        limit: Read only this many rows.
    """
    import pandas as pd

    spec = validate(grader) if grader is not None else None
    counter = None if model is None else find_counter(model)
    columns, num_rows = dict[str, list[Any]](), 0
    with open(source, form=None) as rows:
        rows.wait()
        for batch in batched(islice(rows, limit), AT_ONCE):
            records = [_record(each, spec, response_format) for each in batch]
            if counter is not None:
                for record, count in zip(records, _tokens(batch, counter.count), strict=True):
                    record["tokens"] = count
            num_rows = _extend(columns, records, num_rows)
    frame = pd.DataFrame(columns, index=pd.RangeIndex(num_rows, name="row"))
    if preview is not None:
        sampled = preview.to_frame().set_index("row")
        frame = frame.join(sampled[["pass_rate", "spread"]])
    order = [name for name in COLUMNS if name in frame]
    frame = frame[[*order, *(name for name in frame if name not in COLUMNS)]]
    if counter is not None:
        frame.attrs["counted_by"] = counter.words
    return frame


def _extend(columns: dict[str, list[Any]], records: list[dict[str, Any]], num_rows: int) -> int:
    """Add records to columns of `num_rows` rows, NaN where one lacks a key; rows afterwards.

    Columns hold no texts longer than `MAX_VALUE_CHARS`, so that they grow with the number of rows.
    """
    for key in {key: None for record in records for key in record}:
        columns.setdefault(key, [math.nan] * num_rows)
    for key, column in columns.items():
        column += [record.get(key, math.nan) for record in records]
    return num_rows + len(records)


def _record(
    each: NumberedRow, grader: Mapping[str, Any] | None, response_format: Mapping[str, Any] | None
) -> dict[str, Any]:
    if each.row is None:
        return {"line": each.line, "usable": False}
    answer = answer_of(each.row, response_format, grader)
    return {
        "line": each.line,
        "usable": True,
        "prompt_chars": len(prompt_text(each.row)),
        "messages": len(each.row.messages),
        "tools": len(each.row.tools or ()),
        "answer_chars": None if answer is None else len(answer),
        "label": answer if answer is not None and len(answer) <= MAX_VALUE_CHARS else None,
        "prompt_hash": f"{prompt_hash(each.row):016x}",
    } | {f"item.{key}": value for key, value in each.row.item.items() if _is_short(key, value)}


def _is_short(key: str, value: Any) -> bool:
    if key in OWN_KEYS or isinstance(value, dict | list):
        return False
    return not isinstance(value, str) or len(value) <= MAX_VALUE_CHARS


def _tokens(found: list[NumberedRow], count: Any) -> list[int | None]:
    counted = iter(count([each.row for each in found if each.row is not None]))
    return [None if each.row is None else next(counted) for each in found]
