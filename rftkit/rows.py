"""One dataset row: parse it, check it, and report what is wrong with it.

A row is one JSON object: `messages` (required), `tools` (optional) and any other key, which
graders see as `item.<key>` (protocol: RFT dataset format). This module handles a single line and
a stream of lines.

JSON is read strictly (`strictjson`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rftkit.errors import RowError
from rftkit.jsondocuments import FORM_BYTES, document_form, read_entries
from rftkit.strictjson import lines_of, read_lines, read_value

__all__ = [
    "ROLES",
    "Row",
    "check_messages",
    "decode_lines",
    "decoded_lines",
    "kind_of",
    "objects_in",
    "parse_object",
    "parse_row",
    "read_rows",
    "row_of",
]

ROLES = ("system", "developer", "user", "assistant", "tool")
BOM = b"\xef\xbb\xbf"

T = TypeVar("T")


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
    check_messages(item["messages"], fail)
    last = len(item["messages"]) - 1
    if item["messages"][last]["role"] != "user":
        raise fail(
            f"the last message must be the user's, found role {item['messages'][last]['role']!r}; "
            "put the reference answer in its own key, such as `reference_answer`",
            f"messages[{last}].role",
        )
    tools = item.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise fail(f"`tools` must be a list of functions, found {kind_of(tools)}", "tools")
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
            "expected a JSON object, found a list of them; if the file is one JSON array of rows, "
            "type: rftkit dataset convert FILE rows.jsonl"
        )
    if not isinstance(item, dict):
        raise fail(f"expected a JSON object, found {kind_of(item)}")
    return item


def objects_in(text: str, path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file's text with the lines that they begin in.

    There is one a line, or they are over several lines each, or in one array.

    Raises:
        InputError: with file and line, at the first thing that is not an object.
    """
    if not document_form(text[:FORM_BYTES].encode()):
        for line, words in lines_of(text):
            yield line, parse_object(words, line=line, path=path)
        return
    for line, value in read_entries(text, path):
        if not isinstance(value, dict):
            raise RowError(f"expected a JSON object, found {kind_of(value)}", path=path, line=line)
        yield line, value


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
    return decoded_lines(lines, _parse, path=path, on_error=on_error)


def _parse(text: bytes, line: int, path: str | Path | None) -> Row:
    return parse_row(text, line=line, path=path)


def decoded_lines(
    lines: Iterable[bytes],
    parse: Callable[[bytes, int, str | Path | None], T],
    *,
    path: str | Path | None = None,
    on_error: Callable[[RowError], None] | None = None,
) -> Iterator[T]:
    """Yield what `parse(text, line, path)` makes of each line that is not blank.

    Raises:
        RowError: Without `on_error`, from `parse`.
    """
    for number, raw in enumerate(lines, start=1):
        content = raw.removeprefix(BOM) if number == 1 else raw
        if not content.strip():
            continue
        try:
            row = parse(content, number, path)
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


def check_messages(
    messages: Any,
    fail: Callable[..., RowError],
    *,
    where: str = "messages",
    roles: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> None:
    """Check a list of chat messages: their roles, and that their content is text.

    Args:
        messages: as in the row.
        fail: makes the error from a message and the name of a field.
        where: the field that holds the messages.
        roles: roles that are allowed besides `ROLES`.
        texts: types of content parts that are allowed besides `text`; the text of such a part is
            under the name of its type.

    Raises:
        RowError: from `fail`.
    """
    if not isinstance(messages, list) or not messages:
        raise fail(f"`{where}` must be a non-empty list, found {kind_of(messages)}", where)
    for index, message in enumerate(messages):
        _check_message(message, f"{where}[{index}]", fail, (*ROLES, *roles), ("text", *texts))


def _check_message(
    message: Any, where: str, fail: Any, roles: Sequence[str], texts: Sequence[str]
) -> None:
    if not isinstance(message, dict):
        raise fail(f"`{where}` must be an object, found {kind_of(message)}", where)
    role, content = message.get("role"), message.get("content")
    if role not in roles:
        raise fail(
            f"`{where}.role` must be one of {', '.join(ROLES)}, found {role!r}", f"{where}.role"
        )
    if isinstance(content, list):
        _check_parts(content, where, fail, texts)
    elif not isinstance(content, str) and not (role == "assistant" and content is None):
        raise fail(f"`{where}.content` must be text, found {kind_of(content)}", f"{where}.content")


def _check_parts(parts: list[Any], where: str, fail: Any, texts: Sequence[str]) -> None:
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in texts or not isinstance(part.get(kind), str):
            raise fail(
                f"`{where}.content[{number}]` must be {{type: 'text', text: …}}, found type "
                f"{kind!r}; the local platform trains on text only",
                f"{where}.content[{number}]",
            )


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    if value == [] and isinstance(value, list):
        return "an empty list"
    return names.get(type(value), "a number" if isinstance(value, int | float) else repr(value))
