"""What travels between a model and its tools. Values only; the verbs are in `toolbox`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = ["Json", "ToolCall", "ToolFailed", "ToolReply", "ToolServer"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, as the model wrote it."""

    id: str
    """`call_…`, as in `tool_calls[].id` and `tool_call_id`."""
    name: str
    """The function; it may be one that does not exist."""
    arguments: str
    """The JSON text that the model wrote; it may be malformed."""


@dataclass(frozen=True, slots=True)
class ToolReply:
    """What the model reads after a call: the content of the `tool` message."""

    text: str
    kind: Literal["answer", "error"]
    """error: the server refused the call (4xx), the function does not exist, or the arguments are
    malformed. The model reads the text, and the rollout continues."""
    seconds: float
    """From the call to its reply, with retries and time spent waiting for a turn."""


class ToolFailed(Exception):
    """The server of a tool failed, retries included: the rollout has failed, and is never a zero.

    `str(error)` says which tool, what was found and what was expected, without any secret.
    """

    def __init__(self, tool: str, message: str) -> None:
        """`tool` is the name of the function."""
        super().__init__(message)
        self.tool = tool


class ToolServer(Protocol):
    """Answers the calls of one or more functions. Safe to call from several threads."""

    def definitions(self) -> list[Json] | None:
        """The functions that it lists, as chat completions have them; None if it lists none."""
        ...

    def call(
        self, call: ToolCall, arguments: Json, trace_id: str, item: Mapping[str, Any]
    ) -> tuple[str, bool]:
        """Make a call; return what the model reads, and whether that is an error.

        Raises:
            ToolFailed: it has no answer.
            Abandoned: it was closed, or the work of this thread was abandoned.
        """
        ...

    def close(self) -> None:
        """Abandon the calls in progress, and let go of connections and processes."""
        ...
