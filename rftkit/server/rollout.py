"""From rows to graded groups to advantages: what happens between two updates.

A failed grade is never a zero: it is asked for once more, and if it still fails it stays None, out
of its group's baseline and out of every mean. An unscorable answer (cut off, or not the JSON that
was asked for) has the floor reward and is counted apart. Not here: sampling itself, and learning.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.graders import CompiledGrader, Grade, Sample
from rftkit.rows import Row
from rftkit.server.engine.base import Completion, TrainGroup

__all__ = ["Group", "Rollout", "advantages", "grade_groups", "schema_of", "train_groups"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one row and its grade."""

    completion: Completion
    grade: Grade


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one row."""

    row: Row
    prompt_ids: list[int]
    rollouts: list[Rollout]

    @property
    def rewards_G(self) -> list[float | None]:
        """Rewards; None where the grader failed."""
        return [rollout.grade.reward for rollout in self.rollouts]

    @property
    def is_flat(self) -> bool:
        """Whether it has no signal: fewer than two rewards, or all of them equal."""
        rewards = [reward for reward in self.rewards_G if reward is not None]
        return len(rewards) < 2 or max(rewards) == min(rewards)


def grade_groups(
    grader: CompiledGrader,
    rows: Sequence[Row],
    prompts: Sequence[list[int]],
    completions: Sequence[Sequence[Completion]],
    response_format: Mapping[str, Any] | None,
) -> list[Group]:
    """Grade every completion; grades that fail are tried once more."""
    pairs = [
        (_sample(completion, response_format), row.item)
        for row, group in zip(rows, completions, strict=True)
        for completion in group
    ]
    grades = grader.grade_many(pairs)
    failed = [i for i, grade in enumerate(grades) if grade.outcome == "failed"]
    if failed:
        for i, grade in zip(failed, grader.grade_many([pairs[i] for i in failed]), strict=True):
            grades[i] = grade
    in_order = iter(grades)
    return [
        Group(row, prompt, [Rollout(completion, next(in_order)) for completion in group])
        for row, prompt, group in zip(rows, prompts, completions, strict=True)
    ]


def advantages(rewards_G: Sequence[float | None]) -> list[float | None]:
    """Reward minus the mean of the group's rewards; None stays None.

    Not divided by the group's deviation, which would blow up groups that hardly differ (Liu et al.
    2025, arXiv:2503.20783).
    """
    known = [reward for reward in rewards_G if reward is not None]
    if not known:
        return list(rewards_G)
    mean = sum(known) / len(known)
    return [None if reward is None else reward - mean for reward in rewards_G]


def train_groups(groups: Sequence[Group], schema: str | None) -> list[TrainGroup]:
    """What the update needs: groups with a signal, their members with a reward."""
    result = []
    for group in groups:
        if group.is_flat:
            continue
        kept = [
            (rollout.completion, advantage)
            for rollout, advantage in zip(group.rollouts, advantages(group.rewards_G), strict=True)
            if advantage is not None
        ]
        result.append(
            TrainGroup(
                prompt_ids=group.prompt_ids,
                tokens_G_T=[completion.tokens for completion, _ in kept],
                sampling_logprobs_G_T=[completion.sampling_logprobs for completion, _ in kept],
                advantages_G=[advantage for _, advantage in kept],
                schema=schema,
            )
        )
    return result


def schema_of(response_format: Mapping[str, Any] | None) -> str | None:
    """The JSON schema (as text) that decoding must follow, or None for free text."""
    if response_format is None or response_format.get("type") == "text":
        return None
    if response_format["type"] == "json_object":
        return '{"type": "object"}'
    return json.dumps(response_format["json_schema"].get("schema", {}), sort_keys=False)


def group_to_dict(group: Group) -> dict[str, Any]:
    """A group as the journal keeps it."""
    return {
        "line": group.row.line,
        "prompt_ids": group.prompt_ids,
        "rollouts": [
            {
                "completion": dataclasses.asdict(rollout.completion),
                "grade": dataclasses.asdict(rollout.grade),
            }
            for rollout in group.rollouts
        ],
    }


def group_from_dict(data: Mapping[str, Any], rows_by_line: Mapping[int, Row]) -> Group:
    """What `group_to_dict` wrote."""
    return Group(
        row=rows_by_line[data["line"]],
        prompt_ids=data["prompt_ids"],
        rollouts=[
            Rollout(Completion(**each["completion"]), Grade(**each["grade"]))
            for each in data["rollouts"]
        ],
    )


def _sample(completion: Completion, response_format: Mapping[str, Any] | None) -> Sample:
    return Sample.from_text(
        completion.text,
        response_format=response_format,
        truncated=completion.stop_reason == "length",
    )
