"""Calls of a user's own HTTP server: a grader's endpoint, a tool.

As in the hosted preview: at most 1 MB each way, three more tries when the server fails, a limit on
calls a second, ten minutes at most with all tries, no redirects; `Retry-After` is obeyed. What is
sent and what an answer means is up to the caller (`endpoint`, and `tools` outside of this room).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from rftkit.backoff import backoff_seconds, retry_after
from rftkit.graders.calls import Abandoned, Calls, if_abandoned
from rftkit.graders.hosts import (
    OF_MACHINE,
    addresses,
    describes_machine,
    is_of_machine,
    is_public,
)
from rftkit.wording import counted

__all__ = [
    "ATTEMPTS",
    "MAX_BYTES",
    "NO_ANSWER",
    "HttpCall",
    "Pace",
    "Posted",
    "Target",
    "checked",
    "header_problem",
    "post",
    "secrets_in",
]

HttpAnswer = tuple[int, bytes] | tuple[int, bytes, Mapping[str, str]]
HttpCall = Callable[[str, Mapping[str, str], bytes], HttpAnswer]
"""(url, headers, body) -> (status, body) or (status, body, headers of the answer); raises when
there is no answer."""

ATTEMPTS = 4
MAX_BYTES = 1_000_000
TIMEOUT_SECONDS = 600.0
"""For all attempts together."""
FIRST_PAUSE_SECONDS = 0.5
CONNECT_SECONDS = 5.0
"""To find out whether a server listens at one of several addresses of a name."""
NO_ANSWER = 599
"""Used in place of a status when there was no answer; the body then says why."""


class Posted(NamedTuple):
    """The answer to a call, which may have taken several attempts."""

    status: int
    body: bytes
    attempts: int

    @property
    def tried(self) -> str:
        """`after 4 attempts`, or fewer if there was no time for more."""
        tried = f"after {counted(self.attempts, 'attempt')}"
        return tried if self.attempts == ATTEMPTS else f"{tried} within {TIMEOUT_SECONDS:g} s"


class Pace:
    """A limit on calls a second, for every thread."""

    def __init__(self, rate: float | None) -> None:
        """`rate` is in calls a second; None for no limit."""
        self._interval = 1.0 / rate if rate else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self, calls: Calls) -> None:
        """Wait for a turn.

        Raises:
            Abandoned: the calls were closed.
        """
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            calls.pause(turn - now)


class Target:
    """Where a body is posted; safe to use from several threads."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        http: HttpCall | None = None,
        calls: Calls | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`calls` can be closed, which abandons the calls under way."""
        self.url = url
        given = {name: value.strip() for name, value in headers.items()}
        self._headers = {"Content-Type": "application/json"} | given
        self.secrets = [*headers.values(), *secrets_in(url)]
        """Texts that no message may repeat."""
        self._http, self._calls, self._pace = http or post, calls or Calls(), pace or Pace(None)

    def post(self, body: bytes, repeats: Callable[[int, bytes], bool]) -> Posted:
        """The last answer; try again while `repeats` of its status and body is true.

        Raises:
            Abandoned: the calls were closed.
            TimeoutError: there is no answer in time.
        """
        deadline, attempt = time.monotonic() + TIMEOUT_SECONDS, 0
        while True:
            attempt += 1
            try:
                status, answer, wait = self._try(body, deadline)
            except TimeoutError:
                tried = counted(attempt, "attempt")
                raise TimeoutError(f"no answer within {TIMEOUT_SECONDS:g} s ({tried})") from None
            pause = max(wait, backoff_seconds(attempt - 1, FIRST_PAUSE_SECONDS, jitter=0.25))
            is_late = time.monotonic() + pause >= deadline
            if attempt == ATTEMPTS or is_late or not repeats(status, answer):
                return Posted(status, answer, attempt)
            self._calls.pause(pause)

    def _try(self, body: bytes, deadline: float) -> tuple[int, bytes, float]:
        """Status, body, and the seconds that the server asks to wait before another try."""
        self._pace.wait(self._calls)

        def call() -> tuple[int, bytes, float]:
            try:
                status, answer, *rest = self._http(self.url, self._headers, body)
            except Abandoned:
                raise
            except Exception as error:
                return NO_ANSWER, f"{type(error).__name__}: {error}".encode(), 0.0
            return status, answer, retry_after(rest[0] if rest else None) or 0.0

        return self._calls.run(call, deadline - time.monotonic())


def secrets_in(url: str) -> list[str]:
    """Passwords of an address, and values of its query, which are often keys."""
    try:
        parts = urlsplit(url)
        found = [parts.password or "", *(value for _, value in parse_qsl(parts.query))]
    except ValueError:
        return []
    return [unquote(each) for each in found]


def post(
    url: str, headers: Mapping[str, str], body: bytes, *, public_only: bool = False
) -> HttpAnswer:
    """The default HTTP call; connections are kept, redirects are not followed.

    Raises:
        PermissionError, ValueError: see `checked`.
        TimeoutError: the whole answer was not there in time, however it trickles in.
    """
    url, options = checked(url, headers, public_only=public_only)
    loop, client = _client(os.getpid())
    call = asyncio.run_coroutine_threadsafe(_post(client, url, body, options), loop)
    with if_abandoned(call.cancel):
        try:
            return call.result()
        except BaseException:
            call.cancel()
            raise


async def _post(client: Any, url: str, body: bytes, options: dict[str, Any]) -> HttpAnswer:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async with client.stream("POST", url, content=body, **options) as answer:
                received = b""
                async for chunk in answer.aiter_bytes():
                    received += chunk
                    if len(received) > MAX_BYTES:
                        break
                return answer.status_code, received, answer.headers
    except TimeoutError:
        raise TimeoutError(f"the answer took longer than {TIMEOUT_SECONDS:g} s") from None


def checked(
    url: str, headers: Mapping[str, str], *, public_only: bool
) -> tuple[str, dict[str, Any]]:
    """The URL to call, and options of the call. The host name is looked up again for every call.

    The address that was found to be allowed is the one that is called, unless a proxy looks it up.

    Raises:
        PermissionError: with `public_only`, the address is of this machine or network.
        ValueError: the address is of a metadata service.
        OSError: there is no address.
    """
    if is_of_machine(url):
        raise ValueError(OF_MACHINE)
    if not public_only and _has_proxy(url):
        if is_of_machine(url, ask_names=True):
            raise ValueError(OF_MACHINE)
        return url, {"headers": dict(headers)}
    return _pinned(url, headers, public_only)


def _pinned(url: str, headers: Mapping[str, str], public_only: bool) -> tuple[str, dict[str, Any]]:
    """The URL with an address in place of the name, so that the name is not looked up again."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    found = addresses(name)
    if public_only and not all(map(is_public, found)):
        raise PermissionError(f"{name} is an address of this machine or network")
    if any(map(describes_machine, found)):
        raise ValueError(OF_MACHINE)
    address = _answering(found, parts.port or (443 if parts.scheme == "https" else 80))
    port = f":{parts.port}" if parts.port else ""
    host = f"[{address}]" if ":" in address else address
    pinned = parts._replace(netloc=f"{host}{port}").geturl()
    given = {**headers, "Host": parts.netloc.rpartition("@")[2]}
    return pinned, {"headers": given, "extensions": {"sni_hostname": name}}


def _answering(found: list[str], port: int) -> str:
    """The first address at which something listens: `localhost` has two, servers often one."""
    for address in found if len(found) > 1 else ():
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), CONNECT_SECONDS).close()
            return address
    return found[0]


def _has_proxy(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


@functools.cache
def _client(pid: int) -> tuple[asyncio.AbstractEventLoop, Any]:
    """One HTTP client for this process, with the event loop of its calls; only a loop can end a
    call in time.
    """
    import httpx2  # the HTTP library of the openai client

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoints", daemon=True).start()
    return loop, httpx2.AsyncClient(timeout=None, follow_redirects=False)


def header_problem(headers: Mapping[str, str]) -> tuple[str | None, str] | None:
    """The name of a header whose value cannot be sent, or None for a wrong name; and why.

    Values may be keys, so no message holds one. Blanks around a value are not sent.
    """
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            return None, f"has {name[:60]!r}, which is not the name of a header"
        if not re.fullmatch(r"[\t\x20-\x7e]*", value.strip(" \t")):
            return (
                name,
                "has a line break or another character that a header cannot hold; use ASCII",
            )
    return None
