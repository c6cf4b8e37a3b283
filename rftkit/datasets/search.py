r"""Find a text in raw lines, as fast as memory can be read.

Case is ignored. Lines are not decoded: a text that JSON can write in two ways (`é` or `\u00e9`) is
searched in both. Not here: where the lines come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["needles", "rows_with", "says"]


def needles(text: str) -> tuple[bytes, ...]:
    """Return the forms of `text` in a line of JSON with ASCII letters in lower case."""
    forms = {text, text.lower(), text.upper(), text.capitalize()}
    written = {
        json.dumps(form, ensure_ascii=ascii)[1:-1].encode("utf-8", "surrogatepass").lower()
        for form in forms
        for ascii in (False, True)
    }
    return tuple(sorted(written))


def rows_with(block: bytes, starts: Any, wanted: Iterable[bytes]) -> list[int]:
    """Find the rows of a block that contain one of the forms.

    Args:
        block: Whole lines.
        starts: Where each row starts in it, as an array.
        wanted: From `needles`.
    """
    small = block.lower()
    found: set[int] = set()
    for form in wanted:
        at = small.find(form)
        while at >= 0:
            row = int(np.searchsorted(starts, at, side="right")) - 1
            found.add(row)
            at = small.find(form, int(starts[row + 1])) if row + 1 < len(starts) else -1
    return sorted(found)


def says(value: Any, text: str) -> bool:
    """Whether a value of a row, or any value inside it, contains the text."""
    if isinstance(value, str):
        return text.lower() in value.lower()
    if isinstance(value, dict):
        return any(says(each, text) for each in value.values())
    if isinstance(value, list):
        return any(says(each, text) for each in value)
    return text.lower() in json.dumps(value)
