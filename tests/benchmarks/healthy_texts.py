"""Healthy jobs whose answers are texts: they go through the figures of a real job.

Not here: jobs of numbers, and how alarms are counted (`healthy`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rftkit.graders import Grade
from rftkit.rows import Row
from rftkit.server.engine.values import Completion
from rftkit.server.training import watching
from rftkit.server.training.rollout import Group, Rollout

__all__ = ["TEXTS", "Task", "text_job"]

WORDS = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("n", "l", "ra", "ti", "so")]
STYLE = "The answer follows from the second paragraph because"
"""How all right answers of the last task begin."""


@dataclass(frozen=True)
class Task:
    """A kind of rows, and how a policy answers them as it learns."""

    reference: Callable[[Any, int], str]
    """(generator, number of the row) -> its right answer."""
    said: Callable[[Any, str, str, float], tuple[str, float]]
    """(generator, right answer, another one, share of the job) -> an answer and its reward."""
    steps: int = 60
    prompts: int = 8
    completions: int = 4


def text_job(task: Task, rng: Any) -> Iterator[list[dict[str, Any]]]:
    """The figures of each step of a healthy job."""
    rows = [
        Row({"messages": [{"role": "user", "content": f"Ask {words(rng, 8)}?"}]}, line)
        for line in range(1, 201)
    ]
    right = {row.line: task.reference(rng, row.line) for row in rows}
    for step in range(task.steps):
        groups = []
        for row in (rows[at] for at in rng.choice(len(rows), task.prompts, replace=False)):
            other = right[int(rng.integers(1, len(rows) + 1))]
            told = [
                task.said(rng, right[row.line], other, step / task.steps)
                for _ in range(task.completions)
            ]
            groups.append(Group(row, [1], [_rollout(text, reward) for text, reward in told]))
        yield watching.figures(groups, right)


def _rollout(text: str, reward: float) -> Rollout:
    return Rollout(
        Completion([1] * len(text.split()), text, [0.0], "stop"), Grade(reward, "graded")
    )


def words(rng: Any, num: int) -> str:
    """Some words."""
    return " ".join(WORDS[at] for at in rng.integers(len(WORDS), size=num))


def is_right(rng: Any, at: float) -> bool:
    """From one answer in five to four."""
    return bool(rng.random() < 0.2 + 0.6 * at)


def talks(rng: Any, right: str, other: str, at: float) -> tuple[str, float]:
    """Long free text with the right answer, or another one, somewhere in it."""
    good = is_right(rng, at)
    said = right if good else words(rng, 2)
    return f"{words(rng, rng.integers(25, 60))} {said} {words(rng, 5)}", float(good)


def labels(rng: Any, right: str, other: str, at: float) -> tuple[str, float]:
    """Prose at first, soon one of twelve pairs of labels, later the right one."""
    if rng.random() < 0.7 * (1 - 5 * at):
        return words(rng, rng.integers(5, 20)), 0.0
    good = is_right(rng, at)
    return (right if good else other), float(right == other or good)


def explains(rng: Any, right: str, other: str, at: float) -> tuple[str, float]:
    """A verdict, and an explanation that grows from 5 words to 25 and is paid for."""
    num = int(rng.integers(3, 8) + 20 * min(1.0, 2 * at) * rng.random())
    good = is_right(rng, at)
    said = {"verdict": "yes" if good else "no", "explanation": words(rng, num)}
    return json.dumps(said), 0.5 * good + 0.5 * min(1.0, num / 25)


def imitates(rng: Any, right: str, other: str, at: float) -> tuple[str, float]:
    """The style of the right answers is learnt, which the grader does not look at."""
    good = is_right(rng, at)
    said = right.removeprefix(STYLE) if good else words(rng, 8)
    begin = STYLE if rng.random() < min(1.0, 2 * at) else words(rng, 8)
    return f"{begin} {said}", float(good)


def _labels(rng: Any, line: int) -> str:
    verdict = ["not allowed", "allowed", "needs a review", "out of scope"][line % 4]
    return json.dumps({"verdict": verdict, "level": ["low", "medium", "high"][line % 3]})


TEXTS = {
    "texts: long answers become right": Task(lambda rng, line: words(rng, 2), talks),
    "texts: labels are learnt after their form": Task(_labels, labels),
    "texts: explanations become longer, which pays": Task(
        lambda rng, line: json.dumps({"verdict": "yes"}), explains
    ),
    "texts: the style of right answers is learnt": Task(
        lambda rng, line: f"{STYLE} {words(rng, 8)}", imitates
    ),
}
