"""Rules that find problems in a training history: one function per rule, all in `RULES`.

A finding describes the last step of the history. It states what was found, with figures, what to
do, and which setting to try. A rule reports nothing when the service does not report the figures it
needs. Some rules also report nothing when the rewards are near the best that the grader ever gave:
a model that has learnt its task has flat groups and low entropy, and that is no problem.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.diagnosis.gains import Change, gain_sentence
from rftkit.diagnosis.story import WINDOW, Range, Story

__all__ = [
    "CUT_SHARE",
    "FLAT_SHARE",
    "Finding",
    "collapsed",
    "findings",
    "never_sampled",
    "share_words",
    "validation_gains",
]

Json = Mapping[str, Any]

FLAT_SHARE = 0.75
"""Share of groups without signal above which most of the computation is wasted."""
CUT_SHARE = 0.2
"""Share of truncated answers above which the limit, not the task, decides the reward."""
UNSCORABLE_SHARE = 0.5
"""Share of answers that are not scorable, not counting truncated ones."""
SAME_SHARE = 0.9
"""Share of equal answers above which the policy has settled on one."""
LEAST_ANSWERS = 32
"""Fewer answers are not enough to judge how often a value is sampled."""
LEAST_PROMPTS = 4
GUIDED_STEPS = 6
"""Steps in which references that guide a job should bring every value."""
LOW_ENTROPY = 0.03
"""Nats per token below which the policy is nearly deterministic."""
NEAR_BEST = 0.95
"""Share of the way from the lowest to the highest reward so far that counts as learnt."""
CERTAINTY = 1.96
"""Standard errors on either side of a mean: 95 % of such intervals hold the true one."""
NAMED = 3
"""Values that a sentence names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why a job does not learn what it should."""

    code: str
    """Stable name of the rule."""
    subject: str
    """The grader or the place of the answer that it is about; empty for the whole job."""
    message: str
    """What was found: a sentence."""
    advice: str
    """What to do, and the setting to try: a sentence."""

    @property
    def key(self) -> str:
        """Identifies the finding within a job, whatever its figures are."""
        return f"{self.code}:{self.subject}" if self.subject else self.code

    def __str__(self) -> str:
        return f"{self.message} {self.advice}"


def findings(story: Story) -> list[Finding]:
    """Problems at the last step of the history, most fundamental first.

    The rules are about rewards of sampled answers: a job that learns from given ones has none.
    """
    if story.is_offline:
        return []
    return [found for rule in RULES for found in rule(story)]


def _cut_off(story: Story) -> Iterator[Finding]:
    shares = _recent(story, "truncated_share")
    where = "the answers"
    if not shares and story.last_valid is not None:
        shares = _known([_learning(story.last_valid).get("valid_truncated_share")])
        where = "the validation answers"
    if shares and (share := _mean(shares)) > CUT_SHARE:
        limit = story.max_completion_tokens
        at = f" at {limit} token{'s' * (limit != 1)}" if limit else ""
        yield Finding(
            "cut_off",
            "",
            f"{share:.0%} of {where} were cut off{at}; they earn the floor reward.",
            "Raise `max_completion_tokens` (metadata), or ask for shorter answers in the prompt.",
        )


def _unscorable(story: Story) -> Iterator[Finding]:
    wrong = _known([data.get("mean_unresponsive_rewards") for data in story.recent])
    cut = _recent(story, "truncated_share")
    if wrong and cut and (share := _mean(wrong) - _mean(cut)) > UNSCORABLE_SHARE:
        yield Finding(
            "unscorable",
            "",
            f"{share:.0%} of the answers could not be scored, though they were not cut off.",
            "Give the job a `response_format`, so that answers have the form that the grader "
            "reads.",
        )


def _constant_reward(story: Story) -> Iterator[Finding]:
    """The whole reward is constant, or else single sub-graders are."""
    names = [line["name"] for line in story.graders]
    lost = _known([data.get("mean_unresponsive_rewards") for data in story.recent])
    if lost and _mean(lost) > UNSCORABLE_SHARE:
        return  # most answers get the floor reward, which is constant
    whole = story.ranges.get("", Range())
    if _is_constant(whole):
        yield _constant_finding("the grader", "", whole)
        return
    for name in names if len(names) > 1 else []:
        if _is_constant(found := story.ranges.get(name, Range())):
            yield _constant_finding(f"the grader `{name}`", name, found)


def _is_constant(found: Range) -> bool:
    return found.steps > 1 and found.num >= LEAST_ANSWERS and found.low == found.high


def _constant_finding(who: str, subject: str, found: Range) -> Finding:
    advice = (
        "Make this grader stricter, or leave it out of the formula."
        if found.low > 0
        else "Check what it gives the reference answers (`rftkit check DATA -g GRADER`), and give "
        "partial credit to answers that are nearly right."
    )
    return Finding(
        "same_pay",
        subject,
        f"{who[:1].upper()}{who[1:]} gave {found.low:g} to each of {found.num:,} answers, so "
        "there is nothing to learn from it.",
        advice,
    )


def _flat(story: Story) -> Iterator[Finding]:
    shares = _recent(story, "flat_groups")
    is_enough = len(shares) > 1 or story.total_steps in (None, story.step)
    if not shares or not is_enough or _is_learnt(story):
        return
    share, last = _mean(shares), shares[-2:]
    if set(last) == {1.0}:
        yield Finding(
            "flat",
            "",
            f"Every group was flat in {_steps(story, len(last))}: all completions of a group "
            "earned the same, so no weight changed.",
            "Use easier rows or partial credit in the grader, or raise `compute_multiplier` for "
            "more completions a prompt.",
        )
    elif share > FLAT_SHARE:
        yield Finding(
            "mostly_flat",
            "",
            f"{share:.0%} of the groups in {_steps(story, len(shares))} were flat; the model "
            "learns only from the others.",
            "Use easier rows or partial credit in the grader, or raise `compute_multiplier`; "
            "`rftkit check DATA -g GRADER --model MODEL` shows which rows are useful.",
        )


def _flat_grader(story: Story) -> Iterator[Finding]:
    """A sub-grader in which every group is flat while the whole reward is not."""
    if len(story.recent) < WINDOW or len(story.graders) < 2:
        return
    if all(share == 1 for share in _recent(story, "flat_groups")):
        return
    for line in story.graders:
        name = line["name"]
        shares = _known([_line(data, name).get("train_flat_groups") for data in story.recent])
        mean = _known([_line(data, name).get("train_reward_mean") for data in story.recent])
        found = story.ranges.get(name, Range())
        if len(shares) < WINDOW or min(shares) < 1 or _is_constant(found):
            continue
        if mean and _is_near_best(_mean(mean), found):
            continue
        yield Finding(
            "flat_grader",
            name,
            f"Every group was flat in `{name}` in {_steps(story, WINDOW)}: the model "
            "cannot learn what it asks for from them.",
            "Raise `compute_multiplier` for more completions a prompt, set metadata `refill` to "
            "draw further prompts, or start from a model that is right sometimes, for example a "
            "supervised job.",
        )


def _never_sampled(story: Story) -> Iterator[Finding]:
    """Where references guide, the first steps are given time to bring a value."""
    is_guided = any(_learning(data).get("guided") for data in story.recent)
    if is_guided and story.num_steps < GUIDED_STEPS:
        return
    for (name, side), found in story.answers.items():
        so_far = found.get("num_samples_so_far", 0)
        if side == "train" and so_far >= max(LEAST_ANSWERS, 8 * len(found["samples"])):
            wanted = story.references.get(name, Counter())
            total = sum(wanted.values())
            missing = [value for value in found.get("never_sampled", ()) if wanted.get(value)]
            shares = {value: wanted[value] / total for value in missing}
            yield from never_sampled(name, shares, so_far, is_guided=is_guided)


def never_sampled(
    name: str, missing: Mapping[str, float], num_answers: int, *, is_guided: bool = False
) -> Iterator[Finding]:
    """Values that references have and no answer had.

    Args:
        name: place of the answer.
        missing: value -> share of the references.
        num_answers: number of answers checked.
        is_guided: whether references guide the job already.
    """
    if not missing or num_answers < LEAST_ANSWERS:
        return
    few = sorted(missing, key=lambda value: (-missing[value], value))
    said = ", ".join(f"`{_short(each)}`" for each in few[:NAMED])
    said += f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
    was, them = ("was", "it") if len(few) == 1 else ("were", "them")
    yield Finding(
        "never_sampled",
        name,
        f"{said} {was} never sampled in {num_answers:,} answers, though {_rows(missing)} of the "
        f"references have {them} as `{name}`: RFT alone is unlikely to find {them}.",
        "References guide this job already; start from a supervised job."
        if is_guided
        else f"Start from a supervised job, or let references guide {them} (metadata "
        "`guidance` = `references`).",
    )


def _rows(missing: Mapping[str, float]) -> str:
    return f"{sum(missing.values()):.0%}"


def _collapsed(story: Story) -> Iterator[Finding]:
    """In the last two training steps, or else in the last validation; step 0 never counts."""
    for name in dict.fromkeys(name for name, _ in story.answers):
        new = list(_collapsed_in_training(story, name))
        valid = story.answers.get((name, "valid"))
        if not new and valid and (story.last_valid or {}).get("step"):
            new = list(collapsed(name, valid, "in the last validation"))
        yield from new


def _collapsed_in_training(story: Story, name: str) -> Iterator[Finding]:
    sides = [
        line["train"]
        for data in list(story.recent)[-2:]
        for line in data.get("answers") or []
        if line["name"] == name and line["train"]["samples"]
    ]
    wanted = story.references.get(name, Counter())
    if len(sides) < 2 or story.num_steps < WINDOW:
        return  # a preference of the base model is not a collapse
    values = dict.fromkeys(value for side in sides for value in side["samples"])
    pooled = {
        "samples": {v: min(side["samples"].get(v, 0.0) for side in sides) for v in values},
        "references": {v: count / wanted.total() for v, count in wanted.items() if count},
        "num_samples": sum(side["num_samples"] for side in sides),
        "num_prompts": sum(side["num_prompts"] for side in sides),
    }
    yield from collapsed(name, pooled, f"in {_steps(story, 2)}")


def collapsed(name: str, found: Json, where: str) -> Iterator[Finding]:
    """Answers that are nearly all the same, when the references are not.

    Args:
        name: place of the answer.
        found: `samples` and `references` (value -> share), `num_samples` and `num_prompts`.
        where: such as `at step 12`.
    """
    samples, wanted = found.get("samples") or {}, found.get("references") or {}
    if found.get("num_samples", 0) < LEAST_ANSWERS // 2 or not samples:
        return
    top, share = max(samples.items(), key=lambda pair: pair[1])
    most = max(wanted.values(), default=None)
    if share < SAME_SHARE or found.get("num_prompts", 0) < LEAST_PROMPTS:
        return
    if most is None or most > share - 0.15:
        return
    have = f"; {wanted.get(top, 0.0):.0%} of the reference answers are" if top in wanted else ""
    yield Finding(
        "collapsed",
        name,
        f"`{name}` is `{_short(top)}` in {share:.0%} of the answers {where}{have}: the model "
        "has settled on one value, whatever the prompt.",
        "Start again with a lower `learning_rate_multiplier` (a third), or with metadata "
        "`advantage` = `per_grader`, which pulls the rarer values back; an earlier checkpoint may "
        "be usable.",
    )


def _unchanged_grader(story: Story) -> Iterator[Finding]:
    """Sub-graders without a clear change, although the reward rose."""
    first, last = story.first_valid, story.last_valid
    if first is None or last is None or first is last:
        return
    if story.total_steps and 2 * last["step"] < story.total_steps:
        return
    total, parts = validation_gains(first, last)
    if total is None or total.direction <= 0 or len(parts) < 2:
        return
    for name, change in parts.items():
        best = story.ranges.get(name, Range())
        mean = _line(last, name).get("valid_reward_mean")
        if change.direction != 0 or change.half_width is None or _is_near_best(mean, best):
            continue
        yield Finding(
            "still",
            name,
            gain_sentence(
                total, parts, f"validation reward (step {first['step']} to {last['step']})"
            ),
            f"To teach `{name}`, give it more weight in the formula, train more steps, or raise "
            "`compute_multiplier`, so that more groups differ in it.",
        )
        return


def validation_gains(first: Json, last: Json) -> tuple[Change | None, dict[str, Change]]:
    """From one validation to another: the change of the reward, and of each grader.

    Intervals treat the two validations as independent, which makes them wider than a comparison
    row by row (`evals.compare`) would.
    """
    total = _change(
        (_scores(first).get("valid_reward_mean"), _learning(first).get("valid_reward_stderr")),
        (_scores(last).get("valid_reward_mean"), _learning(last).get("valid_reward_stderr")),
    )
    parts: dict[str, Change] = {}
    for line in _scores(last).get("graders") or []:
        before = _line(first, line["name"])
        change = _change(
            (before.get("valid_reward_mean"), before.get("valid_reward_stderr")),
            (line.get("valid_reward_mean"), line.get("valid_reward_stderr")),
        )
        if change is not None:
            parts[line["name"]] = change
    return total, parts


def _change(
    before: tuple[float | None, float | None], after: tuple[float | None, float | None]
) -> Change | None:
    (start, start_error), (end, end_error) = before, after
    if start is None or end is None:
        return None
    if start_error is None or end_error is None:
        return Change(end - start)
    return Change(end - start, CERTAINTY * math.hypot(start_error, end_error))


def _entropy(story: Story) -> Iterator[Finding]:
    values = _recent(story, "entropy")
    if len(values) > 1 and (mean := _mean(values)) < LOW_ENTROPY and not _is_learnt(story):
        yield Finding(
            "low_entropy",
            "",
            f"The entropy is {mean:.3f} nats per token in {_steps(story, len(values))}: the model "
            "rarely tries anything else, although its rewards are below the best so far.",
            "Start again with a lower `learning_rate_multiplier` (a third), or set metadata "
            "`entropy_floor`.",
        )


RULES: Sequence[Callable[[Story], Iterable[Finding]]] = (
    _cut_off,
    _unscorable,
    _constant_reward,
    _flat,
    _flat_grader,
    _never_sampled,
    _collapsed,
    _entropy,
    _unchanged_grader,
)


def _is_learnt(story: Story) -> bool:
    means = _known([_train_mean(data) for data in story.recent])
    return bool(means) and _is_near_best(_mean(means), story.ranges.get("", Range()))


def _is_near_best(mean: float | None, found: Range) -> bool:
    if mean is None or not found.low < found.high:
        return False
    return mean >= found.low + NEAR_BEST * (found.high - found.low)


def _train_mean(data: Json) -> float | None:
    found: float | None = _scores(data).get("train_reward_mean", data.get("train_mean_reward"))
    return found


def _scores(data: Json) -> Json:
    found: Json = data.get("scores") or {}
    return found


def _learning(data: Json) -> Json:
    found: Json = data.get("learning") or {}
    return found


def _line(data: Json, name: str) -> Json:
    lines = _scores(data).get("graders") or []
    found: Json = next((line for line in lines if line["name"] == name), {})
    return found


def _recent(story: Story, name: str) -> list[float]:
    return _known([_learning(data).get(name) for data in story.recent])


def share_words(found: Json) -> str:
    """`yes 59 %, no 41 %, needs review 0 % of 64 answers (references: 33 %, 33 %, 33 %)`."""
    samples, wanted = found.get("samples") or {}, found.get("references") or {}
    said = ", ".join(f"{_short(value)} {share:.0%}" for value, share in samples.items())
    said = f"{said or 'nothing'} of {found.get('num_samples', 0):,} answers"
    if not wanted:
        return said
    return f"{said} (references {', '.join(f'{wanted.get(v, 0.0):.0%}' for v in samples)})"


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _steps(story: Story, num: int) -> str:
    """`step 3`, `steps 3 to 6`: the last ones."""
    steps = [data["step"] for data in story.recent][-num:]
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def _short(value: str) -> str:
    one_line = " ".join(value.split())
    return one_line if len(one_line) <= 40 else f"{one_line[:39]}…"
