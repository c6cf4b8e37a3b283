"""The choices of a multiple-choice question, as MMLU, ARC, RACE and their relatives have them.

`choices` or `options` is a list of texts, a list of `label` and `text`, `{"text": […], "label":
[…]}`, or `{"A": "…"}`. The prompt gets one line for each, such as `A) Paris`. An answer that is the
number of a choice, counted from 0, becomes its label: the model is asked to choose from labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from rftkit.jsontext import as_text

__all__ = ["choice_lines", "labelled", "named_answer"]

Choices = list[tuple[str, str]]
"""Label and text of each."""
KEYS = ("choices", "options")
ANSWER_KEYS = ("answerKey", "answer_key", "correct_answer", "correct")
"""Keys of the right choice that mean nothing without choices."""


def labelled(item: Mapping[str, Any]) -> Choices:
    """The choices of a question; empty when it has none, or not in a form that is known."""
    for key in KEYS:
        if found := _labelled(item.get(key)):
            return found
    return []


def _labelled(given: Any) -> Choices:
    if isinstance(given, Mapping):
        if isinstance(given.get("text"), list):
            return _paired(given["text"], given.get("label"))
        return [(str(label), as_text(text)) for label, text in given.items() if _is_text(text)]
    if not isinstance(given, list):
        return []
    if all(isinstance(each, Mapping) and "text" in each for each in given):
        return _paired([each["text"] for each in given], [each.get("label") for each in given])
    return _paired(given, None)


def _paired(texts: Sequence[Any], labels: Any) -> Choices:
    """Texts with their labels, or with letters where there are none."""
    if not 2 <= len(texts) <= len(ascii_uppercase) or not all(map(_is_text, texts)):
        return []
    is_given = isinstance(labels, list) and len(labels) == len(texts) and None not in labels
    names = [str(label) for label in labels] if is_given else ascii_uppercase
    return list(zip(names, map(as_text, texts), strict=False))


def _is_text(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number or (isinstance(value, str) and bool(value.strip()))


def choice_lines(choices: Choices) -> str:
    """The lines of a prompt; texts that begin with their labels already stay as they are."""
    has_labels = all(
        text.strip().startswith((f"{label})", f"{label}.", f"{label}:", f"({label})"))
        for label, text in choices
    )
    return "\n".join(text if has_labels else f"{label}) {text}" for label, text in choices)


def named_answer(choices: Choices, answer: Any) -> Any:
    """The label of a choice that is given by its number; any other answer as it is.

    A number that is also a label or the text of a choice may mean that one.
    """
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    if not is_number or not 0 <= answer < len(choices):
        return answer
    is_shown = any(str(answer) in choice for choice in choices)
    return answer if is_shown else choices[answer][0]
