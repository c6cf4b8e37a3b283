"""A second grader, which training never sees: it grades some answers of each step, to be watched.

Its grades are part of the step's record, so that a replayed step has them too. One that fails is
missing, and an event says once that none of a step was given. Not here: what is made of them
(`watching`, `rftkit.diagnosis.alarms`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from rftkit.graders import Grade
from rftkit.server.training.context import RftRun
from rftkit.server.training.rollout import Group, Place, sample_of
from rftkit.server.training.sampling import while_idle

__all__ = ["with_held_out"]

LONGEST = 500
"""Characters of a reason that is shown."""


def with_held_out(run: RftRun, step: int, groups: Sequence[Group]) -> list[Group]:
    """The groups, with the grades of the held-out grader for some of their rollouts."""
    if run.held_out is None:
        return list(groups)
    places = _chosen(groups, run.plan.held_out_samples)
    pairs = [
        (
            sample_of(groups[i].rollouts[j].completion, groups[i].row, run.response_format),
            groups[i].row.item,
        )
        for i, j in places
    ]
    grades = while_idle(run, run.held_out, functools.partial(run.held_out.grade_many, pairs))
    _report_failure(run, step, grades)
    found = list(groups)
    for (i, j), grade in zip(places, grades, strict=True):
        rollouts = [*found[i].rollouts]
        rollouts[j] = replace(rollouts[j], held_out=grade)
        found[i] = replace(found[i], rollouts=rollouts)
    return found


def _report_failure(run: RftRun, step: int, grades: Sequence[Grade]) -> None:
    """An event, once a job, when the held-out grader graded no answer."""
    if not grades or any(each.reward is not None for each in grades):
        return
    flags = grades[0].errors
    reason = next((each for each in flags.values() if isinstance(each, str)), ", ".join(flags))
    run.store.add_event(
        run.job.id,
        f"The held-out grader graded none of the {len(grades)} answers of step {step} that it was "
        f"given: {reason[:LONGEST]}. Such steps cannot raise its alarm; training continues. This "
        "event is added once.",
        level="warn",
        key="held_out_failed",
    )


def _chosen(groups: Sequence[Group], most: int) -> list[Place]:
    """Evenly among all graded completions, the same whenever it is asked."""
    every = [
        (i, j)
        for i, group in enumerate(groups)
        for j, rollout in enumerate(group.rollouts)
        if rollout.grade.outcome == "graded"
    ]
    if len(every) <= most:
        return every
    return [every[at * len(every) // most] for at in range(most)]
