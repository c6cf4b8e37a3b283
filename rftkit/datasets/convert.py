"""Other people's files as RFT rows: chat examples, tables of prompts and answers, eval items.

What comes in is known by its keys, and each line by itself: a chat that ends with the assistant
gives its last message as `reference_answer`; a prompt (or question, input, instruction) with an
answer (or completion, output, response, ideal) becomes one user message; an eval's `item` becomes
the row (a `sample` beside it is left behind); a row stays as it is. Every other key is kept. A line
that is none of these is named and left out. Not here: whether the rows are any good (`check`).
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.rowlines import NumberedRow
from rftkit.datasets.unpack import REFUSED
from rftkit.datasets.writing import refuse_existing, write_lines
from rftkit.errors import RowError
from rftkit.rows import parse_object, parse_row

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Conversion", "convert"]

PROMPTS = ("prompt", "question", "input", "instruction", "query")
ANSWERS = ("reference_answer", "answer", "completion", "output", "response", "ideal", "target")
MAX_LISTED = 100
MAX_SHOWN = 3
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did, or would do."""

    source: str
    target: str | None
    """None for a dry run."""
    kinds: dict[str, int]
    """What lines were taken for -> how many."""
    num_rows: int
    """Rows made."""
    num_refused: int
    refused: tuple[str, ...]
    """Why lines were left out, the first hundred."""
    diff: str
    """The first lines of each kind, before and after."""

    def __str__(self) -> str:
        kinds = "; ".join(f"{count:,} {kind}" for kind, count in self.kinds.items()) or "no rows"
        where = f"written to {self.target}" if self.target else "a dry run, nothing is written"
        lines = [f"{self.num_rows:,} rows from {self.source} ({kinds}); {where}"]
        if self.num_refused:
            lines.append(f"{self.num_refused:,} lines left out:")
            lines += [f"  {each}" for each in self.refused[:MAX_SHOWN]]
        return "\n".join([*lines, self.diff] if self.diff else lines)


def convert(source: str | Path | pd.DataFrame, target: str | Path | None) -> Conversion:
    """Turn a file into RFT rows.

    Args:
        source: As for `open`.
        target: The .jsonl file to write; None for a dry run.

    Raises:
        InputError: The source cannot be read, or the target is there already.
    """
    if target is not None:
        refuse_existing(target)
    state = _State()
    with open(source) as rows:
        lines = state.lines(rows)
        num_rows = sum(1 for _ in lines) if target is None else write_lines(target, lines)
        return Conversion(
            source=rows.name,
            target=None if target is None else str(target),
            kinds=dict(state.kinds),
            num_rows=num_rows,
            num_refused=state.num_refused,
            refused=tuple(state.refused),
            diff="\n".join(state.diffs),
        )


class _State:
    """What a conversion has seen so far."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.num_refused = 0
        self.refused: list[str] = []
        self.diffs: list[str] = []

    def lines(self, rows: Rows) -> Iterator[bytes]:
        for each in rows:
            try:
                kind, before, after = _converted(each, rows.name)
            except RowError as error:
                self.num_refused += 1
                if len(self.refused) < MAX_LISTED:
                    self.refused.append(str(error))
                continue
            if kind not in self.kinds and before != after:
                self.diffs.append(_diff(before, after, f"{rows.name}:{each.line}", kind))
            self.kinds[kind] += 1
            yield json.dumps(after, ensure_ascii=False).encode()


def _converted(each: NumberedRow, name: str) -> tuple[str, Item, Item]:
    if each.row is not None:
        return "rows already", each.row.item, each.row.item
    if each.raw.startswith(REFUSED):
        assert each.refusal is not None
        raise each.refusal
    before = parse_object(each.raw, line=each.line, path=name)
    for kind, turn in _TURNS.items():
        if (after := turn(before)) is not None:
            text = json.dumps(after, ensure_ascii=False)
            return kind, before, parse_row(text, line=each.line, path=name).item
    raise RowError(
        f"neither a chat, nor a prompt with an answer, nor an eval item (its keys: "
        f"{', '.join(sorted(before)) or 'none'})",
        path=name,
        line=each.line,
    )


def _from_chat(item: Item) -> Item | None:
    messages = item.get("messages")
    if not isinstance(messages, list) or len(messages) < 2 or not isinstance(messages[-1], dict):
        return None
    last = messages[-1]
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        return None
    rest = {key: value for key, value in item.items() if key != "messages"}
    return {"messages": messages[:-1], "reference_answer": last["content"]} | rest


def _from_pair(item: Item) -> Item | None:
    prompt = next((key for key in PROMPTS if key in item), None)
    if prompt is None or "messages" in item:
        return None
    given = item[prompt]
    messages = given if isinstance(given, list) else [{"role": "user", "content": str(given)}]
    answer = next((key for key in ANSWERS if key in item), None)
    rest = {key: value for key, value in item.items() if key not in (prompt, answer)}
    return {"messages": messages} | ({"reference_answer": item[answer]} if answer else {}) | rest


def _from_eval(item: Item) -> Item | None:
    inner = item.get("item")
    if not isinstance(inner, Mapping):
        return None
    inner = dict(inner)
    if _ends_with_user(inner.get("messages")):
        return inner
    return _from_chat(inner) or _from_pair(inner)


def _ends_with_user(messages: Any) -> bool:
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    return messages[-1].get("role") == "user"


_TURNS: Mapping[str, Callable[[Item], Item | None]] = {
    "eval items": _from_eval,
    "chats with an answer": _from_chat,
    "prompts with an answer": _from_pair,
}
"""Kind of line -> how it becomes a row; None when it is not of that kind."""


def _diff(before: Item, after: Item, where: str, kind: str) -> str:
    old, new = (
        json.dumps(each, ensure_ascii=False, indent=1).splitlines() for each in (before, after)
    )
    return "\n".join(difflib.unified_diff(old, new, where, f"as a row ({kind})", lineterm="", n=2))
