"""Convert files from one form to another: other data, RFT rows, supervised rows.

Each line is recognised by its keys, independently of the others. A chat that ends with the
assistant gives its last message as `reference_answer`, or as the keys that a grader or a response
format names; so does a preference row with its preferred answer. A prompt (or question, input,
instruction) with an answer (or completion, output, response, ideal) becomes one user message; the
`input` or `context` of an instruction or question is added to it. An eval's `item` becomes the row,
and a `sample` beside it is dropped. A row stays as it is. Every other key is kept. Values that are
not text are written as JSON, and a missing value never becomes a word. Any other line is reported
and left out. A table of any other shape needs `Columns`: which columns are the prompt and which the
answer. For supervised rows, the reference answer of each row becomes its last message
(`answered`). Not here: whether the rows are any good (`check`), and preference rows
(`preferences`).
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from rftkit.datasets.answered import ASSISTANT_KEY, as_supervised, with_reference
from rftkit.datasets.columns import PROMPTS, Columns
from rftkit.datasets.forms import KEYS, answers_in, row_in
from rftkit.datasets.proposals import columns_command, records_of
from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.rowlines import NumberedRow
from rftkit.datasets.unpack import REFUSED, is_document, text_of
from rftkit.datasets.writing import refuse_existing, write_lines
from rftkit.errors import InputError, RowError
from rftkit.examples import form_of
from rftkit.graders import validate
from rftkit.rows import parse_object, parse_row
from rftkit.strictjson import read_documents

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Conversion", "convert"]

ABOUT_SOMETHING = ("instruction", "question", "query")
"""Prompts whose subject may be under another key."""
SUBJECTS = ("input", "context")
ANSWERS = ("reference_answer", "answer", "completion", "output", "response", "ideal", "target")
MAX_LISTED = 100
MAX_SHOWN = 3
Item = dict[str, Any]
Found = tuple[Item, Item | None] | None
"""A row without the answer, and the assistant message with it, if the line has one."""
Target = Literal["rft", "supervised"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did, or would do."""

    source: str
    target: str | None
    """None when nothing was written: for a dry run, or because no line became a row."""
    kinds: dict[str, int]
    """Kind of line -> how many there were."""
    num_rows: int
    """Rows written."""
    num_refused: int
    refused: tuple[str, ...]
    """Why lines were left out, the first hundred."""
    diff: str
    """The first lines of each kind, before and after."""
    num_clashes: int = 0
    """Lines with two different answers; both are kept."""
    clashes: tuple[str, ...] = ()
    """What was done with each, for the first hundred."""
    to: Target = "rft"
    """The form of the rows written."""
    advice: str = ""
    """What to type when no line became a row; empty when there is nothing to propose."""

    def __str__(self) -> str:
        kinds = "; ".join(f"{count:,} {kind}" for kind, count in self.kinds.items()) or "no rows"
        where = f"written to {self.target}" if self.target else "nothing is written"
        if self.num_rows and not self.target:
            where = "a dry run, nothing is written"
        made = "supervised rows" if self.to == "supervised" else "rows"
        lines = [f"{self.num_rows:,} {made} from {self.source} ({kinds}); {where}"]
        if self.num_refused:
            lines.append(f"{self.num_refused:,} lines left out:")
            lines += [f"  {each}" for each in self.refused[:MAX_SHOWN]]
        if self.num_clashes:
            lines.append(f"{self.num_clashes:,} lines with two answers; check them:")
            lines += [f"  {each}" for each in self.clashes[:MAX_SHOWN]]
        if self.advice:
            lines.append(f"→ {self.advice}")
        return "\n".join([*lines, self.diff] if self.diff else lines)


def convert(
    source: str | Path | pd.DataFrame,
    target: str | Path | None,
    *,
    to: Target = "rft",
    response_format: Mapping[str, Any] | None = None,
    grader: Mapping[str, Any] | None = None,
    keep_keys: bool = False,
    columns: Columns | None = None,
) -> Conversion:
    """Turn a file into RFT rows or supervised rows; `preferences` makes preference rows.

    Args:
        source: As for `open`.
        target: The .jsonl file to write; None for a dry run.
        to: `rft` moves the answer of a chat into the keys that graders read, `supervised` moves
            the reference answer of a row into its last message.
        response_format: Names the keys of the answer, if answers are JSON.
        grader: Names the keys that it compares with the answer; a malformed one raises
            GraderSpecError.
        keep_keys: Keep the other keys of supervised rows, which OpenAI refuses.
        columns: Which columns are the prompt and the answer; without it, lines are known by their
            keys.

    Raises:
        InputError: The source cannot be read, lacks a column, or the target exists.
    """
    if target is not None:
        refuse_existing(target)
    spec = validate(grader) if grader is not None else None
    state = _State(_Turn(to, response_format, spec, keep_keys, columns))
    with _opened(source) as rows:
        if columns is not None:
            columns.check(list(dict.fromkeys(k for r in records_of(rows) for k in r)), rows.name)
        lines = state.lines(rows)
        first = list(islice(lines, 1))  # without one there is nothing to write
        written = target if first else None
        lines = chain(first, lines)
        num_rows = sum(1 for _ in lines) if written is None else write_lines(written, lines)
        return Conversion(
            source=rows.name,
            target=None if written is None else str(written),
            kinds=dict(state.kinds),
            num_rows=num_rows,
            num_refused=state.num_refused,
            refused=tuple(state.refused),
            diff="\n".join(state.diffs),
            num_clashes=state.num_clashes,
            clashes=tuple(state.clashes),
            to=to,
            advice=_advice(rows) if not num_rows and columns is None else "",
        )


def _advice(rows: Rows) -> str:
    command = columns_command(rows)
    return f"say which columns are the prompt and the answer: {command}" if command else ""


@contextmanager
def _opened(source: str | Path | pd.DataFrame) -> Iterator[Rows]:
    """Open a source. The objects of a JSON array or of indented JSON count as its lines."""
    if not isinstance(source, str | Path) or not is_document(path := Path(source).expanduser()):
        with open(source) as rows:
            yield rows
        return
    values = read_documents(text_of(path), path)
    with TemporaryDirectory() as folder:
        lines_path = Path(folder) / "rows.jsonl"
        entries = (entry for value in values for entry in _entries(value))
        write_lines(lines_path, (json.dumps(e, ensure_ascii=False).encode() for e in entries))
        with open(lines_path) as rows:
            rows.name = str(source)
            yield rows


def _entries(value: Any) -> list[Any]:
    """The objects of a document: of an array, of a list under the one key of an object, or it."""
    inner = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
    return inner if isinstance(inner, list) and all(isinstance(e, dict) for e in inner) else [value]


class _State:
    """The counts and examples of a conversion so far."""

    def __init__(self, turn: _Turn) -> None:
        self.turn = turn
        self.kinds: Counter[str] = Counter()
        self.num_refused = 0
        self.refused: list[str] = []
        self.num_clashes = 0
        self.clashes: list[str] = []
        self.diffs: list[str] = []

    def lines(self, rows: Rows) -> Iterator[bytes]:
        for each in rows:
            try:
                kind, before, after = self.turn.converted(each, rows.name)
            except RowError as error:
                self.num_refused += 1
                if len(self.refused) < MAX_LISTED:
                    self.refused.append(str(error))
                continue
            if kind not in self.kinds and before != after:
                self.diffs.append(_diff(before, after, f"{rows.name}:{each.line}", kind))
            if clash := _clash(before, after):
                self.num_clashes += 1
                if len(self.clashes) < MAX_LISTED:
                    self.clashes.append(f"{rows.name}:{each.line}: {clash}")
            self.kinds[kind] += 1
            yield json.dumps(after, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class _Turn:
    """What lines are turned into, and what helps to find their answers."""

    to: Target
    response_format: Mapping[str, Any] | None
    grader: Mapping[str, Any] | None
    keep_keys: bool
    columns: Columns | None

    def converted(self, each: NumberedRow, name: str) -> tuple[str, Item, Item]:
        """What a line was taken for, the line, and the row that it becomes."""
        if each.raw.startswith(REFUSED):
            assert each.refusal is not None
            raise each.refusal
        before = each.row.item if each.row else parse_object(each.raw, line=each.line, path=name)
        try:
            kind, after = self._turned(before, each)
        except RowError:
            raise
        except InputError as error:
            raise RowError(error.message, path=name, line=each.line) from None
        return kind, before, after

    def _turned(self, before: Item, each: NumberedRow) -> tuple[str, Item]:
        if self.to == "supervised" and form_of(before) == "supervised":
            row_in("supervised", before, line=each.line, path=None)
            return "supervised rows already", self._without_keys(before)
        kind, after = self._as_rft(before, each)
        return kind, after if self.to == "rft" else self._supervised(after)

    def _as_rft(self, before: Item, each: NumberedRow) -> tuple[str, Item]:
        if self.columns is not None:
            after = self.columns.row(before)
            text = json.dumps(after, ensure_ascii=False)
            return "records of a table", parse_row(text, line=each.line).item
        if each.row is not None:
            return "rows already", before
        for kind, turn in _TURNS.items():
            if (found := turn(before)) is not None:
                rest, answer = found
                after = rest if answer is None else self._with_reference(rest, answer)
                text = json.dumps(after, ensure_ascii=False)
                return kind, parse_row(text, line=each.line).item
        raise InputError(
            f"neither a chat, nor a prompt with an answer, nor an eval item, nor a preference row "
            f"(its keys: {', '.join(sorted(before)) or 'none'})"
        )

    def _with_reference(self, rest: Item, answer: Item) -> Item:
        messages = rest["messages"]
        found = with_reference(
            {key: value for key, value in rest.items() if key != "messages"},
            answer,
            response_format=self.response_format,
            grader=self.grader,
        )
        return {"messages": messages, **found}

    def _supervised(self, item: Item) -> Item:
        return as_supervised(
            item,
            response_format=self.response_format,
            grader=self.grader,
            keep_keys=self.keep_keys,
        )

    def _without_keys(self, item: Item) -> Item:
        return {k: v for k, v in item.items() if self.keep_keys or k in KEYS["supervised"]}


def _from_chat(item: Item) -> Found:
    messages = item.get("messages")
    if not isinstance(messages, list) or len(messages) < 2 or not isinstance(messages[-1], dict):
        return None
    if messages[-1].get("role") != "assistant":
        return None
    if messages[-1].get("weight") == 0:
        raise InputError("the last assistant message has weight 0, so it is no reference answer")
    return {**item, "messages": _unweighted(messages[:-1])}, messages[-1]


def _from_preference(item: Item) -> Found:
    if "messages" in item or form_of(item) != "preference":
        return None
    row = row_in("preference", item, line=0, path=None)
    rest = {k: v for k, v in item.items() if k not in KEYS["preference"]}
    prompt = {**row.item["input"], "messages": _unweighted(row.messages)}
    return {**prompt, **rest}, answers_in(row)[0]


def _unweighted(messages: list[Any]) -> list[Any]:
    """Messages of a prompt, in which a weight has no meaning."""
    return [
        {key: value for key, value in each.items() if key != "weight"}
        if isinstance(each, dict)
        else each
        for each in messages
    ]


def _clash(before: Item, after: Item) -> str | None:
    """What two answers a chat has, when its last message and a key of its own differ."""
    if ASSISTANT_KEY in after and ASSISTANT_KEY not in before:
        return (
            "the last assistant message is not what the row's own keys hold; it is kept as "
            f"`{ASSISTANT_KEY}`"
        )
    inner = before["item"] if isinstance(before.get("item"), dict) else before
    if "messages" not in inner or inner.get("messages") == after["messages"]:
        return None
    said = after.get("reference_answer")
    others = [k for k in (*ANSWERS, "reference") if inner.get(k) not in (None, said)]
    if not others:
        return None
    return (
        f"the last assistant message is not what `{others[0]}` holds; the message became "
        f"`reference_answer`, and `{others[0]}` is kept"
    )


def _from_pair(item: Item) -> Found:
    prompt = next((key for key in PROMPTS if key in item), None)
    if prompt is None or "messages" in item:
        return None
    beside = _beside(prompt, item)
    given = item[prompt]
    if isinstance(given, list) and any(isinstance(each, dict) and "role" in each for each in given):
        messages = given
    else:
        parts = [_written(item[key]) for key in (prompt, *beside)]
        text = "\n\n".join(part for part in parts if part.strip())
        if not text:
            found = "null" if given is None else "empty"
            raise InputError(f"the prompt (`{prompt}`) is {found}; fill it in, or remove the line")
        messages = [{"role": "user", "content": text}]
    answer = next((key for key in ANSWERS if item.get(key) is not None), None)
    if answer is None:  # a null stays null, and `check` names it
        answer = next((key for key in ANSWERS if key in item), None)
    rest = {key: value for key, value in item.items() if key not in (prompt, *beside, answer)}
    reference = {"reference_answer": item[answer]} if answer else {}
    return {"messages": messages} | reference | rest, None


def _beside(prompt: str, item: Item) -> list[str]:
    """Keys whose text belongs to the prompt: what an instruction or a question is about."""
    if prompt not in ABOUT_SOMETHING:
        return []
    keys = [key for key in SUBJECTS if key in item and key != prompt]
    return [key for key in keys if item[key] is None or isinstance(item[key], str | dict | list)]


def _written(value: Any) -> str:
    """A value as the text of a prompt: what is no text as JSON, and what is missing as nothing."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _from_eval(item: Item) -> Found:
    inner = item.get("item")
    if not isinstance(inner, Mapping):
        return None
    inner = dict(inner)
    if _ends_with_user(inner.get("messages")):
        return inner, None
    return _from_chat(inner) or _from_pair(inner)


def _ends_with_user(messages: Any) -> bool:
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    return messages[-1].get("role") == "user"


_TURNS: Mapping[str, Callable[[Item], Found]] = {
    "eval items": _from_eval,
    "preference rows": _from_preference,
    "chats with an answer": _from_chat,
    "prompts with an answer": _from_pair,
}
"""Kind of line -> its row and the message with its answer; None when it is not of that kind."""


def _diff(before: Item, after: Item, where: str, kind: str) -> str:
    old, new = (
        json.dumps(each, ensure_ascii=False, indent=1).splitlines() for each in (before, after)
    )
    return "\n".join(difflib.unified_diff(old, new, where, f"as a row ({kind})", lineterm="", n=2))
