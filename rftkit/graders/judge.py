"""Model judges: render the prompt, make one completion call, parse the answer strictly.

The call is handed in (`CompletionCall`; `completion_call` makes one from an OpenAI client), so a
judge may be a hosted model, a server of your own or the local platform. A judge is made to answer
with a JSON schema: `steps`, then `result`, a number or a label. Faults are kept apart: the call
failed, the judge refused, it ran out of tokens, its answer does not fit the schema. None of them is
ever a score. A grade takes ten minutes at most, tries included; `Retry-After` is obeyed. Not here:
which endpoint is the judge, keys, and how calls are bounded and abandoned (`calls`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rftkit import settings
from rftkit.backoff import backoff_seconds, retry_after
from rftkit.graders.calls import Abandoned, Calls
from rftkit.graders.outcome import Fault, Sample
from rftkit.graders.template import Render, compile_template
from rftkit.jsontext import parse_json
from rftkit.safetext import redacted

__all__ = [
    "Completion",
    "CompletionCall",
    "Judge",
    "answer_format",
    "closed_object",
    "completion_call",
    "read_label",
    "read_score",
    "schema",
]

T = TypeVar("T")

ATTEMPTS = 4
Usage = dict[str, dict[str, int]]
"""Tokens per model."""
TIMEOUT_SECONDS = 600.0
"""For one grade, all its attempts together."""
_FIRST_PAUSE_SECONDS = 0.5
LEAST_KEY = 8
"""A key with fewer characters, such as `none`, is a word."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a judge answered."""

    text: str | None
    """The message's content."""
    finish_reason: str = "stop"
    """`length` means that it ran out of tokens."""
    refusal: str | None = None
    """Why it refused, if it did."""
    usage: dict[str, int] = field(default_factory=dict)
    """prompt_tokens, completion_tokens, total_tokens, cached_tokens."""


class CompletionCall(Protocol):
    """One chat completion. An attribute `endpoint` (text), if there is one, is part of cache keys.

    An exception means that the call failed; it is tried again unless its `status_code` or `status`
    (of HTTP) says that trying again is of no use.
    """

    def __call__(
        self,
        *,
        model: str,
        messages: list[dict[str, Any]],
        response_format: dict[str, Any],
        sampling: dict[str, Any],
    ) -> Completion:
        """`sampling` has the keyword arguments of chat completions: temperature, seed, …"""


class Judge:
    """Asks one model; the cache and the bound are shared with other judges."""

    def __init__(
        self,
        spec: dict[str, Any],
        *,
        param: str,
        complete: CompletionCall | None,
        cache: MutableMapping[str, str] | None,
        calls: Calls,
    ) -> None:
        self._model = spec["model"]
        self._sampling = _sampling(spec.get("sampling_params") or {})
        self._messages = [
            _message(message, f"{param}[{place}].content")
            for place, message in enumerate(spec["input"])
        ]
        self._complete, self._cache, self._calls = complete, cache, calls

    def messages(self, sample: Sample, item: Any) -> list[dict[str, Any]]:
        """Its prompt, with the templates filled in.

        Raises:
            Fault: a template's.
        """
        return [render(sample, item) for render in self._messages]

    def ask(
        self,
        messages: list[dict[str, Any]],
        response_format: dict[str, Any],
        read: Callable[[Any], T],
        usage: Usage,
    ) -> T:
        """The judge's `result` as `read` understands it. Tokens are added to `usage`, unless it was
        cached.

        Raises:
            Fault: one of the `model_grader_*` flags.
        """
        key = self._key(messages, response_format)
        if self._cache is not None and key in self._cache:
            return read(_parse(self._cache[key]))
        completion = self._call(messages, response_format)
        total = usage.setdefault(self._model, {})
        for name, count in completion.usage.items():
            total[name] = total.get(name, 0) + count
        if completion.refusal:
            raise Fault("model_grader_refusal_error", completion.refusal)
        if completion.finish_reason == "length":
            raise Fault(
                "model_grader_exceeded_max_tokens_error",
                "the judge ran out of tokens; raise sampling_params.max_completions_tokens",
            )
        text = completion.text or ""
        found = read(_parse(text))
        if self._cache is not None:  # only readable answers; a fault is tried again
            self._cache[key] = text
        return found

    def _key(self, messages: list[dict[str, Any]], response_format: dict[str, Any]) -> str:
        where = getattr(self._complete, "endpoint", "")
        question = [where, self._model, self._sampling, response_format, messages]
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()

    def _call(self, messages: list[dict[str, Any]], response_format: dict[str, Any]) -> Completion:
        if self._complete is None:
            raise Fault(
                "model_grader_server_error",
                "no judge is configured; set RFTKIT_JUDGE_BASE_URL (and RFTKIT_JUDGE_API_KEY), or "
                "pass complete= to compile_grader",
            )
        call = functools.partial(
            self._complete,
            model=self._model,
            messages=messages,
            response_format=response_format,
            sampling=dict(self._sampling),
        )
        try:
            return self._tried(call, time.monotonic() + TIMEOUT_SECONDS)
        except Exception as error:
            said = redacted(f"{type(error).__name__}: {error}", settings.keys())
            raise Fault("model_grader_server_error", said) from error

    def _tried(self, call: Callable[[], Completion], deadline: float) -> Completion:
        """The answer of the first call that has one; else what the last one raised."""
        for attempt in range(ATTEMPTS):
            try:
                return self._calls.run(call, deadline - time.monotonic())
            except Exception as error:
                asked = retry_after(getattr(getattr(error, "response", None), "headers", None))
                own = backoff_seconds(attempt, _FIRST_PAUSE_SECONDS, jitter=0.25)
                pause = max(asked or 0.0, own)
                is_late = time.monotonic() + pause >= deadline
                if attempt == ATTEMPTS - 1 or is_late or not _may_pass(error):
                    raise
            self._calls.pause(pause)
        raise AssertionError("unreachable")


def completion_call(client: Any) -> CompletionCall:
    """A completion call over a client that has `chat.completions.create` (an `openai.OpenAI`)."""

    def complete(
        *,
        model: str,
        messages: list[dict[str, Any]],
        response_format: dict[str, Any],
        sampling: dict[str, Any],
    ) -> Completion:
        answer = client.chat.completions.create(
            model=model, messages=messages, response_format=response_format, **sampling
        )
        choice, usage = answer.choices[0], answer.usage
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        details = getattr(usage, "prompt_tokens_details", None)
        key = str(getattr(client, "api_key", ""))
        known = [*settings.keys(), *([key] if len(key) >= LEAST_KEY else [])]
        text, refusal = (
            # some servers repeat the request, key included, in their answer
            said and redacted(said, known)
            for said in (choice.message.content, getattr(choice.message, "refusal", None))
        )
        return Completion(
            text=text,
            finish_reason=choice.finish_reason,
            refusal=refusal,
            usage={count: getattr(usage, count, 0) or 0 for count in counts}
            | {"cached_tokens": getattr(details, "cached_tokens", 0) or 0},
        )

    complete.endpoint = str(getattr(client, "base_url", ""))  # type: ignore[attr-defined]
    return complete


def schema(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The `response_format` that makes a judge reason in `steps` and end with `result`."""
    text = {"type": "string"}
    step = {
        "type": "object",
        "properties": {"description": text, "conclusion": text},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    }
    steps = {"type": "array", "maxItems": 8, "items": step}
    return answer_format({"steps": steps, "result": result}, name)


def answer_format(properties: dict[str, Any], name: str) -> dict[str, Any]:
    """The strict `response_format` of an object with exactly these properties."""
    inner = closed_object(properties)
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": inner}}


def closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read_score(result: Any, low: float, high: float) -> float:
    """A judge's number, clipped into [low, high].

    Raises:
        Fault: `model_grader_parse_error` when it is not a finite number.
    """
    is_number = isinstance(result, int | float) and not isinstance(result, bool)
    if not is_number or (isinstance(result, float) and not math.isfinite(result)):
        raise Fault("model_grader_parse_error", f"`result` is {result!r}, not a number"[:300])
    return float(min(max(result, low), high))


def read_label(result: Any, labels: list[str], passing: list[str]) -> float:
    """1 for a passing label, 0 for another one.

    Raises:
        Fault: `model_grader_parse_error` when it is none of the labels.
    """
    if result not in labels:
        raise Fault(
            "model_grader_parse_error", f"`result` is {result!r}, not one of {labels}"[:300]
        )
    return float(result in passing)


def _parse(text: str) -> Any:
    try:
        answer = parse_json(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "result" not in answer:
        raise Fault("model_grader_parse_error", f"not the JSON that was asked for: {text[:300]!r}")
    return answer["result"]


def _may_pass(error: Exception) -> bool:
    if isinstance(error, Abandoned):
        return False
    status = getattr(error, "status_code", getattr(error, "status", None))
    return not isinstance(status, int) or status in (408, 409, 429) or status >= 500


def _sampling(params: dict[str, Any]) -> dict[str, Any]:
    """The wire's names for chat completions; the grader's plural is its own."""
    names = {"max_completions_tokens": "max_completion_tokens"}
    return {names.get(name, name): value for name, value in params.items()}


def _message(message: dict[str, Any], param: str) -> Callable[[Sample, Any], dict[str, Any]]:
    content, role = message["content"], message["role"]
    if isinstance(content, str):
        render = compile_template(content, param=param)
        return lambda sample, item: {"role": role, "content": render(sample, item)}
    parts = [_part(part, param) for part in (content if isinstance(content, list) else [content])]
    return lambda sample, item: {"role": role, "content": [part(sample, item) for part in parts]}


def _part(part: str | dict[str, Any], param: str) -> Callable[[Sample, Any], dict[str, Any]]:
    """A part in the form of chat completions, with its texts rendered."""
    if isinstance(part, str):
        part = {"type": "input_text", "text": part}
    match part["type"]:
        case "input_image":
            return _fill("image_url", "url", part, part["image_url"], ("detail",), param)
        case "input_audio":
            audio = part["input_audio"]
            return _fill("input_audio", "data", audio, audio.get("data", ""), ("format",), param)
    render = compile_template(part["text"], param=param)
    return lambda sample, item: {"type": "text", "text": render(sample, item)}


def _fill(
    kind: str, key: str, source: dict[str, Any], text: str, extras: Iterable[str], param: str
) -> Callable[[Sample, Any], dict[str, Any]]:
    render: Render = compile_template(text, param=param)
    fixed = {name: source[name] for name in extras if name in source}
    return lambda sample, item: {"type": kind, kind: {key: render(sample, item)} | fixed}
