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
from rftkit.graders import types
from rftkit.graders.references import REFERENCE_KEYS
from rftkit.graders.template import lone_path
from rftkit.rows import Row

__all__ = ["BLANKS", "blanks"]

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
    if not any(_text(message.get("content")).strip() for message in row.messages[-1:]):
        yield "empty_prompts"
    yield from _answer_kinds(row)
    kinds = {_kind(row.item[key]) for key in _reference_keys(grader) if key in row.item}
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
    return not any(others) and not _text(answer.get("content")).strip()


def _said(answer: Mapping[str, Any]) -> Any:
    return _text(answer.get("content")), answer.get("tool_calls"), answer.get("function_call")


def _kind(value: Any) -> str | None:
    if value is None:
        return "null_references"
    if not isinstance(value, str):
        return None
    if not value.strip():
        return "empty_references"
    return "padded_references" if value != value.strip() else None


def _reference_keys(grader: Mapping[str, Any] | None) -> frozenset[str]:
    return _keys_of(json.dumps(grader, sort_keys=True, default=str))


@functools.lru_cache(maxsize=16)
def _keys_of(grader: str) -> frozenset[str]:
    """The keys of rows that hold references: the usual ones, and those compared with the answer."""
    keys = set(REFERENCE_KEYS)
    spec = json.loads(grader)
    for leaf in types.parts(spec).values() if spec else ():
        sides = [leaf.get(side) for side in ("input", "reference")]
        paths = [lone_path(side) for side in sides if isinstance(side, str)]
        keys |= {
            str(path.steps[0])
            for path, other in zip(paths, reversed(paths), strict=True)
            if path and path.namespace == "item" and len(path.steps) == 1
            if other and other.namespace == "sample" and other.steps == ("output_text",)
        }
    return frozenset(keys)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or part.get("refusal") or "") for part in content)
    return content or ""
