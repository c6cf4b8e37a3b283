"""A dataset as a tidy frame: one line a row, ready to go on with in pandas.

Not here: charts of it (`rftkit.views`), and judgements (`check`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.datasets.learnability import Preview
from rftkit.datasets.rowfile import open
from rftkit.datasets.rowlines import NumberedRow
from rftkit.datasets.scan import MAX_VALUE_CHARS, prompt_hash, prompt_text
from rftkit.datasets.tokens import find_counter
from rftkit.graders import reference_answer, validate
from rftkit.rows import Row

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "profile"]

COLUMNS = {
    "line": "line in the file",
    "usable": "whether a job can use the row",
    "prompt_chars": "characters of the messages that are no instructions",
    "messages": "how many messages the prompt has",
    "tools": "how many functions the model may call",
    "answer_chars": "characters of the reference answer; missing when there is none",
    "label": "the reference answer, when it is short",
    "prompt_hash": "the same for rows with the same messages",
    "tokens": "tokens of the prompt, when a model was named",
    "pass_rate": "share of right completions, for rows of a preview",
    "spread": "highest minus lowest reward, for rows of a preview",
}
"""Columns of `profile`; short values of other keys follow as `item.<key>`."""

AT_ONCE = 256


def profile(
    source: str | Path | pd.DataFrame,
    *,
    grader: Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
    model: str | None = None,
    preview: Preview | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """One line for every row, indexed by row number; `COLUMNS` says what the columns mean.

    Args:
        source: As for `open`.
        grader: Helps to find the reference answers.
        response_format: Helps to find them too.
        model: Counts tokens as `check` does; `frame.attrs["counted_by"]` says how.
        preview: Adds pass rates and spreads.
        limit: The first so many rows only.
    """
    import pandas as pd

    spec = validate(grader) if grader is not None else None
    with open(source) as rows:
        rows.wait()
        chosen = range(len(rows) if limit is None else min(limit, len(rows)))
        found = rows.rows_at(chosen)
    records = [_record(each, spec, response_format) for each in found]
    frame = pd.DataFrame(records, index=pd.RangeIndex(len(records), name="row"))
    counter = None if model is None else find_counter(model)
    if counter is not None:
        frame["tokens"] = _tokens(found, counter.count)
    if preview is not None:
        sampled = preview.to_frame().set_index("row")
        frame = frame.join(sampled[["pass_rate", "spread"]])
    order = [name for name in COLUMNS if name in frame]
    frame = frame[[*order, *(name for name in frame if name not in COLUMNS)]]
    if counter is not None:
        frame.attrs["counted_by"] = counter.words
    return frame


def _record(
    each: NumberedRow, grader: Mapping[str, Any] | None, response_format: Mapping[str, Any] | None
) -> dict[str, Any]:
    if each.row is None:
        return {"line": each.line, "usable": False}
    answer = reference_answer(each.row.item, response_format, grader=grader)
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
    if key in ("messages", "tools") or isinstance(value, dict | list):
        return False
    return not isinstance(value, str) or len(value) <= MAX_VALUE_CHARS


def _tokens(found: list[NumberedRow], count: Any) -> list[int | None]:
    out: list[int | None] = []
    for first in range(0, len(found), AT_ONCE):
        part: list[Row | None] = [each.row for each in found[first : first + AT_ONCE]]
        counted = iter(count([row for row in part if row is not None]))
        out += [None if row is None else next(counted) for row in part]
    return out
