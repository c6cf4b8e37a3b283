"""One dataset row: parse it, check it, say what is wrong with it.

A row is one JSON object: `messages` (required), `tools` (optional) and any other key, which
graders see as `item.<key>` (protocol: RFT dataset format). This module knows a single line and
a stream of lines; it does not know files on a server, statistics, duplicates or graders.

JSON is read strictly, since what two readers read differently cannot be trained on: no key twice
in one object, no number beyond the range of a double, no half of a surrogate pair. The fast
decoder is right on almost every line; a line that it refuses or that looks doubtful is read again
by a careful one, which says what is wrong and in which column.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rftkit.errors import RowError

__all__ = ["ROLES", "Row", "decode_lines", "parse_object", "parse_row", "read_rows", "row_of"]

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_DIGITS = 4300  # of an integer; Python itself reads no longer one
BOM = b"\xef\xbb\xbf"

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
_TOKEN = re.compile(
    r'(?P<text>"(?:[^"\\]|\\.)*")(?P<colon>\s*:)?|[{}]|-?(?:\d[\d.eE+-]*|NaN|Infinity)'
)


class Row(msgspec.Struct, frozen=True, gc=False):
    """One prompt with whatever its grader needs."""

    item: dict[str, Any]
    """The whole row, `messages` and `tools` included: what graders call `item`."""
    line: int
    """Line in its file, from 1."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt, as chat messages; the last one is the user's."""
        messages: list[dict[str, Any]] = self.item["messages"]
        return messages

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """Functions the model may call, or None."""
        return self.item.get("tools")


def parse_row(text: str | bytes, *, line: int = 1, path: str | Path | None = None) -> Row:
    """Parse and check one line of a JSONL file.

    Raises:
        RowError: with file, line and field, when the line is not a usable row.
    """
    return row_of(parse_object(text, line=line, path=path), line=line, path=path)


def row_of(item: dict[str, Any], *, line: int = 1, path: str | Path | None = None) -> Row:
    """Check the object of a line.

    Raises:
        RowError: as from `parse_row`.
    """
    if "tools" not in item and _is_plain(item.get("messages")):
        return Row(item, line)

    def fail(message: str, param: str | None = None) -> RowError:
        return RowError(message, path=path, line=line, param=param)

    if "messages" not in item:
        keys = ", ".join(sorted(item)) or "none"
        raise fail(f"the row has no `messages` (its keys: {keys})", "messages")
    _check_messages(item["messages"], fail)
    tools = item.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise fail(f"`tools` must be a list of functions, found {_kind(tools)}", "tools")
    return Row(item, line)


def decode_lines(lines: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """The objects of many lines, in half the time; None if one of the lines looks doubtful.

    Whoever gets None asks `parse_object` about each line.
    """
    try:
        items = [_decode(line) for line in lines]
        written = _encode_lines(items)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None
    are_objects = all(type(item) is dict for item in items)
    return items if are_objects and _same_colons(b"\n".join(lines), written) else None


def parse_object(
    text: str | bytes, *, line: int = 1, path: str | Path | None = None
) -> dict[str, Any]:
    """Read the JSON object of a line, strictly, whether it is a row or not.

    Raises:
        RowError: with file, line and column, when it is none.
    """

    def fail(message: str) -> RowError:
        return RowError(message, path=path, line=line)

    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    item = _read_object(raw, fail)
    if not isinstance(item, dict):
        raise fail(f"expected a JSON object, found {_kind(item)}")
    return item


def read_rows(
    lines: Iterable[bytes],
    *,
    path: str | Path | None = None,
    on_error: Callable[[RowError], None] | None = None,
) -> Iterator[Row]:
    """Yield the rows of a JSONL stream; blank lines are passed over.

    Args:
        lines: The lines of a file, as bytes.
        path: Named in messages.
        on_error: Called with the error of each unusable line, which is then left out.

    Raises:
        RowError: Without `on_error`, at the first line that is not UTF-8 or not a usable row.
    """
    for number, raw in enumerate(lines, start=1):
        content = raw.removeprefix(BOM) if number == 1 else raw
        if not content.strip():
            continue
        try:
            row = parse_row(content, line=number, path=path)
        except RowError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield row


def _read_object(raw: bytes, fail: Any) -> Any:
    """The value of a line. A key that stands twice is caught by counting colons.

    Written again, the value has one colon fewer for each pair that was dropped; the colons inside
    texts are the same in both, unless one is escaped, and such a line goes to the careful reader.
    """
    try:
        item = _decode(raw)
        same = _encode(item).count(b":") == raw.count(b":")
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return _read_carefully(raw, fail)
    if same and not _ESCAPED_COLON.search(raw):
        return item
    return _read_carefully(raw, fail)


def _same_colons(raw: bytes, written: bytes) -> bool:
    """What `_read_object` asks of one line, of many: numpy looks at many bytes at a time."""
    import numpy as np

    before, after = (np.frombuffer(text, dtype=np.uint8) for text in (raw, written))
    if np.count_nonzero(before == ord(":")) != np.count_nonzero(after == ord(":")):
        return False
    escapes = np.flatnonzero(before == ord("\\")) + 1
    return not ((before[escapes] == ord("u")).any() and _ESCAPED_COLON.search(raw))


def _read_carefully(raw: bytes, fail: Any) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"0x{raw[error.start]:02x}"
        raise fail(
            f"not valid UTF-8 at byte {error.start + 1} of the line ({kind}); "
            "save the file as UTF-8"
        ) from None
    if text.startswith("\ufeff"):
        raise fail("a byte order mark (BOM) stands before the object; remove it")
    if flaw := _flaw(text):
        raise fail(f"not usable JSON at column {flaw[0] + 1}: {flaw[1]}")
    try:
        return json.loads(text)
    except RecursionError:
        raise fail("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise fail(f"not valid JSON at column {error.colno}: {_said(error)}") from None
    except ValueError as error:
        raise fail(f"not valid JSON: {error}") from None


def _said(error: json.JSONDecodeError) -> str:
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if before.endswith(",") and after[:1] in ("}", "]"):
        return f"there is a comma before the closing {after[0]}; remove it"
    return f"{error.msg}; each line must hold one object"


def _flaw(text: str) -> tuple[int, str] | None:
    """Position and words of the first thing that JSON allows and readers disagree on."""
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
            return f"the key {value!r} stands twice in one object; remove one of them"
        open_keys[-1].add(value)
    return None


def _is_small(word: str) -> bool:
    try:
        is_integer = word.lstrip("-").isdigit()
        return len(word) < MAX_DIGITS if is_integer else math.isfinite(float(word))
    except ValueError:
        return True  # not a number at all; the whole line will say it better


def _is_plain(messages: Any) -> bool:
    """Whether these are texts by known roles, the last one the user's: nearly always so."""
    role = None
    try:
        for message in messages:
            role = message["role"]
            if role not in ROLES or type(message["content"]) is not str:
                return False
    except (KeyError, TypeError, IndexError):
        return False
    return role == "user"


def _check_messages(messages: Any, fail: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise fail(f"`messages` must be a non-empty list, found {_kind(messages)}", "messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]", fail)
    if messages[-1]["role"] != "user":
        raise fail(
            f"the last message must be the user's, found role {messages[-1]['role']!r}; "
            "put the reference answer in a key of your own, such as `reference_answer`",
            f"messages[{len(messages) - 1}].role",
        )


def _check_message(message: Any, where: str, fail: Any) -> None:
    if not isinstance(message, dict):
        raise fail(f"`{where}` must be an object, found {_kind(message)}", where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise fail(
            f"`{where}.role` must be one of {', '.join(ROLES)}, found {role!r}", f"{where}.role"
        )
    if isinstance(content, list):
        _check_parts(content, where, fail)
    elif not isinstance(content, str) and not (role == "assistant" and content is None):
        raise fail(f"`{where}.content` must be text, found {_kind(content)}", f"{where}.content")


def _check_parts(parts: list[Any], where: str, fail: Any) -> None:
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise fail(
                f"`{where}.content[{number}]` must be {{type: 'text', text: …}}, found type "
                f"{kind!r}; the local platform trains on text only",
                f"{where}.content[{number}]",
            )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    if value == [] and isinstance(value, list):
        return "an empty list"
    return names.get(type(value), "a number" if isinstance(value, int | float) else repr(value))
