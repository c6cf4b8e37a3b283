"""`/responses`: the same models under the newer route, with stored conversations and streams."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.responses import Response

from rftkit.errors import NotFoundError, RequestError
from rftkit.server.api import Limit, PlatformDep, Reply, Router, cut, turn_of
from rftkit.server.api.chat import until_disconnected
from rftkit.server.api.response_stream import Event, ItemEvents, lines, numbered, opening, replay
from rftkit.server.inference.answering import Turn, storing
from rftkit.server.inference.body import Body, Metadata, check_neutral, refusal
from rftkit.server.inference.chat_request import ChatBody, chat_request
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.inference.response_items import (
    chat_tools,
    input_item,
    messages_from,
    output_from,
    response_format_from,
)
from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store import wire
from rftkit.server.store.records import StoredResponse
from rftkit.server.store.store import new_id, now

__all__ = ["router"]

router = Router(prefix="/responses")

Json = dict[str, Any]


class Text(Body):
    """`text`."""

    format: Json | None = None
    verbosity: str | None = None


OF_CHATS = {
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "messages": "input",
}
"""Parameters of chat completions, and what they are called here."""


class Reasoning(Body):
    """`reasoning`."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseBody(Body):
    """The body of `POST /responses`."""

    model: str
    input: str | list[Json]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: Text | None = None
    tools: list[Json] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: Any = None
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` would allow to drop items of a prompt that is too long. Nothing is dropped here: such
    a prompt is refused, whatever the value."""
    background: bool | None = None
    include: list[str] | None = None
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    max_tool_calls: Any = None
    """A limit on built-in tools, which do not exist here."""
    access_programs: Any = None
    background_options: Any = None
    context_management: Any = None
    conversation: Any = None
    image: Any = None
    moderation: Any = None
    prompt: Any = None
    top_logprobs: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "access_programs": ([],),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "moderation": (),
    "prompt": (),
    "top_logprobs": (0,),
}
"""Parameters that are accepted only with a value that has no effect."""


def _asked(platform: Platform, body: ResponseBody) -> tuple[list[Json], ChatRequest]:
    """The conversation to keep, and the request to the worker."""
    check_neutral(body, NEUTRAL)
    conversation = messages_from(body.input)
    if body.previous_response_id is not None:
        try:
            before = platform.store.response(body.previous_response_id)
        except NotFoundError as error:
            raise NotFoundError(error.message, param="previous_response_id") from None
        conversation = [*before.input, *conversation]
    system = [{"role": "developer", "content": body.instructions}] if body.instructions else []
    try:
        chat = ChatBody(
            model=body.model,
            messages=[*system, *conversation],
            max_completion_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            response_format=response_format_from(body.text.format if body.text else None),
            tools=chat_tools(body.tools),
            tool_choice=body.tool_choice,
            parallel_tool_calls=body.parallel_tool_calls,
            reasoning_effort=body.reasoning.effort if body.reasoning else None,
            metadata=body.metadata,
            stream=body.stream,
        )
        return conversation, chat_request(platform, chat)
    except ValidationError as error:
        raise _renamed(refusal(error.errors())) from None
    except RequestError as error:
        raise _renamed(error) from None


def _renamed(error: RequestError) -> RequestError:
    """The refusal of a chat, in the words of this route."""
    param = error.param or ""
    name = next((name for name in OF_CHATS if re.match(rf"{re.escape(name)}\b", param)), None)
    if name is None:
        return error
    message = error.message.replace(f"`{name}", f"`{OF_CHATS[name]}")
    return RequestError(message, param=OF_CHATS[name] + param[len(name) :], code=error.code)


@router.post("")
async def create(platform: PlatformDep, request: Request, body: ResponseBody) -> Response:
    """Answer, and remember the conversation unless `store` is false."""
    conversation, asked = await asyncio.to_thread(_asked, platform, body)
    head = _head(body)
    async with AsyncExitStack() as stack:
        turn = await stack.enter_async_context(turn_of(platform, request, body))
        if body.stream and turn.made is not None:
            return StreamingResponse(numbered(replay(turn.made)), media_type="text/event-stream")
        if body.stream:
            messages = platform.stream(asked)
            first = await until_disconnected(request, anext(messages))
            keep = _Keep(platform, body, conversation, turn)
            events = _events(keep, head, first, messages, stack.pop_all())
            return StreamingResponse(lines(events), media_type="text/event-stream")
        made = turn.made
        if made is None:
            done = await until_disconnected(request, platform.complete(asked))
            made = _finished(head, done, output_from(done["completions"][0], new_id("msg_")))
            await _Keep(platform, body, conversation, turn)(made)
    return Reply(made)


def _head(body: ResponseBody) -> Json:
    """A response before it has output."""
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": now(),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


def _finished(head: Json, done: Json, output: list[Json]) -> Json:
    [completion] = done["completions"]
    is_cut = completion["stop_reason"] == "length"
    return {
        **head,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": output,
        "usage": {
            "input_tokens": done["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion["tokens"],
            "output_tokens_details": {"reasoning_tokens": completion.get("reasoning_tokens", 0)},
            "total_tokens": done["prompt_tokens"] + completion["tokens"],
        },
    }


@dataclass
class _Keep:
    """Keeps a response: for its conversation, and for the same request sent again."""

    platform: Platform
    body: ResponseBody
    conversation: list[Json]
    turn: Turn

    async def __call__(self, made: Json) -> None:
        with storing():
            await self.turn.keep(made)
            if self.body.store is not False:
                await asyncio.to_thread(self._store, made)

    def _store(self, made: Json) -> None:
        kept = {**made, "input_items": _input_items(self.body)}
        said = messages_from(made["output"])
        self.platform.store.add_response(
            StoredResponse(
                id=made["id"],
                created_at=made["created_at"],
                model=self.body.model,
                body=kept,
                input=[*self.conversation, *said],
            )
        )


def _input_items(body: ResponseBody) -> list[Json]:
    given = (
        body.input if isinstance(body.input, list) else [{"role": "user", "content": body.input}]
    )
    return [{"type": "message", **item, "id": new_id(_prefix(item))} for item in given]


def _prefix(item: Json) -> str:
    return {"function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}.get(
        item.get("type", "message"), "msg_"
    )


async def _events(
    keep: _Keep,
    head: Json,
    first: Json,
    messages: AsyncGenerator[Json, None],
    stack: AsyncExitStack,
) -> AsyncIterator[Event]:
    """The events of a response while it is made."""
    for event in opening(head):
        yield event
    shown = ItemEvents(message_id := new_id("msg_"))
    try:
        message = first
        while "delta" in message:
            for event in shown.delta(message["delta"]):
                yield event
            message = await anext(messages)
        done = message["done"]
        output = output_from(
            done["completions"][0], message_id, with_text=shown.has_message, thought=shown.thought
        )
        for event in shown.ending(output):
            yield event
        made = _finished(head, done, output)
        await keep(made)
        yield f"response.{made['status']}", {"response": made}
    except ChatError as error:
        problem = {"code": error.code or "server_error", "message": error.message}
        yield "response.failed", {"response": {**head, "status": "failed", "error": problem}}
    finally:
        await messages.aclose()
        await stack.aclose()


class CountBody(Body):
    """The body of `POST /responses/input_tokens`."""

    model: str
    input: str | list[Json]
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Json] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None


@router.post("/input_tokens")
async def count(platform: PlatformDep, body: CountBody) -> Reply:
    """How many tokens a request would have the model read."""
    given = ResponseBody.model_validate(body.model_dump(exclude_unset=True))
    _, asked = await asyncio.to_thread(_asked, platform, given)
    done = await platform.complete(dataclasses.replace(asked, task="count"))
    return Reply({"object": "response.input_tokens", "input_tokens": done["prompt_tokens"]})


@router.post("/{response_id}/cancel")
def cancel(platform: PlatformDep, response_id: str) -> Reply:
    """Refuse, as the hosted service does: only a background response can be cancelled."""
    platform.store.response(response_id)
    raise RequestError(
        f"{response_id} is not a background response, so it cannot be cancelled; close the "
        "connection to stop a response that is still being generated",
        param="response_id",
    )


@router.get("/{response_id}")
def retrieve(
    platform: PlatformDep, response_id: str, stream: bool = False, starting_after: int | None = None
) -> Response:
    """A response that was kept; with `stream` as the events that it had."""
    body = dict(platform.store.response(response_id).body)
    body.pop("input_items")
    if stream:
        events = numbered(replay(body), starting_after)
        return StreamingResponse(events, media_type="text/event-stream")
    return Reply(body)


@router.delete("/{response_id}")
def delete(platform: PlatformDep, response_id: str) -> Reply:
    """Forget it."""
    platform.store.delete_response(response_id)
    return Reply(wire.deleted(response_id, "response"))


@router.get("/{response_id}/input_items")
def input_items(
    platform: PlatformDep,
    response_id: str,
    after: str | None = None,
    limit: Limit = 20,
    order: str = "desc",
) -> Reply:
    """List the input of a response."""
    items = [input_item(item) for item in platform.store.response(response_id).body["input_items"]]
    found, more = cut(items if order == "asc" else items[::-1], after, limit)
    return Reply(wire.page(found, more))
