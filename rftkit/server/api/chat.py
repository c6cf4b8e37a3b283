"""`/chat/completions`: check the request, let the worker sample, shape the answer or the stream.

Parameters are honoured, refused by name, or (those that only concern the hosted service, such as
`user`) accepted because they change nothing. `metadata.thinking` names the mark that opens a
model's thoughts (`<think>`, or `none`) where its chat template does not say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.responses import Response

from rftkit.errors import RequestError
from rftkit.server.api import Here, Reply
from rftkit.server.api.models import check_model
from rftkit.server.inference.body import Body, Metadata, check_messages, check_response_format
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store import wire
from rftkit.server.store.records import StoredResponse
from rftkit.server.store.store import new_id, now
from rftkit.server.training.plan import EFFORTS

__all__ = ["ChatBody", "Stop", "router", "until_gone", "worker_request"]

T = TypeVar("T")

router = APIRouter(prefix="/chat/completions")

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Stop = str | list[str]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True, False),
    "verbosity": ("medium",),
}
"""Parameters that are accepted only with a value that changes nothing."""


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatBody(Body):
    """The body of a chat completion."""

    model: str
    messages: list[dict[str, Any]]
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    modalities: list[str] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    verbosity: str | None = None
    metadata: Metadata | None = None
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


def worker_request(platform: Platform, body: ChatBody) -> dict[str, Any]:
    """What the worker is asked.

    Raises:
        RequestError: for what cannot be honoured, naming the parameter.
        NotFoundError: for an unknown model.
    """
    check_model(platform, body.model)
    check_messages(body.messages)
    for name, allowed in NEUTRAL.items():
        value = getattr(body, name)
        if value is not None and value not in allowed:
            raise RequestError(f"`{name}` is not supported by the local platform", param=name)
    if body.response_format is not None:
        check_response_format(body.response_format)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
    if body.reasoning_effort not in (None, *EFFORTS):
        raise RequestError(
            f"`reasoning_effort` must be one of {', '.join(EFFORTS)}, found "
            f"{body.reasoning_effort!r}",
            param="reasoning_effort",
        )
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > 4 or not all(stop):
        raise RequestError("`stop` must hold one to four texts, none of them empty", param="stop")
    return {
        "model": body.model,
        "messages": body.messages,
        "tools": _tools(body),
        "n": body.n or 1,
        "temperature": 1.0 if body.temperature is None else float(body.temperature),
        "top_p": 1.0 if body.top_p is None else float(body.top_p),
        "max_tokens": body.max_completion_tokens or body.max_tokens,
        "seed": body.seed,
        "stop": stop,
        "response_format": body.response_format,
        "logprobs": bool(body.logprobs),
        "top_logprobs": body.top_logprobs or 0,
        "stream": bool(body.stream),
        "reasoning_effort": body.reasoning_effort,
        "thinking": (body.metadata or {}).get("thinking"),
    }


def _tools(body: ChatBody) -> list[dict[str, Any]] | None:
    for index, tool in enumerate(body.tools or []):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise RequestError(
                f"`tools[{index}]` must be {{type: 'function', function: {{…}}}}",
                param=f"tools[{index}]",
            )
        if not isinstance(function.get("name"), str):
            raise RequestError(
                f"`tools[{index}].function.name` must be text", param=f"tools[{index}]"
            )
    return None if body.tool_choice == "none" else body.tools or None


@router.post("")
async def create(here: Here, request: Request, body: ChatBody) -> Response:
    """Answer a conversation."""
    asked = await asyncio.to_thread(worker_request, here, body)
    if body.stream:
        return await _stream(here, request, body, asked)
    done = await until_gone(request, here.complete(asked))
    made = _completion(body, done)
    await _keep(here, body, made)
    return Reply(made)


async def _keep(here: Platform, body: ChatBody, made: dict[str, Any]) -> None:
    """Remember it, when `store` asks for that."""
    if body.store:
        kept = {**made, "metadata": body.metadata or {}}
        record = StoredResponse(
            id=made["id"], created_at=made["created"], model=body.model, body=kept,
            input=body.messages,
        )  # fmt: skip
        await asyncio.to_thread(here.store.add_response, record)


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Do the work, but drop it as soon as the client hangs up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ChatError("the client went away", status=499, code="client_closed_request")
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()


def _completion(body: ChatBody, done: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": now(),
        "model": body.model,
        "choices": [_choice(completion, bool(body.logprobs)) for completion in done["completions"]],
        "usage": _usage(done),
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _choice(completion: dict[str, Any], with_logprobs: bool) -> dict[str, Any]:
    calls = completion.get("tool_calls")
    message: dict[str, Any] = {
        "role": "assistant",
        "content": completion["text"] if not calls else completion["text"] or None,
        "refusal": None,
        "annotations": [],
    }
    if completion.get("reasoning"):
        message["reasoning_content"] = completion["reasoning"]  # not OpenAI's, but widespread
    if calls:
        message["tool_calls"] = calls
    return {
        "index": completion["index"],
        "message": message,
        "finish_reason": _finish_reason(completion),
        "logprobs": _logprobs(completion) if with_logprobs else None,
    }


def _finish_reason(completion: dict[str, Any]) -> str:
    return "tool_calls" if completion.get("tool_calls") else str(completion["stop_reason"])


def _logprobs(completion: dict[str, Any]) -> dict[str, Any]:
    def entry(token: dict[str, Any]) -> dict[str, Any]:
        text = token["token"]
        return {"token": text, "logprob": token["logprob"], "bytes": list(text.encode())}

    content = [
        {**entry(token), "top_logprobs": [entry(other) for other in token.get("top") or []]}
        for token in completion.get("logprobs") or []
    ]
    return {"content": content, "refusal": None}


def _usage(done: dict[str, Any]) -> dict[str, Any]:
    prompt = done["prompt_tokens"]
    completion = sum(c["tokens"] for c in done["completions"])
    reasoning = sum(c.get("reasoning_tokens", 0) for c in done["completions"])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def _stream(
    here: Platform, request: Request, body: ChatBody, asked: dict[str, Any]
) -> Response:
    """Wait for the first sign of life, so that a refusal is still a proper error; then stream."""
    messages = here.link.chat(asked)
    first = await until_gone(request, anext(messages))
    return StreamingResponse(_events(here, body, first, messages), media_type="text/event-stream")


async def _events(
    here: Platform,
    body: ChatBody,
    first: dict[str, Any],
    messages: AsyncGenerator[dict[str, Any], None],
) -> AsyncIterator[str]:
    head = {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": now(),
        "model": body.model,
        "service_tier": "default",
        "system_fingerprint": None,
    }
    begun: set[int] = set()

    def chunk(index: int, delta: dict[str, Any], **rest: Any) -> str:
        if index not in begun:
            begun.add(index)
            delta = {"role": "assistant", "content": "", **delta}
        choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None, **rest}
        return _line({**head, "choices": [choice]})

    try:
        async for message in _chained(first, messages):
            if "delta" in message:
                delta = message["delta"]
                thought = delta.get("reasoning")
                said = {"reasoning_content": thought} if thought else {}
                yield chunk(delta["index"], {**said, "content": delta["text"]})
                continue
            done = message["done"]
            for completion in done["completions"]:
                yield chunk(
                    completion["index"], _last_delta(completion), **_ending(body, completion)
                )
            await _keep(here, body, {**_completion(body, done), "id": head["id"]})
            if body.stream_options and body.stream_options.include_usage:
                yield _line({**head, "choices": [], "usage": _usage(done)})
    except ChatError as error:
        yield _line(
            wire.error_body(error.message, type=error.type, param=error.param, code=error.code)
        )
        return
    finally:
        await messages.aclose()
    yield "data: [DONE]\n\n"


def _last_delta(completion: dict[str, Any]) -> dict[str, Any]:
    calls = completion.get("tool_calls") or []
    return {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]} if calls else {}


def _ending(body: ChatBody, completion: dict[str, Any]) -> dict[str, Any]:
    logprobs = _logprobs(completion) if body.logprobs else None
    return {"finish_reason": _finish_reason(completion), "logprobs": logprobs}


async def _chained(
    first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[dict[str, Any]]:
    yield first
    async for message in rest:
        yield message


def _line(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"
