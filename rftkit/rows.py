"""One dataset row: parse it, check it, say what is wrong with it.

A row is one JSON object: `messages` (required), `tools` (optional) and any other key, which
graders see as `item.<key>` (protocol: RFT dataset format). This module knows a single line and
a stream of lines; it does not know files on a server, statistics, duplicates or graders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import RowError

__all__ = ["ROLES", "Row", "parse_row", "read_rows"]

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Row:
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


def parse_row(text: str, *, line: int = 1, path: str | Path | None = None) -> Row:
    """Parse and check one line of a JSONL file.

    Raises:
        RowError: with file, line and field, when the line is not a usable row.
    """

    def fail(message: str, param: str | None = None) -> RowError:
        return RowError(message, path=path, line=line, param=param)

    try:
        item = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise fail("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise fail(
            f"not valid JSON at column {error.colno}: {error.msg}; each line must hold one object"
        ) from None
    except ValueError as error:
        raise fail(f"not valid JSON: {error}") from None
    if not isinstance(item, dict):
        raise fail(f"expected a JSON object, found {_kind(item)}")
    if "messages" not in item:
        keys = ", ".join(sorted(item)) or "none"
        raise fail(f"the row has no `messages` (its keys: {keys})", "messages")
    _check_messages(item["messages"], fail)
    tools = item.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise fail(f"`tools` must be a list of functions, found {_kind(tools)}", "tools")
    return Row(item=item, line=line)


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
        try:
            text = _decode(raw, number, path)
            if text.strip():
                yield parse_row(text, line=number, path=path)
        except RowError as error:
            if on_error is None:
                raise
            on_error(error)


def _decode(raw: bytes, line: int, path: str | Path | None) -> str:
    try:
        return (raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            f"not valid UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8",
            path=path,
            line=line,
        ) from None


def _check_messages(messages: Any, fail: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise fail(f"`messages` must be a non-empty list, found {_kind(messages)}", "messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise fail(f"`{where}` must be an object, found {_kind(message)}", where)
        role = message.get("role")
        if role not in ROLES:
            raise fail(
                f"`{where}.role` must be one of {', '.join(ROLES)}, found {role!r}", f"{where}.role"
            )
        content = message.get("content")
        if isinstance(content, list):
            _check_parts(content, where, fail)
        elif not isinstance(content, str) and not (role == "assistant" and content is None):
            raise fail(
                f"`{where}.content` must be text, found {_kind(content)}", f"{where}.content"
            )
    if messages[-1]["role"] != "user":
        raise fail(
            f"the last message must be the user's, found role {messages[-1]['role']!r}; "
            "put the reference answer in a key of your own, such as `reference_answer`",
            f"messages[{len(messages) - 1}].role",
        )


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


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
