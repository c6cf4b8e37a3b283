"""Responses as chat completions: input items to messages, and completions to output items."""

from __future__ import annotations

from typing import Any

from rftkit.errors import RequestError
from rftkit.server.inference.body import kind_of, text_of
from rftkit.server.store.store import new_id

__all__ = [
    "chat_tools",
    "input_item",
    "messages_from",
    "output_from",
    "reasoning_item",
    "response_format_from",
    "text_part",
]

Json = dict[str, Any]


def messages_from(given: str | list[Json]) -> list[Json]:
    """Return the chat messages of an `input`.

    Raises:
        RequestError: naming the item that is not supported.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [
        _message(item, f"input[{index}]")
        for index, item in enumerate(given)
        if item.get("type") != "reasoning"  # the model does not see its earlier reasoning again
    ]


def _message(item: Json, where: str) -> Json:
    match item.get("type", "message"):
        case "message":
            text = text_of(item.get("content"))
            if text is None:
                raise RequestError(
                    f"`{where}.content` must be text or a list of text parts, found "
                    f"{kind_of(item.get('content'))}; the models here read text only",
                    param=f"{where}.content",
                )
            return {"role": item.get("role"), "content": text}
        case "function_call":
            function = {
                "name": _text(item, "name", where),
                "arguments": _text(item, "arguments", where),
            }
            call = {"id": _text(item, "call_id", where), "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            return {
                "role": "tool",
                "tool_call_id": _text(item, "call_id", where),
                "content": _text(item, "output", where),
            }
        case other:
            raise RequestError(
                f"`{where}.type` must be message, function_call, function_call_output or "
                f"reasoning, found {kind_of(other)}",
                param=f"{where}.type",
            )


def _text(item: Json, name: str, where: str) -> str:
    value = text_of(item.get(name))
    if value is None:
        raise RequestError(
            f"`{where}.{name}` must be text, found {kind_of(item.get(name))}",
            param=f"{where}.{name}",
        )
    return value


def chat_tools(tools: list[Json] | None) -> list[Json] | None:
    """Return function tools in the form of chat completions.

    Raises:
        RequestError: for tools that the hosted service runs itself.
    """
    for index, tool in enumerate(tools or []):
        if tool.get("type") != "function":
            raise RequestError(
                f"`tools[{index}].type` must be function, found {kind_of(tool.get('type'))}; there "
                "are no built-in tools here",
                param=f"tools[{index}].type",
            )
    plain = [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        for tool in tools or []
    ]
    return plain or None


def response_format_from(format_: Json | None) -> Json | None:
    """Return `text.format` as the `response_format` of chat completions."""
    if format_ is None or format_.get("type") != "json_schema":
        return format_
    return {
        "type": "json_schema",
        "json_schema": {key: value for key, value in format_.items() if key != "type"},
    }


def output_from(
    completion: Json, message_id: str, *, with_text: bool = False, thought: Json | None = None
) -> list[Json]:
    """Return the output items of one completion; its text, if any (or `with_text`), has this id.

    `thought` is the reasoning item, if a stream has sent it already.
    """
    status = "completed" if completion["stop_reason"] == "stop" else "incomplete"
    items: list[Json] = []
    calls = completion.get("tool_calls") or []
    if completion.get("reasoning"):
        items.append(thought or reasoning_item(completion["reasoning"]))
    if completion["text"] or with_text or not calls:
        items.append(
            {
                "id": message_id,
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": [text_part(completion["text"])],
            }
        )
    for number, call in enumerate(calls, start=1):
        items.append(
            {
                "id": new_id("fc_"),
                "type": "function_call",
                "status": status if number == len(calls) else "completed",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            }
        )
    return items


def text_part(text: str) -> Json:
    """Return text as a part of an output message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def input_item(given: Json) -> Json:
    """Return an `input` item as it is listed: with its content as a list of parts."""
    item = {"type": "message", **given}
    if item["type"] != "message":
        return {"status": "completed", **item}
    content = item.get("content")
    parts = [content] if isinstance(content, str) else content or []
    is_answer = item.get("role") == "assistant"
    shown = [_listed_part(part, is_answer=is_answer) for part in parts]
    return {"status": "completed", **item, "content": shown}


def _listed_part(part: str | Json, *, is_answer: bool) -> Json:
    if not isinstance(part, str) and part["type"] == "refusal":
        return part
    text = part if isinstance(part, str) else part["text"]
    return text_part(text) if is_answer else {"type": "input_text", "text": text}


def reasoning_item(text: str) -> Json:
    """Return reasoning as a separate output item."""
    return {
        "id": new_id("rs_"),
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
        "status": "completed",
    }
