"""Do the reference answers of the rows reach the top of the grader?

Graders that call out (a judge, an endpoint) are not asked: that would cost money. Not here: what
cheats earn (`rftkit.graders.audit`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rftkit.datasets.findings import Finding, Place
from rftkit.graders import Grade, Sample, compile_grader, reference_answer, variables

__all__ = ["MAX_REFERENCES", "format_needed", "reference_findings"]

MAX_REFERENCES = 500  # rows whose reference answer is graded; more add seconds, not news
CALLS_OUT = frozenset({"score_model", "label_model", "endpoint"})


def format_needed(
    grader: Mapping[str, Any], response_format: Mapping[str, Any] | None
) -> Iterator[Finding]:
    """A grader that reads JSON, without anything that makes the model write JSON."""
    needed = variables(grader)
    if response_format is None and any(path.startswith("sample.output_json") for path in needed):
        yield Finding(
            "warning",
            "no_response_format",
            "the grader reads sample.output_json, which a job fills only under a response format",
            "give the job a response format, and this check --response-format",
        )


def reference_findings(
    grader: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
    rows: Sequence[tuple[Place, Mapping[str, Any]]],
) -> Iterator[Finding]:
    """Grade the reference answers of some rows; `grader` must be normalised."""
    if not CALLS_OUT.isdisjoint(each["type"] for each in _specs(grader)):
        yield Finding(
            "info", "references_not_graded", "reference answers not graded: it would call a model"
        )
        return
    found = [(where, item, _reference(item, response_format, grader)) for where, item in rows]
    tried = [(where, item, text) for where, item, text in found if text is not None]
    with compile_grader(grader) as compiled:
        grades = compiled.grade_many(
            [
                (Sample.from_text(text, response_format=response_format), item)
                for _, item, text in tried
            ]
        )
    rewards: dict[Place, float] = {}
    trouble: dict[str, list[Place]] = {}
    for (where, _, _), grade in zip(tried, grades, strict=True):
        if grade.outcome == "graded" and grade.reward is not None:
            rewards[where] = grade.reward
        else:
            trouble.setdefault(f"{grade.outcome}: {_reason(grade)}", []).append(where)
    for message, places in trouble.items():
        yield Finding(
            "error",
            "reference_not_graded",
            f"the reference answer is {message}",
            "try the grader on this row: rftkit grade",
            len(places),
            tuple(places),
        )
    if not trouble:
        yield from _reward_findings(rewards)


def _reference(
    item: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
    grader: Mapping[str, Any],
) -> str | None:
    """What the row says itself; only if it says nothing, what the grader would like."""
    own = reference_answer(item, response_format)
    return own if own is not None else reference_answer(item, response_format, grader=grader)


def _reason(grade: Grade) -> str:
    details = [value for value in grade.errors.values() if isinstance(value, str) and value]
    return "; ".join(details or grade.errors)


def _reward_findings(rewards: Mapping[Place, float]) -> Iterator[Finding]:
    if not rewards:
        yield Finding(
            "info", "no_references", "no row holds a reference answer to try the grader on"
        )
        return
    top = max(rewards.values())
    below = tuple(where for where, reward in rewards.items() if reward < top - 1e-9)
    graded = f"{len(rewards)} reference answers graded"
    if below:
        lowest = min(rewards.values())
        yield Finding(
            "warning",
            "references_differ",
            f"{graded}: {len(below)} earn less than the best ({lowest:.3f} against {top:.3f})",
            "these labels and the grader disagree: correct the label, or loosen the grader",
            len(below),
            below,
        )
    else:
        yield Finding("info", "references", f"{graded}: each earns {top:.3f}")


def _specs(grader: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(grader["graders"].values()) if grader.get("type") == "multi" else [grader]
