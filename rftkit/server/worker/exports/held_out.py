"""The rows that an export is compared on: the job's validation rows, else what there is.

Not here: which rows a job may have (`job_files`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.errors import RftkitError
from rftkit.rows import Row
from rftkit.server.store.records import Job
from rftkit.server.worker.exports.source import Source
from rftkit.server.worker.job_files import answers_of, graded_rows, prompts_of

__all__ = ["HeldOut", "held_out"]

MAX_TOKENS = 64
"""Most tokens of an answer, if no job says how long answers are."""
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "Translate to German: good morning.",
    "What is 12 + 7?",
    "Give me a title for a story about a dog.",
    "Is water wet? Answer yes or no.",
    "Say hello to Zoë and 小明.",
)
"""Asked when there are no rows."""


@dataclass(frozen=True)
class HeldOut:
    """Rows and how they are answered."""

    rows: list[Row]
    origin: str
    """Where the rows are from, in words."""
    max_tokens: int
    """Most tokens of an answer, including its end token."""
    grading: dict[str, Any] | None
    """`grader` and `response_format`; None: nothing is graded."""


def held_out(source: Source, num: int) -> HeldOut:
    """At most `num` rows, spread evenly over their file."""
    max_tokens = int(source.plan.get("max_completion_tokens") or MAX_TOKENS)
    if source.job is not None:
        for param, words in (
            ("validation_file", "validation rows"),
            ("training_file", "training rows, which are not held out"),
        ):
            if rows := _rows(source, source.job, param):
                grading = source.job.grading
                return HeldOut(_some(rows, num), words, max_tokens, grading)
    rows = [
        Row({"messages": [{"role": "user", "content": text}]}, line)
        for line, text in enumerate(QUESTIONS, start=1)
    ]
    return HeldOut(_some(rows, num), "fixed questions, because there are no rows", max_tokens, None)


def _rows(source: Source, job: Job, param: str) -> list[Row]:
    """The prompts of a file; none when it is gone or was never given."""
    if not getattr(job, param):
        return []
    try:
        if job.method_type == "reinforcement":
            return prompts_of(source.store, job, param)
        answered = answers_of(source.store, job, param)
        if param == "validation_file":
            return graded_rows(source.store, job, answered)
        return [row.as_row() for row in answered]
    except RftkitError:
        return []


def _some(rows: Sequence[Row], num: int) -> list[Row]:
    num = min(num, len(rows))
    return [rows[place * len(rows) // num] for place in range(num)]
