"""A tool server that speaks MCP: streamable HTTP, or a command of the operator over stdio.

The protocol is the official SDK's (`mcp`, an extra). One session serves all rollouts of a job; the
`trace_id` of a call is in its `_meta`. `isError` is an answer that the model reads. A protocol
error or a lost connection is tried three more times; then the rollout has failed. Not here:
resources, prompts, and whatever a server may ask of its client.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from rftkit import settings
from rftkit.backoff import backoff_seconds
from rftkit.errors import MissingExtraError
from rftkit.graders.calls import Abandoned, Calls
from rftkit.graders.posting import (
    ATTEMPTS,
    FIRST_PAUSE_SECONDS,
    MAX_BYTES,
    TIMEOUT_SECONDS,
    Pace,
    checked,
    secrets_in,
)
from rftkit.safetext import redacted
from rftkit.tools import relay
from rftkit.tools.entries import server_label
from rftkit.tools.http_server import CALLS_A_SECOND
from rftkit.tools.values import Json, ToolCall, ToolFailed

__all__ = ["McpServer"]

T = TypeVar("T")
OPENING_SECONDS = 60.0
ENDING_SECONDS = 8.0
"""Each step in ending a process may take two seconds: it is asked to end, then told to, then
killed."""
MOST_PAGES = 100
MOST_LISTED = 2000
MOST_FUNCTIONS = 128
"""Most functions of one server: as many as a chat may have."""
MOST_ANSWER_BYTES = 8 * MAX_BYTES
"""Most bytes of one HTTP answer, one event of a stream, or one line of a command's output."""
LOSS = re.compile(
    r"connection closed|session (id )?(is |was |has been |has )?"
    r"(not found|unknown|terminated|expired|closed)"
    r"|(no|not a) valid session",
    re.IGNORECASE,
)
STRUCTURE = ("type", "name", "required", "$ref", "format")
"""Keys of a definition whose texts are no prose."""
GIVEN_URL = "rftkit_url"
SHOWN = 300


class McpServer:
    """One MCP server; see values.ToolServer."""

    def __init__(
        self, entry: Mapping[str, Any], *, pace: Pace | None = None, private: bool = True
    ) -> None:
        """Connect, and list the functions.

        Raises:
            MissingExtraError: `mcp` is not installed.
            ToolFailed: the server cannot be reached, or lacks a function of `allowed_tools`.
        """
        try:
            import mcp  # noqa: F401
        except ImportError:
            raise MissingExtraError("mcp", "mcp") from None
        self._entry, self._private = dict(entry), private
        self._label = server_label(entry)
        self._secrets = _secrets(entry)
        self._calls, self._pace = Calls(), pace or Pace(CALLS_A_SECOND)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._is_closed = False
        threading.Thread(target=_run, args=[self._loop], name="mcp", daemon=True).start()
        try:
            listed = self._surely(_list, OPENING_SECONDS)
            self._mcp_names, definitions = _functions(self._allowed(listed))
            self._definitions: list[Json] = [_hidden(each, self._secrets) for each in definitions]
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """The functions that it lists."""
        return list(self._mcp_names)

    def definitions(self) -> list[Json] | None:
        """See values.ToolServer."""
        return self._definitions

    def call(
        self, call: ToolCall, arguments: Json, trace_id: str, item: Mapping[str, Any]
    ) -> tuple[str, bool]:
        """See values.ToolServer."""
        name = self._mcp_names[call.name]
        meta = {"rftkit/trace_id": trace_id}

        async def ask(client: Any) -> Any:
            return await client.call_tool(name, arguments, meta=meta)

        self._pace.wait(self._calls)
        result = self._surely(ask, TIMEOUT_SECONDS, call.name)
        text = redacted(_text(result), self._secrets)
        if len(text.encode("utf-8", "replace")) > MAX_BYTES:
            return f"Error 413: the answer is larger than {MAX_BYTES} bytes.", True
        return text, bool(result.is_error)

    def close(self) -> None:
        """See values.ToolServer."""
        self._calls.close(now=True)
        with self._lock:
            self._is_closed = True
            session, self._session = self._session, None
        if session is not None:
            session.end()
        with contextlib.suppress(RuntimeError):  # it was closed before
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _surely(self, ask: Any, seconds: float, tool: str | None = None) -> Any:
        """The result of `ask(client)`; if the connection is lost, it is tried again with another
        one.

        Raises:
            ToolFailed, Abandoned: see values.ToolServer.
        """
        deadline = time.monotonic() + seconds
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                pause = backoff_seconds(attempt - 1, FIRST_PAUSE_SECONDS, jitter=0.25)
                if time.monotonic() + pause >= deadline:
                    break
                self._calls.pause(pause)
            session = self._connected()
            try:
                return self._wait(session.ask(ask), deadline - time.monotonic())
            except Abandoned:
                raise
            except Exception as error:
                problem = _words(error)
                if session.is_lost or _is_loss(error):
                    self._drop(session)
        raise ToolFailed(
            tool or self._label,
            f"the MCP server {self._label} failed {ATTEMPTS} times: "
            f"{redacted(problem, self._secrets)[:SHOWN]}",
        )

    def _connected(self) -> _Session:
        with self._lock:
            if self._is_closed:
                raise Abandoned("given up")
            if self._session is None:
                self._session = _Session(self._loop, self._open)
            return self._session

    def _drop(self, session: _Session) -> None:
        """Let the next call open another one; whoever comes second need not wait for the end."""
        with self._lock:
            if self._session is not session:
                return
            self._session = None
        session.end()

    def _wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        future = asyncio.run_coroutine_threadsafe(
            asyncio.wait_for(work, max(0.0, seconds)), self._loop
        )

        def give_up() -> None:
            future.cancel()

        with self._calls.watched(give_up):
            try:
                return future.result()
            except concurrent.futures.CancelledError:
                raise Abandoned("given up") from None

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Any]:
        """A connection of its own, as a client of the SDK."""
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client

        url = self._entry.get("server_url")
        if url is None:
            command = settings.mcp_servers().get(self._label)
            if command is None:
                raise ConnectionError(f"RFTKIT_MCP_SERVERS names no server {self._label!r}")
            parameters = StdioServerParameters(**_limited(command))
            with open(os.devnull, "w") as silent:
                async with Client(stdio_client(parameters, errlog=silent)) as client:
                    yield client
            return
        import httpx2

        timeout = httpx2.Timeout(30.0, read=TIMEOUT_SECONDS)
        hooks: dict[str, list[Any]] = {"request": [self._guard], "response": [_limit]}
        async with (
            httpx2.AsyncClient(
                headers=_headers(self._entry), timeout=timeout, event_hooks=hooks
            ) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            yield client

    async def _guard(self, request: Any) -> None:
        """Send a request to an address that may be called, and to no other.

        Raises:
            PermissionError, ValueError, OSError: see `posting.checked`.
        """
        request.headers["Accept-Encoding"] = "identity"
        given = str(request.url)
        url, options = await asyncio.to_thread(checked, given, {}, public_only=not self._private)
        request.extensions = {
            **request.extensions, **options.get("extensions", {}), GIVEN_URL: request.url,
        }  # fmt: skip
        if url != given:
            request.url = type(request.url)(url)

    def _allowed(self, tools: list[Any]) -> list[Any]:
        given = self._entry.get("allowed_tools")
        names = given.get("tool_names") if isinstance(given, Mapping) else given
        known = [tool.name for tool in tools]
        if missing := [name for name in names or [] if name not in known]:
            raise ToolFailed(
                self._label,
                f"`allowed_tools` names {missing[0]!r}, and the MCP server {self._label} lists "
                + (", ".join(known)[:SHOWN] or "none"),
            )
        found = [tool for tool in tools if names is None or tool.name in names]
        if len(found) > MOST_FUNCTIONS:
            raise ToolFailed(
                self._label,
                f"the MCP server {self._label} lists {len(found)} functions, and a job has at most "
                f"{MOST_FUNCTIONS}; choose some with `allowed_tools`",
            )
        return found


def _limited(command: Json) -> Json:
    """The command of an operator, run so that no line of its output is without a limit.

    Raises:
        FileNotFoundError: there is no such program.
    """
    path = (command.get("env") or {}).get("PATH")
    given = command["command"]
    program = given if os.path.dirname(given) else shutil.which(given, path=path)
    if program is None:
        raise FileNotFoundError(f"there is no program {given!r}")
    argv = [relay.__file__, str(MOST_ANSWER_BYTES), program, *command.get("args", [])]
    return {**command, "command": sys.executable, "args": argv}


class _Session:
    """One connection: a single task opens, keeps and closes it, as the SDK's task
    groups require.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, open_client: Any) -> None:
        self._loop = loop
        self._ended, self._gone = asyncio.Event(), threading.Event()
        self._client: asyncio.Future[Any] = loop.create_future()
        self._task = asyncio.run_coroutine_threadsafe(self._keep(open_client), loop)

    @property
    def is_lost(self) -> bool:
        """Whether there is no connection: it has ended, or could not be opened in time."""
        client = self._client
        return self._gone.is_set() or not client.done() or client.exception() is not None

    async def ask(self, work: Any) -> Any:
        """The result of `work(client)`, run by the task of the connection."""
        return await work(await asyncio.shield(self._client))

    def end(self) -> None:
        """Close the connection and what was started for it, and wait for that."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(self._ended.set)
        if not self._client.done():
            self._task.cancel()
        if not self._gone.wait(ENDING_SECONDS):
            self._task.cancel()

    async def _keep(self, open_client: Any) -> None:
        try:
            async with open_client() as client:
                client.session.validate_tool_result = _unchecked
                self._client.set_result(client)
                await self._ended.wait()
        except BaseException as error:
            if not self._client.done():
                self._client.set_exception(
                    error if isinstance(error, Exception) else ConnectionError("it was closed")
                )
                self._client.exception()
            if not isinstance(error, Exception):
                raise
        finally:
            self._gone.set()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped, and leave nothing of it behind.

    A task that is left for the garbage collector is reported there, with a traceback: Python 3.11
    parses source to write one, which breaks whatever parses source at that moment.
    """
    try:
        loop.run_forever()
        loop.run_until_complete(_cancel_all(asyncio.all_tasks(loop)))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _unchecked(name: str, result: Any) -> None:
    """Replaces the SDK's check of results, because a server's schema could block the loop for
    hours.
    """


async def _limit(response: Any) -> None:
    """End an answer that grows beyond the limit; let redirects be relative to the URL given."""
    import httpx2

    response.request.url = response.request.extensions.get(GIVEN_URL, response.request.url)
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise httpx2.StreamError("the answer is compressed, which was not asked for")
    is_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
    received = response.stream

    class Limited(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in received:
                at = max(chunk.rfind(b"\n\n"), chunk.rfind(b"\r\n\r\n")) if is_stream else -1
                size = len(chunk) - at if at >= 0 else size + len(chunk)
                if size > MOST_ANSWER_BYTES:
                    raise httpx2.StreamError(f"the answer is over {MOST_ANSWER_BYTES} bytes")
                yield chunk

        async def aclose(self) -> None:
            await received.aclose()

    response.stream = Limited()


async def _list(client: Any) -> list[Any]:
    found: list[Any] = []
    cursor = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if not cursor or len(found) >= MOST_LISTED:
            break
    return list({tool.name: tool for tool in found}.values())


def _functions(tools: list[Any]) -> tuple[dict[str, str], list[Json]]:
    """Name as a model may write it -> name of the server; and the definitions of chats."""
    names: dict[str, str] = {}
    definitions: list[Json] = []
    for tool in tools:
        plain = re.sub(r"[^a-zA-Z0-9_-]", "_", tool.name)[:64] or "tool"
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain[:60]}_{number}"
        names[name] = tool.name
        function: Json = {"name": name, "parameters": tool.input_schema}
        if tool.description:
            function["description"] = tool.description
        definitions.append({"type": "function", "function": function})
    return names, definitions


def _hidden(value: Any, secrets: list[str]) -> Any:
    """A definition whose texts do not repeat what was sent in headers."""
    if isinstance(value, str):
        return redacted(value, secrets)
    if isinstance(value, list):
        return [_hidden(each, secrets) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: each if key in STRUCTURE and not isinstance(each, dict) else _hidden(each, secrets)
        for key, each in value.items()
    }


def _text(result: Any) -> str:
    """The text of a result; what is no text is named."""
    texts = [
        block.text if block.type == "text" else f"[{block.type}: not shown]"
        for block in result.content
    ]
    if not any(block.type == "text" for block in result.content):
        structured = getattr(result, "structured_content", None)
        if structured is not None:
            texts = [json.dumps(structured, ensure_ascii=False), *texts]
    return "\n".join(texts)


def _headers(entry: Mapping[str, Any]) -> dict[str, str]:
    headers = {name: value.strip() for name, value in (entry.get("headers") or {}).items()}
    if token := entry.get("authorization"):
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _secrets(entry: Mapping[str, Any]) -> list[str]:
    url = entry.get("server_url") or ""
    return [*_headers(entry).values(), *secrets_in(url), entry.get("authorization") or ""]


def _is_loss(error: BaseException) -> bool:
    """Whether the connection has ended, which the SDK and servers say with an error of JSON-RPC.

    Its code says nothing: that of the SDK for a lost connection is one that servers use as well.
    """
    from mcp.shared.exceptions import MCPError

    return isinstance(error, MCPError) and LOSS.search(error.error.message) is not None


def _words(error: BaseException) -> str:
    """The first cause in a group of exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
