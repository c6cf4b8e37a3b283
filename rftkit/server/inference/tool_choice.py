"""Which functions an answer may or must call: `tools`, `tool_choice` and `parallel_tool_calls`.

Both routes' spellings of `tool_choice` are read: chat completions name a function in
`{type: function, function: {name}}`, responses in `{type: function, name}`. Not here: how a call is
forced (`engine.tool_calls`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.errors import RequestError
from rftkit.server.inference.body import kind_of

__all__ = ["ToolUse", "tool_use"]

Json = dict[str, Any]

FORMS = "auto, none, required, {type: 'function', …} or {type: 'allowed_tools', …}"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions of one request."""

    tools: list[Json] | None = None
    """What the model is shown, as chat completions spell it."""
    must_call: tuple[str, ...] = ()
    """The names of the functions of which one must be called; empty if the model may choose."""
    most_calls: int | None = None
    """Most calls of one answer; None for no limit."""


def tool_use(tools: list[Json] | None, choice: Any, parallel: bool | None) -> ToolUse:
    """Read the three parameters of a request.

    Raises:
        RequestError: naming the one that cannot be honoured.
    """
    names = [_name(tool, f"tools[{index}]") for index, tool in enumerate(tools or [])]
    most = 1 if parallel is False else None
    match choice:
        case None | "auto":
            return ToolUse(tools or None, most_calls=most)
        case "none":
            return ToolUse()
        case "required":
            _check(names, names)
            return ToolUse(tools, tuple(names), most)
        case {"type": "function"}:
            wanted = _chosen(choice)
            _check(wanted, names)
            return ToolUse(tools, wanted, 1)
        case {"type": "allowed_tools"}:
            return _allowed(tools or [], names, choice, most)
        case {"type": kind} if isinstance(kind, str):
            raise RequestError(
                f"`tool_choice.type` is {kind!r}: function tools are the only ones here; use "
                "{type: 'function', …}",
                param="tool_choice",
            )
    raise RequestError(
        f"`tool_choice` must be {FORMS}; found {kind_of(choice)}", param="tool_choice"
    )


def _allowed(tools: list[Json], names: list[str], choice: Json, most: int | None) -> ToolUse:
    """Only some of the tools are shown, and perhaps one of them has to be called."""
    given = choice.get("allowed_tools", choice)
    mode = given.get("mode") if isinstance(given, dict) else None
    entries = given.get("tools") if isinstance(given, dict) else None
    if mode not in ("auto", "required") or not isinstance(entries, list):
        raise RequestError(
            "`tool_choice` of type allowed_tools needs `mode` (auto or required) and `tools` (a "
            "list)",
            param="tool_choice",
        )
    wanted = tuple(name for entry in entries for name in _chosen(entry))
    _check(wanted, names)
    shown = [tool for tool, name in zip(tools, names, strict=True) if name in wanted]
    return ToolUse(shown, wanted if mode == "required" else (), most)


def _chosen(entry: Any) -> tuple[str]:
    """The function that a choice names, in either route's spelling."""
    if isinstance(entry, dict):
        function = entry.get("function", entry)
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            return (name,)
    raise RequestError("`tool_choice` must give the `name` of a function", param="tool_choice")


def _check(wanted: Sequence[str], names: Sequence[str]) -> None:
    if not names:
        raise RequestError(
            "`tool_choice` asks for a call, and there are no `tools` to call", param="tool_choice"
        )
    for name in wanted:
        if name not in names:
            raise RequestError(
                f"`tool_choice` names the function {name!r}; `tools` has {', '.join(names)}",
                param="tool_choice",
            )
    if not wanted:
        raise RequestError("`tool_choice` allows no tool", param="tool_choice")


def _name(tool: Json, where: str) -> str:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise RequestError(
            f"`{where}` must be {{type: 'function', function: {{…}}}}; there are no other kinds of "
            "tools here",
            param=where,
        )
    if not isinstance(function.get("name"), str):
        raise RequestError(f"`{where}.function.name` must be text", param=where)
    if not isinstance(function.get("parameters") or {}, dict):
        raise RequestError(
            f"`{where}.function.parameters` must be a JSON schema, found "
            f"{kind_of(function['parameters'])}",
            param=f"{where}.function.parameters",
        )
    return str(function["name"])
