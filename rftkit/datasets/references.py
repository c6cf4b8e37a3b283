"""Do the reference answers of the rows reach the top of the grader?

Graders that make calls (a judge, an endpoint) are skipped, because calls cost money. Not here:
what cheats earn (`rftkit.graders.audit`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rftkit.datasets.findings import Finding, Place
from rftkit.formats import CLOSE, OPEN, open_objects
from rftkit.graders import Grade, Sample, compile_grader, types
from rftkit.graders.auditing import PAYS_NOTHING
from rftkit.graders.misspelt import format_problems
from rftkit.graders.recognition import Verdict, dead_leaves, local_part, recognise, unread
from rftkit.graders.references import right_answer
from rftkit.graders.types import calls_out
from rftkit.wording import counted

__all__ = [
    "MAX_REFERENCES",
    "format_is_open",
    "format_needed",
    "reference_findings",
    "verdict_finding",
]

MAX_REFERENCES = 500  # reference answers that are graded; more take time and find nothing new


def format_needed(
    grader: Mapping[str, Any], response_format: Mapping[str, Any] | None
) -> Iterator[Finding]:
    """Report a grader that reads JSON when nothing makes the model write it."""
    for problem in format_problems(grader, response_format):
        if response_format is None:
            advice = "give the job a response format, and this check --response-format"
            yield Finding("warning", "no_response_format", problem, advice)
        else:
            advice = "correct the name in the grader, or add the field to the response format"
            yield Finding("error", "field_not_in_format", problem, advice)


def format_is_open(response_format: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Report a format under which an answer may run on until it is cut off."""
    if open_objects(response_format):
        yield Finding("warning", "open_format", f"the response format is open: {OPEN}", CLOSE)


def reference_findings(
    grader: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
    rows: Sequence[tuple[Place, Mapping[str, Any]]],
) -> Iterator[Finding]:
    """Grade the reference answers of some rows; `grader` must be normalised."""
    if calls_out(grader):
        yield Finding(
            "info", "references_not_graded", "reference answers not graded: it would call a model"
        )
    found = [(where, item, right_answer(item, response_format, grader)) for where, item in rows]
    tried = [(where, item, text) for where, item, text in found if text is not None]
    if calls_out(grader):
        yield from _dead_local_leaves(grader, response_format, tried)
        return
    yield from _unread(grader, tried)
    with compile_grader(grader) as compiled:
        grades = compiled.grade_many(
            [
                (Sample.from_text(text, response_format=response_format), item)
                for _, item, text in tried
            ]
        )
        rewards = [g.reward for g in grades if g.outcome == "graded" and g.reward is not None]
        broken = recognise(
            compiled,
            [item for _, item, _ in tried],
            response_format=response_format,
            honest=rewards,
        )
    trouble: dict[str, list[Place]] = {}
    for (where, _, _), grade in zip(tried, grades, strict=True):
        if grade.outcome != "graded":
            trouble.setdefault(f"{grade.outcome}: {_reason(grade)}", []).append(where)
    for message, places in trouble.items():
        yield Finding(
            "error",
            "reference_not_graded",
            f"the reference answer is {message}",
            "test the grader on this row: rftkit grade",
            len(places),
            tuple(places),
        )
    if broken is not None:
        yield verdict_finding(broken)
        return
    yield from _dead_leaves(grader, grades)
    if not trouble:
        by_place = dict(zip((where for where, _, _ in tried), rewards, strict=True))
        yield from _reward_findings(by_place)


def verdict_finding(verdict: Verdict) -> Finding:
    """Return the verdict on a grader: an error, unless a job could still learn a little."""
    return Finding(
        "warning" if verdict.code == "unsteady" else "error",
        f"grader_{verdict.code}",
        verdict.sentence,
        verdict.advice,
        details=verdict.reasons,
        figures=verdict.to_dict(),
    )


def _dead_local_leaves(
    grader: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
    tried: Sequence[tuple[Place, Any, str]],
) -> Iterator[Finding]:
    """Test the sub-graders that call nothing, where others would."""
    local = local_part(grader)
    if local is None:
        return
    with compile_grader(local) as compiled:
        grades = compiled.grade_many(
            [
                (Sample.from_text(text, response_format=response_format), item)
                for _, item, text in tried
            ]
        )
    yield from _dead_leaves(grader, grades)


def _dead_leaves(grader: Mapping[str, Any], grades: Sequence[Grade]) -> Iterator[Finding]:
    for key in dead_leaves(grader, grades):
        yield Finding(
            "warning",
            "sub_grader_pays_nothing",
            PAYS_NOTHING.format(key=key),
            "grade one reference answer by hand: rftkit grade",
            figures={"key": key},
        )


def _unread(
    grader: Mapping[str, Any], tried: Sequence[tuple[Place, Any, str]]
) -> Iterator[Finding]:
    for leaf in types.parts(grader).values():
        places = tuple(where for where, _, text in tried if unread(leaf, [text]))
        if places:
            yield Finding(
                "warning",
                "script_not_read",
                f"{leaf['evaluation_metric']} does not read the script of "
                f"{counted(len(places), 'reference answer')}: it knows only the letters a to z "
                "and digits, and everything else earns 0",
                "use fuzzy_match for these texts",
                len(places),
                places,
            )


def _reason(grade: Grade) -> str:
    details = [value for value in grade.errors.values() if isinstance(value, str) and value]
    return "; ".join(details or grade.errors)


def _reward_findings(rewards: Mapping[Place, float]) -> Iterator[Finding]:
    if not rewards:
        yield Finding(
            "info", "no_references", "no row has a reference answer to test the grader with"
        )
        return
    top = max(rewards.values())
    below = tuple(where for where, reward in rewards.items() if reward < top - 1e-9)
    graded = f"{counted(len(rewards), 'reference answer')} graded"
    if below:
        lowest = min(rewards.values())
        yield Finding(
            "warning",
            "references_differ",
            f"{graded}: {len(below)} earn less than the best ({lowest:.3f} against {top:.3f})",
            "these labels and the grader disagree: correct the labels or the grader",
            len(below),
            below,
        )
    else:
        each = "it earns" if len(rewards) == 1 else "each earns"
        shown = f"{top:.3f}" if abs(top) >= 0.001 or not top else f"{top:.1g}"
        yield Finding("info", "references", f"{graded}: {each} {shown}")
