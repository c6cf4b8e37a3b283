"""GET requests to a hosted service: raw bodies, retries, one shared wait.

Every request is retried here and not in the SDK, which gives up on a `Retry-After` above two
minutes and lets each thread run into the same limit. A wait that the service asks for stops all
threads and is shown to the user. Not here: which routes exist, pages, anything on disk.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rftkit.backoff import backoff_seconds, retry_after
from rftkit.errors import InputError, RftkitError
from rftkit.importer.origins import Origin, connect
from rftkit.importer.others import BETAS
from rftkit.jsontext import parse_json

__all__ = ["Answer", "Refused", "Remote", "Stopped"]

ATTEMPTS = 8
"""Tries of one request that fails without the service asking to wait."""
FIRST_ATTEMPTS = 3
"""Tries of a service that has never answered yet: the URL is wrong, or it is down."""
LIMITED_ATTEMPTS = 100
"""Tries of one request that the service keeps putting off (429)."""
LONGEST_WAIT_SECONDS = 6 * 3600.0
LONGEST_BACKOFF_SECONDS = 30.0
LOST_AFTER = 8
"""Requests in a row that got no answer at all: the connection is gone, not one object."""

T = TypeVar("T")


class Refused(Exception):
    """The service does not return this object; others can still be fetched."""

    def __init__(self, reason: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.code = code


class Stopped(Exception):
    """Another thread met an error that ends the import."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response with status 200."""

    body: bytes
    """The body as received, after content decoding; only our own key is masked if the service
    repeats it."""
    data: dict[str, Any]
    """The parsed body."""
    headers: Mapping[str, str]


class Remote:
    """A hosted account, read only. Safe to use from many threads."""

    def __init__(
        self,
        origin: Origin,
        *,
        on_progress: Callable[[str], None],
        timeout_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """`say` gets one line for the user; `clock` and `sleep` are for tests."""
        import openai

        self.origin = origin
        self.num_requests = 0
        self._client = connect(origin, timeout_seconds=timeout_seconds)
        self._headers = {"Authorization": openai.Omit()} if origin.is_azure else {}
        self._report = on_progress
        self._clock = clock
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self._lock = threading.Lock()
        self._open_at = 0.0  # no request starts before this time
        self._lost = 0
        self._has_answered = False

    def get(self, route: str, **query: Any) -> Answer:
        """Read one JSON object.

        Raises:
            Refused: the service will not or cannot give it.
            RftkitError: nothing can be fetched: key refused, connection lost.
        """
        import httpx2

        headers: Any = {**self._headers, **_beta(route)}

        def attempt() -> Answer:
            response = self._client.get(
                route,
                cast_to=httpx2.Response,
                options={"params": query, "headers": headers},
            )
            body = self.masked(response.content)
            return Answer(body, _parsed(body, response), response.headers)

        return self._patiently(attempt)

    def download(
        self,
        object_id: str,
        take: Callable[[Iterator[bytes]], T],
        *,
        kind: str = "files",
        num_bytes: int | None = None,
    ) -> T:
        """Stream the content of a file, a skill or a video; `take` is called again for each
        attempt.

        Raises:
            Refused: as `get`; with code `short_body` if less than `num_bytes` keeps coming.
        """
        client = self._client
        content: Any = {
            "files": client.files.with_streaming_response.content,
            "skills": client.skills.content.with_streaming_response.retrieve,
            "videos": client.videos.with_streaming_response.download_content,
        }[kind]

        def attempt() -> T:
            with content(object_id, extra_headers=self._headers) as response:
                return take(_at_least(num_bytes or 0, response.iter_bytes(1 << 18)))

        return self._patiently(attempt)

    def stop(self) -> None:
        """Make every thread that waits or sends raise `Stopped`."""
        self._stop.set()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def masked(self, body: bytes) -> bytes:
        """`body` with the account's own key replaced by asterisks of the same length."""
        key = (self.origin.key or "").encode()
        return body.replace(key, b"*" * len(key)) if len(key) >= 8 else body

    def _masked_text(self, text: str) -> str:
        return self.masked(text.encode(errors="replace")).decode()[:500]

    def _patiently(self, attempt: Callable[[], T]) -> T:
        failures = waits = 0
        while True:
            self._wait_for_gate()
            with self._lock:
                self.num_requests += 1
            try:
                with _one_kind_of_trouble():
                    answer = attempt()
            except _Trouble as trouble:
                trouble.reason = self._masked_text(trouble.reason)
                self._has_answered = self._has_answered or trouble.status is not None
                failures += trouble.status != 429
                waits += trouble.status == 429
                most = ATTEMPTS if self._has_answered else FIRST_ATTEMPTS
                if trouble.is_final or failures >= most or waits >= LIMITED_ATTEMPTS:
                    raise self._given_up(trouble, failures + waits) from None
                self._hold(trouble, failures + waits)
            else:
                self._has_answered, self._lost = True, 0
                return answer

    def _wait_for_gate(self) -> None:
        while (delay := self._open_at - self._clock()) > 0:
            self._sleep(delay)
            if self._stop.is_set():
                break
        if self._stop.is_set():
            raise Stopped

    def _hold(self, trouble: _Trouble, tries: int) -> None:
        """Wait before the next try: this thread by backoff, all of them if the service asks."""
        if trouble.retry_after is None:
            seconds = backoff_seconds(tries - 1, 0.5, LONGEST_BACKOFF_SECONDS)
            self._sleep(seconds * random.uniform(0.75, 1.0))
            return
        if trouble.retry_after > LONGEST_WAIT_SECONDS:
            raise RftkitError(
                f"the service asks to wait {trouble.retry_after / 3600:.0f} hours before the next "
                "request; run the same command again then to resume"
            )
        opens = self._clock() + trouble.retry_after
        with self._lock:
            is_news = opens > self._open_at + 1.0
            self._open_at = max(self._open_at, opens)
        if is_news and trouble.retry_after >= 1.0:
            self._report(
                f"{trouble.reason}; waiting {trouble.retry_after:.0f} s as the service asks"
            )

    def _given_up(self, trouble: _Trouble, tries: int) -> Exception:
        reason = trouble.reason
        if trouble.status == 401 and not trouble.is_about_scope:
            variable = "AZURE_OPENAI_API_KEY" if self.origin.is_azure else "OPENAI_API_KEY"
            return InputError(
                f"{self.origin.base_url} refuses the key ({reason}); "
                f"set {variable} to a key of the account to save",
                code="invalid_api_key",
            )
        if trouble.status is None:
            self._lost += 1
            if self._lost >= LOST_AFTER:
                return RftkitError(
                    f"the connection to {self.origin.base_url} is lost ({reason}); what was saved "
                    "is safe, run the same command again to resume"
                )
        after = f" after {tries} tries" if tries > 1 else ""
        return Refused(f"{reason}{after}", status=trouble.status, code=trouble.code)


@dataclass(eq=False)
class _Trouble(Exception):
    reason: str
    status: int | None = None
    code: str | None = None
    retry_after: float | None = None  # seconds
    is_final: bool = False

    @property
    def is_about_scope(self) -> bool:
        """A restricted key without one permission: sent as 401 although the key is right."""
        return self.code == "missing_scope" or "missing scopes" in self.reason.lower()


@contextmanager
def _one_kind_of_trouble() -> Iterator[None]:
    """Turn what the SDK and its transport raise into `_Trouble`."""
    import httpx2
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _status_trouble(error) from None
    except openai.APITimeoutError:
        raise _Trouble("no answer in time") from None
    except openai.APIConnectionError as error:
        raise _Trouble(_cause(error.__cause__ or error)) from None
    except httpx2.HTTPError as error:  # while a body streams
        raise _Trouble(_cause(error)) from None


def _status_trouble(error: Any) -> _Trouble:
    body = error.body if isinstance(error.body, dict) else {}
    status = error.status_code
    message = body.get("message") or f"{error.response.reason_phrase} (no error message)"
    reason = f"HTTP {status}: {message}"
    should_retry = error.response.headers.get("x-should-retry")
    transient = status in (408, 409, 429) or status >= 500
    is_final = error.code == "insufficient_quota" or not (transient or should_retry == "true")
    return _Trouble(
        reason,
        status=status,
        code=error.code,
        retry_after=retry_after(error.response.headers),
        is_final=is_final or should_retry == "false",
    )


def _beta(route: str) -> dict[str, str]:
    """The header that a route in beta needs."""
    found = [name for start, name in BETAS.items() if route.startswith(start)]
    return {"OpenAI-Beta": found[0]} if found else {}


def _cause(error: BaseException) -> str:
    return f"no answer: {type(error).__name__}: {error}".rstrip(": ")


def _at_least(num_bytes: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    received = 0
    for chunk in chunks:
        received += len(chunk)
        yield chunk
    if received < num_bytes:
        raise _Trouble(f"{received} of {num_bytes} bytes came", status=200, code="short_body")


def _parsed(body: bytes, response: Any) -> dict[str, Any]:
    try:
        data = parse_json(body)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        kind = response.headers.get("content-type", "no content type")
        raise _Trouble(f"HTTP 200 with {kind} that is not a JSON object", status=200)
    return data
