"""The user's own graders, called over HTTP: POST `{sample, item, trace_id}`, get `{"score":
number}`.

As in the hosted preview: at most 1 MB each way, three more tries when the server fails, a limit on
calls a second. A grade takes ten minutes at most, tries included; `Retry-After` is obeyed.
Headers carry secrets, so `mask_secrets` hides them in whatever is shown. Not here: any other HTTP;
the call itself can be handed in.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from rftkit.backoff import backoff_seconds
from rftkit.graders.calls import Abandoned, Calls, if_abandoned, retry_after
from rftkit.graders.outcome import Fault, Sample
from rftkit.safetext import redacted

__all__ = ["Endpoint", "HttpCall", "mask_secrets", "post"]

HttpAnswer = tuple[int, bytes] | tuple[int, bytes, Mapping[str, str]]
HttpCall = Callable[[str, Mapping[str, str], bytes], HttpAnswer]
"""(url, headers, body) -> (status, body) or (status, body, headers of the answer); raises when
there is no answer."""

ATTEMPTS = 4
MAX_BYTES = 1_000_000
TIMEOUT_SECONDS = 600.0
"""Of one grade, all its tries together."""
_FIRST_PAUSE_SECONDS = 0.5
_NO_ANSWER = 599


class Endpoint:
    """One endpoint grader; safe to call from several threads."""

    def __init__(
        self, spec: Mapping[str, Any], http: HttpCall | None = None, calls: Calls | None = None
    ) -> None:
        """`calls` can be closed, which abandons the calls under way."""
        self._url = spec["url"]
        given = {name: value.strip() for name, value in spec.get("headers", {}).items()}
        self._headers = {"Content-Type": "application/json"} | given
        self._secrets = [*spec.get("headers", {}).values(), *_secrets_in(self._url)]
        self._interval = 1.0 / spec["rate_limit"] if spec.get("rate_limit") else 0.0
        self._http, self._lock, self._next = http or post, threading.Lock(), 0.0
        self._calls = calls or Calls()

    def grade(self, sample: Sample, item: Any) -> float:
        """The score.

        Raises:
            Fault: `endpoint_grader_internal_error` for what went wrong here, such as a row that is
                too large; `endpoint_grader_server_error` for what the endpoint did wrong.
        """
        trace = f"trace_{uuid.uuid4().hex}"
        body = _body({"sample": sample.to_dict(), "item": item, "trace_id": trace})
        deadline = time.monotonic() + TIMEOUT_SECONDS
        try:
            status, answer, wait = self._try(body, deadline)
            for attempt in range(ATTEMPTS - 1):
                if status < 500 and status != 429:
                    break
                pause = max(wait, backoff_seconds(attempt, _FIRST_PAUSE_SECONDS, jitter=0.25))
                if time.monotonic() + pause >= deadline:
                    break
                self._calls.pause(pause)
                status, answer, wait = self._try(body, deadline)
        except (Abandoned, TimeoutError) as error:
            raise self._blame(_NO_ANSWER, str(error).encode()) from None
        if (score := _score(status, answer)) is None:
            raise self._blame(status, answer)
        return score

    def _blame(self, status: int, answer: bytes) -> Fault:
        """What the endpoint did wrong, without its keys; nothing that a private one answered."""
        text = redacted(answer.decode("utf-8", "replace"), self._secrets)[:300]
        if status == _NO_ANSWER:
            return Fault("endpoint_grader_server_error", f"no answer: {text}")
        if _is_private(self._url):
            text = "something else; what a private address answers is not repeated here, so look "
            text += "into the log of the endpoint"
        return Fault(
            "endpoint_grader_server_error",
            f'status {status}, expected 200 with {{"score": number}}; found: {text}',
        )

    def _try(self, body: bytes, deadline: float) -> tuple[int, bytes, float]:
        """Status, body, and the seconds that the endpoint asks to wait before another try."""
        self._wait_turn()

        def call() -> tuple[int, bytes, float]:
            try:
                status, answer, *rest = self._http(self._url, self._headers, body)
            except Exception as error:
                return _NO_ANSWER, f"{type(error).__name__}: {error}".encode(), 0.0
            return status, answer, retry_after(rest[0] if rest else None)

        return self._calls.run(call, deadline - time.monotonic())

    def _wait_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._calls.pause(turn - now)


def mask_secrets(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the values of headers replaced by asterisks, to be echoed and shown."""
    shown = dict(spec)
    if isinstance(shown.get("url"), str):
        shown["url"] = redacted(shown["url"], _secrets_in(shown["url"]))
    if isinstance(shown.get("headers"), Mapping):
        shown["headers"] = dict.fromkeys(shown["headers"], "********")
    if isinstance(shown.get("graders"), Mapping):
        shown["graders"] = {
            key: mask_secrets(part) if isinstance(part, Mapping) else part
            for key, part in shown["graders"].items()
        }
    return shown


def _secrets_in(url: str) -> list[str]:
    """Passwords of an address, and values of its query, which are keys as often as not."""
    try:
        parts = urlsplit(url)
        found = [parts.password or "", *(value for _, value in parse_qsl(parts.query))]
    except ValueError:
        return []
    return [unquote(each) for each in found]


def post(url: str, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    """The default HTTP call; connections are kept, redirects are not followed.

    Raises:
        TimeoutError: the whole answer was not there in time, however it trickles in.
    """
    loop, client = _client(os.getpid())
    call = asyncio.run_coroutine_threadsafe(_post(client, url, headers, body), loop)
    with if_abandoned(call.cancel):
        try:
            return call.result()
        except BaseException:
            call.cancel()
            raise


async def _post(client: Any, url: str, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async with client.stream("POST", url, headers=dict(headers), content=body) as answer:
                received = b""
                async for chunk in answer.aiter_bytes():
                    received += chunk
                    if len(received) > MAX_BYTES:
                        break
                return answer.status_code, received, answer.headers
    except TimeoutError:
        raise TimeoutError(f"the answer took longer than {TIMEOUT_SECONDS:g} s") from None


@functools.cache
def _client(pid: int) -> tuple[asyncio.AbstractEventLoop, Any]:
    """One client of this process and the loop of its calls: only a loop can end a call in time."""
    import httpx2  # what the openai client speaks HTTP with

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoints", daemon=True).start()
    return loop, httpx2.AsyncClient(timeout=None, follow_redirects=False)


def _is_private(url: str) -> bool:
    """Whether the address is of this machine or network, where errors may say what is secret."""
    host = urlsplit(url).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    addresses = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    return any(not address.is_global for address in addresses)


def _body(payload: dict[str, Any]) -> bytes:
    try:
        body = json.dumps(payload).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault("endpoint_grader_internal_error", f"cannot be JSON: {error}") from None
    if len(body) > MAX_BYTES:
        raise Fault(
            "endpoint_grader_internal_error",
            f"sample and row have {len(body)} bytes together; an endpoint takes {MAX_BYTES}",
        )
    return body


def _score(status: int, answer: bytes) -> float | None:
    """The score in an answer; None when it has none."""
    try:
        score = json.loads(answer)["score"] if status == 200 and len(answer) <= MAX_BYTES else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    try:
        value = float(score)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
