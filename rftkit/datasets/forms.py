"""The three forms of the rows of a file, and the method of the jobs that take each form.

| form | keys | method |
|---|---|---|
| reinforcement | `messages` up to the user's last one, and what graders read | reinforcement |
| supervised | `messages` with the answers to imitate | supervised |
| preference | `input`, `preferred_output` and `non_preferred_output` | dpo |

`main_form` recognises the form of a file, `row_in` checks a row of a form. Not here: the rules
of a row (`rftkit.rows`, `rftkit.examples`), and conversions (`convert`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rftkit.errors import InputError, RowError
from rftkit.examples import (
    EXAMPLE_KEYS,
    PREFERENCE_KEYS,
    SPELLINGS,
    Form,
    example_of,
    form_of,
    preference_of,
)
from rftkit.rows import Row, row_of

__all__ = [
    "KEYS",
    "METHODS",
    "WORDS",
    "AnsweredRow",
    "answers_in",
    "form_for",
    "form_of_row",
    "main_form",
    "row_in",
]

METHODS: Mapping[Form, str] = {
    "reinforcement": "reinforcement",
    "supervised": "supervised",
    "preference": "dpo",
}
"""Form -> `method.type` of the jobs that take it."""
WORDS: Mapping[Form, str] = {
    "reinforcement": "RFT row",
    "supervised": "supervised row",
    "preference": "preference row",
}
"""Form -> what messages call one row."""
KEYS: Mapping[Form, frozenset[str]] = {
    "reinforcement": frozenset({"messages", "tools", "parallel_tool_calls"}),
    "supervised": EXAMPLE_KEYS,
    "preference": PREFERENCE_KEYS | set(SPELLINGS),
}
"""Form -> the keys with a meaning of their own; the others are a row's own."""


class AnsweredRow(Row, frozen=True, gc=False):
    """A supervised or preference row; its `messages` are the prompt, as those of an RFT row are."""

    form: Form = "supervised"
    answers: tuple[dict[str, Any], ...] = ()
    """The assistant messages to learn from: the last one, or the preferred one and the other."""
    length: int = 0
    """How many messages come before the answers."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages before the answers."""
        messages: list[dict[str, Any]] = _holder(self).get("messages") or []
        return messages[: self.length]

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """Functions the model may call, or None."""
        return _holder(self).get("tools")


def _holder(row: AnsweredRow) -> Mapping[str, Any]:
    """The object that has the messages and tools of a row."""
    holder: Mapping[str, Any] = row.item["input"] if row.form == "preference" else row.item
    return holder


def form_of_row(row: Row) -> Form:
    """The form of a row that was checked."""
    return row.form if isinstance(row, AnsweredRow) else "reinforcement"


def answers_in(row: Row) -> tuple[dict[str, Any], ...]:
    """The assistant messages that a row teaches: none, the last one, or the preferred and other."""
    return row.answers if isinstance(row, AnsweredRow) else ()


def form_for(method: str) -> Form:
    """The form that a method takes.

    Raises:
        InputError: There is no such method.
    """
    for form, known in METHODS.items():
        if known == method:
            return form
    raise InputError(f"there is no method {method!r}; there are {', '.join(METHODS.values())}")


def main_form(items: Iterable[Any]) -> Form:
    """The form that most of the lines have; `reinforcement` when none is recognised."""
    counts = Counter(form_of(item) for item in items if isinstance(item, dict))
    return max(METHODS, key=lambda form: counts[form])


def _supervised(item: dict[str, Any], *, line: int = 1, path: str | Path | None = None) -> Row:
    found = example_of(item, line=line, path=path)
    last = found.trained[-1]
    return AnsweredRow(found.item, line, "supervised", (found.messages[last],), last)


def _preference(item: dict[str, Any], *, line: int = 1, path: str | Path | None = None) -> Row:
    found = preference_of(item, line=line, path=path)
    answers = (found.preferred, found.non_preferred)
    return AnsweredRow(found.item, line, "preference", answers, len(found.messages))


_CHECKS: Mapping[Form, Callable[..., Row]] = {
    "reinforcement": row_of,
    "supervised": _supervised,
    "preference": _preference,
}


def row_in(form: Form, item: dict[str, Any], *, line: int, path: str | Path | None) -> Row:
    """Check the object of a line as a row of a form.

    Raises:
        RowError: with file, line and field; a row of another form is also named as what it is.
    """
    try:
        return _CHECKS[form](item, line=line, path=path)
    except RowError as error:
        raise _hinted(error, item, form) from None


def _hinted(error: RowError, item: dict[str, Any], wanted: Form) -> RowError:
    found = form_of(item)
    if found == wanted or not ("messages" in item or "input" in item):
        return error
    hint = (
        f"; this is {_a(WORDS[found])}, which fits method {METHODS[found]}, and the rows of this "
        f"file are {WORDS[wanted]}s"
    )
    if wanted == "reinforcement":
        hint += " (to make RFT rows, type: rftkit dataset convert FILE rows.jsonl)"
    message = error.message.removeprefix(f"{error.path or 'row'}:{error.line}: ")
    return RowError(message + hint, path=error.path, line=error.line, param=error.param)


def _a(words: str) -> str:
    return f"{'an' if words.startswith('RFT') else 'a'} {words}"
