"""A dataset with a prompt file put before the messages of every row, for jobs that train with it.

The answers of the examples are not trained again with every row: in supervised rows they have
weight 0. Not here: how a prompt and a row are put together (`rftkit.prompts`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rftkit.datasets.forms import form_of_row
from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.writing import write_lines
from rftkit.errors import InputError
from rftkit.prompts import Prompt
from rftkit.rows import Row

__all__ = ["write_prompted"]


def write_prompted(source: str | Path, target: str | Path, prompt: Prompt) -> int:
    """Write the rows of a file with a prompt before their messages; the number of rows.

    Raises:
        RowError: A line is not a usable row.
        InputError: The source cannot be read, or the target is there already.
    """
    with open(source, form=None) as rows:
        return write_lines(target, _lines(rows, prompt))


def _lines(rows: Rows, prompt: Prompt) -> Iterator[bytes]:
    for each in rows:
        if each.row is None:
            raise each.refusal or InputError(f"{rows.name}: row {each.number} cannot be used")
        yield json.dumps(_prompted(each.row, prompt), ensure_ascii=False).encode()


def _prompted(row: Row, prompt: Prompt) -> dict[str, Any]:
    form = form_of_row(row)
    if form == "preference":
        given = row.item["input"]
        return {**row.item, "input": {**given, "messages": prompt.before(given["messages"])}}
    if form == "supervised":
        examples = tuple(
            {**each, "weight": 0} if each["role"] == "assistant" else each
            for each in prompt.examples
        )
        prompt = Prompt(prompt.system, examples, prompt.replaces)
    return {**row.item, "messages": prompt.before(row.item["messages"])}
