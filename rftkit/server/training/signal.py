"""Where the learning signal of a step is: per sub-grader, and per value of closed answers.

A group teaches something about a sub-grader only when its completions differ in its reward,
whatever the total does; and about a value of a closed answer only when the value is sampled.
Not here: the rules that
turn these figures into words (`rftkit.diagnosis`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rftkit.graders.closed import AnswerField, Shares, shares
from rftkit.server.training.rollout import Group, Rollout, sample_of

__all__ = ["FIGURES", "answers", "of_leaf", "rewards_of", "standard_error"]

FIGURES = (
    "reward_spread",
    "flat_groups",
    "reward_min",
    "reward_max",
    "num_graded",
    "reward_stderr",
    "guided_reward_mean",
)
"""The figures that `of_leaf` adds to a grader's line, after `train_` or `valid_`."""

Sides = Mapping[str, Sequence[Group]]


def rewards_of(groups: Iterable[Group], key: str | None = None) -> list[list[float]]:
    """The rewards that were given in each group; of one sub-grader, if a key is given."""
    return [_known(group.rollouts, key) for group in groups]


def _known(rollouts: Iterable[Rollout], key: str | None) -> list[float]:
    grades = (each.grade for each in rollouts)
    rewards = (grade.sub_rewards.get(key) if key else grade.reward for grade in grades)
    return [reward for reward in rewards if reward is not None]


def standard_error(rewards: Sequence[Sequence[float]]) -> float | None:
    """The standard error of the mean over groups, since answers to one row are not independent;
    None with fewer than two.
    """
    means = [statistics.fmean(group) for group in rewards if group]
    return statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None


def of_leaf(key: str | None, sides: Sides) -> dict[str, Any]:
    """Spread within groups, share of flat groups and range of one sub-grader's rewards; and the
    mean of the reference answers that guide them, which no other figure has.

    Args:
        key: of the sub-grader; None for a grader without sub-graders.
        sides: train or valid -> groups; groups of one completion have neither spread nor flatness.
    """
    found: dict[str, Any] = {}
    for side, groups in sides.items():
        rewards = rewards_of(groups, key)
        every = [reward for group in rewards for reward in group]
        found |= {
            f"{side}_reward_min": min(every, default=None),
            f"{side}_reward_max": max(every, default=None),
            f"{side}_num_graded": len(every),
        }
        if any(len(group.rollouts) > 1 for group in groups):
            spreads = [max(group) - min(group) if len(group) > 1 else 0.0 for group in rewards]
            found[f"{side}_reward_spread"] = statistics.fmean(spreads)
            found[f"{side}_flat_groups"] = sum(spread == 0 for spread in spreads) / len(spreads)
        if guided := _known((each for group in groups for each in group.guided), key):
            found[f"{side}_guided_reward_mean"] = statistics.fmean(guided)
        if side == "valid":
            found["valid_reward_stderr"] = standard_error(rewards)
    return found


def answers(
    fields: Sequence[AnswerField],
    response_format: Mapping[str, Any] | None,
    sides: Sides,
    before: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """For each place of the answer: shares of its values among answers and references.

    Args:
        fields: from `graders.answer_fields`.
        response_format: of the job.
        sides: train or valid -> groups.
        before: (place, side) -> the same of the last step that had it; counts "so far" continue.
    """
    return [
        {
            "name": field.name,
            "grader": field.grader,
            "values": list(field.values),
            **{
                side: _side(
                    field,
                    _shares(field, response_format, groups),
                    len(groups),
                    before.get((field.name, side), {}),
                )
                for side, groups in sides.items()
            },
        }
        for field in fields
    ]


def _shares(
    field: AnswerField, response_format: Mapping[str, Any] | None, groups: Sequence[Group]
) -> Shares:
    samples = [
        sample_of(each.completion, group.row, response_format)
        for group in groups
        for each in group.rollouts
    ]
    return shares(field, samples, [group.row.item for group in groups])


def _side(
    field: AnswerField, counted: Shares, num_prompts: int, before: Mapping[str, Any]
) -> dict[str, Any]:
    so_far = before.get("num_samples_so_far", 0) + counted.num_samples
    side: dict[str, Any] = {
        "samples": counted.samples,
        "references": counted.references,
        "num_samples": counted.num_samples,
        "num_references": counted.num_references,
        "num_prompts": num_prompts,
        "num_samples_so_far": so_far,
    }
    if field.values:
        missing = before.get("never_sampled", field.values)
        side["never_sampled"] = [each for each in missing if not counted.samples.get(each)]
    return side
