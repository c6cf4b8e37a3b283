"""Preference rows from graded answers: of each prompt's answers, the best and the worst.

A group is the answers to one prompt: the rollouts of a training step (`groups_of_rollouts`),
the samples of eval runs (`groups_of_samples`), or the lines of a file with the same row
(`read_groups`). A failed grade is no reward: such an answer is in no pair. An answer that was cut
off is in none either, since a model would learn to stop there. Not here: models and jobs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rftkit.datasets.answered import as_prompt
from rftkit.datasets.rowfile import open
from rftkit.datasets.unpack import REFUSED
from rftkit.datasets.writing import refuse_existing, write_lines
from rftkit.errors import InputError, RowError
from rftkit.graders import Sample, compile_grader, given_sample
from rftkit.rows import parse_object, row_of
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from rftkit.evals.samples import Samples

__all__ = [
    "GradedAnswer",
    "GradedGroup",
    "Preferences",
    "best_and_worst",
    "groups_of_rollouts",
    "groups_of_samples",
    "preferences",
    "read_groups",
]

SAME = 1e-9  # rewards that differ by less are one
Item = dict[str, Any]
Left = Literal["flat", "few", "lost"]
"""Why a group has no pair: equal rewards; fewer than two finished, graded answers; no row."""


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """One answer with its reward."""

    text: str
    reward: float | None
    """Its reward; None if it could not be graded."""
    is_cut: bool = False
    """Whether it hit its token limit."""


@dataclass(frozen=True, slots=True)
class GradedGroup:
    """The answers to one prompt."""

    item: Mapping[str, Any] | None
    """The row; None when its file is gone."""
    answers: tuple[GradedAnswer, ...]


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preference rows that groups of graded answers gave."""

    source: str
    target: str | None
    """The file that was written; None for a dry run."""
    num_groups: int
    num_rows: int
    """Rows made, one for each group that is not left out."""
    num_flat: int
    """Groups left out because all their rewards are equal."""
    num_few: int
    """Groups left out because fewer than two of their answers are finished and graded."""
    num_lost: int
    """Groups left out because their row is gone or has tools."""
    num_repeated: int
    """Pairs that an earlier group gave already."""
    gap: float | None
    """Mean difference of the two rewards; None without rows."""

    def __str__(self) -> str:
        where = f"written to {self.target}" if self.target else "a dry run, nothing is written"
        reasons = {
            "flat (all rewards are equal)": self.num_flat,
            "with fewer than two finished and graded answers": self.num_few,
            "whose row is gone or has tools": self.num_lost,
            "that repeat an earlier pair": self.num_repeated,
        }
        left = ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)
        lines = [
            f"{counted(self.num_rows, 'preference row')} from "
            f"{counted(self.num_groups, 'group')} of {self.source}; {where}"
        ]
        lines += [f"left out: {left}"] if left else []
        if self.gap is not None:
            lines.append(f"the preferred answers earn {self.gap:.3f} more on average")
        return "\n".join(lines)


def preferences(
    groups: Iterable[GradedGroup], target: str | Path | None, *, source: str = "graded answers"
) -> Preferences:
    """Write a preference row for each group: its best answer and its worst.

    Args:
        groups: Answers with their rewards.
        target: The .jsonl file to write; None for a dry run.
        source: Named in the result.

    Raises:
        InputError: The target is there already.
    """
    if target is not None:
        refuse_existing(target)
    counts: Counter[str] = Counter()
    gaps: list[float] = []
    lines = _lines(groups, counts, gaps)
    num_rows = sum(1 for _ in lines) if target is None else write_lines(target, lines)
    return Preferences(
        source=source,
        target=None if target is None else str(target),
        num_groups=counts["groups"],
        num_rows=num_rows,
        num_flat=counts["flat"],
        num_few=counts["few"],
        num_lost=counts["lost"],
        num_repeated=counts["repeated"],
        gap=sum(gaps) / len(gaps) if gaps else None,
    )


def best_and_worst(group: GradedGroup) -> tuple[GradedAnswer, GradedAnswer] | Left:
    """The two answers of a group that a preference row holds, or why there are none."""
    if group.item is None or group.item.get("tools"):
        return "lost"
    known = [each for each in group.answers if each.reward is not None and not each.is_cut]
    if len(known) < 2:
        return "few"
    best = max(known, key=lambda each: each.reward or 0.0)
    worst = min(known, key=lambda each: each.reward or 0.0)
    if (best.reward or 0.0) - (worst.reward or 0.0) <= SAME or best.text == worst.text:
        return "flat"
    return best, worst


def groups_of_rollouts(groups: Iterable[Mapping[str, Any]]) -> Iterator[GradedGroup]:
    """The graded groups of a job's training steps, from `jobs.all_rollouts`."""
    for group in groups:
        answers = tuple(
            GradedAnswer(
                each["text"], each["grade"].get("reward"), each.get("stop_reason") == "length"
            )
            for each in group["rollouts"]
        )
        yield GradedGroup(group["item"], answers)


def groups_of_samples(samples: Samples) -> Iterator[GradedGroup]:
    """The samples of eval runs by row: all runs' answers to a row are one group."""
    for key, found in samples.frame.groupby("row", sort=False):
        answers = zip(found["answer"], found["reward"], found["truncated"], strict=True)
        yield GradedGroup(
            samples.items.get(str(key)),
            tuple(
                GradedAnswer(str(text), None if reward != reward else float(reward), bool(is_cut))
                for text, reward, is_cut in answers
            ),
        )


def read_groups(
    source: str | Path | pd.DataFrame,
    *,
    grader: Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
    complete: Any = None,
) -> list[GradedGroup]:
    """The groups of a file of graded answers; answers to the same row are one group.

    A line is `{"item": {…}, "sample": "an answer", "reward": 0.5}`, or flat with the answer as
    `output_text`. With a grader, the answers are graded here and need no `reward`.

    Raises:
        RowError: At the first line that is none of these, with file and line.
    """
    with open(source) as rows:
        found = [_answer(each.raw, each.line, rows.name, response_format) for each in rows]
    rewards = [reward for _, _, reward in found]
    if grader is not None:
        with compile_grader(grader, complete=complete) as compiled:
            grades = compiled.grade_many([(sample, item) for item, sample, _ in found])
        rewards = [None if each.outcome == "failed" else each.reward for each in grades]
    elif found and all(reward is None for reward in rewards):
        raise InputError(
            f"{rows.name}: no answer has a `reward`; grade the answers with -g GRADER, or name "
            "a finished job (ftjob-…) as the source"
        )
    grouped: dict[str, tuple[Item, list[GradedAnswer]]] = {}
    for (item, sample, _), reward in zip(found, rewards, strict=True):
        answers = grouped.setdefault(json.dumps(item, sort_keys=True), (item, []))[1]
        answers.append(GradedAnswer(sample.output_text, reward, sample.truncated))
    return [GradedGroup(item, tuple(answers)) for item, answers in grouped.values()]


def _answer(
    raw: bytes, line: int, name: str, response_format: Mapping[str, Any] | None
) -> tuple[Item, Sample, float | None]:
    if raw.startswith(REFUSED):
        raise RowError(raw[1:].decode("utf-8", "replace"), path=name, line=line)
    value = parse_object(raw, line=line, path=name)
    if isinstance(value.get("item"), dict) and "sample" in value:
        said, item = value["sample"], value["item"]
    elif "output_text" in value:
        said = value["output_text"]
        item = {k: v for k, v in value.items() if k not in ("output_text", "reward", "grade")}
    else:
        raise RowError(
            "expected a graded answer, `item`, `sample` and `reward`; a preference row needs two "
            "answers with different rewards to one prompt",
            path=name,
            line=line,
        )
    try:
        sample = given_sample(said, response_format=response_format)
    except InputError as error:
        raise RowError(error.message, path=name, line=line) from None
    row_of(item, line=line, path=name)
    return item, sample, _reward(value, line, name)


def _reward(value: Item, line: int, name: str) -> float | None:
    grade = value.get("grade")
    reward = grade.get("reward") if isinstance(grade, dict) else value.get("reward")
    if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
        raise RowError(
            f"`reward` must be a number or null, found {reward!r}",
            path=name,
            line=line,
            param="reward",
        )
    return None if reward is None else float(reward)


def _lines(
    groups: Iterable[GradedGroup], counts: Counter[str], gaps: list[float]
) -> Iterator[bytes]:
    seen: set[str] = set()
    for group in groups:
        counts["groups"] += 1
        pair = best_and_worst(group)
        if isinstance(pair, str):
            counts[pair] += 1
            continue
        assert group.item is not None
        line = json.dumps(_row(group.item, pair), ensure_ascii=False)
        if line in seen:
            counts["repeated"] += 1
            continue
        seen.add(line)
        gaps.append((pair[0].reward or 0.0) - (pair[1].reward or 0.0))
        yield line.encode()


def _row(item: Mapping[str, Any], pair: Sequence[GradedAnswer]) -> Item:
    preferred, other = ([{"role": "assistant", "content": each.text}] for each in pair)
    return {
        "input": as_prompt(item),
        "preferred_output": preferred,
        "non_preferred_output": other,
    }
