"""Convert files from one form to another: other data, RFT rows, supervised rows.

Each line is recognised by its keys, independently of the others (`linekinds`). A row stays as it
is. Any line that is not recognised is reported and left out. A table of any other shape needs
`Columns`: which columns are the prompt and which the answer. For supervised rows, the reference
answer of each row becomes its last message (`answered`). Not here: whether the rows are any good
(`check`), and preference rows (`preferences`).
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rftkit.datasets.answered import ASSISTANT_KEY, as_supervised, with_reference
from rftkit.datasets.columns import Columns
from rftkit.datasets.documents import opened
from rftkit.datasets.forms import KEYS, row_in
from rftkit.datasets.linekinds import ANSWERS, KINDS, Item
from rftkit.datasets.proposals import columns_command, records_of
from rftkit.datasets.rowfile import Rows
from rftkit.datasets.rowlines import NumberedRow
from rftkit.datasets.unpack import REFUSED
from rftkit.datasets.writing import refuse_existing, write_lines
from rftkit.errors import InputError, RowError
from rftkit.examples import form_of
from rftkit.graders import validate
from rftkit.rows import parse_object, parse_row

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Conversion", "convert"]

MAX_LISTED = 100
MAX_SHOWN = 3
Target = Literal["rft", "supervised"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did, or would do."""

    source: str
    target: str | None
    """The file that was written; None for a dry run, or if no line became a row."""
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
    """How each conflict was resolved, for the first hundred."""
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
    with opened(source) as rows:
        if columns is not None:
            columns.check(list(dict.fromkeys(k for r in records_of(rows) for k in r)), rows.name)
        lines = state.lines(rows)
        first = list(islice(lines, 1))  # no lines: nothing to write
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
        """The form that a line was recognised as, the line, and the row that it becomes."""
        if each.raw.startswith(REFUSED):
            assert each.refusal is not None
            raise each.refusal
        before = each.row.item if each.row else parse_object(each.raw, line=each.line, path=name)
        try:
            kind, after = self._turned(before, each)
        except InputError as error:
            words = error.message
            if isinstance(error, RowError):  # of a part of the line, which knows no file
                words = words.removeprefix(f"row:{error.line}: ")
            raise RowError(words, path=name, line=each.line, param=error.param) from None
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
        for kind, read in KINDS.items():
            if (found := read(before)) is not None:
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


def _clash(before: Item, after: Item) -> str | None:
    """Describe the conflict when a chat's last message and its own answer key differ."""
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


def _diff(before: Item, after: Item, where: str, kind: str) -> str:
    old, new = (
        json.dumps(each, ensure_ascii=False, indent=1).splitlines() for each in (before, after)
    )
    return "\n".join(difflib.unified_diff(old, new, where, f"as a row ({kind})", lineterm="", n=2))
