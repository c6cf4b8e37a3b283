"""The answer of a row, moved: into the last message, and back into the keys that a grader reads.

The answer is the one that guidance by references gives a model: `graders.reference_answer`. Not
here: reading files (`convert`), and pairs of answers (`preferences`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rftkit.datasets.forms import KEYS
from rftkit.errors import InputError
from rftkit.examples import text_of
from rftkit.graders import reference_answer, types
from rftkit.graders.template import lone_path
from rftkit.jsontext import parse_json

__all__ = ["ASSISTANT_KEY", "as_prompt", "as_supervised", "with_reference"]

ASSISTANT_KEY = "assistant_answer"
"""Keeps the last message of a chat that has another `reference_answer` of its own."""
Item = dict[str, Any]


def as_supervised(
    item: Mapping[str, Any],
    *,
    response_format: Mapping[str, Any] | None = None,
    grader: Mapping[str, Any] | None = None,
    keep_keys: bool = False,
) -> Item:
    """An RFT row as a supervised row: its reference answer becomes the last message.

    Args:
        item: The row.
        response_format: What the answer is written for.
        grader: Its spec, normalised; what it looks for is the answer.
        keep_keys: Keep the row's other keys, which OpenAI refuses.

    Raises:
        InputError: The row has no reference answer, or it has tools.
    """
    if item.get("tools"):
        raise InputError(
            "the row has tools, and no reference answer says which calls are right; write the "
            "assistant messages by hand"
        )
    answer = reference_answer(item, response_format, grader=grader)
    if answer is None:
        raise InputError(
            "the row has no reference answer: expected a key such as `reference_answer`, or pass "
            "the grader (-g) and the response format (-f) that say which keys are the answer"
        )
    messages = [*item["messages"], {"role": "assistant", "content": answer}]
    return {**_kept(item, keep_keys), "messages": messages}


def as_prompt(item: Mapping[str, Any]) -> Item:
    """An RFT row as the `input` of a preference row."""
    return {**_kept(item, keep_keys=False), "messages": list(item["messages"])}


def with_reference(
    item: Mapping[str, Any],
    answer: Mapping[str, Any],
    *,
    response_format: Mapping[str, Any] | None = None,
    grader: Mapping[str, Any] | None = None,
) -> Item:
    """An RFT row with the answer under the keys that hold it.

    These are the keys that the grader compares with the answer, and the properties of the response
    format; without either, `reference_answer`.

    Args:
        item: The row, without the answer.
        answer: The assistant message.
        response_format: What the answer is written for.
        grader: Its spec, normalised.

    Raises:
        InputError: The answer calls functions, or says nothing.
    """
    if answer.get("tool_calls") or answer.get("function_call"):
        raise InputError(
            "the answer calls functions, and no key of an RFT row holds calls; write what the "
            "grader needs into keys of the row by hand"
        )
    text = text_of(answer)
    if not text.strip():
        raise InputError("the answer is empty; write it, or remove the line")
    found: Item = {}
    for steps, value in _places(text, response_format, grader):
        _put(found, steps, value)
    found = found or {"reference_answer": text}
    made = {**item, **{key: value for key, value in found.items() if item.get(key) is None}}
    # they contradict each other: keep both
    if any(made[key] != value for key, value in found.items()):
        made[ASSISTANT_KEY] = text
    return made


def _kept(item: Mapping[str, Any], keep_keys: bool) -> Item:
    return {key: value for key, value in item.items() if keep_keys or key in KEYS["supervised"]}


def _places(
    text: str, response_format: Mapping[str, Any] | None, grader: Mapping[str, Any] | None
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(place in the row, value) for everything that the answer says about the row."""
    value = _json_of(text)
    for sample, item in _compared(grader):
        if sample[0] == "output_text":
            yield item, text
        elif value is not None and sample[0] == "output_json":
            inner = _inner(value, sample[1:])
            if inner is not None:
                yield item, inner
    schema = ((response_format or {}).get("json_schema") or {}).get("schema") or {}
    properties = list(schema.get("properties") or {})
    if isinstance(value, dict) and properties and all(key in value for key in properties):
        yield from (((key,), value[key]) for key in properties)


def _compared(
    grader: Mapping[str, Any] | None,
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """(place in the sample, place in the row) that a leaf of the grader compares."""
    for leaf in types.parts(grader or {}).values() if grader else ():
        if not types.spec_type(leaf).compares or leaf.get("operation") == "ne":
            continue
        paths = [lone_path(leaf[side]) for side in ("input", "reference")]
        for one, other in (paths, paths[::-1]):
            if one and other and one.namespace == "sample" and other.namespace == "item":
                yield one.steps, other.steps


def _put(found: Item, steps: tuple[Any, ...], value: Any) -> None:
    *folders, last = [str(step) for step in steps]
    for step in folders:
        found = found.setdefault(step, {})
        if not isinstance(found, dict):
            return
    found.setdefault(last, value)


def _inner(value: Any, steps: tuple[Any, ...]) -> Any:
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _json_of(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
