"""An answer that somebody hands in, in any of the forms that clients write, as a `Sample`.

Text; an object with `output_text`; a chat completion; a Response, or its list of output items. What
is none of these is an error of that row: an answer that is not there is never graded as an empty
one. An empty text is an answer. Not here: asking a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rftkit.errors import InputError
from rftkit.graders.outcome import Sample

__all__ = ["given_sample"]

FORMS = "text, {output_text}, a chat completion, or a Response"


def given_sample(said: Any, *, response_format: Mapping[str, Any] | None = None) -> Sample:
    """Read an answer that was made elsewhere.

    Raises:
        InputError: it holds no answer; the message says what was found.
    """
    text, calls = _text_and_calls(said)
    model = _at(said, "model")
    sample = Sample.from_text(
        text,
        response_format=response_format,
        tool_calls=calls or None,
        truncated=_is_cut(said),
        model=model if isinstance(model, str) else None,
    )
    choice = _at(_at(said, "choices"), 0)
    if isinstance(messages := _at(choice, "messages"), list):  # a rollout with tools
        [own] = sample.to_dict()["choices"]
        return replace(sample, choices=[{**own, "messages": messages}])
    return sample


def _is_cut(said: Any) -> bool:
    """Whether an answer says of itself that it ended at its token limit."""
    items = said if isinstance(said, list) else ()
    reasons = (
        _at(said, "finish_reason"),
        _at(_at(_at(said, "choices"), 0), "finish_reason"),
        _at(_at(said, "incomplete_details"), "reason"),
        *("length" for each in items if _at(each, "status") == "incomplete"),
    )
    return _at(said, "truncated") is True or any(
        each in ("length", "max_output_tokens") for each in reasons
    )


def _text_and_calls(said: Any) -> tuple[str, list[Any]]:
    if isinstance(said, str):
        return said, []
    if isinstance(said, list):
        return _of_output(said)
    if not isinstance(said, Mapping):
        raise InputError(f"the answer must be {FORMS}; found {_kind(said)}")
    if "output_text" in said:
        calls = _calls(said.get("output_tools"), "output_tools")
        return _text(said["output_text"], "output_text", bool(calls)), calls
    if said.get("choices"):
        return _of_message(_at(_at(said["choices"], 0), "message"))
    if "output" in said:
        return _of_output(said["output"])
    if "content" in said or "tool_calls" in said:
        return _of_message(said)
    keys = ", ".join(map(str, said)) or "none"
    raise InputError(f"the answer must be {FORMS}; found an object with the keys: {keys}")


def _of_message(message: Any) -> tuple[str, list[Any]]:
    if not isinstance(message, Mapping):
        raise InputError(f"`choices[0].message` must be an object, found {_kind(message)}")
    calls = _calls(message.get("tool_calls"), "tool_calls")
    content = message.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if isinstance(content, list):
        content = "".join(map(_of_part, content))
    return _text(content, "content", bool(calls)), calls


def _of_output(output: Any) -> tuple[str, list[Any]]:
    """Output items of a Response: messages and function calls; reasoning is skipped."""
    if not isinstance(output, list) or not all(isinstance(each, Mapping) for each in output):
        raise InputError(f"the output items of a Response must be a list of objects: {FORMS}")
    texts: list[str] = []
    calls: list[Any] = []
    for each in output:
        if each.get("type") == "function_call":
            function = {"name": each.get("name"), "arguments": each.get("arguments")}
            calls.append({"id": each.get("call_id"), "type": "function", "function": function})
        elif each.get("type", "message") == "message":
            content = each.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts += map(_of_part, parts)
    if not texts and not calls:
        raise InputError("the Response has neither a message nor a function call")
    return "".join(texts), calls


def _of_part(part: Any) -> str:
    """The text of one part of a message, or its refusal."""
    said = _at(part, "text")
    return _text(_at(part, "refusal") if said is None else said, "content[].text", False)


def _text(value: Any, name: str, has_calls: bool) -> str:
    if value is None and has_calls:
        return ""
    if not isinstance(value, str):
        raise InputError(f"`{name}` of the answer must be text, found {_kind(value)}")
    return value


def _calls(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(e, Mapping) for e in value):
        raise InputError(f"`{name}` of the answer must be a list of tool calls")
    return list(value)


def _at(value: Any, key: Any) -> Any:
    """Look up one key or index that may be missing."""
    if isinstance(key, int):
        return value[key] if isinstance(value, list | tuple) and key < len(value) else None
    return value.get(key) if isinstance(value, Mapping) else None


def _kind(value: Any) -> str:
    names: dict[type, str] = {type(None): "null", bool: "a boolean", dict: "an object"}
    names |= {list: "a list", str: "text", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
