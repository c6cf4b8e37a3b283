"""Missing or useless texts: empty prompts and answers, references that are null or padded.

A grader takes such a value literally: a null becomes the word "null", and "Paris" followed by a
line break is not equal to "Paris". Not here: keys that are missing (`check_item_paths`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rftkit.datasets.forms import answers_in
from rftkit.examples import text_of
from rftkit.graders import types
from rftkit.graders.references import REFERENCE_KEYS
from rftkit.graders.template import lone_path
from rftkit.rows import Row

__all__ = ["BLANKS", "INVISIBLE", "blanks"]

INVISIBLE = "".join(
    map(chr, (0xAD, 0x115F, 0x1160, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F),
              *range(0x2060, 0x2070), 0x2800, 0x3164, 0xFEFF, 0xFFA0))
)  # fmt: skip
"""Characters besides blanks that show nothing."""
_NOTHING = INVISIBLE + "".join(filter(str.isspace, map(chr, range(0x3001))))
Steps = tuple[str | int, ...]

BLANKS = {
    "empty_prompts": (
        "without any text in the prompt",
        "write the prompt, or remove these rows",
    ),
    "null_references": (
        "whose reference is null",
        'a grader would compare with the word "null"; fill it in, or remove the key',
    ),
    "empty_references": (
        "whose reference is empty",
        "if no answer is right, say so in words; otherwise fill it in",
    ),
    "padded_references": (
        "whose reference has blanks or line breaks around it",
        "string_check trims nothing: remove them, or compare with `like`",
    ),
    "empty_answers": (
        "whose answer to learn from is empty",
        "a model would learn to say nothing; write the answer, or remove these rows",
    ),
    "equal_outputs": (
        "whose two outputs are the same",
        "they teach nothing; remove them, or correct one of the two",
    ),
    "late_messages": (
        "with messages after the last answer to learn from",
        "what follows that answer teaches nothing; is a weight wrong, or an answer missing?",
    ),
}
"""Kind -> what the rows are, and what to do."""


def blanks(row: Row, grader: Mapping[str, Any] | None) -> Iterator[str]:
    """Return the kinds of missing text in a row, each once; `grader` has its normal form."""
    if not any(_shown(text_of(message)) for message in row.messages[-1:]):
        yield "empty_prompts"
    yield from _answer_kinds(row)
    found = (_values_at(row.item, steps) for steps in _references(grader))
    kinds = {_kind(value) for values in found for value in values}
    yield from sorted(kind for kind in kinds if kind)


def _answer_kinds(row: Row) -> Iterator[str]:
    answers = answers_in(row)
    if any(_is_silent(answer) for answer in answers):
        yield "empty_answers"
    if len(answers) == 2 and _said(answers[0]) == _said(answers[1]):
        yield "equal_outputs"
    if len(answers) == 1 and row.item["messages"][-1] is not answers[0]:
        yield "late_messages"


def _is_silent(answer: Mapping[str, Any]) -> bool:
    others = (answer.get(key) for key in ("tool_calls", "function_call", "refusal"))
    return not any(others) and not _shown(text_of(answer))


def _said(answer: Mapping[str, Any]) -> Any:
    return text_of(answer), answer.get("tool_calls"), answer.get("function_call")


def _kind(value: Any) -> str | None:
    if value is None:
        return "null_references"
    if _is_empty(value):
        return "empty_references"
    is_padded = isinstance(value, str) and value != _shown(value)
    return "padded_references" if is_padded else None


def _is_empty(value: Any) -> bool:
    """Whether there is nothing to compare with, as in a list of empty texts. A list or an object
    without anything may be what is right.
    """
    if isinstance(value, str):
        return not _shown(value)
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list) or not inner:
        return False
    return all(each is None or _is_empty(each) for each in inner)


def _shown(text: str) -> str:
    """The text without what shows nothing around it."""
    return text.strip(_NOTHING)


def _values_at(item: Any, steps: Steps) -> list[Any]:
    """The value there, as a list of one; empty where the row lacks it."""
    for step in steps:
        try:
            item = item[step]
        except (LookupError, TypeError):
            return []
    return [item]


def _references(grader: Mapping[str, Any] | None) -> frozenset[Steps]:
    return _places_of(json.dumps(grader, sort_keys=True, default=str))


@functools.lru_cache(maxsize=16)
def _places_of(grader: str) -> frozenset[Steps]:
    """Where references are: the usual keys, and what is compared with a part of the answer."""
    places: set[Steps] = {(key,) for key in REFERENCE_KEYS}
    spec = json.loads(grader)
    for leaf in types.parts(spec).values() if spec else ():
        sides = [leaf.get(side) for side in ("input", "reference")]
        paths = [lone_path(side) for side in sides if isinstance(side, str)]
        places |= {
            path.steps
            for path, other in zip(paths, reversed(paths), strict=True)
            if path and path.namespace == "item" and path.steps
            if other and other.namespace == "sample"
        }
    return frozenset(places)
