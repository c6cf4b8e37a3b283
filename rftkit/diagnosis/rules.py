"""Rules that find problems in a training history: one function per rule, all in `RULES`.

A finding describes the last step of the history. It states what was found, with figures, what to
do, and which setting to try. A rule reports nothing when the service does not report the figures it
needs. Some rules also report nothing when the rewards are near the best that the grader ever gave:
a model that has learnt its task has flat groups and low entropy, and that is no problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rftkit.diagnosis.answers import LEAST_ANSWERS, values_collapsed, values_never_sampled
from rftkit.diagnosis.finding import Finding
from rftkit.diagnosis.gains import gain_sentence, validation_gains
from rftkit.diagnosis.story import WINDOW, Range, Story, grader_line, learning, scores
from rftkit.wording import counted

__all__ = ["CUT_SHARE", "FLAT_SHARE", "findings"]

Json = Mapping[str, Any]

FLAT_SHARE = 0.75
"""Share of groups without signal above which most of the computation is wasted."""
CUT_SHARE = 0.2
"""Share of truncated answers above which the limit, not the task, decides the reward."""
UNSCORABLE_SHARE = 0.5
"""Share of answers that are not scorable, not counting truncated ones."""
LOW_ENTROPY = 0.03
"""Nats per token below which the policy is nearly deterministic."""
REASONS = ("cut_off", "unscorable", "same_pay", "flat", "mostly_flat")
"""Findings that state why a job without any signal has none."""
_NO_SIGNAL = Finding(
    "no_signal",
    "",
    "no group of completions had different rewards.",
    "Check what the grader gives the reference answers (`rftkit check DATA -g GRADER`).",
)
NEAR_BEST = 0.95
"""Share of the way from the lowest to the highest reward so far that counts as learned."""


def findings(story: Story) -> list[Finding]:
    """Problems at the last step of the history, most fundamental first.

    The rules are about rewards of sampled answers: a job that learns from given ones has none.
    """
    if story.is_offline:
        return []
    found = [each for rule in RULES for each in rule(story)]
    found = _nothing_learned(found) if story.taught_nothing else found
    return [*story.alarms.raised, *found]


def _nothing_learned(found: Sequence[Finding]) -> list[Finding]:
    """The first finding that states why no weight ever changed, as the verdict on the job."""
    known = [each for each in found if each.code in REASONS and not each.subject]
    why = known[0] if known else _NO_SIGNAL
    said = f"Nothing was learned: {why.message[:1].lower()}{why.message[1:]}"
    verdict = Finding("nothing_learned", "", said, why.advice)
    return [verdict, *(each for each in found if each is not why)]


def _cut_off(story: Story) -> Iterator[Finding]:
    shares = story.recent_values("truncated_share")
    where = "the answers"
    if not shares and story.last_valid is not None:
        shares = _known([learning(story.last_valid).get("valid_truncated_share")])
        where = "the validation answers"
    if shares and (share := _mean(shares)) > CUT_SHARE:
        limit = story.settings.get("max_completion_tokens")
        at = f" at {counted(limit, 'token')}" if limit else ""
        yield Finding(
            "cut_off",
            "",
            f"{share:.0%} of {where} were cut off{at}; they earn the floor reward.",
            "Raise `max_completion_tokens` (metadata), or ask for shorter answers in the prompt.",
        )


def _unscorable(story: Story) -> Iterator[Finding]:
    wrong = _known([data.get("mean_unresponsive_rewards") for data in story.recent])
    cut = story.recent_values("truncated_share")
    if wrong and cut and (share := _mean(wrong) - _mean(cut)) > UNSCORABLE_SHARE:
        yield Finding(
            "unscorable",
            "",
            f"{share:.0%} of the answers could not be scored, though they were not cut off.",
            "Check that the grader reads what the `response_format` asks for (`rftkit check DATA "
            "-g GRADER --model MODEL`), and read a few answers: this service may not enforce it."
            if story.settings.get("response_format")
            else "Give the job a `response_format`, so that answers have the form that the grader "
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
    """Groups without a signal; a flat group that a reference answer guides has one."""
    shares = story.recent_values("no_signal_groups") or story.recent_values("flat_groups")
    is_enough = len(shares) > 1 or story.total_steps in (None, story.step)
    if not shares or not is_enough or _is_learnt(story):
        return
    share, last = _mean(shares), shares[-2:]
    if set(last) == {1.0}:
        yield Finding(
            "flat",
            "",
            f"Every group was flat in {story.last_steps(len(last))}: all completions of a group "
            "earned the same, so no weight changed.",
            "Use easier rows or partial credit in the grader, or raise `compute_multiplier` for "
            "more completions a prompt.",
        )
    elif share > FLAT_SHARE:
        yield Finding(
            "mostly_flat",
            "",
            f"{share:.0%} of the groups in {story.last_steps(len(shares))} were flat; the model "
            "learns only from the others.",
            "Use easier rows or partial credit in the grader, or raise `compute_multiplier`; "
            "`rftkit check DATA -g GRADER --model MODEL` shows which rows are useful.",
        )


def _flat_grader(story: Story) -> Iterator[Finding]:
    """A sub-grader in which every group is flat while the whole reward is not."""
    if len(story.recent) < WINDOW or len(story.graders) < 2:
        return
    if all(share == 1 for share in story.recent_values("flat_groups")):
        return
    for line in story.graders:
        name = line["name"]
        shares = _known([grader_line(data, name).get("train_flat_groups") for data in story.recent])
        mean = _known([grader_line(data, name).get("train_reward_mean") for data in story.recent])
        found = story.ranges.get(name, Range())
        if len(shares) < WINDOW or min(shares) < 1 or _is_constant(found):
            continue
        guided = any("train_guided_reward_mean" in grader_line(data, name) for data in story.recent)
        if guided or (mean and _is_near_best(_mean(mean), found)):
            continue
        yield Finding(
            "flat_grader",
            name,
            f"Every group was flat in `{name}` in {story.last_steps(WINDOW)}: the model "
            "cannot learn what it asks for from them.",
            "Raise `compute_multiplier` for more completions a prompt, "
            f"{_set_or_raise(story, 'refill')} to draw further prompts, or start from a model that "
            "is right sometimes, for example a supervised job.",
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
        mean = grader_line(last, name).get("valid_reward_mean")
        if change.direction != 0 or not change.is_known or _is_near_best(mean, best):
            continue
        yield Finding(
            "still",
            name,
            gain_sentence(
                total, parts, f"validation reward (step {first['step']} to {last['step']})"
            ),
            f"To teach `{name}`, {_guiding(story, name)}give it more weight in the formula, train "
            "more steps, or raise `compute_multiplier`, so that more groups differ in it.",
        )
        return


def _guiding(story: Story, grader: str) -> str:
    """The advice to let references guide an answer, where it has some and they do not yet."""
    lines = [line for data in story.recent for line in data.get("answers") or []]
    known = {line.get("grader") for line in lines if story.references.get(line["name"])}
    if story.settings.get("guidance") == "none" and grader in known:
        return "let references guide it (metadata `guidance` = `references`), "
    return ""


def _entropy(story: Story) -> Iterator[Finding]:
    values = story.recent_values("entropy")
    if len(values) > 1 and (mean := _mean(values)) < LOW_ENTROPY and not _is_learnt(story):
        yield Finding(
            "low_entropy",
            "",
            f"The entropy is {mean:.3f} nats per token in {story.last_steps(len(values))}: the "
            "model rarely tries anything else, although its rewards are below the best so far.",
            "Start again with a lower `learning_rate_multiplier` (a third), or "
            f"{_set_or_raise(story, 'entropy_floor')}.",
        )


def _set_or_raise(story: Story, name: str) -> str:
    value = story.settings.get(name)
    return f"raise metadata `{name}` ({value:g} now)" if value else f"set metadata `{name}`"


RULES: Sequence[Callable[[Story], Iterable[Finding]]] = (
    _cut_off,
    _unscorable,
    _constant_reward,
    _flat,
    _flat_grader,
    values_never_sampled,
    values_collapsed,
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
    found: float | None = scores(data).get("train_reward_mean", data.get("train_mean_reward"))
    return found


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
