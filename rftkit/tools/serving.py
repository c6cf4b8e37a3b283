"""A small tool server of Python functions, for notebooks and for datasets that come with rftkit.

    served = rftkit.tools.serve([search])
    rows: {"messages": […], "tools": served.definitions}     job: {"tools": served.entries}

It listens on this machine only, and wants a token that is made for it. With `state`, every rollout
has an object of its own, made when its first call comes: an environment. It speaks the protocol of
`http_server`; it is not made for the internet (no TLS).
"""

from __future__ import annotations

import contextlib
import hmac
import inspect
import json
import logging
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rftkit.errors import InputError, nearest_name
from rftkit.graders.posting import MAX_BYTES
from rftkit.jsontext import parse_json
from rftkit.tools.functions import Function, ToolError
from rftkit.tools.values import Json

__all__ = ["Served", "serve"]

log = logging.getLogger("rftkit.tools")
STATES = 10_000
"""Rollouts whose state is kept; of more, the one that was idle longest is forgotten."""


class Served:
    """A tool server that runs until `close`, in threads of this process. A context manager too."""

    def __init__(self, server: _Server, host: str) -> None:
        self._server = server
        port = server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        """Where calls go."""
        threading.Thread(target=server.serve_forever, name="tools", daemon=True).start()

    @property
    def entries(self) -> list[Json]:
        """`method.reinforcement.tools` of a job; the token is in their headers."""
        headers = {"Authorization": f"Bearer {self._server.token}"}
        return [
            {"name": name, "server_url": self.url, "headers": dict(headers)}
            for name in self._server.functions
        ]

    @property
    def definitions(self) -> list[Json]:
        """`tools` of a row."""
        return [function.definition for function in self._server.functions.values()]

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<tools at {self.url}: {', '.join(self._server.functions)}>"


def serve(
    functions: Sequence[Callable[..., Any]],
    *,
    state: Callable[..., Any] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
) -> Served:
    """Serve typed functions as tools of a model; returns at once.

    Args:
        functions: each with types and a docstring; their names are the tools' names. What they
            return is read by the model, as JSON if it is no text. A `ToolError` is read too; any
            other exception fails the rollout.
        state: makes the state of a rollout, from its row if it takes an argument; functions with a
            parameter `state` get it. Calls of one rollout are then made one after the other.
        host: where to listen. Beyond this machine, calls and the token travel unencrypted.
        port: 0 for any free one.
        token: what callers must send as `Authorization: Bearer …`; None makes one.

    Raises:
        InputError: a function cannot be a tool, or two have the same name.
        OSError: the port is taken.
    """
    found = [Function(each, has_state=state is not None) for each in functions]
    names = [each.name for each in found]
    if not found:
        raise InputError("there are no functions to serve")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two functions are called {twice[0]}; rename one")
    if token is not None and len(token) < 8:
        raise InputError("the token must have at least 8 characters; leave it out to get one")
    by_name = {each.name: each for each in found}
    given = token or secrets.token_urlsafe(24)
    return Served(_Server(host, port, by_name, state, given), host)


@dataclass
class _State:
    value: Any = None
    is_made: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        functions: dict[str, Function],
        make_state: Callable[..., Any] | None,
        token: str,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.functions, self.token = functions, token
        self._make_state = make_state
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hung up is no error."""

    def run(self, call: Json) -> str:
        """The output of a call. Raises ToolError; anything else is a broken function."""
        function = self.functions[call["name"]]
        arguments = call.get("arguments")
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):
                arguments = parse_json(arguments)
        if not isinstance(arguments, dict):
            raise ToolError("Error: the arguments are not a JSON object.")
        if not function.takes_state:
            return function.call(arguments)
        kept = self._state(str(call.get("trace_id")))
        with kept.lock:
            if not kept.is_made:
                kept.value, kept.is_made = self._made(call.get("item")), True
            return function.call(arguments, kept.value)

    def _state(self, trace_id: str) -> _State:
        with self._lock:
            kept = self._states.setdefault(trace_id, _State())
            self._states.move_to_end(trace_id)
            if len(self._states) > STATES:
                self._states.popitem(last=False)
            return kept

    def _made(self, item: Any) -> Any:
        assert self._make_state is not None
        try:
            takes_row = bool(inspect.signature(self._make_state).parameters)
        except (TypeError, ValueError):  # a type written in C, such as dict, has no signature
            takes_row = False
        return self._make_state(item) if takes_row else self._make_state()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 700  # longer than a call may take

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            self.close_connection = True
            self._answer(413, {"error": f"a call has a length, of at most {MAX_BYTES} bytes"})
            return
        body = self.rfile.read(int(length))
        expected = f"Bearer {self.server.token}".encode()
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, expected):
            self._answer(401, {"error": "the header Authorization must be Bearer and the token"})
            return
        self._answer(*self._result(body))

    def do_GET(self) -> None:
        self._answer(405, {"error": "POST a function_call"})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _result(self, body: bytes) -> tuple[int, Json]:
        try:
            call = parse_json(body)
        except ValueError:
            call = None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return 400, {"error": 'expected {"name": "…", "arguments": "{…}", …}'}
        if call["name"] not in self.server.functions:
            hint = nearest_name(call["name"], self.server.functions)
            return 404, {"error": f"there is no function {call['name']!r}; {hint}"}
        shown = {
            "type": "function_call_output", "call_id": call.get("call_id"), "id": call.get("id"),
        }  # fmt: skip
        try:
            return 200, {**shown, "output": self.server.run(call)}
        except ToolError as error:
            return 400, {**shown, "output": str(error)}
        except Exception as error:
            log.exception("the tool %s failed", call["name"])
            return 500, {"error": f"{type(error).__name__}: {error}"}

    def _answer(self, status: int, body: Json) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
