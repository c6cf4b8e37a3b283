"""The HTTP application: routes, the error body, and the checks that every request passes.

`create_app` takes the platform that it serves, so tests run it in memory. `__main__` has the
sockets, the processes and the command line.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.metadata
import ipaddress
import logging
import math
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rftkit.errors import InputError, NotFoundError, PlatformError
from rftkit.server.api import (
    PlatformDep,
    Reply,
    batches,
    chat,
    embeddings,
    eval_runs,
    evals,
    files,
    graders,
    imports,
    jobs,
    models,
    permissions,
    private,
    responses,
    stored_chats,
    tools,
    unsupported,
    weights,
)
from rftkit.server.api.batch_runner import BatchRunner
from rftkit.server.api.files import MAX_FILE_BYTES
from rftkit.server.evals.runner import EvalRunner
from rftkit.server.http.azure import as_openai, with_model
from rftkit.server.http.tracking import keep_tracking
from rftkit.server.http.webhooks import deliver_events
from rftkit.server.inference.body import refusal
from rftkit.server.inference.grader_cache import GraderCache
from rftkit.server.inference.judge import embedding_call, judge_call
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.worker_process import STOPPING, UNAVAILABLE, ChatError
from rftkit.server.store import wire
from rftkit.wholefile import has_no_room, is_full

__all__ = ["MAX_JSON_BYTES", "create_app"]

VERSION = importlib.metadata.version("rftkit")

log = logging.getLogger("rftkit.server")

MAX_IMPORT_BYTES = 64 * 1024 * 1024
MAX_JSON_BYTES = 16 * 1024 * 1024
"""Largest JSON body. The parser holds all other requests up while it reads one text of a body, even
in a thread: half a second at most for so many bytes. Rows beyond it belong into a file."""
MAX_GRADING_BYTES = 8 * 1024 * 1024
"""Largest body for validating or running a grader."""
RETRY_SECONDS = 5
"""Retry-After for a request that found the queue full."""
UPLOADS = ("/v1/files", "/rftkit/imports/content")
IMPORTS = "/rftkit/imports"
"""Lines of JSON: each is parsed separately, in a thread."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Host names that a browser may use for a loopback server; any other is a DNS rebinding attack."""

NEAR = frozenset({"127.0.0.1", "::1"})
"""Client addresses on this machine."""

WRONG_KEYS = 10
"""How many wrong keys an address may send within `WRONG_KEY_SECONDS`."""
WRONG_KEY_SECONDS = 60.0


def create_app(platform: Platform) -> FastAPI:
    """Return the application that serves `platform`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        platform.loop = asyncio.get_running_loop()
        complete = judge_call(platform)
        platform.grader_cache = GraderCache(complete, embedding_call(platform))
        platform.runner = runner = EvalRunner(platform, complete)
        platform.batches = batch_runner = BatchRunner(platform, _model_routes(platform))
        await platform.worker.start()
        await runner.start()
        await batch_runner.start()
        tasks = [asyncio.create_task(deliver_events(platform.store))]
        if platform.home is not None:
            tasks.append(asyncio.create_task(keep_tracking(platform, platform.home)))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await batch_runner.stop()
        await runner.stop()
        await platform.worker.stop()
        platform.grading.close()
        platform.grader_cache.close(now=True)

    app = FastAPI(
        title="rftkit local platform", version=VERSION, lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/openapi.json",
    )  # fmt: skip
    app.state.platform = platform
    for module in (
        files,
        jobs,
        graders,
        tools,
        models,
        chat,
        embeddings,
        evals,
        eval_runs,
        permissions,
        responses,
        stored_chats,
        batches,
        unsupported,
    ):
        app.include_router(module.router, prefix="/v1")
    app.include_router(private.router)
    app.include_router(weights.router)
    app.include_router(imports.router)
    app.add_api_route("/health", _health, methods=["GET"])
    _answer_errors(app)
    app.add_middleware(Gate, platform=platform)
    return app


def _model_routes(platform: Platform) -> FastAPI:
    """The routes that answer requests of batches; only this process can call them."""
    app = FastAPI(openapi_url=None)
    app.state.platform = platform
    for module in (chat, responses, embeddings):
        app.include_router(module.router, prefix="/v1")
    _answer_errors(app)
    return app


async def _health(platform: PlatformDep, request: Request) -> Reply:
    """Describe this server to clients on this machine; tell others only that it is up."""
    problems = [trouble] if (trouble := platform.worker_trouble()) else []
    idle_seconds = 0.0
    try:
        idle_seconds = await asyncio.to_thread(platform.idle_seconds)
    except sqlite3.Error as error:
        problems.append(f"the database cannot be read ({error})")
    if platform.home is not None and has_no_room(platform.home):
        problems.append("the disk of the home folder is full: jobs and runs wait for free space")
    health: dict[str, Any] = {"status": "degraded" if problems else "ok", "version": VERSION}
    is_near = request.client is None or request.client.host in NEAR
    if is_near and "x-forwarded-for" not in request.headers:  # not a proxy on this machine
        health |= {
            "home": str(platform.home) if platform.home else None,
            "pid": os.getpid(),
            "idle_seconds": round(idle_seconds, 1),
            "problems": problems,
        }
    return Reply(health)


def _answer_errors(app: FastAPI) -> None:
    """Answer every kind of failure with OpenAI's error body."""

    def reply(status: int, message: str, **rest: Any) -> Reply:
        return Reply(wire.error_body(message, **rest), status_code=status)

    @app.exception_handler(InputError)
    async def _input(_: Request, error: InputError) -> Reply:
        return reply(400, error.message, param=error.param, code=error.code)

    @app.exception_handler(NotFoundError)
    async def _not_found(_: Request, error: NotFoundError) -> Reply:
        return reply(404, error.message, param=error.param, code=error.code)

    @app.exception_handler(ChatError)
    async def _chat(_: Request, error: ChatError) -> Reply:
        rest = {"type": error.type, "param": error.param, "code": error.code}
        found = reply(error.status, error.message, **rest)
        if error.status == 429:
            found.headers["retry-after"] = str(RETRY_SECONDS)
        return found

    @app.exception_handler(PlatformError)
    async def _platform(_: Request, error: PlatformError) -> Reply:
        return reply(503, str(error), type="server_error", code="platform_unavailable")

    @app.exception_handler(sqlite3.DatabaseError)
    async def _database(_: Request, error: sqlite3.DatabaseError) -> Reply:
        if "locked" in str(error):
            why = "another program has locked it; close that program, and send the request again"
        elif isinstance(error, sqlite3.OperationalError):
            why = "is the disk full?"
        elif type(error) is sqlite3.DatabaseError:
            why = "it is damaged: stop the server and restore platform.sqlite from a backup"
        else:
            raise error
        message = f"the platform's database cannot be used ({error}); {why}"
        return reply(503, message, type="server_error", code="platform_unavailable")

    @app.exception_handler(OSError)
    async def _machine(_: Request, error: OSError) -> Reply:
        if is_full(error):
            place = f"the disk of the home folder or of {tempfile.gettempdir()} (TMPDIR) is full"
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            place = "the platform has too many open files; raise the limit with `ulimit -n`"
        else:
            raise error
        message = f"{place} ({error.strerror}); nothing was stored, so send the request again"
        return reply(503, message, type="server_error", code="platform_unavailable")

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> Reply:
        found = refusal(error.errors())
        return reply(400, found.message, param=found.param)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Reply:
        if isinstance(cause := error.__cause__, OSError):  # while the parts of a form were stored
            return await _machine(request, cause)
        message = {
            404: f"Unknown request URL: {request.method} {request.url.path}.",
            405: f"Not allowed to {request.method} on {request.url.path}.",
        }.get(error.status_code, str(error.detail))
        code = "unknown_url" if error.status_code == 404 else None
        return reply(error.status_code, message, code=code)


class Gate:
    """Checks every request: its size, its API key, and that no foreign web page sent it."""

    def __init__(self, app: ASGIApp, platform: Platform) -> None:
        self._app = app
        self._platform = platform
        self._good_keys: set[str] = set()
        self._wrong_keys = WrongKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] != "/health":
            self._platform.last_request = time.monotonic()
        model = as_openai(scope)
        request_id = f"req_{secrets.token_hex(16)}"
        started = False

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            refused = await self._refused(scope)
            if refused is None:
                _name_json(scope)
                limited = _limited(scope, receive)
                await self._app(scope, with_model(limited, model) if model else limited, named)
            else:
                await refused(scope, receive, named)
        except asyncio.CancelledError:  # the server stops
            if not started:
                body = wire.error_body(STOPPING, type="server_error", code=UNAVAILABLE)
                await Reply(body, status_code=503)(scope, receive, named)
        except Exception:
            log.exception("%s %s failed (%s)", scope["method"], scope["path"], request_id)
            if started:
                raise
            body = wire.error_body(
                f"the platform failed on this request; see {request_id} in "
                f"{self._platform.log_place}",
                type="server_error",
            )
            await Reply(body, status_code=500)(scope, receive, named)

    async def _refused(self, scope: Scope) -> Reply | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._platform.needs_key and _name(host) not in LOOPBACK:
            return _forbidden(f"this server accepts the host localhost only, not {host!r}")
        if origin is not None and _place(origin) != host:
            return _forbidden(f"requests from web pages of {origin!r} are not allowed")
        if _is_of_another_page(scope["method"], headers):
            return _forbidden("requests from web pages of other sites are not allowed")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > _limit(scope):
            return Reply(wire.error_body(_too_large(_limit(scope))), status_code=413)
        if self._platform.needs_key and scope["path"] != "/health":
            return await self._key_refused(headers.get("authorization", ""), _client(scope))
        return None

    async def _key_refused(self, authorization: str, client: str) -> Reply | None:
        key = authorization.removeprefix("Bearer ").strip()
        if key not in self._good_keys:
            if (wait := self._wrong_keys.wait_seconds(client)) > 0:
                return _too_many_keys(wait)
            if not key or not await asyncio.to_thread(self._platform.store.check_api_key, key):
                self._wrong_keys.note(client)
                body = wire.error_body(
                    "Incorrect API key provided. This server expects the key it was started with "
                    "(RFTKIT_API_KEY, or the file api-key in its home): OpenAI(api_key=…) or "
                    "OPENAI_API_KEY.",
                    code="invalid_api_key",
                )
                return Reply(body, status_code=401)
            self._good_keys.add(key)
        return None


class WrongKeys:
    """Counts the wrong keys that each client sent recently, to slow down guessing."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def note(self, client: str) -> None:
        """Count a wrong key."""
        if len(self._times) > 10_000:  # an attacker may have many addresses
            self._times.clear()
        self._times.setdefault(client, []).append(time.monotonic())

    def wait_seconds(self, client: str) -> float:
        """Return how long the address must wait before its next key is checked."""
        since = time.monotonic() - WRONG_KEY_SECONDS
        lately = [moment for moment in self._times.get(client, []) if moment > since]
        if not lately:
            self._times.pop(client, None)
            return 0.0
        self._times[client] = lately
        return 0.0 if len(lately) < WRONG_KEYS else lately[-WRONG_KEYS] - since


def _too_many_keys(wait: float) -> Reply:
    seconds = math.ceil(wait)
    body = wire.error_body(
        f"too many wrong API keys from this address; try again in {seconds} s",
        type="rate_limit_error",
        code="rate_limit_exceeded",
    )
    return Reply(body, status_code=429, headers={"retry-after": str(seconds)})


def _client(scope: Scope) -> str:
    """Return whom the address belongs to: a machine has many, such as all of 127.0.0.0/8."""
    client = scope.get("client")
    host = str(client[0]).partition("%")[0] if client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return "loopback"
    return str(address if address.version == 4 else ipaddress.ip_network((address, 64), False))


def _place(origin: str) -> str | None:
    """Return host and port of an origin; None if it is not an origin."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _is_of_another_page(method: str, headers: Headers) -> bool:
    """Return whether a page of another site sent the request, other than by a clicked link."""
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return False
    is_click = headers.get("sec-fetch-mode") == "navigate"
    return method != "GET" or not is_click or headers.get("sec-fetch-dest") != "document"


def _name_json(scope: Scope) -> None:
    """Accept a JSON body with another content type: `curl -d` declares a form."""
    headers = MutableHeaders(scope=scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    has_body = scope["method"] in ("POST", "PUT", "PATCH") and scope["path"] not in UPLOADS
    if has_body and not is_json and not kind.startswith("multipart/"):
        headers["content-type"] = "application/json"


def _limit(scope: Scope) -> int:
    """Return the largest allowed body in bytes; an upload has a frame around its file."""
    if scope["path"].startswith("/v1/fine_tuning/alpha/graders/"):
        return MAX_GRADING_BYTES
    if scope["path"] in UPLOADS:
        return MAX_FILE_BYTES + 65_536
    return MAX_IMPORT_BYTES if scope["path"].startswith(IMPORTS) else MAX_JSON_BYTES


def _limited(scope: Scope, receive: Receive) -> Receive:
    total, limit = 0, _limit(scope)

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counted


def _too_large(limit: int) -> str:
    advice = "; put rows into a file (POST /v1/files) and pass its id"
    return f"the body is larger than {limit // 2**20} MB{advice if limit == MAX_JSON_BYTES else ''}"


def _forbidden(message: str) -> Reply:
    return Reply(wire.error_body(message, code="forbidden"), status_code=403)


def _name(host: str) -> str:
    """Return a Host header without its port."""
    return host.rsplit(":", 1)[0] if host.rsplit(":", 1)[-1].isdigit() else host
