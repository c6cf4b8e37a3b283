"""The job's grader on both sides: what the platform's answers earn, and what the export's earn.

A failed grade is never a zero: such a row is left out of the means and counted. Not here: what an
answer is (`reference`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rftkit import settings
from rftkit.graders import CompletionCall, compile_grader, completion_call
from rftkit.graders.relative import NO_GROUP, needs_group
from rftkit.graders.types import parts, spec_type
from rftkit.server.engine.values import Completion
from rftkit.server.training.rollout import FinishedCompletion, grade_all
from rftkit.server.worker.exports.held_out import HeldOut
from rftkit.t_distribution import t_quantile

__all__ = ["Rewards", "difference", "grade_both"]

LEVEL = 0.95


@dataclass(frozen=True)
class Rewards:
    """Mean rewards of the same rows."""

    graded: int
    """Rows with a grade on both sides."""
    failed: int
    """Rows whose grader broke on a side."""
    before: float | None
    """The mean reward of the platform's answers; None if nothing was graded."""
    after: float | None
    """The mean reward of the export's answers."""
    change: tuple[float, float, float] | None
    """Mean difference and its 95 % interval; None with fewer than two rows."""

    @property
    def drop(self) -> str | None:
        """A sentence if the whole interval is below zero, which means that the export
        earns less.
        """
        if self.change is None or self.change[2] >= 0:
            return None
        mean, low, high = self.change
        return (
            f"the graded reward falls from {self.before:.3f} to {self.after:.3f} on {self.graded} "
            f"rows (difference {mean:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The rewards, for the report."""
        return asdict(self)


def grade_both(
    rows: HeldOut, before: Sequence[tuple[str, bool]], after: Sequence[tuple[str, bool]]
) -> Rewards | str:
    """Grade (text, whether it ended) of each row on both sides; or say why it cannot be.

    Raises:
        RftkitError: the grader cannot run on this machine.
    """
    if rows.grading is None:
        return "the model was trained without a grader"
    spec = rows.grading["grader"]
    if any(map(needs_group, parts(spec).values())):
        return NO_GROUP
    if (complete := _judge()) is None and (need := _needs_judge(spec)):
        return f"its grader {need}; set RFTKIT_JUDGE_BASE_URL where the server starts"
    with compile_grader(spec, complete=complete) as grader:
        finished = [
            FinishedCompletion((index, side), row, _completion(*said[index]))
            for index, row in enumerate(rows.rows)
            for side, said in enumerate((before, after))
        ]
        grades = grade_all(
            grader, finished, rows.grading.get("response_format"), lambda each, grade: None
        )
    pairs = [(grades[index, 0].reward, grades[index, 1].reward) for index in range(len(rows.rows))]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return Rewards(
        len(known),
        len(pairs) - len(known),
        _mean([a for a, _ in known]),
        _mean([b for _, b in known]),
        difference([b - a for a, b in known]),
    )


def difference(values: Sequence[float]) -> tuple[float, float, float] | None:
    """The mean of paired differences and its interval by Student's t; None below two rows."""
    num = len(values)
    if num < 2:
        return None
    mean = math.fsum(values) / num
    variance = math.fsum((value - mean) ** 2 for value in values) / (num - 1)
    half = t_quantile(0.5 + LEVEL / 2, num - 1) * math.sqrt(variance / num)
    return mean, mean - half, mean + half


def _completion(text: str, ended: bool) -> Completion:
    return Completion([], text, [], "stop" if ended else "length")


def _needs_judge(spec: dict[str, Any]) -> str | None:
    for part in parts(spec).values():
        if spec_type(part).asks_judge:
            return "asks a judge"
        if part.get("evaluation_metric") == "cosine":
            return "compares embeddings"
    return None


def _judge() -> CompletionCall | None:
    judge = settings.judge()
    if judge.base_url is None:
        return None
    import openai

    return completion_call(openai.OpenAI(base_url=judge.base_url, api_key=judge.api_key or "none"))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
