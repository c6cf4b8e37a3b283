"""What judges said in a step besides numbers: the verdicts on criteria, and how steady a comparison
of answers is. One set of figures for each rubric or relative grader, per side (train or valid).

A criterion that was not decided counts in no share but its own. Not here: the verdicts themselves,
which the grades keep (`Grade.judged`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rftkit.graders import Grade
from rftkit.graders.engine import Leaf
from rftkit.graders.relative import disagreement, position_bias
from rftkit.server.training.rollout import Group

__all__ = ["FIGURES", "MAX_CRITERIA", "of_leaf"]

FIGURES = (
    "required_met_mean",
    "correctness_met_mean",
    "presence_met_mean",
    "undecided_share",
    "position_bias",
    "order_disagreement",
)
"""The figures that `of_leaf` adds to a grader's line, after `train_` or `valid_`; numbers or None.
"""
MAX_CRITERIA = 32
"""If there are more different criteria than this, as when rows have their own, they are not listed
one by one."""

Sides = Mapping[str, Sequence[Group]]
Json = dict[str, Any]


def of_leaf(leaf: Leaf, sides: Sides) -> Json:
    """The figures of a rubric or a relative grader; empty for other types."""
    if leaf.type == "rubric":
        return _rubric(leaf, sides)
    if leaf.type == "relative":
        return _relative(leaf, sides)
    return {}


def _rubric(leaf: Leaf, sides: Sides) -> Json:
    found: Json = {}
    lines: dict[tuple[str, str], Json] = {}
    for side, groups in sides.items():
        verdicts = [each for judged in _judged(leaf, groups) for each in judged.get("criteria", ())]
        for name, is_one in _KINDS.items():
            found[f"{side}_{name}"] = _share(each for each in verdicts if is_one(each))
        undecided = [each["met"] is None for each in verdicts]
        found[f"{side}_undecided_share"] = statistics.fmean(undecided) if undecided else None
        apart: dict[tuple[str, str], list[Json]] = {}
        for each in verdicts:
            apart.setdefault((each["text"], each["check"]), []).append(each)
        for key, own in apart.items():
            line = lines.setdefault(key, {n: own[0][n] for n in ("text", "check", "required")})
            line[f"{side}_met_mean"] = _share(own)
    if 0 < len(lines) <= MAX_CRITERIA:
        found["criteria"] = list(lines.values())
    return found


_KINDS: dict[str, Callable[[Json], bool]] = {
    "required_met_mean": lambda each: each["required"],
    "correctness_met_mean": lambda each: each["check"] == "correctness" and each["weight"] > 0,
    "presence_met_mean": lambda each: each["check"] == "presence" and each["weight"] > 0,
}


def _relative(leaf: Leaf, sides: Sides) -> Json:
    found: Json = {}
    for side, groups in sides.items():
        judged = [list(_judged(leaf, [group])) for group in groups]
        found[f"{side}_position_bias"] = position_bias([each for group in judged for each in group])
        found[f"{side}_order_disagreement"] = disagreement(judged)
    return found


def _judged(leaf: Leaf, groups: Iterable[Group]) -> Iterator[Json]:
    """The judge's verdict on each answer that it graded."""
    for group in groups:
        for rollout in group.rollouts:
            judged = _of(rollout.grade, leaf)
            if judged:
                yield judged


def _of(grade: Grade, leaf: Leaf) -> Json:
    """A grader that is not a multi keeps it under the empty key."""
    return grade.judged.get(leaf.key) or grade.judged.get("") or {}


def _share(verdicts: Iterable[Json]) -> float | None:
    met = [each["met"] for each in verdicts if each["met"] is not None]
    return statistics.fmean(met) if met else None
