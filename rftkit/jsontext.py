"""JSON from elsewhere, read as the standard library reads it, but with a limit on nesting.

Python's reader fails with a RecursionError where a text is nested about as deeply as the
interpreter's stack, and a value that is nested a little less fails later, in the code that walks
it. So every reader of a file, a request or an answer has the same limit, and text beyond it is
refused like other text that is not JSON. Not here: the strict reading of rows (`strictjson`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["MOST_LEVELS", "NestedTooDeeply", "as_text", "digest_of", "is_too_deep", "parse_json"]

MOST_LEVELS = 100
"""Objects and lists inside each other; code that walks a value needs several frames for each."""


class NestedTooDeeply(json.JSONDecodeError):
    """The JSON has more than `MOST_LEVELS` objects and lists inside each other."""

    def __init__(self) -> None:
        """The position is unknown."""
        super().__init__(f"the JSON is nested more than {MOST_LEVELS} levels deep", "", 0)

    def __str__(self) -> str:
        return self.msg


def parse_json(text: str | bytes | bytearray, **options: Any) -> Any:
    """The value of a JSON text; `options` are those of `json.loads`.

    Raises:
        NestedTooDeeply: It is nested too deeply.
        ValueError: It is not JSON.
    """
    try:
        value = json.loads(text, **options)
    except RecursionError:
        raise NestedTooDeeply from None
    if is_too_deep(text, value):
        raise NestedTooDeeply
    return value


def as_text(value: Any) -> str:
    """A text as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def digest_of(value: Any) -> str:
    """The same 64 letters for the same JSON value, however it was spelled."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_too_deep(text: str | bytes | bytearray, value: Any) -> bool:
    """Whether the value of a text has too many levels. Few texts have enough brackets to try."""
    brackets = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, brackets)) <= MOST_LEVELS:  # type: ignore[arg-type]
        return False
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
