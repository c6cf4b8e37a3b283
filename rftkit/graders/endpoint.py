"""The user's own graders, called over HTTP: POST `{sample, item, trace_id}`, get `{"score":
number}`.

Headers carry secrets, so `mask_secrets` hides them in whatever is shown. `posting` has the limits,
the retries and the call itself; another call can be passed in.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

from rftkit.graders.calls import Abandoned, Calls
from rftkit.graders.hosts import is_private
from rftkit.graders.outcome import Fault, Sample
from rftkit.graders.posting import (
    MAX_BYTES,
    NO_ANSWER,
    HttpCall,
    Pace,
    Target,
    secrets_in,
)
from rftkit.jsontext import parse_json
from rftkit.safetext import redacted

__all__ = ["Endpoint", "mask_secrets"]


class Endpoint:
    """One endpoint grader; safe to call from several threads."""

    def __init__(
        self, spec: Mapping[str, Any], http: HttpCall | None = None, calls: Calls | None = None
    ) -> None:
        """`calls` can be closed, which abandons the calls under way."""
        self._target = Target(
            spec["url"],
            spec.get("headers", {}),
            http=http,
            calls=calls,
            pace=Pace(spec.get("rate_limit")),
        )

    def grade(self, sample: Sample, item: Any) -> float:
        """The score.

        Raises:
            Fault: `endpoint_grader_internal_error` for what went wrong here, such as a row that is
                too large; `endpoint_grader_server_error` for what the endpoint did wrong.
        """
        trace = sample.trace_id or f"trace_{uuid.uuid4().hex}"
        body = _body({"sample": sample.to_dict(), "item": item, "trace_id": trace})
        try:
            status, answer, _ = self._target.post(body, lambda got, _: got >= 500 or got == 429)
        except TimeoutError as error:
            raise Fault("endpoint_grader_server_error", str(error)) from None
        except Abandoned as error:
            raise self._blame(NO_ANSWER, str(error).encode()) from None
        if (score := _score(status, answer)) is None:
            raise self._blame(status, answer)
        return score

    def _blame(self, status: int, answer: bytes) -> Fault:
        """Describe the endpoint's mistake, without its keys, and without the answer of a private
        one.
        """
        text = redacted(answer.decode("utf-8", "replace"), self._target.secrets)[:300]
        if status == NO_ANSWER:
            return Fault("endpoint_grader_server_error", f"no answer: {text}")
        if is_private(self._target.url):
            text = "something else; what a private address answers is not repeated here, so look "
            text += "into the log of the endpoint"
        return Fault(
            "endpoint_grader_server_error",
            f'status {status}, expected 200 with {{"score": number}}; found: {text}',
        )


def mask_secrets(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the values of headers replaced by asterisks, to be echoed and shown."""
    shown = dict(spec)
    if isinstance(shown.get("url"), str):
        shown["url"] = redacted(shown["url"], secrets_in(shown["url"]))
    if isinstance(shown.get("headers"), Mapping):
        shown["headers"] = dict.fromkeys(shown["headers"], "********")
    if isinstance(shown.get("graders"), Mapping):
        shown["graders"] = {
            key: mask_secrets(part) if isinstance(part, Mapping) else part
            for key, part in shown["graders"].items()
        }
    return shown


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
        score = parse_json(answer)["score"] if status == 200 and len(answer) <= MAX_BYTES else None
    except (ValueError, TypeError, LookupError):
        return None
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    try:
        value = float(score)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
