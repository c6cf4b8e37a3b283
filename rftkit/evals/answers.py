"""Ask a model the prompts of a dataset, many at once. Not here: grading, comparing, statistics.

A request that fails is kept as what it is, an answer that never came; it is not an empty text and
earns no zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.graders import Sample
from rftkit.rows import Row

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Answer", "ask"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one row, or why it said nothing."""

    text: str | None
    """None when the request failed."""
    sample: Sample | None
    """The same, ready for `grade`; None when the request failed."""
    error: str | None = None
    """Why the request failed."""


def ask(
    client: OpenAI,
    model: str,
    rows: Sequence[Row],
    *,
    response_format: Mapping[str, Any] | None = None,
    concurrency: int = 32,
    **options: Any,
) -> list[Answer]:
    """Ask every row once; the answers come in the order of the rows.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        model: A base model, a checkpoint or a fine-tuned model.
        rows: What to ask.
        response_format: Constrains the answers, as it did in training.
        concurrency: Requests on the way at the same time.
        options: More of `chat.completions.create`; `temperature=0` gives the likeliest answer.
    """
    if response_format is not None:
        options["response_format"] = response_format

    def one(row: Row) -> Answer:
        return _ask(client, model, row, response_format, options)

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, rows))


def _ask(
    client: OpenAI,
    model: str,
    row: Row,
    response_format: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> Answer:
    from openai import OpenAIError

    if row.tools:
        options = {**options, "tools": row.tools}
    messages: Any = row.messages
    try:
        reply = client.chat.completions.create(model=model, messages=messages, **options)
    except OpenAIError as error:
        return Answer(text=None, sample=None, error=str(error))
    choice = reply.choices[0]
    text = choice.message.content or ""
    sample = Sample.from_text(
        text,
        response_format=response_format,
        truncated=choice.finish_reason == "length",
        tool_calls=[call.to_dict() for call in choice.message.tool_calls or []],
    )
    return Answer(text=text, sample=sample)
