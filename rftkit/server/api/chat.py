"""`/chat/completions`: check the request, let the worker sample, shape the answer or the stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from rftkit.server.api import PlatformDep, Reply, Router, turn_of
from rftkit.server.inference.answering import Turn, storing
from rftkit.server.inference.chat_request import ChatBody, chat_request
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store import wire
from rftkit.server.store.records import StoredResponse
from rftkit.server.store.store import new_id, now
from rftkit.server.training.eval_records import finish_reason

__all__ = ["router", "until_disconnected"]

T = TypeVar("T")

router = Router(prefix="/chat/completions")


@router.post("")
async def create(platform: PlatformDep, request: Request, body: ChatBody) -> Response:
    """Create a chat completion."""
    asked = await asyncio.to_thread(chat_request, platform, body)
    if body.stream:
        return await _stream(platform, request, body, asked)
    async with turn_of(platform, request, body) as turn:
        made = turn.made
        if made is None:
            made = _completion(body, await until_disconnected(request, platform.complete(asked)))
            await _keep(platform, body, turn, made)
    return Reply(made)


async def _keep(platform: Platform, body: ChatBody, turn: Turn, made: dict[str, Any]) -> None:
    """Keep the completion for the same request; store it if the request has `store: true`."""
    with storing():
        await turn.keep(made)
        if body.store:
            kept = {**made, "metadata": body.metadata or {}}
            record = StoredResponse(
                id=made["id"], created_at=made["created"], model=body.model, body=kept,
                input=body.messages,
            )  # fmt: skip
            await asyncio.to_thread(platform.store.add_response, record)


async def until_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Do the work, but cancel it as soon as the client disconnects."""

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
        "finish_reason": finish_reason(completion["stop_reason"], calls),
        "logprobs": _logprobs(completion) if with_logprobs else None,
    }


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
    platform: Platform, request: Request, body: ChatBody, asked: ChatRequest
) -> Response:
    """Wait for the first message, so that a refusal still has an error status; then stream."""
    async with AsyncExitStack() as stack:
        turn = await stack.enter_async_context(turn_of(platform, request, body))
        if turn.made is not None:
            again = _lines_again(body, turn.made)
            return StreamingResponse(again, media_type="text/event-stream")
        messages = platform.stream(asked)
        first = await until_disconnected(request, anext(messages))
        events = _events(platform, body, turn, first, messages, stack.pop_all())
    return StreamingResponse(events, media_type="text/event-stream")


class _Chunks:
    """The chunks of one stream, as they are sent."""

    def __init__(self, head: dict[str, Any]) -> None:
        """`head` has the `id`, `created` and `model` of the completion."""
        names = ("id", "created", "model", "service_tier", "system_fingerprint")
        self.head = {"object": "chat.completion.chunk", **{name: head[name] for name in names}}
        self._begun: set[int] = set()

    def chunk(self, index: int, delta: dict[str, Any], **rest: Any) -> str:
        """A piece of one choice; the first one has its role."""
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", "content": "", **delta}
        choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None, **rest}
        return _line({**self.head, "choices": [choice]})

    def text(self, index: int, text: str, reasoning: str | None) -> str:
        """Text of one choice, perhaps with the reasoning before it."""
        thought = {"reasoning_content": reasoning} if reasoning else {}
        return self.chunk(index, {**thought, "content": text})

    def ending(self, choice: dict[str, Any]) -> str:
        """The last piece of a choice: its tool calls, and why it ended."""
        calls = choice["message"].get("tool_calls") or []
        delta = {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}
        rest = {name: choice[name] for name in ("finish_reason", "logprobs")}
        return self.chunk(choice["index"], delta if calls else {}, **rest)

    def usage(self, body: ChatBody, made: dict[str, Any]) -> list[str]:
        """How many tokens there were, if the request asks for it."""
        is_wanted = body.stream_options is not None and body.stream_options.include_usage
        return [_line({**self.head, "choices": [], "usage": made["usage"]})] if is_wanted else []


async def _events(
    platform: Platform,
    body: ChatBody,
    turn: Turn,
    first: dict[str, Any],
    messages: AsyncGenerator[dict[str, Any], None],
    stack: AsyncExitStack,
) -> AsyncIterator[str]:
    head = _completion(body, {"prompt_tokens": 0, "completions": []})
    chunks = _Chunks(head)
    try:
        async for message in _chained(first, messages):
            if "delta" in message:
                delta = message["delta"]
                yield chunks.text(delta["index"], delta["text"], delta.get("reasoning"))
                continue
            made = {**_completion(body, message["done"]), **_named(head)}
            for choice in made["choices"]:
                yield chunks.ending(choice)
            await _keep(platform, body, turn, made)
            for line in chunks.usage(body, made):
                yield line
    except ChatError as error:
        yield _line(
            wire.error_body(error.message, type=error.type, param=error.param, code=error.code)
        )
        return
    finally:
        await messages.aclose()
        await stack.aclose()
    yield "data: [DONE]\n\n"


def _named(head: dict[str, Any]) -> dict[str, Any]:
    return {name: head[name] for name in ("id", "created")}


async def _lines_again(body: ChatBody, made: dict[str, Any]) -> AsyncIterator[str]:
    """The stream of a completion that was made before."""
    chunks = _Chunks(made)
    for choice in made["choices"]:
        message = choice["message"]
        thought = message.get("reasoning_content")
        yield chunks.text(choice["index"], message["content"] or "", thought)
        yield chunks.ending(choice)
    for line in chunks.usage(body, made):
        yield line
    yield "data: [DONE]\n\n"


async def _chained(
    first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[dict[str, Any]]:
    yield first
    async for message in rest:
        yield message


def _line(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"
