"""Figures of a step's answers that `rftkit.diagnosis.alarms` watches; in metric events as `watch`.

Each figure has its mean over the answers, the mean of what may explain it, and the sums of squares
and products within the step. They are made from the graded groups of the journal alone, so that a
step that is replayed has the same. Guided completions are no answers of the policy. Not here: tests
and alarms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rftkit.graders import Grade
from rftkit.graders.cheat_signs import PADDING, has_answer, signs_of
from rftkit.graders.cheats import prompt_text
from rftkit.server.training.rollout import Group, Rollout

__all__ = ["figures"]

Pair = tuple[float, float | None]
"""A figure of one answer, and the reward that may explain it."""
Json = dict[str, Any]
RUN = 4
"""Words in a row that count as one sequence."""
LEAST_WORDS = 8
"""Shorter answers have too few sequences to repeat any."""


def figures(groups: Sequence[Group], references: Mapping[int, str]) -> list[Json]:
    """The figures of one training step; figures without a measurement are left out.

    Args:
        groups: of the step.
        references: line of a row -> its right answer, as far as it is known.
    """
    every = [(group, rollout) for group in groups for rollout in group.rollouts]
    graded = [(g, r) for g, r in every if r.grade.outcome == "graded"]
    found = [
        _figure("held_out", _held_out(graded)),
        _figure("length", [(_length(r), r.grade.reward) for _, r in graded]),
        _figure("repeated", _known((_repeated(r), r.grade.reward) for _, r in graded)),
        _figure("template", _template(graded, references)),
        _figure("mentions", _known(_mentions(r.grade) for _, r in graded)),
        _figure("ungradable", [(float(r.grade.outcome != "graded"), None) for _, r in every]),
        *_cheats(every, references),
    ]  # fmt: skip
    return [each for each in found if each is not None]


def _figure(name: str, pairs: Sequence[Pair]) -> Json | None:
    if not pairs:
        return None
    num = len(pairs)
    mean = sum(value for value, _ in pairs) / num
    found: Json = {"name": name, "num": num, "mean": mean}
    rewards = [reward for _, reward in pairs if reward is not None]
    if len(rewards) < num:
        return found
    by = sum(rewards) / num
    apart = [(value - mean, reward - by) for (value, _), reward in zip(pairs, rewards, strict=True)]
    return found | {
        "by": by,
        "cross": sum(a * b for a, b in apart),
        "by_square": sum(b * b for _, b in apart),
        "square": sum(a * a for a, _ in apart),
    }


def _known(pairs: Iterable[tuple[float | None, float | None]]) -> list[Pair]:
    return [(value, by) for value, by in pairs if value is not None]


def _held_out(graded: Iterable[tuple[Group, Rollout]]) -> list[Pair]:
    return [
        (rollout.held_out.reward, rollout.grade.reward)
        for _, rollout in graded
        if rollout.held_out is not None and rollout.held_out.reward is not None
    ]


def _length(rollout: Rollout) -> float:
    return math.log(max(1, len(rollout.completion.tokens)))


def _runs(text: str) -> list[tuple[str, ...]]:
    """All word sequences of a text; none if it is too short."""
    words = text.lower().split()
    if len(words) < LEAST_WORDS:
        return []
    return [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]


def _repeated(rollout: Rollout) -> float | None:
    """The share of an answer's word sequences that it had before."""
    runs = _runs(rollout.completion.text)
    return 1 - len(set(runs)) / len(runs) if runs else None


def _template(graded: Sequence[tuple[Group, Rollout]], references: Mapping[int, str]) -> list[Pair]:
    """The share of an answer's word sequences that are in answers to other prompts too.

    What its own prompt has does not count, since rows of one task quote the same texts; nor does
    what right answers of the step have, which is their style.
    """
    own: dict[int, set[tuple[str, ...]]] = {}
    for group, rollout in graded:
        own.setdefault(id(group), set()).update(_runs(rollout.completion.text))
    prompts: Counter[tuple[str, ...]] = Counter(run for runs in own.values() for run in runs)
    lines = {group.row.line for group, _ in graded}
    style = {run for line in lines for run in _runs(references.get(line, ""))}
    pairs: list[Pair] = []
    for group, rollout in graded:
        usual = style.union(_runs(prompt_text(group.row.item)))
        runs = [run for run in _runs(rollout.completion.text) if run not in usual]
        if runs and len(own) > 1:
            pairs.append((sum(prompts[run] > 1 for run in runs) / len(runs), rollout.grade.reward))
    return pairs


def _mentions(grade: Grade) -> tuple[float | None, float | None]:
    """For a rubric: the share of presence criteria that are met minus that of correctness criteria;
    and the latter. None for a grader without both kinds of criteria.
    """
    verdicts: Iterable[Json] = grade.judged.values()
    met: dict[str, list[bool]] = {}
    for each in (each for said in verdicts for each in said.get("criteria", ())):
        if each.get("met") is not None and each.get("weight", 1.0) > 0:
            met.setdefault(each.get("check", ""), []).append(each["met"])
    if not met.get("presence") or not met.get("correctness"):
        return None, None
    presence, correctness = (sum(met[k]) / len(met[k]) for k in ("presence", "correctness"))
    return presence - correctness, correctness


def _cheats(
    every: Sequence[tuple[Group, Rollout]], references: Mapping[int, str]
) -> Iterator[Json | None]:
    """The share of answers that show a known cheat, and which; of right ones those with padding.

    A policy that always says much shows padding wherever it is right, so padding is a share of the
    answers that have the right one in them. A right answer that several rows have is a label, which
    a wrong answer may be too.
    """
    known = Counter(references.values())
    others = frozenset(text for text, num in known.items() if num == 1)
    asked = [(r.completion.text, g.row.item, references.get(g.row.line))
             for g, r in every if not g.row.tools]  # fmt: skip
    shown = [signs_of(text, item, right, others) for text, item, right in asked]
    signs = [[sign for sign in each if sign != PADDING] for each in shown]
    found = _figure("cheats", [(float(bool(each)), None) for each in signs])
    counts = Counter(sign for each in signs for sign in each)
    yield found and {**found, "shown": dict(sorted(counts.items()))}
    padded = [
        float(PADDING in each)
        for each, (text, _, right) in zip(shown, asked, strict=True)
        if right is not None and has_answer(text, right)
    ]
    yield _figure("padding", [(each, None) for each in padded])
