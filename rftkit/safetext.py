"""Text of others before it leaves this process: no control characters, no secrets, no formulas.

Names, file names, answers and error messages come from other people. On a terminal a control
character in them moves the cursor or worse; in a spreadsheet a cell that begins with `=` is run; an
error message may repeat the key that was sent. Not here: HTML, which views escape.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterable
from html import escape
from typing import Any, TextIO
from urllib.parse import quote

__all__ = ["Printable", "cell", "cells", "json_printable", "printable", "redacted"]

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
)
"""All that steers a terminal or reorders a line; not the tab and the line break."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are full-width, which spreadsheets take for the same."""
_BLANK = " \u00a0\u3000\u200b\ufeff"
_SHORT = 4
"""A secret of fewer characters would be found in ordinary words."""
_LONG = 8
"""The same for a part of a secret, between these marks."""
_BETWEEN = re.compile(r"[\s;,=&:\"']+")
HIDDEN = "********"


def printable(text: str) -> str:
    """The text with control characters spelled out: a backslash and their number."""
    return _CONTROLS.sub(_spelled, text)


def json_printable(text: str) -> str:
    """The same for JSON text, which then reads as the same value."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class Printable:
    """A text stream whose writes are printable; everything else is the stream's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, control characters spelled out."""
        self._stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def control(self, text: str) -> None:
        """Write trusted text that controls the terminal, such as a carriage return."""
        self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redacted(text: str, secrets: Iterable[str | None]) -> str:
    """The text with every secret, and every form in which an error may repeat it, hidden."""
    parts = {part for secret in secrets if secret for part in _parts(secret)}
    forms = {form for part in parts for form in _forms(part)}
    for form in sorted(forms, key=len, reverse=True):  # some remotes change the case of a header
        text = re.sub(re.escape(form), HIDDEN, text, flags=re.IGNORECASE)
    for part in parts:
        text = _without_shortened(text, part)
    return text


def _parts(secret: str) -> Iterable[str]:
    for part in {secret, secret.strip(), *secret.split(), *_inside(secret)}:
        if len(part) >= _SHORT and part.lower() not in ("basic", "bearer", "token", "apikey"):
            yield part


def _forms(part: str) -> Iterable[str]:
    yield from (part, repr(part)[1:-1], quote(part), quote(part, safe=""), escape(part))
    yield part.encode("unicode_escape").decode()
    yield json.dumps(part)[1:-1]
    yield json.dumps(json.dumps(part)[1:-1])[1:-1]  # an error within an error
    yield base64.b64encode(part.encode("utf-8", "replace")).decode()


def _without_shortened(text: str, secret: str) -> str:
    """Hide a secret that a remote has shortened itself: its beginning, its end, or both."""
    if len(secret) < _LONG:
        return text

    def hidden(found: re.Match[str]) -> str:
        if not secret.startswith(found["begin"]):
            return found[0]
        return HIDDEN if secret.endswith(found["end"]) else HIDDEN + found["end"]

    begin, end = re.escape(secret[:_SHORT]), re.escape(secret[-_SHORT:])
    text = re.sub(
        rf"(?P<begin>{begin}[^\s*…]{{0,40}}?)(?:\*{{3}}|\.{{3}}|…)[*.…]{{0,99}}(?P<end>[\w-]{{0,12}})",
        hidden,
        text,
    )
    return re.sub(rf"(?:(?<=\*{{3}})|(?<=\.{{3}})|(?<=…)){end}(?!\w)", HIDDEN, text)


def _inside(secret: str) -> Iterable[str]:
    """The values of a cookie or of parameters; user and password of `Basic …`, and the password."""
    yield from (part for part in _BETWEEN.split(secret) if len(part) >= _LONG)
    scheme, _, code = secret.strip().partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            pair = base64.b64decode(code.strip(), validate=True).decode()
            yield from (pair, pair.partition(":")[2])


def cell(value: Any) -> Any:
    """A value for a CSV file that people open: text that a spreadsheet would run gets a `'`."""
    if not isinstance(value, str) or _is_number(value):
        return value
    return f"'{value}" if value.lstrip(_BLANK).startswith(_FORMULA) else value


def cells(frame: Any) -> Any:
    """A pandas frame with every text passed through `cell`, column names included."""
    safe = frame.copy()
    for place, kind in enumerate(frame.dtypes):
        if kind.kind not in "biufcmM":
            safe.isetitem(place, frame.iloc[:, place].map(cell))
    return safe.rename(columns=cell)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
