"""JSON, read strictly, because two readers must not read a training row differently.

It refuses a key that appears twice in an object, a number beyond the range of a double, NaN and
infinity, half a surrogate pair, and nesting without end. The fast decoder is right on almost every
line. A line that it refuses or that looks doubtful is read again by a careful one, which reports
what is wrong and in which column. Only a line feed ends a line: U+2028, U+0085 and the like are
ordinary characters. Not here: values over several lines (`jsondocuments`), and what values mean
(`rows`).
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from rftkit.errors import InputError
from rftkit.jsontext import NestedTooDeeply, is_too_deep, parse_json

__all__ = [
    "decoded",
    "flaw_in",
    "lines_of",
    "other_form",
    "parse_strictly",
    "read_lines",
    "read_text",
    "read_value",
    "readable",
]

MAX_DIGITS = 4300  # of an integer; Python refuses longer ones
OTHER_FORMS = {
    b"PK\x03\x04": "a zip archive, as an Excel workbook (.xlsx) is; save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls); save the sheet as CSV (UTF-8)",
    b"PAR1": "a Parquet file; its name must end in .parquet",
    b"\x1f\x8b": "packed with gzip; its name must end in .gz, such as rows.jsonl.gz",
    b"\x28\xb5\x2f\xfd": "packed with zstd; its name must end in .zst, such as rows.jsonl.zst",
    b"%PDF-": "a PDF; write its texts as one JSON object per line",
}
"""How files that are not text begin, and what they are."""
Fail = Callable[[str], Exception]
"""Makes the error for some words."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
_TOKEN = re.compile(
    r'(?P<text>"[^"\\]*+(?:\\.[^"\\]*+)*+")(?P<colon>\s*+:)?|[{}]|-?(?:\d[\d.eE+-]*+|NaN|Infinity)'
)


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def other_form(start: bytes) -> str | None:
    """Which other format these first bytes belong to, and what to do; None if it may be text."""
    return next((words for sign, words in OTHER_FORMS.items() if start.startswith(sign)), None)


def read_lines(lines: Sequence[bytes]) -> list[Any] | None:
    """The values of many lines, in half the time; None if a line may need a closer check."""
    try:
        values = [_decode(line) for line in lines]
        written = _encode_lines(values)
        if any(map(is_too_deep, lines, values)):
            return None
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None
    return values if _same_colons(b"\n".join(lines), written) else None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in words that a file cannot be read: no permission, or a packed file that is broken off.

    Raises:
        InputError: with the path and why.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from None


def read_text(path: Path) -> str:
    """The text of a file, unpacked where its name ends in `.gz`.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    with readable(path):
        raw = path.read_bytes()
        if path.suffix.lower() == ".gz":
            raw = gzip.decompress(raw)
    if path.suffix.lower() == ".zst":
        raise InputError(f"{path} is packed with zstd; unpack it first: zstd -d {path}")
    return decoded(raw, path)


def decoded(raw: bytes, path: Path | str) -> str:
    """The text of a file that has these bytes.

    Raises:
        InputError: it is not UTF-8; the error says what it is instead, where that is known.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        if what := other_form(raw):
            raise InputError(f"{path}: not text: this is {what}") from None
        kind = " (it is UTF-16)" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise InputError(f"{path}: not valid UTF-8{kind}; save the file as UTF-8") from None


def parse_strictly(text: str) -> Any:
    """The value of a text that somebody typed, or of a small file of settings.

    Raises:
        ValueError: it is not JSON, or JSON readers would not agree on it.
    """
    value = parse_json(text)
    if flaw := flaw_in(text):
        raise ValueError(flaw[1])
    return value


def read_value(raw: bytes, fail: Fail) -> Any:
    """The value of a line. A key that appears twice is caught by counting colons.

    Written again, the value has one colon fewer for each pair that was dropped; the colons inside
    texts are the same in both, unless one is escaped, and such a line goes to the careful reader.
    """
    try:
        item = _decode(raw)
        same = _encode(item).count(b":") == raw.count(b":") and not is_too_deep(raw, item)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return _read_carefully(raw, fail)
    if same and not _ESCAPED_COLON.search(raw):
        return item
    return _read_carefully(raw, fail)


def _same_colons(raw: bytes, written: bytes) -> bool:
    """The check that `read_value` makes of one line, for many lines at once, with numpy."""
    import numpy as np

    before, after = (np.frombuffer(text, dtype=np.uint8) for text in (raw, written))
    if np.count_nonzero(before == ord(":")) != np.count_nonzero(after == ord(":")):
        return False
    escapes = np.flatnonzero(before == ord("\\")) + 1
    return not ((before[escapes] == ord("u")).any() and _ESCAPED_COLON.search(raw))


def _read_carefully(raw: bytes, fail: Fail) -> Any:
    if found := other_form(raw):
        raise fail(f"not JSON: the file is {found}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"0x{raw[error.start]:02x}"
        raise fail(
            f"not valid UTF-8 at byte {error.start + 1} of the line ({kind}); "
            "save the file as UTF-8"
        ) from None
    if text.startswith("\ufeff"):
        raise fail("a byte order mark (BOM) comes before the object; remove it")
    if flaw := flaw_in(text):
        raise fail(f"not usable JSON at column {flaw[0] + 1}: {flaw[1]}")
    try:
        return parse_json(text)
    except NestedTooDeeply as error:
        raise fail(str(error)) from None
    except json.JSONDecodeError as error:
        raise fail(f"not valid JSON at column {error.colno}: {_said(error)}") from None
    except ValueError as error:
        raise fail(f"not valid JSON: {error}") from None


def _said(error: json.JSONDecodeError) -> str:
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if before.endswith(",") and after[:1] in ("}", "]"):
        return f"there is a comma before the closing {after[0]}; remove it"
    if error.msg == "Extra data" and "\r" in error.doc[len(before) : error.pos]:
        return (
            "a carriage return alone does not end a line. Write line feeds: "
            "tr '\\r' '\\n' < FILE > NEW"
        )
    return f"{error.msg}; each line must hold one object"


def flaw_in(text: str) -> tuple[int, str] | None:
    """Position and description of the first construct that JSON readers disagree on."""
    open_keys: list[set[str]] = []
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word == "{":
            open_keys.append(set())
        elif word == "}" and open_keys:
            open_keys.pop()
        elif token["text"]:
            found = _text_flaw(token, open_keys)
            if found:
                return token.start(), found
        elif word.endswith(("NaN", "Infinity")):
            return token.start(), f"{word} is not a JSON number; write null"
        elif not _is_small(word):
            shown = word if len(word) <= 24 else f"{word[:24]}…"
            return token.start(), f"the number {shown} is too large; write it as text"
    return None


def _text_flaw(token: re.Match[str], open_keys: list[set[str]]) -> str | None:
    try:
        value = json.loads(token["text"])
    except ValueError:
        return None  # the whole line will say it better
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return "half of a surrogate pair (\\ud800 to \\udfff) is not a character"
    if token["colon"] and open_keys:
        if value in open_keys[-1]:
            return f"the key {value!r} appears twice in one object; remove one of them"
        open_keys[-1].add(value)
    return None


def _is_small(word: str) -> bool:
    try:
        is_integer = word.lstrip("-").isdigit()
        return len(word) < MAX_DIGITS if is_integer else math.isfinite(float(word))
    except ValueError:
        return True  # not a number at all; the whole line will say it better
