"""Tools that answer from Python functions in this process, with no server.

tools = fake_tools(search=lambda query: "…", broken=fails)
tools.call(ToolCall("call_1", "search", '{"query": "x"}'), trace_id="trace_1", item=row)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from rftkit.graders.calls import Calls
from rftkit.tools import ToolCall, ToolFailed, Tools


class FakeServer:
    """Answers the calls of one function, and keeps what it was asked."""

    def __init__(self, name: str, function: Callable[..., str], seconds: float = 0.0) -> None:
        """`function` may raise ToolRefused (the model reads it) or ToolFailed."""
        self.name, self.function, self.seconds = name, function, seconds
        self.calls = Calls(at_once=1000)
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        """(call id, arguments, trace_id) of each call."""
        self.lock = threading.Lock()

    def definitions(self) -> list[dict[str, Any]] | None:
        return None

    def call(
        self, call: ToolCall, arguments: dict[str, Any], trace_id: str, item: Mapping[str, Any]
    ) -> tuple[str, bool]:
        with self.lock:
            self.asked.append((call.id, arguments, trace_id))
        self.calls.pause(self.seconds)
        try:
            return self.function(**arguments), False
        except ToolRefused as error:
            return str(error), True

    def close(self) -> None:
        self.calls.close(now=True)


class ToolRefused(Exception):
    """What a server answers with 4xx."""


def fake_tools(*, seconds: float = 0.0, **functions: Callable[..., str]) -> Tools:
    """Tools whose calls take `seconds`."""
    return Tools({name: FakeServer(name, each, seconds) for name, each in functions.items()})


def fails(**arguments: Any) -> str:
    """A function whose server is broken."""
    raise ToolFailed("broken", "status 500 after 4 attempts")


def definition(name: str, *parameters: str) -> dict[str, Any]:
    """A function of texts, as rows have it in `tools`."""
    schema = {
        "type": "object",
        "properties": {each: {"type": "string"} for each in parameters},
        "required": list(parameters),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": schema}}
