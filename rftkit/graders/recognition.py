"""Does a grader recognise a right answer at all? One verdict for checks, jobs and reports.

The reference answers of a dataset are right by definition. A grader teaches nothing if it rewards
none of them, if it gives every answer the same reward, or if it gives more for wrong ones, however
tidy its numbers look. The same holds if it gives one answer different rewards each time. `verdict`
applies this rule to rewards; `recognise` grades a few rows first. Not here: which cheats pay
(`auditing`), and whether the references themselves are right.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rftkit.graders import types
from rftkit.graders.cheats import make_answers
from rftkit.graders.engine import CompiledGrader
from rftkit.graders.formula import compile_formula
from rftkit.graders.outcome import Fault, Grade, Sample
from rftkit.graders.references import right_answer
from rftkit.graders.template import compile_template
from rftkit.wording import cut

__all__ = [
    "Tried",
    "Verdict",
    "dead_leaves",
    "explained",
    "local_part",
    "recognise",
    "ungraded",
    "unread",
    "verdict",
]

MAX_ROWS = 12
"""Rows whose cheats are graded when the references look suspicious."""
WRONG = ("other_answer", "changed_fact")
"""Cheats that are wrong answers of the right form."""
AGAIN = "reference again"
SAME = 1e-9
MAX_SHOWN = 80
_ROUGE_TOKEN = re.compile("[a-z0-9]", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why nothing can be learned from a grader."""

    code: Literal["not_graded", "not_recognised", "constant", "inverted", "unsteady"]
    sentence: str
    advice: str
    reasons: tuple[str, ...] = ()
    """What the grader compares in one row, and known causes."""

    def __str__(self) -> str:
        return "; ".join((self.sentence, *self.reasons))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, for events and JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tried:
    """What the answers to one row earned; answers that could not be graded are left out."""

    reference: float
    """Reward of the reference answer."""
    others: Mapping[str, float]
    """Name of a cheat -> its reward."""
    again: float | None = None
    """The reward of the reference answer when it was graded a second time, if it was."""


def verdict(honest: Sequence[float], tried: Sequence[Tried], floor: float = 0.0) -> Verdict | None:
    """The verdict over rewards; None when the grader recognises right answers.

    Args:
        honest: the rewards of all reference answers that could be graded.
        tried: rows in which wrong answers were graded as well.
        floor: the lowest reward, which an answer earns for nothing.
    """
    if not honest:
        return None
    told_apart = any(
        row.reference > row.others[name] + SAME
        for row in tried
        for name in WRONG
        if name in row.others
    )
    if max(honest) <= floor + SAME and not told_apart:
        return Verdict(
            "not_recognised",
            "no reference answer earns anything: the grader does not recognise a right answer "
            f"({_counted(honest)}, highest reward {max(honest):.3f})",
            "grade one reference answer by hand (rftkit grade), and compare what the grader reads "
            "with what the row holds: its keys, its form, its case",
        )
    rows = [row for row in tried if row.others]
    return _unsteady(tried) or _constant(honest, rows) or _inverted(rows)


def ungraded(grades: Sequence[Grade]) -> Verdict | None:
    """The verdict on a grader that gives no reference answer a reward; None when it gives one.

    Args:
        grades: of reference answers.
    """
    if not grades or any(grade.outcome == "graded" for grade in grades):
        return None
    why = next((_details(grade) for grade in grades if grade.outcome == "failed"), None)
    if why is None:
        return Verdict(
            "not_recognised",
            f"no reference answer can be scored ({len(grades):,} tried): {_details(grades[0])}",
            "give the job a response format that the reference answers follow, or let the grader "
            "read sample.output_text",
        )
    return Verdict(
        "not_graded",
        f"no reference answer could be graded ({len(grades):,} tried), because the grader failed: "
        f"{why}",
        "fix what the grader needs: the name, address and key of its judge "
        "(RFTKIT_JUDGE_BASE_URL, RFTKIT_JUDGE_API_KEY), its endpoint, its code; a job would pause",
    )


def _details(grade: Grade) -> str:
    """The error, and the sub-grader that reported it."""
    messages = [value for value in grade.errors.values() if isinstance(value, str) and value]
    where = f" (in {', '.join(map(repr, grade.sub_errors))})" if grade.sub_errors else ""
    return "; ".join(messages or grade.errors)[:300] + where


def _constant(honest: Sequence[float], rows: Sequence[Tried]) -> Verdict | None:
    """The verdict on a grader that does not look at the answer."""
    if not rows or any(_differ([row.reference, *row.others.values()]) for row in rows):
        return None
    if _differ(honest):
        sentence = (
            "the grader does not look at the answer: within each row, right answers, wrong answers "
            "and an empty one earn the same; nothing can be learned from it"
        )
    else:
        sentence = (
            f"the grader pays the same for everything: {honest[0]:.3f} for right answers, wrong "
            "answers and an empty one; nothing can be learned from it"
        )
    return Verdict(
        "constant",
        sentence,
        "make the reward depend on the answer: compare sample.output_text or sample.output_json "
        "with the row",
    )


def _inverted(rows: Sequence[Tried]) -> Verdict | None:
    """The verdict on a grader that pays every wrong answer more than the right one."""
    wrong = [(row.reference, row.others[n]) for row in rows for n in WRONG if n in row.others]
    if not wrong or any(other <= reference + SAME for reference, other in wrong):
        return None
    reference, other = wrong[0]
    return Verdict(
        "inverted",
        f"wrong answers earn more than right ones in every row ({other:.3f} against "
        f"{reference:.3f} in the first): the model would learn to be wrong",
        "turn the grader round: swap eq and ne, or subtract the reward from its highest value",
    )


def _unsteady(rows: Sequence[Tried]) -> Verdict | None:
    """The verdict on a grader that pays the same answer to the same row differently."""
    both = [(row.reference, row.again) for row in rows if row.again is not None]
    apart = [(one, other) for one, other in both if abs(one - other) > SAME]
    if 2 * len(apart) < max(len(both), 1):
        return None
    return Verdict(
        "unsteady",
        f"the grader pays the same answer differently each time: {apart[0][0]:.3f}, then "
        f"{apart[0][1]:.3f} ({len(apart)} of {len(both)} reference answers)",
        "take random numbers, clocks and counters out of grade, and let it keep nothing from one "
        "call to the next",
    )


def recognise(
    grader: CompiledGrader,
    items: Sequence[Mapping[str, Any]],
    *,
    response_format: Mapping[str, Any] | None = None,
    honest: Sequence[float] | None = None,
) -> Verdict | None:
    """Grade the reference answers of a few rows, and cheats if those look suspicious.

    Graders that call a model or an address are not asked: the verdict is None.

    Args:
        grader: compiled.
        items: rows, as graders see them; a few spread over them are tried.
        response_format: of the job.
        honest: the rewards of reference answers, if they are known already.
    """
    if types.calls_out(grader.spec):
        return None
    known = [
        (item, text)
        for item in _spread(items, MAX_ROWS)
        if (text := right_answer(item, response_format, grader.spec)) is not None
    ]
    if honest is None:
        own = _grades(grader, [(text, item) for item, text in known], response_format)
        if any(each.outcome == "failed" for each in own) and (found := ungraded(own)):
            return found
        honest = [g.reward for g in own if g.outcome == "graded" and g.reward is not None]
    if not honest:
        return None
    tried = list(_tried(grader, known, response_format))
    found = verdict(honest, tried, grader.floor_reward)
    return found and explained(found, grader.spec, known)


def _tried(
    grader: CompiledGrader,
    known: Sequence[tuple[Mapping[str, Any], str]],
    response_format: Mapping[str, Any] | None,
) -> Iterator[Tried]:
    texts = [text for _, text in known]
    for item, text in known:
        answers = make_answers(text, item, texts) | {AGAIN: text}
        earned = _graded(grader, [(each, item) for each in answers.values()], response_format)
        rewards = {name: r for name, r in zip(answers, earned, strict=True) if r is not None}
        again = rewards.pop(AGAIN, None)
        if "reference" in rewards:
            yield Tried(rewards.pop("reference"), rewards, again)


def _graded(
    grader: CompiledGrader,
    answers: Sequence[tuple[str, Mapping[str, Any]]],
    response_format: Mapping[str, Any] | None,
) -> list[float | None]:
    """The rewards; None for what was not graded."""
    grades = _grades(grader, answers, response_format)
    return [g.reward if g.outcome == "graded" else None for g in grades]


def _grades(
    grader: CompiledGrader,
    answers: Sequence[tuple[str, Mapping[str, Any]]],
    response_format: Mapping[str, Any] | None,
) -> list[Grade]:
    return grader.grade_many(
        [(Sample.from_text(text, response_format=response_format), item) for text, item in answers]
    )


def explained(
    found: Verdict, spec: Mapping[str, Any], known: Sequence[tuple[Mapping[str, Any], str]]
) -> Verdict:
    """The verdict with what is known about its cause; `known` are rows and their references."""
    if found.code != "not_recognised":
        return found
    return Verdict(found.code, found.sentence, found.advice, tuple(_reasons(spec, known)))


def _reasons(
    spec: Mapping[str, Any], known: Sequence[tuple[Mapping[str, Any], str]]
) -> Iterator[str]:
    """What each leaf of a normalised spec reads in the first row, and known causes of zeros."""
    for leaf in types.parts(spec).values():
        if leaf["type"] == "python" and re.search(r"\bexcept\b", leaf["source"]):
            yield (
                f"{leaf['name']!r} catches exceptions, so an error in it becomes a low reward; "
                "let the exception through, and the grade fails with its words"
            )
        if not types.spec_type(leaf).compares or not known:
            continue
        if unread(leaf, [text for _, text in known]):
            yield (
                f"{leaf['evaluation_metric']} does not read this script: it knows only the letters "
                "a to z and digits; use fuzzy_match"
            )
        item, text = known[0]
        try:
            sides = [
                compile_template(leaf[side])(Sample.from_text(text), item)
                for side in ("input", "reference")
            ]
        except Fault:
            continue
        yield f"{leaf['name']!r} compares {_short(sides[0])} with {_short(sides[1])}"


def dead_leaves(spec: Mapping[str, Any], grades: Sequence[Grade]) -> list[str]:
    """Keys of a multi that pay no reference answer and would raise its reward.

    A penalty, which right answers do not earn either, lowers the reward and is left out. Leaves
    that were not tried are taken to pay the most they can.

    Args:
        spec: normalised, of any type.
        grades: of reference answers, by this grader or a part of it.
    """
    parts = types.parts(spec)
    if spec["type"] != "multi":
        return []
    formula = compile_formula(spec["calculate_output"], parts)
    floors = {key: types.lowest(part) for key, part in parts.items()}
    tops = {key: float((part.get("range") or (0.0, 1.0))[1]) for key, part in parts.items()}

    def raises(key: str, rewards: Mapping[str, float | None]) -> bool:
        known = tops | {name: value for name, value in rewards.items() if value is not None}
        with contextlib.suppress(Fault):
            return formula(known | {key: tops[key]}) > formula(known) + SAME
        return False

    def tried(key: str) -> list[Grade]:
        known = [each for each in grades if each.outcome != "unscorable"]
        return [each for each in known if each.sub_rewards.get(key) is not None]

    return [
        key
        for key in parts
        if (mine := tried(key))
        and all((each.sub_rewards[key] or 0.0) <= floors[key] + SAME for each in mine)
        and any(raises(key, each.sub_rewards) for each in mine)
    ]


def local_part(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The leaves of a multi grader that call nothing, as a multi grader; None if there are none.

    Args:
        spec: normalised.
    """
    local = {
        key: part
        for key, part in types.parts(spec).items()
        if key and not types.spec_type(part).calls_out
    }
    if not local:
        return None
    formula = " + ".join(local)
    return {"type": "multi", "name": "local", "graders": local, "calculate_output": formula}


def unread(leaf: Mapping[str, Any], texts: Sequence[str]) -> bool:
    """Whether a leaf is a rouge, which sees no word in most of these texts."""
    if not str(leaf.get("evaluation_metric", "")).startswith("rouge"):
        return False
    blind = sum(bool(text.strip()) and not _ROUGE_TOKEN.search(text) for text in texts)
    return 2 * blind > len(texts)


def _spread(items: Sequence[Any], count: int) -> Sequence[Any]:
    """Up to `count` of them, evenly apart."""
    return items[:: max(1, -(-len(items) // count))]


def _differ(rewards: Sequence[float]) -> bool:
    return max(rewards) - min(rewards) > SAME


def _counted(rewards: Sequence[float]) -> str:
    return f"{len(rewards):,} graded"


def _short(text: str) -> str:
    return repr(cut(text, MAX_SHOWN))
