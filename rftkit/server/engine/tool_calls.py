"""What constrains tool calls: the JSON schema of forced ones, the rules of those made at will.

A forced answer is one call as `{"name": …, "arguments": {…}}`, or a list of
several, and nothing else, whatever form the model's chat template has for calls (`calls_schema`).
Arguments follow the `parameters` of their function, without the keywords that constrained decoding
cannot follow. Where the model decides (`optional_calls`), a `<tool_call>` that it opens is such a
call, and the only allowed one ends the answer. Where answers follow a response format
(`answer_or_calls`), calls are written as the chat template writes them. Not here: reading calls
that a model made at will (`call_forms`), and how a template writes them (`written_calls`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from rftkit.formats import closed_schema
from rftkit.jsontext import parse_json
from rftkit.server.engine.call_forms import CALL_END, CALL_START, call_id
from rftkit.server.engine.values import SEPARATORS
from rftkit.server.engine.written_calls import CallForm

__all__ = [
    "answer_or_calls",
    "calls_schema",
    "forced_calls_in",
    "marks_calls",
    "optional_calls",
]

Json = dict[str, Any]

MOST_CALLS = 8
"""Most calls of one forced answer: the list has to end."""
PLAIN = frozenset({"type", "properties", "required", "title", "description", "$schema", "$id"})
"""Keywords of parameters that name no argument, unless `properties` does."""
SHAPE: Json = {"name": "name", "arguments": {}}
"""A call as one JSON object, of the function "name" with the arguments {}."""
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
    functions = [
        _without_arguments(tool["function"]) for tool in tools if tool["function"]["name"] in names
    ]
    answer: Json = {"$ref": "#/$defs/call"}
    if most != 1:
        calls = {"type": "array", "items": answer, "minItems": 2, "maxItems": most or MOST_CALLS}
        answer = {"anyOf": [answer, calls]}
    return json.dumps({**_call_defs(functions), **answer})


def _without_arguments(function: Json) -> Json:
    """A function whose parameters name no argument takes none.

    JSON Schema would allow any, and a small model would write them until it is cut off.
    """
    given = function.get("parameters") or {}
    is_open = given.get("properties") or not PLAIN.issuperset(given)
    if is_open or given.get("type", "object") != "object":
        return function
    return {**function, "parameters": None}


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
    return "\n".join(
        [
            "answer: FREE | call" if most == 1 else "answer: call* FREE",
            f"call: opening LINE? body LINE? {json.dumps(CALL_END)}",
            f"opening[lazy]: /(?s:.*){CALL_START}/",
            f"body: {_json(call)}",
            f"FREE: /(?s:.*)/ & ~/(?s:.*){CALL_START}(?s:.*)/",
            "LINE: /\\n/",
        ]
    )


def answer_or_calls(
    schema: Json, tools: Sequence[Json], form: CallForm, *, most: int | None = None
) -> str:
    """The rules of an answer that follows a schema, or calls functions and says nothing else.

    They are in llguidance's Lark and define an `answer`.

    Args:
        schema: of an answer that calls none.
        tools: as chat completions spell them.
        form: how the model's chat template writes a call.
        most: how many calls an answer may have; None for as many as the template can write.
    """
    functions = [tool.get("function", tool) for tool in tools]
    if (shape := _shape(form)) is not None:
        call = {**_call_defs(functions, shape), "$ref": "#/$defs/call"}
        rules = ["answer: reply | call", f"call: {_json(call)}"]
    elif form.between is None:
        names = " | ".join(_literal(form.before + each["name"], form) for each in functions)
        control = ",".join(str(number) for _, number in form.control)
        more = f" (<[{control}]> TEXT)*" if control else ""
        rules = ["answer: reply | call", f"call: ({names}) TEXT{more}", "TEXT: /(?s:.*)/"]
    else:
        rules = _written_rules(functions, form, 1 if form.again is None else most or MOST_CALLS)
    return "\n".join([*rules, f"reply: {_json(schema)}"])


def _written_rules(functions: Sequence[Json], form: CallForm, most: int) -> list[str]:
    """The rules of calls whose arguments are JSON, with a text of the template around them."""

    def choice(start: str) -> str:
        heads = [_literal(f"{start}{each['name']}{form.between}", form) for each in functions]
        return " | ".join(f"{head} given_{n}" for n, head in enumerate(heads))

    more = [f"further: {choice(form.again or '')}"] if most > 1 else []
    repeated = f" further{{0,{most - 1}}}" if most > 1 else ""
    lenient = {"x-guidance": {"lenient": True}}
    given = [_json({**_arguments(each, "#"), **lenient}) for each in functions]
    return [
        f"answer: reply | first{repeated} {_literal(form.after, form)}",
        f"first: {choice(form.before)}",
        *more,
        *(f"given_{n}: {rule}" for n, rule in enumerate(given)),
    ]


def _shape(form: CallForm) -> Json | None:
    """A call that is one JSON object and no more, of the function "name" with the arguments {}."""
    try:
        value = parse_json(f"{form.before}name{form.between}{{}}{form.after}")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _json(schema: Json) -> str:
    """A rule for JSON, written as wherever decoding is constrained."""
    words = {**SEPARATORS, **schema.get("x-guidance", {})}
    return f"%json {json.dumps({**schema, 'x-guidance': words})}"


def _literal(text: str, form: CallForm) -> str:
    """A text as rules spell it; its control tokens are named by their ids."""
    ids = dict(form.control)
    pattern = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    parts = re.split(f"({pattern})", text) if pattern else [text]
    return " ".join(
        f"<[{ids[part]}]>" if part in ids else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part
    )


def _call_defs(functions: Sequence[Json], shape: Json = SHAPE) -> Json:
    """The `$defs` of a schema, `call` among them: a call of one of these functions."""
    places = [f"arguments_{number}" for number in range(len(functions))]
    call = {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    key: {"$ref": f"#/$defs/{place}"}
                    if value == {}
                    else {"const": function["name"] if value == "name" else value}
                    for key, value in shape.items()
                },
                "required": list(shape),
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
        function = {"name": parse_json(head[1]), "arguments": text[head.end() : end]}
        calls.append({"id": call_id(text, len(calls)), "type": "function", "function": function})
        end += len("}")
    return calls
