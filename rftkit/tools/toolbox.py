"""The tools of a job: one object that answers any call of a model, or says that the rollout failed.

Calls of functions that do not exist, or whose arguments are no JSON object, are answered here, with
an error that the model reads. Everything else is up to the server of the function.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.tools.values import Json, ToolCall, ToolReply, ToolServer

__all__ = ["Tools", "open_tools"]


class Tools:
    """The tools of a job. Safe to call from several threads."""

    def __init__(self, servers: Mapping[str, ToolServer]) -> None:
        """`servers`: name of a function -> what answers its calls."""
        self._servers = dict(servers)

    @property
    def names(self) -> list[str]:
        """The functions that can be called."""
        return list(self._servers)

    def definitions(self, item: Mapping[str, Any]) -> list[Json] | None:
        """The functions that the model is shown for a row, as chat completions have them.

        They are the row's `tools`; for a row without that key, what the servers list. None when
        there are none: then the row is answered without tools.
        """
        if "tools" in item:
            return item["tools"] or None
        listed = [server.definitions() or [] for server in dict.fromkeys(self._servers.values())]
        return [each for found in listed for each in found] or None

    def call(self, call: ToolCall, *, trace_id: str, item: Mapping[str, Any]) -> ToolReply:
        """Make one call and wait for its reply. Calls of one turn may be made side by side.

        Args:
            call: as the model wrote it.
            trace_id: the same for all calls of a rollout, and for its grader.
            item: the row; a row's `tools` limit what can be called.

        Raises:
            ToolFailed: the server failed, retries included; the rollout has failed.
            Abandoned: (`rftkit.graders.calls`) the tools were closed while it waited, or the
                `Work` of this thread was abandoned.
        """
        start = time.monotonic()
        text, is_error = self._answer(call, trace_id, item)
        return ToolReply(text, "error" if is_error else "answer", time.monotonic() - start)

    def close(self) -> None:
        """Abandon the calls in progress in any thread, and refuse further ones."""
        for server in dict.fromkeys(self._servers.values()):
            server.close()

    def _answer(self, call: ToolCall, trace_id: str, item: Mapping[str, Any]) -> tuple[str, bool]:
        shown = [_name(each) for each in self.definitions(item) or []]
        if call.name not in shown or call.name not in self._servers:
            known = ", ".join(name for name in shown if name in self._servers) or "none"
            return f"Error: there is no function {call.name!r}. Functions: {known}.", True
        arguments = _object(call.arguments)
        if arguments is None:
            return "Error: the arguments are not a JSON object.", True
        return self._servers[call.name].call(call, arguments, trace_id, item)


def open_tools(entries: Sequence[Mapping[str, Any]]) -> Tools:
    """The tools of a job.

    Args:
        entries: `method.reinforcement.tools`, as the job keeps them.

    Raises:
        InputError: an entry cannot be used.
        ToolFailed: a server that lists its functions (MCP) cannot be reached.
    """
    raise NotImplementedError


def _name(definition: Mapping[str, Any]) -> Any:
    return (definition.get("function") or definition).get("name")


def _object(text: str) -> Json | None:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        return value if isinstance(value, dict) else None
    return None
