"""The typed events of a streamed response: while it is made, and of one that was kept.

An event is its type and its data; `lines` numbers events and writes them as server-sent ones. Not
here: what a response holds (`responses`) and how it is sampled.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from rftkit.server.inference.response_items import reasoning_item, text_part

__all__ = ["Event", "ItemEvents", "ended_message", "lines", "numbered", "opening", "replay"]

Json = dict[str, Any]
Event = tuple[str, Json]


def opening(head: Json) -> list[Event]:
    """The first events of a response."""
    return [("response.created", {"response": head}), ("response.in_progress", {"response": head})]


def replay(made: Json) -> Iterator[Event]:
    """The events of a response that was kept."""
    head = {**made, "status": "in_progress", "output": [], "usage": None}
    yield from opening({**head, "incomplete_details": None})
    for index, item in enumerate(made["output"]):
        yield from whole_item(index, item)
    yield f"response.{made['status']}", {"response": made}


def whole_item(index: int, item: Json) -> Iterator[Event]:
    """All events of an output item that is complete."""
    match item["type"]:
        case "message":
            yield from begun_message(index, item["id"])
            [part] = item["content"]
            if part["text"]:
                yield text_delta(index, item["id"], part["text"])
            yield from ended_message(index, item)
            return
        case "function_call":
            yield _added(index, {**item, "arguments": "", "status": "in_progress"})
            place = {"item_id": item["id"], "output_index": index}
            written = item["arguments"]
            yield "response.function_call_arguments.delta", {**place, "delta": written}
            done = {**place, "name": item["name"], "arguments": written}
            yield "response.function_call_arguments.done", done
        case _:
            yield _added(index, item)
    yield item_done(index, item)


def begun_message(index: int, message_id: str) -> Iterator[Event]:
    """The events before a message has any text."""
    item = {"id": message_id, "type": "message", "role": "assistant", "status": "in_progress"}
    yield _added(index, {**item, "content": []})
    yield "response.content_part.added", {**_place(index, message_id), "part": text_part("")}


def text_delta(index: int, message_id: str, text: str) -> Event:
    """A part of a message's text."""
    return "response.output_text.delta", {
        **_place(index, message_id), "delta": text, "logprobs": [],
    }  # fmt: skip


def ended_message(index: int, item: Json) -> Iterator[Event]:
    """The events after a message has all of its text."""
    [part] = item["content"]
    place = _place(index, item["id"])
    yield "response.output_text.done", {**place, "text": part["text"], "logprobs": []}
    yield "response.content_part.done", {**place, "part": part}
    yield item_done(index, item)


def item_done(index: int, item: Json) -> Event:
    """An output item has ended."""
    return "response.output_item.done", {"output_index": index, "item": item}


def _added(index: int, item: Json) -> Event:
    return "response.output_item.added", {"output_index": index, "item": item}


def _place(index: int, message_id: str) -> Json:
    return {"item_id": message_id, "output_index": index, "content_index": 0}


class ItemEvents:
    """The events of output items while text comes in: reasoning first, then a message."""

    def __init__(self, message_id: str) -> None:
        """`message_id` is what the message is called once there is one."""
        self._message_id = message_id
        self.thought: Json | None = None
        """The item of the reasoning, once it is shown."""
        self.has_message = False
        """Whether some of the message's text is shown."""

    def delta(self, delta: Json) -> Iterator[Event]:
        """The events for new `text`, and perhaps for `reasoning`, which arrives at once."""
        if delta.get("reasoning") and self.thought is None:
            self.thought = reasoning_item(delta["reasoning"])
            yield _added(0, self.thought)
        if delta["text"]:
            if not self.has_message:
                self.has_message = True
                yield from begun_message(self._index, self._message_id)
            yield text_delta(self._index, self._message_id, delta["text"])

    def ending(self, output: list[Json]) -> Iterator[Event]:
        """The events for what was not shown yet of the finished items."""
        for index, item in enumerate(output):
            if item is self.thought:
                yield item_done(index, item)
            elif item["id"] == self._message_id and self.has_message:
                yield from ended_message(index, item)
            else:
                yield from whole_item(index, item)

    @property
    def _index(self) -> int:
        return 0 if self.thought is None else 1


async def lines(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    """Events as they are sent, numbered from 0."""
    number = 0
    async for event in events:
        yield _line(number, event)
        number += 1


def numbered(events: Iterable[Event], after: int | None = None) -> Iterator[str]:
    """Like `lines`, for events that are complete; those up to the number `after` are left out."""
    for number, event in enumerate(events):
        if after is None or number > after:
            yield _line(number, event)


def _line(number: int, event: Event) -> str:
    kind, data = event
    body = {"type": kind, "sequence_number": number, **data}
    return f"event: {kind}\ndata: {json.dumps(body, allow_nan=False)}\n\n"
