"""Which command makes rows of a file that has none: guessed from its first records.

The longest text is taken for the prompt, names of identifiers are left alone, and the other columns
are taken for the answer. A guess is only ever shown: nothing is converted by it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rftkit.datasets.columns import PROMPTS, Columns, is_blank, plain_name
from rftkit.datasets.rowfile import FRAME, Rows
from rftkit.datasets.rowlines import NumberedRow
from rftkit.datasets.unpack import REFUSED
from rftkit.errors import RowError
from rftkit.rows import parse_object

__all__ = [
    "columns_command",
    "command_for",
    "convert_command",
    "encoding_command",
    "guess_columns",
    "is_identifier",
    "records_of",
    "target_for",
]

LOOKED_AT = 50
REFERENCE = "reference_answer"
LONGEST = 8
"""With more columns than this nothing is proposed; the user has to choose."""
_PROMPT_NAMES = re.compile(
    r"\b(ticket|text|message|mail|email|body|document|question|prompt|request|comment|review|post|"
    r"content|description|input|invoice|letter|note|sentence|title|subject)s?\b"
)
_ANSWER_NAMES = re.compile(
    r"\b(reason|explanation|answer|label|category|class|verdict|output|result|target|reference|"
    r"summary|score|rating|decision|why|priority|type)s?\b"
)
_IDENTIFIERS = re.compile(r"(^|\b)(id|uuid|guid|key|index|nr|no|number|row|line|unnamed)\b|^$|^#")

Record = Mapping[str, Any]


def command_for(rows: Rows) -> str | None:
    """The command that makes rows of an opened file; None when none would, or none is needed."""
    found = rows.page(0, LOOKED_AT)
    refused = [record for each in found if each.row is None and (record := _record(each))]
    if not refused:
        return None
    first = refused[0]
    if "messages" in first:
        return convert_command(rows.name) if _ends_with_answer(first["messages"]) else None
    if any(key in first for key in PROMPTS) or isinstance(first.get("item"), Mapping):
        return convert_command(rows.name)
    return columns_command(rows) if all(each.row is None for each in found) else None


def encoding_command(rows: Rows) -> str | None:
    """The command that writes a file as UTF-8; None when its first lines are UTF-8.

    It assumes the encoding of western Windows, which spreadsheets use.
    """
    refusals = [str(each.refusal) for each in rows.page(0, LOOKED_AT) if each.refusal]
    if not any("not valid UTF-8" in each for each in refusals):
        return None
    path = Path(rows.name)
    target = str(path.with_name(f"{path.stem}-utf8{path.suffix}"))
    return f"iconv -f windows-1252 -t utf-8 {shlex.quote(str(path))} > {shlex.quote(target)}"


def _ends_with_answer(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def columns_command(rows: Rows) -> str | None:
    """The command that writes a prompt around columns; None when no column holds text."""
    found = guess_columns(records_of(rows))
    return None if found is None else convert_command(rows.name, found)


def records_of(rows: Rows) -> list[dict[str, Any]]:
    """The objects among the first lines, rows or not."""
    return [record for each in rows.page(0, LOOKED_AT) if (record := _record(each))]


def _record(each: NumberedRow) -> dict[str, Any] | None:
    if each.row is not None:
        return each.row.item
    try:
        return None if each.raw.startswith(REFUSED) else parse_object(each.raw)
    except RowError:
        return None


def guess_columns(records: Sequence[Record]) -> Columns | None:
    """Which columns are the prompt and the answer; None when no column holds text."""
    names = list(dict.fromkeys(name for each in records for name in each))
    texts = {name: size for name in names if (size := _size(name, records))}
    if not texts:
        return None
    prompt = max(texts, key=lambda name: texts[name])
    taken = {prompt, "messages", "tools"}
    rest = [name for name in names if name not in taken and not is_identifier(name)]
    answer = tuple(rest) if len(rest) <= LONGEST else ()
    if REFERENCE in rest:  # its name already says what it is
        answer = (REFERENCE,)
    label = plain_name(prompt.replace("_", " "))
    return Columns(f"{label[:1].upper()}{label[1:]}: {{{plain_name(prompt)}}}", answer)


def is_identifier(name: str) -> bool:
    """Whether the name of a column or key shows that it only identifies records."""
    return bool(_IDENTIFIERS.search(_words(name)))


def target_for(name: str) -> str:
    """A name for the rows made of a file, in the same folder."""
    if name.endswith(FRAME):
        return "rows.jsonl"
    path = Path(name)
    return str(path.with_name(f"{path.name.split('.')[0] or 'data'}-rows.jsonl"))


def convert_command(name: str, columns: Columns | None = None, target: str = "") -> str:
    """`rftkit dataset convert …` for a source, as one would type it."""
    source = "FILE" if name.endswith(FRAME) else shlex.quote(name)
    words = ["rftkit dataset convert", source, shlex.quote(target or target_for(name))]
    if columns is not None:
        answer = ",".join(map(plain_name, columns.answer))
        typed = {"--prompt": columns.prompt, "--answer": answer}
        for option, value in (typed | {"--system": columns.system}).items():
            words += [option, shlex.quote(value.replace("\n", "\\n"))] if value else []
    return " ".join(words)


def split_command(name: str, folder: str) -> str:
    """`rftkit dataset split …` for a file of rows, as one would type it."""
    return f"rftkit dataset split {shlex.quote(name)} {shlex.quote(folder)}"


def _size(name: str, records: Sequence[Record]) -> float:
    """Characters of a text column, weighted by its name; 0 for a column that is not text."""
    values = [each[name] for each in records if not is_blank(each.get(name))]
    words = _words(name)
    if not values or is_identifier(name) or not all(isinstance(v, str) for v in values):
        return 0.0
    if set(name) & set("{}"):  # a prompt template cannot name such a column
        return 0.0
    likely = 8.0 if _PROMPT_NAMES.search(words) else 0.2 if _ANSWER_NAMES.search(words) else 1.0
    return likely * sum(map(len, values)) / len(values)


def _words(name: str) -> str:
    return re.sub(r"[_\-.]+|(?<=[a-z])(?=[A-Z])", " ", name).lower()
