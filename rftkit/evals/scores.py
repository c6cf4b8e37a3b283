"""What grades add up to, and what a model earns that ignores the question.

Not here: intervals and tests; they belong to comparisons of eval runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from rftkit.graders import Grade, Sample
from rftkit.rows import Row

if TYPE_CHECKING:
    from rftkit.evals.answers import Answer
    from rftkit.graders import CompiledGrader

__all__ = ["best_constant", "score"]

MAX_ROWS = 128
MAX_CANDIDATES = 128

T = TypeVar("T")


def score(
    grades: Sequence[Grade], answers: Sequence[Answer] | None = None
) -> dict[str, float | int | None]:
    """Mean `reward`, mean of each sub-grader by its key, `failed` and `unscorable` counts.

    With the `answers` that were graded, `truncated` counts those that hit their token limit.

    Failed grades are left out of the mean reward; a sub-grader that gave a number nevertheless
    counts it in its own mean. Unscorable answers count with their floor reward, and in each
    sub-grader that could not read them with its lowest one. A mean over nothing is None. The means
    of a job's metric events follow the same rules.
    """
    counted = [grade for grade in grades if grade.outcome != "failed"]
    keys = list(dict.fromkeys(key for grade in grades for key in grade.sub_rewards))
    subs = {key: _mean(_parts(grades, key)) for key in keys}
    return {
        "reward": _mean([grade.reward or 0.0 for grade in counted]),
        **subs,
        "unscorable": sum(grade.outcome == "unscorable" for grade in grades),
        "failed": len(grades) - len(counted),
        **({} if answers is None else {"truncated": sum(each.truncated for each in answers)}),
    }


def _parts(grades: Sequence[Grade], key: str) -> list[float]:
    """The numbers that a sub-grader gave; 0 for an unscorable answer of an older journal."""
    rewards = []
    for grade in grades:
        reward = grade.sub_rewards.get(key)
        if reward is None and grade.outcome == "unscorable":
            reward = 0.0
        if reward is not None:
            rewards.append(reward)
    return rewards


def best_constant(
    grader: CompiledGrader,
    rows: Sequence[Row],
    answers: Sequence[str],
    *,
    response_format: Mapping[str, Any] | None = None,
) -> str | None:
    """Choose the one answer with the highest mean reward over rows; None when none can be graded.

    A tuned model must earn more than that; otherwise it has learned what to answer, but not when.

    Args:
        grader: Grades every answer against every row.
        rows: Training rows, not those that the answer is measured on; 128 of them are used,
            evenly spaced.
        answers: Candidates, such as the reference answers of those rows; 128 are tried.
        response_format: What the answers were written for.
    """
    judged = _spread(rows, MAX_ROWS)
    candidates = _spread(list(dict.fromkeys(answers)), MAX_CANDIDATES)
    samples = [Sample.from_text(each, response_format=response_format) for each in candidates]
    grades = grader.grade_many([(sample, row.item) for sample in samples for row in judged])
    means = {
        candidate: _mean([grade.reward for grade in each if grade.reward is not None])
        for candidate, each in zip(candidates, _chunks(grades, len(judged)), strict=True)
    }
    graded = {candidate: mean for candidate, mean in means.items() if mean is not None}
    return max(graded, key=graded.__getitem__, default=None)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(values: Sequence[T], limit: int) -> list[T]:
    return list(values[:: max(1, -(-len(values) // limit))])


def _chunks(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
