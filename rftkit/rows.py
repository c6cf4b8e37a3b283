"""One dataset row: parse it, check it, and report what is wrong with it.

A row is one JSON object: `messages` (required), `tools` (optional) and any other key, which
graders see as `item.<key>` (protocol: RFT dataset format). This module handles a single line and
a stream of lines.

JSON is read strictly (`strictjson`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rftkit.errors import RowError
from rftkit.strictjson import read_lines, read_value

__all__ = ["ROLES", "Row", "decode_lines", "parse_object", "parse_row", "read_rows", "row_of"]

ROLES = ("system", "developer", "user", "assistant", "tool")
BOM = b"\xef\xbb\xbf"


class Row(msgspec.Struct, frozen=True, gc=False):
    """One prompt with the fields that its grader needs."""

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
    """The objects of many lines, in half the time; None if one of the lines may be invalid.

    When it returns None, call `parse_object` for each line.
    """
    items = read_lines(lines)
    return items if items and all(type(item) is dict for item in items) else None


def parse_object(
    text: str | bytes, *, line: int = 1, path: str | Path | None = None
) -> dict[str, Any]:
    """Read the JSON object of a line, strictly, whether it is a row or not.

    Raises:
        RowError: with file, line and column, when the line is not a JSON object.
    """

    def fail(message: str) -> RowError:
        return RowError(message, path=path, line=line)

    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    item = read_value(raw, fail)
    if isinstance(item, list) and item and all(isinstance(each, dict) for each in item):
        raise fail(
            "expected a JSON object, found a list of them; if the file is one JSON array, type: "
            "rftkit dataset convert FILE rows.jsonl"
        )
    if not isinstance(item, dict):
        raise fail(f"expected a JSON object, found {_kind(item)}")
    return item


def read_rows(
    lines: Iterable[bytes],
    *,
    path: str | Path | None = None,
    on_error: Callable[[RowError], None] | None = None,
) -> Iterator[Row]:
    """Yield the rows of a JSONL stream; blank lines are skipped.

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


def _is_plain(messages: Any) -> bool:
    """A fast check for text messages with known roles, the last one from the user."""
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
            "put the reference answer in its own key, such as `reference_answer`",
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
