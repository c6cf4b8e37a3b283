"""The tools of a job: one object that answers any call of a model, or says that the rollout failed.

Calls of functions that do not exist, or whose arguments are no JSON object, are answered here, with
an error that the model reads. Everything else is up to the server of the function.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

from rftkit import settings
from rftkit.errors import InputError, RowError, nearest_name
from rftkit.graders.hosts import is_of_machine, is_private
from rftkit.graders.posting import Pace
from rftkit.rows import Row
from rftkit.tools.bundled import SCHEME, bundled_functions
from rftkit.tools.entries import server_label
from rftkit.tools.http_server import CALLS_A_SECOND, HttpServer, json_object, request_body
from rftkit.tools.serving import Served, serve
from rftkit.tools.values import Json, ToolCall, ToolFailed, ToolReply, ToolServer

__all__ = ["Tools", "open_tools", "reach", "try_tool"]

REACH_SECONDS = 5.0


class Closeable(Protocol):
    """Something that must be closed together with the tools."""

    def close(self) -> None:
        """End it."""
        ...


class Tools:
    """The tools of a job. Safe to call from several threads."""

    def __init__(self, servers: Mapping[str, ToolServer], own: Sequence[Closeable] = ()) -> None:
        """`servers`: name of a function -> what answers its calls. `own`: closed with them."""
        self._servers, self._own = dict(servers), list(own)

    @property
    def names(self) -> list[str]:
        """The functions that can be called."""
        return list(self._servers)

    def server(self, name: str) -> ToolServer | None:
        """The server that answers the calls of a function."""
        return self._servers.get(name)

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
        text = text.encode("utf-8", "replace").decode()  # never cut inside a character
        return ToolReply(text, "error" if is_error else "answer", time.monotonic() - start)

    def close(self) -> None:
        """Abandon the calls in progress in any thread, and refuse further ones."""
        for server in dict.fromkeys(self._servers.values()):
            server.close()
        for each in self._own:
            each.close()

    def check_rows(self, rows: Iterable[Row], path: str | None = None) -> None:
        """Refuse rows that show the model a function which no server has.

        Raises:
            RowError: with the line, and the functions that there are.
        """
        for row in rows:
            for index, definition in enumerate(row.tools or []):
                where = f"tools[{index}]"
                name = _name(definition) if isinstance(definition, Mapping) else None
                if not isinstance(name, str):
                    why = f"`{where}` is not {{type: 'function', function: {{name, parameters}}}}"
                    raise RowError(why, path=path, line=row.line, param=where)
                if name not in self._servers:
                    raise RowError(
                        f"the row has the tool {name!r}, and `tools` of the job "
                        + (f"has {', '.join(self._servers)}" if self._servers else "is empty")
                        + "; the names must match",
                        path=path,
                        line=row.line,
                        param=where,
                    )

    def _answer(self, call: ToolCall, trace_id: str, item: Mapping[str, Any]) -> tuple[str, bool]:
        listed = [each for each in self.definitions(item) or [] if isinstance(each, Mapping)]
        shown = [_name(each) for each in listed]
        if call.name not in shown or call.name not in self._servers:
            known = ", ".join(name for name in shown if name in self._servers) or "none"
            return f"Error: there is no function {call.name!r}. Functions: {known}.", True
        arguments = json_object(call.arguments)
        if arguments is None:
            return "Error: the arguments are not a JSON object.", True
        return self._servers[call.name].call(call, arguments, trace_id, item)


def open_tools(entries: Sequence[Mapping[str, Any]], *, private: bool | None = None) -> Tools:
    """The tools of a job, each server reached once to see that it is there.

    Args:
        entries: `method.reinforcement.tools`, as the job keeps them.
        private: whether addresses of this machine and network may be called; None for what the
            platform says (`settings.private_tools`).

    Raises:
        InputError: two servers have functions of the same name.
        MissingExtraError: an entry needs the SDK of MCP.
        ToolFailed: a server cannot be reached.
    """
    allowed = settings.private_tools() if private is None else private
    servers: dict[str, ToolServer] = {}
    paces: dict[str, Pace] = {}
    own: dict[str, Served] = {}
    try:
        for entry in entries:
            pace = paces.setdefault(_origin(entry), Pace(CALLS_A_SECOND))
            for name, server in _opened(entry, pace, allowed, own):
                if name in servers:
                    raise InputError(  # noqa: TRY301
                        f"two tool servers have a function {name!r}; leave one out with "
                        "`allowed_tools`"
                    )
                servers[name] = server
    except BaseException:
        Tools(servers, list(own.values())).close()
        raise
    return Tools(servers, list(own.values()))


def try_tool(
    entry: Mapping[str, Any],
    call: ToolCall,
    trace_id: str,
    item: Mapping[str, Any],
    *,
    private: bool,
    item_id: str | None = None,
) -> tuple[int, Json | str]:
    """Make one call outside of a job.

    `item_id` is the `id` of the `function_call`; without one it is made of the call's.

    Returns:
        200 and a `function_call_output`, or 4xx and the text that a model would read.

    Raises:
        InputError, MissingExtraError, ToolFailed: as from `open_tools` and `Tools.call`.
    """
    with contextlib.closing(open_tools([entry], private=private)) as tools:
        server = tools.server(call.name)
        if server is None:
            raise InputError(
                f"the server has no function {call.name!r}; {nearest_name(call.name, tools.names)}",
                param="name",
            )
        body = request_body(call, trace_id, item)
        body["id"] = item_id or body["id"]
        if isinstance(server, HttpServer):
            status, found = server.ask(body)
        else:
            if (arguments := json_object(call.arguments)) is None:
                raise InputError("`arguments` is not a JSON object", param="arguments")
            text, is_error = server.call(call, arguments, trace_id, item)
            status, found = (400, text) if is_error else (200, {"output": text})
    if isinstance(found, str):
        return status, found
    shown = {"type": "function_call_output", "call_id": body["call_id"], "id": body["id"]}
    return status, {**shown, **found}


def _opened(
    entry: Mapping[str, Any], pace: Pace, private: bool, own: dict[str, Served]
) -> list[tuple[str, ToolServer]]:
    """The functions of an entry and what answers them. Adds the servers it starts to `own`."""
    _check_address(entry, private)
    if entry.get("type") == "mcp":
        from rftkit.tools.mcp_server import McpServer

        server = McpServer(entry, pace=pace, private=private)
        return [(name, server) for name in server.names]
    url = str(entry["server_url"])
    if url.startswith(SCHEME):
        if url not in own:
            functions, state = bundled_functions(url.removeprefix(SCHEME))
            own[url] = serve(functions, state=state)
        given = next((each for each in own[url].entries if each["name"] == entry["name"]), None)
        if given is None:
            known = ", ".join(each["name"] for each in own[url].entries)
            raise InputError(f"{url} has no function {entry['name']!r}; it has {known}")
        return [(entry["name"], HttpServer(given, pace=pace))]
    reach(str(entry["name"]), url)
    return [(entry["name"], HttpServer(entry, pace=pace, private=private))]


def _check_address(entry: Mapping[str, Any], private: bool) -> None:
    """Refuse a server before anything is sent to it; each call looks its name up again."""
    url = str(entry.get("server_url") or "")
    name = server_label(entry)
    if url.startswith(SCHEME) or not url:
        return
    if is_of_machine(url, ask_names=True):
        raise ToolFailed(name, f"the tool {name} is at a metadata service")
    if not private and is_private(url):
        host = urlsplit(url).hostname
        raise ToolFailed(
            name, f"the tool {name} is not called: {host} is an address of this machine or network"
        )


def reach(name: str, url: str) -> None:
    """Connect once, so that a server that is not there fails the job and not every rollout.

    Raises:
        ToolFailed: nothing answers.
    """
    parts = urlsplit(url)
    if parts.scheme in getproxies():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), REACH_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise ToolFailed(
            name,
            f"the tool {name} cannot be reached: nothing answers at {parts.hostname} port {port} "
            f"({error}). Start its server, or correct its `server_url`",
        ) from None


def _origin(entry: Mapping[str, Any]) -> str:
    parts = urlsplit(str(entry.get("server_url") or server_label(entry)))
    return f"{parts.scheme}://{parts.netloc or parts.path}"


def _name(definition: Mapping[str, Any]) -> Any:
    function = definition.get("function") or definition
    return function.get("name") if isinstance(function, Mapping) else None
