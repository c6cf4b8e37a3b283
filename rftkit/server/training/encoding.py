"""Rows with answers as tokens, before the first step; a row that cannot be trained on is refused.

A row that is longer than the model's context is cut at its end, as the hosted service does; one
that keeps no answer then is left out. Both are counted in an event. Not here: which tokens are
trained (`rftkit.server.engine.prompts`), nor the form of rows (`rftkit.examples`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rftkit.errors import InputError, RowError
from rftkit.examples import Example, Preference
from rftkit.server.engine.base import Engine
from rftkit.server.engine.values import Pair, Text

__all__ = ["Encoded", "encode_rows", "pair_of"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as tokens."""

    line: int
    """Line in its file, from 1."""
    texts: list[Text]
    """Supervised: one or more texts with the answers; dpo: the preferred one, then the other."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the row, prompts included; a prompt counts once for each answer of a pair."""
        return sum(len(text.tokens) for text in self.texts)


def pair_of(example: Encoded, reference: tuple[float, float] = (0.0, 0.0)) -> Pair:
    """The two answers of a preference row."""
    preferred, non_preferred = example.texts
    return Pair(preferred, non_preferred, reference)


def encode_rows(
    engine: Engine,
    rows: Sequence[Example | Preference],
    thinking: str | None,
    path: str,
    warn: Callable[[str], None],
    guard: Callable[[int], contextlib.AbstractContextManager[None]],
) -> list[Encoded]:
    """The rows as tokens.

    Args:
        engine: with the model.
        rows: of one file.
        thinking: the tag that opens the model's reasoning.
        path: of the file, for messages.
        warn: called with a sentence when rows were cut or left out.
        guard: wraps what the chat template does to the row of a line, which may hang.

    Raises:
        RowError: the model's chat template does not take a row, or no row is left.
    """
    encoded, cut, lost = [], [], []
    for row in rows:
        try:
            with guard(row.line):
                texts = _texts(engine, row, thinking)
        except InputError as error:
            raise RowError(error.message, path=path, line=row.line, param="messages") from error
        whole = [_cut(text, engine.context_tokens) for text in texts]
        if whole != texts:
            cut.append(row.line)
        kept = [text for text in whole if any(text.trained)]
        if not kept or (isinstance(row, Preference) and len(kept) < len(texts)):
            lost.append(row.line)
        else:
            encoded.append(Encoded(row.line, kept))
    if cut:
        left_out = f"; {len(lost):,} of them keep no answer and are left out" if lost else ""
        warn(
            f"{len(cut):,} rows of {path} are longer than the model's context of "
            f"{engine.context_tokens:,} tokens, the first at line {cut[0]}: they are cut at their "
            f"end{left_out}"
        )
    if not encoded:
        raise RowError(
            f"no row has an answer within the model's context of {engine.context_tokens:,} tokens",
            path=path,
        )
    return encoded


def _texts(engine: Engine, row: Example | Preference, thinking: str | None) -> list[Text]:
    if isinstance(row, Example):
        return engine.conversation(row.messages, row.trained, row.tools, thinking)
    place = len(row.messages)
    return [
        text
        for answer in (row.preferred, row.non_preferred)
        for text in engine.conversation([*row.messages, answer], [place], row.tools, thinking)
    ]


def _cut(text: Text, num: int) -> Text:
    if len(text.tokens) <= num:
        return text
    return Text(text.tokens[:num], text.trained[:num])
