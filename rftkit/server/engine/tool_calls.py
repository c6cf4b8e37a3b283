"""What constrains tool calls: the JSON schema of forced ones, the rules of those made at will.

A forced answer is one call as `{"name": …, "arguments": {…}}`, or a list of
several, and nothing else, whatever form the model's chat template has for calls (`calls_schema`).
Arguments follow the `parameters` of their function, without the keywords that constrained decoding
cannot follow. Where the model decides (`optional_calls`), a `<tool_call>` that it opens is such a
call, and the only allowed one ends the answer. Not here: reading calls that a model made at will
(`call_forms`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from rftkit.formats import closed_schema
from rftkit.server.engine.call_forms import CALL_END, CALL_START, call_id
from rftkit.server.engine.values import SEPARATORS

__all__ = ["calls_schema", "forced_calls_in", "marks_calls", "optional_calls"]

Json = dict[str, Any]

MOST_CALLS = 8
"""Of one forced answer: a list has to end."""
HEAD = re.compile(r'[\[,\s]*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


def marks_calls(tokenizer: Any) -> bool:
    """Whether the model is shown to write its calls within `<tool_call>`, as text."""
    template = str(tokenizer.chat_template)
    is_shown = "tools" not in template or CALL_START in template
    return is_shown and CALL_START not in tokenizer.all_special_tokens


def calls_schema(tools: list[Json], names: Collection[str], *, most: int | None = None) -> str:
    """The JSON schema (as text) of an answer that calls one or more of the named functions.

    Args:
        tools: as chat completions spell them.
        names: the functions that may be called.
        most: how many calls an answer may have; None for as many as a list may hold.
    """
    functions = [tool["function"] for tool in tools if tool["function"]["name"] in names]
    answer: Json = {"$ref": "#/$defs/call"}
    if most != 1:
        calls = {"type": "array", "items": answer, "minItems": 2, "maxItems": most or MOST_CALLS}
        answer = {"anyOf": [answer, calls]}
    return json.dumps({**_call_defs(functions), **answer})


def optional_calls(tools: list[Json], *, most: int | None = None) -> str | None:
    """The rules of an answer that may call functions within `<tool_call>`, or None for no rules.

    There are rules when a function is `strict`, whose arguments follow its parameters, or when one
    call ends the answer (`most` is 1). They are in llguidance's Lark and define an `answer`.
    """
    functions = [tool["function"] for tool in tools]
    if most != 1 and not any(function.get("strict") for function in functions):
        return None
    anything = {"type": "object"}
    given = [
        each if each.get("strict") else {"name": each["name"], "parameters": anything}
        for each in functions
    ]
    call = {**_call_defs(given), "$ref": "#/$defs/call"}
    call["x-guidance"] = {**SEPARATORS, **call["x-guidance"]}
    return "\n".join(
        [
            "answer: FREE | call" if most == 1 else "answer: call* FREE",
            f"call: opening LINE? body LINE? {json.dumps(CALL_END)}",
            f"opening[lazy]: /(?s:.*){CALL_START}/",
            f"body: %json {json.dumps(call)}",
            f"FREE: /(?s:.*)/ & ~/(?s:.*){CALL_START}(?s:.*)/",
            "LINE: /\\n/",
        ]
    )


def _call_defs(functions: list[Json]) -> Json:
    """The `$defs` of a schema, `call` among them: a call of one of these functions."""
    places = [f"arguments_{number}" for number in range(len(functions))]
    call = {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": {"$ref": f"#/$defs/{place}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for place, function in zip(places, functions, strict=True)
        ]
    }
    given = zip(places, functions, strict=True)
    defs = {place: _arguments(function, f"#/$defs/{place}") for place, function in given}
    return {"x-guidance": {"lenient": True}, "$defs": {**defs, "call": call}}


def _arguments(function: Json, place: str) -> Json:
    """The schema of a function's arguments, as a part of another one at `place`."""
    given = function.get("parameters") or {"additionalProperties": False}  # no parameters at all
    schema: Json = closed_schema({"type": "object", **_moved(given, place)})
    return schema


def _moved(value: Any, place: str) -> Any:
    """A schema whose references to itself lead to where it is now."""
    if isinstance(value, list):
        return [_moved(each, place) for each in value]
    if not isinstance(value, dict):
        return value
    moved = {
        key: _moved(each, place)
        for key, each in value.items()
        if not (key in ("$id", "$schema") and isinstance(each, str))
    }
    target = moved.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        moved["$ref"] = place + target[1:]
    return moved


def forced_calls_in(text: str) -> list[Json]:
    """The calls of a forced answer as chat completions spell them; the last one may be cut off."""
    calls: list[Json] = []
    end, decoder = 0, json.JSONDecoder()
    while head := HEAD.match(text, end):
        try:
            _, end = decoder.raw_decode(text, head.end())
        except (ValueError, RecursionError):  # the answer was cut here
            end = len(text)
        function = {"name": json.loads(head[1]), "arguments": text[head.end() : end]}
        calls.append({"id": call_id(text, len(calls)), "type": "function", "function": function})
        end += len("}")
    return calls
