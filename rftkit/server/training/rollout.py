"""From rows to graded groups to the data of an update. A failed grade is never a zero: the grader
is called once more, and if it fails again the grade stays None, and is left out of its group's
baseline and of every mean. An unscorable answer (cut off, or not the JSON that was asked for) has
the floor reward and is counted apart. Not here: sampling itself, what an advantage is, and
learning.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rftkit.graders import CompiledGrader, Grade, Sample
from rftkit.rows import Row
from rftkit.server.engine.tool_calls import answer_or_calls
from rftkit.server.engine.values import Completion, Thinking, TrainGroup
from rftkit.server.engine.written_calls import JSON_CALL, CallForm
from rftkit.server.training.transcripts import said, with_transcript

__all__ = [
    "ATTEMPTS",
    "FinishedCompletion",
    "Group",
    "Place",
    "Rollout",
    "advantages",
    "failed_episode",
    "finished_sample",
    "grade_all",
    "group_from_dict",
    "group_to_dict",
    "sample_of",
    "schema_of",
    "train_groups",
    "with_latest_grades",
]

ATTEMPTS = 2
"""How often a completion is graded if its grader fails."""

LATER_GRADES = ("held_out", "regraded")
"""Grades that only some rollouts have; journals of older programs have none."""

Place = tuple[int, int]
"""The place of a completion in its step: the number of its row, and its number in the row's group.
"""


@dataclass(frozen=True, slots=True)
class FinishedCompletion:
    """A completion that can be graded."""

    place: Place
    row: Row
    completion: Completion
    model: str | None = None
    """The job's name for its model, which graders see as `sample.model`."""
    trace_id: str | None = None
    """The id that its tools were given; an endpoint grader gets it, too."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one row and its grade."""

    completion: Completion
    grade: Grade
    held_out: Grade | None = None
    """The grade of the held-out grader, for some rollouts of a job that has one."""
    regraded: Grade | None = None
    """Given after the update, where `grade` had failed: people see it, and nothing learns from
    it."""

    @property
    def latest(self) -> Grade:
        """The grade that counts in what people see."""
        return self.regraded or self.grade


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one row."""

    row: Row
    prompt_ids: list[int]
    rollouts: list[Rollout]
    guided: list[Rollout] = field(default_factory=list)
    """Reference answers (`guidance`): the update trains on them, and no mean of rewards has
    them."""

    @property
    def rewards_G(self) -> list[float | None]:
        """Rewards; None where the grader failed."""
        return [rollout.grade.reward for rollout in self.rollouts]

    @property
    def is_flat(self) -> bool:
        """Whether its completions do not differ: fewer than two rewards, or all of them equal."""
        rewards = [reward for reward in self.rewards_G if reward is not None]
        return len(rewards) < 2 or max(rewards) == min(rewards)

    @property
    def has_signal(self) -> bool:
        """Whether any two members, reference answers too, differ in a reward or a sub-reward."""
        grades = [member.grade for member in (*self.rollouts, *self.guided)]
        rewards = [
            (grade.reward, grade.sub_rewards) for grade in grades if grade.outcome != "failed"
        ]
        return any(each != rewards[0] for each in rewards)


def grade_all(
    grader: CompiledGrader,
    ended: Iterable[FinishedCompletion],
    response_format: Mapping[str, Any] | None,
    progress: Callable[[FinishedCompletion, Grade], None],
) -> dict[Place, Grade]:
    """The grades by place; those that fail are tried once more, after all others.

    Args:
        grader: compiled.
        ended: each is graded as soon as it comes.
        response_format: of the job.
        progress: gets each grade as it is given, from any thread.
    """
    grades: dict[Place, Grade] = {}
    for _ in range(ATTEMPTS):
        taken: list[FinishedCompletion] = []
        pairs = _pairs(ended, response_format, taken)
        made = grader.grade_many(pairs, progress=functools.partial(_report, taken, progress))
        grades.update((each.place, grade) for each, grade in zip(taken, made, strict=True))
        ended = [each for each in taken if grades[each.place].outcome == "failed"]
    return grades


def _pairs(
    ended: Iterable[FinishedCompletion],
    response_format: Mapping[str, Any] | None,
    taken: list[FinishedCompletion],
) -> Iterator[tuple[Sample, Any]]:
    for each in ended:
        taken.append(each)
        yield finished_sample(each, response_format), each.row.item


def finished_sample(each: FinishedCompletion, response_format: Mapping[str, Any] | None) -> Sample:
    """The sample that a grader gets for it."""
    sample = sample_of(each.completion, each.row, response_format, model=each.model)
    return sample if each.trace_id is None else dataclasses.replace(sample, trace_id=each.trace_id)


def failed_episode(completion: Completion, grader: CompiledGrader) -> Grade:
    """The grade of an episode that its tools broke off: none, from no grader."""
    errors: dict[str, bool | str] = {"other_error": True}
    errors["other_error_details"] = completion.failure or ""
    parts = [leaf.key for leaf in grader.leaves] if "graders" in grader.spec else []
    return Grade(None, "failed", dict.fromkeys(parts), errors)


def with_latest_grades(group: Group) -> Group:
    """A group as people see it: a grade that was given later replaces the one that had failed."""
    latest = [
        dataclasses.replace(each, grade=each.latest, regraded=None) for each in group.rollouts
    ]
    return dataclasses.replace(group, rollouts=latest)


def _report(
    taken: Sequence[FinishedCompletion],
    progress: Callable[[FinishedCompletion, Grade], None],
    index: int,
    grade: Grade,
) -> None:
    progress(taken[index], grade)


def advantages(rewards_G: Sequence[float | None]) -> list[float | None]:
    """Reward minus the mean of the group's rewards; None stays None.

    Not divided by the group's deviation, which would blow up groups that hardly differ (Liu et al.
    2025, arXiv:2503.20783). Others are in the module `advantages`.
    """
    known = [reward for reward in rewards_G if reward is not None]
    if not known:
        return list(rewards_G)
    if max(known) == min(known):  # the mean may differ from them by rounding
        return [None if reward is None else 0.0 for reward in rewards_G]
    mean = sum(known) / len(known)
    return [None if reward is None else reward - mean for reward in rewards_G]


def train_groups(
    groups: Sequence[Group],
    schema: Callable[[Row], str | None],
    thinking: Callable[[int], Thinking | None],
    rank: Callable[[Sequence[Grade]], list[float | None]],
    spread: Callable[[Sequence[Rollout]], list[list[float]]] | None = None,
) -> list[tuple[Group, TrainGroup]]:
    """The data of an update: groups with a signal, and their members with a reward.

    Args:
        groups: of a step.
        schema: what decoding followed where it answered a row.
        thinking: how completions begin, by the tokens of their prompt; as they were sampled.
        rank: the advantages of a group's grades, guided completions last.
        spread: the advantage of each token of a group's members; None: its completion's.
    """
    result = []
    for group in groups:
        members = [*group.rollouts, *group.guided]
        rows = spread(members) if spread else []
        advantages_G = rank([each.grade for each in members])
        kept = [
            (member.completion, advantage, g >= len(group.rollouts), rows[g] if rows else [])
            for g, (member, advantage) in enumerate(zip(members, advantages_G, strict=True))
            if advantage is not None
        ]
        if not any(advantage or any(row) for _, advantage, _, row in kept):
            continue
        learnt = TrainGroup(
            prompt_ids=group.prompt_ids,
            tokens_G_T=[completion.tokens for completion, *_ in kept],
            sampling_logprobs_G_T=[completion.sampling_logprobs for completion, *_ in kept],
            advantages_G=[advantage for _, advantage, _, _ in kept],
            schema=schema(group.row),
            thinking=thinking(len(group.prompt_ids)),
            guided_G=[is_guided for _, _, is_guided, _ in kept] if group.guided else [],
            advantages_G_T=[row for *_, row in kept] if rows else [],
            learnt_G_T=(
                [completion.is_sampled for completion, *_ in kept]
                if any(completion.turns for completion, *_ in kept)
                else []
            ),
        )
        result.append((group, learnt))
    return result


def schema_of(
    response_format: Mapping[str, Any] | None,
    tools: Sequence[dict[str, Any]] | None = None,
    form: CallForm = JSON_CALL,
    *,
    most_calls: int | None = None,
) -> str | None:
    """The rules of decoding: a JSON schema as text, or a grammar; None for free text.

    Where there are tools, an answer may also call them instead, in the `form` of the model's chat
    template: the form that supervised training teaches.
    """
    if response_format is None or response_format.get("type") == "text":
        return None
    schema: dict[str, Any] = {"type": "object"}
    if response_format["type"] == "json_schema":
        schema = response_format["json_schema"].get("schema", {})
    if tools:
        return answer_or_calls(schema, tools, form, most=most_calls)
    return json.dumps(schema)


def group_to_dict(group: Group) -> dict[str, Any]:
    """A group as the journal keeps it; `guided` is missing where it would be empty."""
    data = {
        "line": group.row.line,
        "prompt_ids": group.prompt_ids,
        "rollouts": [_rollout_to_dict(rollout) for rollout in group.rollouts],
    }
    if group.guided:
        data["guided"] = [_rollout_to_dict(rollout) for rollout in group.guided]
    return data


def _rollout_to_dict(rollout: Rollout) -> dict[str, Any]:
    data = {
        "completion": rollout.completion.to_dict(),
        "grade": dataclasses.asdict(rollout.grade),
    }
    for name in LATER_GRADES:
        if (grade := getattr(rollout, name)) is not None:
            data[name] = dataclasses.asdict(grade)
    return data


def group_from_dict(data: Mapping[str, Any], rows_by_line: Mapping[int, Row]) -> Group:
    """The group that `group_to_dict` wrote."""
    rollouts, guided = (
        [
            Rollout(
                Completion.from_dict(each["completion"]),
                Grade(**each["grade"]),
                **{k: Grade(**each[k]) for k in LATER_GRADES if each.get(k)},
            )
            for each in data.get(name, ())
        ]
        for name in ("rollouts", "guided")
    )
    return Group(rows_by_line[data["line"]], data["prompt_ids"], rollouts, guided)


def sample_of(
    completion: Completion,
    row: Row,
    response_format: Mapping[str, Any] | None,
    *,
    model: str | None = None,
) -> Sample:
    """The sample that a grader gets: the answer, its tool calls and, in `choices`, the reasoning.

    Of an episode see `transcripts.with_transcript`.
    """
    text, calls = said(completion, row)
    sample = Sample.from_text(
        text,
        response_format=response_format,
        truncated=completion.stop_reason == "length",
        tool_calls=calls,
        model=model,
    )
    if completion.reasoning:
        [choice] = sample.to_dict()["choices"]
        choice["message"]["reasoning_content"] = completion.reasoning
        sample = dataclasses.replace(sample, choices=[choice])
    return with_transcript(sample, completion, row) if completion.turns else sample
