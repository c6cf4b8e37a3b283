"""The base of all request bodies: strict types, clear refusals, and checks that routes share.

A body is a pydantic model; each refusal becomes one 400 that names the parameter as spelled on the
wire. Several routes share the checks of metadata, messages and response formats. Nothing here needs
the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema

from rftkit.errors import RequestError
from rftkit.rows import ROLES

__all__ = [
    "TEXT_PARTS",
    "Body",
    "Metadata",
    "Open",
    "check_messages",
    "check_neutral",
    "check_response_format",
    "digest_of",
    "kind_of",
    "refusal",
    "text_of",
]


TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Type of a part of a message's content → the field that has its text."""
MAX_KEYS = 1_000
"""Limit of one object in a body: each unknown key or wrong value would be another error."""


def _stop_at_first_error(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for value in schema.values():
            _stop_at_first_error(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            _stop_at_first_error(value)


class Body(BaseModel):
    """A JSON body: no coercion, no NaN, no broken text, no unknown keys.

    Reading a list stops at its first error: only that error is reported, and a million errors would
    take many seconds to build.
    """

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _must_be_storable(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_KEYS:
            raise ValueError(f"it has {len(value):,} keys; at most {MAX_KEYS:,} are allowed")
        if isinstance(value, bytes):
            raise ValueError("not JSON; send it as Content-Type: application/json")  # noqa: TRY004
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(
                "the text has half of a surrogate pair, which is not valid Unicode"
            ) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not valid JSON: {error}") from None
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return Pydantic's schema, with lists that stop at their first error."""
        schema = handler(source)
        _stop_at_first_error(schema)
        return schema


class Open(Body):
    """A body that keeps unknown keys, in `model_extra`."""

    model_config = ConfigDict(extra="allow")


def _metadata(value: dict[str, str]) -> dict[str, str]:
    if len(value) > 16:
        raise ValueError(f"at most 16 pairs are allowed, found {len(value)}")
    for key, text in value.items():
        if len(key) > 64:
            raise ValueError(f"the key {key[:70]!r} is longer than 64 characters")
        if len(text) > 512:
            raise ValueError(f"the value of {key!r} is longer than 512 characters")
    return value


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise ValueError(f"it has {len(value):,} pairs")
    return value


Metadata = Annotated[dict[str, str], AfterValidator(_metadata), BeforeValidator(_few)]


def refusal(errors: Sequence[Any]) -> RequestError:
    """Return the first error of a request, as one sentence and its parameter."""
    error = _first(errors)
    place = [part for part in error["loc"] if part not in ("body", "query", "path")]
    param = _spelled(place)
    name = f"`{param}`" if param else "body"
    match error["type"]:
        case "missing":
            message = f"Missing required parameter: {name if param else 'the body'}."
        case "extra_forbidden":
            message = f"Unrecognized request argument supplied: {param}"
        case "json_invalid":
            param, message = None, f"The body is not valid JSON: {error['ctx']['error']}"
        case "string_pattern_mismatch":  # the message would show a regular expression
            found = kind_of(error.get("input"))
            message = f"Invalid {name}: it has characters that are not allowed; found {found}."
        case "value_error":
            message = f"Invalid {name}: {error['ctx']['error']}"
        case _:
            message = f"Invalid {name}: {error['msg']}; found {kind_of(error.get('input'))}."
    return RequestError(message, param=param)


def _first(errors: Sequence[Any]) -> Any:
    """The first error; where a value may have several types, the one that got furthest."""
    first = errors[0]
    *place, kind = first["loc"] or (None,)
    if not _is_type(kind):
        return first
    same = [each for each in errors if list(each["loc"][: len(place)]) == place]
    return max(same, key=lambda each: len(each["loc"]))


def _is_type(part: Any) -> bool:
    """Whether a part of a place is a type that a value may have, not a field."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)


def _spelled(place: Sequence[int | str]) -> str | None:
    """Return `("messages", 0, "role")` as `messages[0].role`."""
    text = ""
    for part in place:
        if _is_type(part):
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None


def kind_of(value: Any) -> str:
    """Describe a JSON value in words, with its text if that is short."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return str(value)
        case str():
            return repr(value) if len(value) <= 80 else f"{value[:77]!r}…"
        case list():
            return "a list"
        case dict():
            return "an object"
    return type(value).__name__


def digest_of(body: BaseModel) -> str:
    """Return a digest that is the same for equal bodies, in any order of keys."""
    text = json.dumps(body.model_dump(exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_neutral(body: BaseModel, neutral: Mapping[str, Sequence[Any]]) -> None:
    """Refuse parameters that have no effect here, unless they are null or have a neutral value.

    Raises:
        RequestError: naming the parameter.
    """
    for name, allowed in neutral.items():
        value = getattr(body, name)
        if value is not None and value not in allowed:
            raise RequestError(f"`{name}` is not supported by the local platform", param=name)


def check_messages(messages: list[dict[str, Any]], where: str = "messages") -> None:
    """Refuse messages that a text model cannot read.

    Raises:
        RequestError: naming the message.
    """
    if not messages:
        raise RequestError(f"`{where}` is empty; pass at least one message", param=where)
    for index, message in enumerate(messages):
        here = f"{where}[{index}]"
        role = message.get("role")
        if role not in ROLES:
            raise RequestError(
                f"`{here}.role` must be one of {', '.join(ROLES)}, found {kind_of(role)}",
                param=f"{here}.role",
            )
        content = message.get("content")
        if role == "assistant":
            _check_calls(message.get("tool_calls"), f"{here}.tool_calls")
        if content is None and role == "assistant":
            continue
        if text_of(content) is None:
            raise RequestError(
                f"`{here}.content` must be text or a list of text parts, found "
                f"{kind_of(content)}; the models here read text only",
                param=f"{here}.content",
            )


def _check_calls(calls: Any, where: str) -> None:
    """Refuse what a chat template could not show as the calls of an answer."""
    if not isinstance(calls, list | None):
        raise RequestError(f"`{where}` must be a list, found {kind_of(calls)}", param=where)
    for number, call in enumerate(calls or ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            here = f"{where}[{number}]"
            raise RequestError(
                f"`{here}` must be {{id, type: 'function', function: {{name, arguments}}}}; the "
                "models here call functions only",
                param=here,
            )


def text_of(content: Any) -> str | None:
    """Return a text, or parts of text and refusals joined; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [
        part.get(TEXT_PARTS.get(str(part.get("type")), ""))
        for part in content
        if isinstance(part, dict)
    ]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(content) else None


def check_response_format(value: Any, where: str = "response_format") -> dict[str, Any]:
    """Refuse anything but `{type: text | json_object | json_schema, …}`.

    Raises:
        RequestError: naming the field.
    """

    def fail(message: str, field: str = "") -> RequestError:
        return RequestError(message, param=where + field)

    if not isinstance(value, dict):
        raise fail(f"`{where}` must be an object, found {kind_of(value)}")
    kind = value.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise fail(
            f"`{where}.type` must be text, json_object or json_schema, found {kind_of(kind)}",
            ".type",
        )
    if kind == "json_schema":
        given = value.get("json_schema")
        if not isinstance(given, dict):
            raise fail(
                f"`{where}.json_schema` must be an object, found {kind_of(given)}", ".json_schema"
            )
        if not isinstance(given.get("name"), str):
            raise fail(f"`{where}.json_schema.name` must be text", ".json_schema.name")
        if not isinstance(given.get("schema"), dict):
            raise fail(
                f"`{where}.json_schema.schema` must be a JSON schema, found "
                f"{kind_of(given.get('schema'))}",
                ".json_schema.schema",
            )
    return value
