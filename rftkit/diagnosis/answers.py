"""Rules about closed answers: values that are never sampled, and answers that are all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rftkit.diagnosis.finding import Finding
from rftkit.diagnosis.story import WINDOW, Story, learning
from rftkit.wording import cut

__all__ = [
    "LEAST_ANSWERS",
    "collapsed",
    "never_sampled",
    "share_words",
    "values_collapsed",
    "values_never_sampled",
]

Json = Mapping[str, Any]

SAME_SHARE = 0.9
"""Share of equal answers above which the policy has settled on one."""
LEAST_ANSWERS = 32
"""Fewer answers are not enough to judge how often a value is sampled."""
LEAST_PROMPTS = 4
GUIDED_STEPS = 6
"""Steps in which references that guide a job should bring every value."""
NAMED = 3
"""Values that a sentence names."""


def values_never_sampled(story: Story) -> Iterator[Finding]:
    """Where references guide, the first steps are given time to bring a value."""
    is_guided = story.settings.get("guidance") == "references" or any(
        learning(data).get("guided") for data in story.recent
    )
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


def values_collapsed(story: Story) -> Iterator[Finding]:
    """In the last two training steps, or else in the last two validations.

    The baseline never counts. A single validation counts at the end of a job only: greedy answers
    are all the same as soon as one value is the most likely everywhere, which training often passes
    through on its way.
    """
    for name in dict.fromkeys(name for name, _ in story.answers):
        found = list(_collapsed_in_training(story, name)) or _collapsed_in_validation(story, name)
        yield from found


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
    yield from collapsed(name, pooled, f"in {story.last_steps(2)}", story.settings)


def _collapsed_in_validation(story: Story, name: str) -> list[Finding]:
    last = _validation(story, story.last_valid, name)
    before = _validation(story, story.valid_before, name)
    found = list(collapsed(name, last, "in the last validation", story.settings))
    is_end = story.last_valid is not None and story.last_valid["step"] == story.total_steps
    return found if is_end or list(collapsed(name, before, "")) else []


def _validation(story: Story, data: Json | None, name: str) -> Json:
    """A closed answer in a validation; empty where there is none, and for the baseline."""
    if data is None or data["step"] <= story.start:
        return {}
    lines = [line for line in data.get("answers") or [] if line["name"] == name]
    found: Json = lines[0].get("valid") or {} if lines else {}
    return found


def collapsed(
    name: str, found: Json, where: str, settings: Json | None = None
) -> Iterator[Finding]:
    """Answers that are nearly all the same, when the references are not.

    Args:
        name: place of the answer.
        found: `samples` and `references` (value -> share), `num_samples` and `num_prompts`.
        where: such as `at step 12`.
        settings: those of the job, as far as they are known; what is set already is not advised.
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
        _against_collapse(settings or {}),
    )


def _against_collapse(settings: Json) -> str:
    lower = "Start again with a lower `learning_rate_multiplier` (a third)"
    if settings.get("advantage") == "per_grader":
        return f"{lower}; an earlier checkpoint may be usable."
    return (
        f"{lower}, or with metadata `advantage` = `per_grader`, which pulls the rarer values back; "
        "an earlier checkpoint may be usable."
    )


def share_words(found: Json) -> str:
    """`yes 59 %, no 41 %, needs review 0 % of 64 answers (references: 33 %, 33 %, 33 %)`."""
    samples, wanted = found.get("samples") or {}, found.get("references") or {}
    said = ", ".join(f"{_short(value)} {share:.0%}" for value, share in samples.items())
    said = f"{said or 'nothing'} of {found.get('num_samples', 0):,} answers"
    if not wanted:
        return said
    return f"{said} (references {', '.join(f'{wanted.get(v, 0.0):.0%}' for v in samples)})"


def _short(value: str) -> str:
    return cut(" ".join(value.split()), 40)
