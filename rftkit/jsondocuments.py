"""JSON that is not one object a line: one value in a file, several over many lines, an array.

It is read as strictly as lines are (`strictjson`). Not here: what the values mean.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rftkit.errors import InputError
from rftkit.jsontext import NestedTooDeeply, is_too_deep, parse_json
from rftkit.strictjson import flaw_in, read_text

__all__ = ["FORM_BYTES", "document_form", "read_document", "read_documents", "read_entries"]

FORM_BYTES = 128 * 1024
"""How much of the beginning of a file `document_form` needs to see."""
_BLANK = re.compile(r"[ \t\r\n]*")


def document_form(start: bytes) -> str | None:
    """Describe the form of a JSON file from its beginning; None if it may have one object a
    line.
    """
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if start[:1] == b"[" and start[1:].lstrip()[:1] == b"{":
        return "this is one JSON array"
    if start.startswith(b"{") and _spans_lines(start):
        return "this is JSON over several lines"
    return None


def _spans_lines(start: bytes) -> bool:
    """Whether the first object continues after its first line."""
    first, _, rest = start.partition(b"\n")
    text = start.decode("utf-8", "replace")
    try:
        parse_json(first)
    except ValueError:
        pass
    else:
        return False
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        # cut off or broken: look for an indented key
        return first.strip() == b"{" and rest.lstrip(b" \t")[:1] == b'"' and rest[:1] in b" \t"
    return isinstance(value, dict) and "\n" in text[:end]


def read_document(path: Path) -> Any:
    """The one JSON value of a file, which may have many lines.

    Raises:
        InputError: with file, line and column.
    """
    values = read_documents(read_text(path), path)
    if len(values) != 1:
        raise InputError(f"{path}: expected one JSON value, found {len(values)}")
    return values[0]


def read_documents(text: str, path: Path | str) -> list[Any]:
    """The JSON values of a text, one after the other, each over however many lines.

    Raises:
        InputError: with file, line and column.
    """
    reader = _Reader(text, path)
    return [value for _, value in reader.values()]


def read_entries(text: str, path: Path | str) -> Iterator[tuple[int, Any]]:
    """Yield the values of a text with the lines that they begin in, those of an array one by one.

    Raises:
        InputError: with file, line and column.
    """
    reader = _Reader(text, path)
    while reader.skip():
        yield from reader.entries() if text[reader.at] == "[" else [reader.value()]


class _Reader:
    """Reads values of a text one after the other."""

    def __init__(self, text: str, path: Path | str) -> None:
        """Refuse a text on which JSON readers do not agree."""
        self.text, self.path, self.at = text, path, 0
        self._line, self._counted = 1, 0
        if flaw := flaw_in(text):
            self.at = flaw[0]
            raise self._fail(f"not usable JSON: {flaw[1]}")

    def values(self) -> Iterator[tuple[int, Any]]:
        """Every value, with its line."""
        while self.skip():
            yield self.value()

    def entries(self) -> Iterator[tuple[int, Any]]:
        """The entries of the array that begins here, with their lines."""
        self.at += 1
        while self.skip() and (self.text[self.at] != "]" or self._follows_comma()):
            yield self.value()
            if self.skip() and self.text[self.at] == ",":
                self.at += 1
            elif self.text[self.at : self.at + 1] != "]":
                raise self._fail("not valid JSON: expecting a comma or the end of the array")
        if self.at == len(self.text):
            raise self._fail("not valid JSON: the array does not end")
        self.at += 1

    def value(self) -> tuple[int, Any]:
        """The value that begins here, with its line."""
        start = self.at
        try:
            found, self.at = json.JSONDecoder().raw_decode(self.text, start)
        except RecursionError:
            raise self._fail(str(NestedTooDeeply())) from None
        except json.JSONDecodeError as error:
            self.at = error.pos
            raise self._fail(f"not valid JSON: {error.msg}") from None
        except ValueError as error:
            raise self._fail(f"not valid JSON: {error}") from None
        if is_too_deep(self.text[start : self.at], found):
            self.at = start
            raise self._fail(str(NestedTooDeeply()))
        self._line += self.text.count("\n", self._counted, start)
        self._counted = start
        return self._line, found

    def skip(self) -> bool:
        """Go to what is no blank; whether there is anything."""
        self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.at < len(self.text)

    def _follows_comma(self) -> bool:
        return self.text[: self.at].rstrip().endswith(",")

    def _fail(self, words: str) -> InputError:
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - self.text.rfind("\n", 0, self.at)
        return InputError(f"{self.path}:{line}:{column}: {words}")
