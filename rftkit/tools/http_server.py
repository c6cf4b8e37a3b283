"""A tool over HTTP, as OpenAI's and Azure's preview calls it: POST a `function_call`, get a
`function_call_output`.

The answer is 200 with `output`, a text. 4xx is an answer too: the model reads its text. 5xx, no
answer, and an answer that is not JSON with an `output` are tried three more times, ten minutes in
all; then the rollout has failed. A redirect fails it at once, so no header reaches another server.
At most 1 MB each way, and 50 calls a second to a server. Not here: what an entry may hold
(`entries`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from rftkit.graders.calls import Calls
from rftkit.graders.posting import MAX_BYTES, NO_ANSWER, HttpCall, Pace, Posted, Target, post
from rftkit.jsontext import parse_json
from rftkit.rows import kind_of
from rftkit.safetext import redacted
from rftkit.tools.values import Json, ToolCall, ToolFailed

__all__ = ["CALLS_A_SECOND", "HttpServer", "json_object", "request_body"]

CALLS_A_SECOND = 50.0
CALLS_AT_ONCE = 100
SHOWN = 300
"""Characters of an answer that a message repeats."""


class HttpServer:
    """One function of a tool server; see values.ToolServer."""

    def __init__(
        self,
        entry: Mapping[str, Any],
        *,
        pace: Pace | None = None,
        private: bool = True,
        http: HttpCall | None = None,
    ) -> None:
        """`pace` is shared by all functions of a server. Without `private`, an address of this
        machine or network is not called.
        """
        self.name = str(entry["name"])
        self._calls = Calls(CALLS_AT_ONCE)
        self._target = Target(
            entry["server_url"],
            entry.get("headers") or {},
            http=http or functools.partial(post, public_only=not private),
            calls=self._calls,
            pace=pace or Pace(CALLS_A_SECOND),
        )

    def definitions(self) -> list[Json] | None:
        """The functions that the server lists: None, because rows define them."""
        return None

    def call(
        self, call: ToolCall, arguments: Json, trace_id: str, item: Mapping[str, Any]
    ) -> tuple[str, bool]:
        """See values.ToolServer."""
        status, found = self.ask(request_body(call, trace_id, item))
        return found if isinstance(found, str) else found["output"], status >= 400

    def ask(self, body: Json) -> tuple[int, Json | str]:
        """Status 200 and the server's object, or 4xx and the text that the model reads.

        Raises:
            ToolFailed, Abandoned: see values.ToolServer.
        """
        content = self._content(body)
        if content is None:
            return 413, f"Error 413: the call is larger than {MAX_BYTES} bytes."
        try:
            posted = self._target.post(content, _is_broken)
        except TimeoutError as error:
            raise self._failed(str(error)) from None
        status, answer = posted.status, posted.body
        if len(answer) > MAX_BYTES and status < 500 and not 300 <= status < 400:
            return 413, f"Error 413: the answer is larger than {MAX_BYTES} bytes."
        found = json_object(answer)
        if 400 <= status < 500:
            return status, self._refusal(status, found, answer)
        if 200 <= status < 300 and found is not None and isinstance(found.get("output"), str):
            return 200, _without(self._target.secrets, found)
        raise self._failed(self._why(posted, found))

    def close(self) -> None:
        """See values.ToolServer."""
        self._calls.close(now=True)

    def _content(self, body: Json) -> bytes | None:
        """The bytes of a call; None if the model's arguments make it too large."""
        content = json.dumps(body).encode()
        if len(content) <= MAX_BYTES:
            return content
        rest = len(json.dumps({**body, "arguments": ""}))
        if rest > MAX_BYTES:
            raise self._failed(
                f"the row has {rest} bytes, and a call of at most {MAX_BYTES} bytes contains it"
            )
        return None

    def _refusal(self, status: int, found: Json | None, answer: bytes) -> str:
        if found is not None and isinstance(found.get("output"), str):
            return redacted(found["output"], self._target.secrets)
        text = answer.decode("utf-8", "replace").strip()
        return redacted(text, self._target.secrets) or f"Error {status}."

    def _why(self, posted: Posted, found: Json | None) -> str:
        status = posted.status
        text = redacted(posted.body.decode("utf-8", "replace"), self._target.secrets)[:SHOWN]
        if status == NO_ANSWER:
            return f"no answer {posted.tried}: {text}"
        if 300 <= status < 400:
            return f"status {status}: redirects are not followed; give the final `server_url`"
        if status >= 500:
            return f"status {status} {posted.tried}; it answered: {text or 'nothing'}"
        expected = 'expected a JSON object such as {"output": "text"}'
        if found is None:
            return f"its answer is no JSON object; {expected}; found: {text or 'nothing'}"
        if "output" not in found:
            keys = redacted(", ".join(found), self._target.secrets)[:SHOWN]
            return f"its answer has no `output`; {expected}; its keys: {keys or 'none'}"
        return (
            f"`output` of its answer is {kind_of(found['output'])}; {expected}; write other values "
            "as JSON text"
        )

    def _failed(self, why: str) -> ToolFailed:
        url = redacted(self._target.url, self._target.secrets)
        return ToolFailed(self.name, f"the tool {self.name} at {url} failed: {why}")


def request_body(call: ToolCall, trace_id: str, item: Mapping[str, Any]) -> Json:
    """The body that is posted for a call."""
    return {
        "type": "function_call",
        "id": f"fc_{call.id.removeprefix('call_')}",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "trace_id": trace_id,
        "item": item,
    }


def _is_broken(status: int, answer: bytes) -> bool:
    """Whether another attempt may help."""
    if status < 300 and len(answer) <= MAX_BYTES:
        found = json_object(answer)
        return found is None or not isinstance(found.get("output"), str)
    return status >= 500


def _without(secrets: list[str], found: Json) -> Json:
    """The answer without what was sent in headers; NaN and its like, which JSON lacks, as texts."""
    output = redacted(found["output"], secrets)
    try:
        shown = parse_json(redacted(json.dumps(found), secrets), parse_constant=str)
    except (ValueError, RecursionError):
        shown = {}
    return {**shown, "output": output}


def json_object(text: str | bytes) -> Json | None:
    """The JSON object that a text is; None for every other text."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
