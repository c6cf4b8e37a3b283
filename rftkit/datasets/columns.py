"""Rows from the columns of a table: a prompt is written around some, and others are the answer.

A prompt names columns in braces, as in `Ticket: {ticket}`; `{{ticket}}` and `{{item.ticket}}` mean
the same, and braces around what cannot be a name, as in `{"category": …}`, are plain text. The
columns of the answer keep their names, because graders read them as `item.<name>`; together they
are also the row's `reference_answer`: one as its text, several as JSON. All other columns stay in
the row, except those that the prompt holds already. Line breaks and spaces at the ends of a name,
as spreadsheets have them, do not count. Not here: files (`convert`, `proposals`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.errors import InputError, nearest_name
from rftkit.jsontext import as_text

__all__ = ["PROMPTS", "Columns", "answer_names", "is_blank", "named_in", "plain_name"]

PROMPTS = ("prompt", "instruction", "question", "query", "input")
"""Columns and keys that are a prompt by themselves."""
OWN_KEYS = ("messages", "reference_answer")
_SLOT = re.compile(r"\{\{?[^\S\n]*([^{}]+?)[^\S\n]*\}?\}")
_NAME = re.compile(r"[\w .\-/#%&()]+")
"""A word that could be the name of a column; JSON in a prompt has quotes and colons."""

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """How the records of a table become rows."""

    prompt: str
    """The user's message, with columns in braces."""
    answer: tuple[str, ...] = ()
    """Columns with the right answer."""
    system: str = ""
    """The system message; empty for none."""

    def check(self, known: Sequence[str], source: str) -> None:
        """Check that the source has the columns that are named here.

        Raises:
            InputError: names the column and the one that was probably meant.
        """
        if not self.prompt.strip():
            raise InputError("the prompt is empty; write one such as 'Ticket: {ticket}'")
        if "messages" in known:
            raise InputError(
                f"{source} has `messages`, so its lines have a prompt already; leave out --prompt"
            )
        for name in [*named_in(self.prompt, known), *self.answer]:
            if _known(name, known) not in known:
                hint = nearest_name(name, known)
                columns = "" if hint.startswith("there") else f" Its columns: {', '.join(known)}"
                raise InputError(f"{source} has no column {name!r}; {hint}{columns}")
        if not named_in(self.prompt, known):
            raise InputError(
                f"the prompt names no column, so all rows would be the same; write one in braces, "
                f"such as {{{known[0] if known else 'text'}}}"
            )

    def row(self, record: Record) -> dict[str, Any]:
        """A record as a row.

        Raises:
            InputError: The record has nothing in the columns of the prompt, or lacks a column.
        """
        used = named_in(self.prompt, list(record))
        wanted = [_known(name, list(record)) for name in self.answer]
        for name in (*used, *wanted):
            if name not in record:
                raise InputError(f"there is no {name!r} (its keys: {', '.join(record) or 'none'})")
        if all(is_blank(record[name]) for name in used):
            raise InputError(f"nothing in {' and '.join(map(repr, used))}, so there is no prompt")
        said = [{"role": "user", "content": _filled(self.prompt, record)}]
        if self.system.strip():
            said.insert(0, {"role": "system", "content": self.system})
        answers = {_key(name, record): record[name] for name in wanted}
        taken = {*used, *wanted, *OWN_KEYS}
        rest = {_key(name, record): v for name, v in record.items() if name not in taken}
        return {"messages": said} | answers | _reference(answers) | rest


def named_in(prompt: str, known: Sequence[str]) -> list[str]:
    """The columns that a prompt names, each once: known columns, and words that look like names."""
    found = (_column(each[1], known) for each in _SLOT.finditer(prompt))
    return list(dict.fromkeys(name for name in found if name in known or _NAME.fullmatch(name)))


def answer_names(words: str, known: Sequence[str]) -> tuple[str, ...]:
    """`category,reason` as names; a name may hold commas if a column is called so."""
    names, parts = dict[str, None](), words.split(",")
    while parts:
        joined = (",".join(parts[:size]).strip() for size in range(len(parts), 1, -1))
        name = next((each for each in joined if _known(each, known) in known), parts[0].strip())
        parts = parts[name.count(",") + 1 :]
        names |= {name: None} if name else {}
    return tuple(names)


def plain_name(name: str) -> str:
    """The name of a column on one line, without spaces at its ends."""
    return " ".join(name.split())


def is_blank(value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _known(name: str, known: Sequence[str]) -> str:
    """The column with this name, or the name itself if there is no such column."""
    if name in known:
        return name
    return next((each for each in known if plain_name(each) == plain_name(name)), name)


def _key(name: str, record: Record) -> str:
    """The key of a column in a row."""
    plain = plain_name(name)
    return name if plain in record else plain


def _column(name: str, known: Sequence[str]) -> str:
    found = (_known(each, known) for each in (name, name.removeprefix("item.")))
    return next((each for each in found if each in known), name)


def _filled(prompt: str, record: Record) -> str:
    names = list(record)

    def value(slot: re.Match[str]) -> str:
        name = _column(slot[1], names)
        return _text(record[name]) if name in record else slot[0]

    return _SLOT.sub(value, prompt)


def _reference(answers: Record) -> dict[str, Any]:
    if not answers or all(map(is_blank, answers.values())):
        return {}
    if len(answers) == 1:
        return {"reference_answer": next(iter(answers.values()))}
    return {"reference_answer": json.dumps(dict(answers), ensure_ascii=False)}


def _text(value: Any) -> str:
    return "" if is_blank(value) else as_text(value)
