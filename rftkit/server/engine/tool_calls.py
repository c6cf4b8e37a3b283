"""Answers that have to be tool calls: the JSON schema that forces them, and reading them back.

A forced answer is one call as `{"name": …, "arguments": {…}}`, or a list of several, and nothing
else, whatever form the model's chat template has for calls. Arguments follow the `parameters` of
their function, without the keywords that constrained decoding cannot follow. Not here: calls that
a model makes when it likes (`prompts.tool_calls_in`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from rftkit.server.engine.prompts import call_id

__all__ = ["calls_schema", "forced_calls_in"]

Json = dict[str, Any]

MOST_CALLS = 8
"""Of one forced answer: a list has to end."""
COMPOSED = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "not", "patternProperties"})
HEAD = re.compile(r'[\[,\s]*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


def calls_schema(tools: list[Json], names: Collection[str], *, most: int | None = None) -> str:
    """The JSON schema (as text) of an answer that calls one or more of the named functions.

    Args:
        tools: as chat completions spell them.
        names: the functions that may be called.
        most: how many calls an answer may have; None for as many as a list may hold.
    """
    functions = [tool["function"] for tool in tools if tool["function"]["name"] in names]
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
    answer: Json = {"$ref": "#/$defs/call"}
    if most != 1:
        calls = {"type": "array", "items": answer, "minItems": 2, "maxItems": most or MOST_CALLS}
        answer = {"anyOf": [answer, calls]}
    given = zip(places, functions, strict=True)
    defs = {place: _arguments(function, f"#/$defs/{place}") for place, function in given}
    return json.dumps({"x-guidance": {"lenient": True}, "$defs": {**defs, "call": call}, **answer})


def _arguments(function: Json, place: str) -> Json:
    """The schema of a function's arguments, as a part of another one at `place`."""
    given = function.get("parameters") or {}
    schema = {"type": "object", **_moved(given, place)}
    if "properties" in schema and not COMPOSED & schema.keys():
        schema.setdefault("additionalProperties", False)
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
