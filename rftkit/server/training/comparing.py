"""Grading whole groups, for graders that compare the answers of a group with each other.

A group is compared when all its completions have ended, or, in a validation, each answer with its
anchor. An episode that its tools broke off takes no part. Where a grade of a group fails, the whole
group is compared once more; after a kill, a group counts as graded if all of its grades were kept.
Not here: what a comparison is (`rftkit.graders.relative`), nor graders that grade one answer at a
time (`rollout.grade_all`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rftkit.graders import CompiledGrader, Grade, Sample
from rftkit.server.engine.values import Completion
from rftkit.server.training.rollout import (
    ATTEMPTS,
    FinishedCompletion,
    Place,
    failed_episode,
    finished_sample,
)

__all__ = ["Anchor", "Comparison", "compare_all"]

Anchor = Callable[[FinishedCompletion], Completion]
"""The text that a completion is compared with instead of its group."""
Members = list[FinishedCompletion]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is to be compared with what."""

    size: int
    """Completions of a row."""
    anchor: Anchor | None
    """The anchor; None if the completions of a row are compared with each other."""
    known: Callable[[FinishedCompletion], Grade | None]
    """A grade that was given before a kill."""


def compare_all(
    grader: CompiledGrader,
    ended: Iterable[FinishedCompletion],
    response_format: Mapping[str, Any] | None,
    progress: Callable[[FinishedCompletion, Grade], None],
    how: Comparison,
) -> dict[Place, Grade]:
    """The grades by place; the arguments are those of `rollout.grade_all`."""
    grades: dict[Place, Grade] = {}
    groups: Iterable[Members] = _usable(_grouped(ended, how.size), grader, how, grades)
    for _ in range(ATTEMPTS):
        taken: list[Members] = []
        made = grader.grade_groups(
            _samples(groups, response_format, how.anchor, taken),
            progress=functools.partial(_report, taken, progress),
        )
        for members, given in zip(taken, made, strict=True):
            grades.update((each.place, grade) for each, grade in zip(members, given, strict=True))
        groups = [m for m in taken if any(grades[each.place].outcome == "failed" for each in m)]
    return grades


def _grouped(ended: Iterable[FinishedCompletion], size: int) -> Iterator[Members]:
    """The completions of each row, when all have ended."""
    waiting: dict[int, Members] = {}
    for each in ended:
        members = waiting.setdefault(each.place[0], [])
        members.append(each)
        if len(members) == size:
            yield waiting.pop(each.place[0])
    yield from waiting.values()


def _usable(
    groups: Iterable[Members], grader: CompiledGrader, how: Comparison, grades: dict[Place, Grade]
) -> Iterator[Members]:
    """The groups that are still to be compared; other grades go to `grades`."""
    for group in groups:
        broken = [each for each in group if each.completion.failure is not None]
        grades.update((each.place, failed_episode(each.completion, grader)) for each in broken)
        members = [each for each in group if each.completion.failure is None]
        known = {each.place: grade for each in members if (grade := how.known(each)) is not None}
        if len(known) == len(members):
            grades.update(known)
        else:
            yield members


def _samples(
    groups: Iterable[Members],
    response_format: Mapping[str, Any] | None,
    anchor: Anchor | None,
    taken: list[Members],
) -> Iterator[tuple[list[Sample], Any, list[Sample] | None]]:
    """What the grader sees of each group, and of its anchors."""
    for members in groups:
        taken.append(members)
        anchors = None
        if anchor is not None:
            others = [replace(each, completion=anchor(each)) for each in members]
            anchors = [finished_sample(each, response_format) for each in others]
        yield (
            [finished_sample(each, response_format) for each in members],
            members[0].row.item,
            anchors,
        )


def _report(
    taken: Sequence[Members],
    progress: Callable[[FinishedCompletion, Grade], None],
    index: int,
    grades: list[Grade],
) -> None:
    for each, grade in zip(taken[index], grades, strict=True):
        progress(each, grade)
