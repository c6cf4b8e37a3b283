"""Test a grader before you train with it: what do cheap tricks earn compared with honest answers?

`audit` takes rows spread over a dataset and grades the reference answer of each and every cheat
made from it (`cheats`). It reports which rows cannot be graded, which cheats pay, and which
sub-grader causes the differences. Not here: whether the references are right.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError
from rftkit.graders.cheats import CHEATS, DANGERS, POISONS, make_answers
from rftkit.graders.engine import CompiledGrader, compile_grader
from rftkit.graders.outcome import Grade, Sample
from rftkit.graders.recognition import Tried, Verdict, dead_leaves, explained, ungraded, verdict
from rftkit.graders.references import right_answer
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PAYS_NOTHING", "Audit", "Cheat", "audit"]


PAYS_NOTHING = (
    "no reference answer earns anything from the sub-grader {key!r}, which would raise the reward: "
    "it does not recognise a right answer"
)


@dataclass(frozen=True, slots=True)
class Cheat:
    """The rewards of one trick over all rows."""

    name: str
    mean: float | None
    """Mean reward over the rows with a grade; None when there is none."""
    num_beats: int
    """Rows where it earned at least as much as the reference."""
    num_graded: int
    num_failed: int
    """Grades that failed."""
    num_unscorable: int
    """Unscorable answers; they count in the mean with the floor reward."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of `audit`; print it, or use `findings` and `to_frame`."""

    num_rows: int
    """Rows that were graded."""
    honest: float | None
    """Mean reward of the reference answers."""
    best: float | None
    """The highest reward of a reference answer."""
    short: tuple[int, ...]
    """Rows (from 0) whose reference answer earns less than the best."""
    ungradable: dict[int, str]
    """Row -> why its reference answer could not be graded."""
    cheats: tuple[Cheat, ...]
    carriers: dict[str, float]
    """Sub-grader -> its share of how much rewards vary with it, summing to 1; empty if no multi."""
    verdict: Verdict | None = None
    """Why nothing can be learned from the grader; None when it recognises right answers."""
    dead: tuple[str, ...] = ()
    """Sub-graders that pay no reference answer, although they would raise the reward."""

    def findings(self) -> list[str]:
        """Return the problems as sentences; empty when no cheat paid."""
        out = []
        if self.honest is None and self.verdict is not None:
            return [f"{self.verdict}. What to do: {self.verdict.advice}"]
        if self.honest is None:
            return ["no row holds a reference answer that could be graded; nothing was tried"]
        for row, why in list(self.ungradable.items())[:5]:
            out.append(f"row {row + 1} cannot be graded: {why}")
        if self.verdict is not None:  # without reference answers every cheat would seem to pay
            return [str(self.verdict), *out]
        out += [PAYS_NOTHING.format(key=key) for key in self.dead]
        if self.short:
            rows = ", ".join(str(row + 1) for row in self.short[:8])
            out.append(
                f"{len(self.short)} of {self.num_rows} reference answers earn less than the best "
                f"({self.best:.3f}): rows {rows}; are labels and grader in agreement?"
            )
        out += [self._pays(cheat) for cheat in self.cheats if self._is_paid(cheat)]
        for key, share in self.carriers.items():
            if share > 0.9 and len(self.carriers) > 1:
                out.append(
                    f"{key!r} carries {share:.0%} of the differences; the others hardly matter"
                )
            elif share < 0.02:
                out.append(f"{key!r} carries {share:.0%} of the differences; it hardly matters")
        return out

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cheat, after one for the honest answer."""
        import pandas as pd

        honest = {"answer": "reference", "mean": self.honest, "num_graded": self.num_rows}
        rows = [
            {
                "answer": cheat.name,
                "mean": cheat.mean,
                "beats": cheat.num_beats / cheat.num_graded if cheat.num_graded else None,
                "num_graded": cheat.num_graded,
                "num_failed": cheat.num_failed,
                "num_unscorable": cheat.num_unscorable,
            }
            for cheat in self.cheats
        ]
        return pd.DataFrame([honest, *rows])

    def __str__(self) -> str:
        lines = [f"{'answer':<18}{'earns':>8}{'at least the reference':>26}{'failed':>8}"]
        lines.append(f"{'reference':<18}{_number(self.honest):>8}")
        for cheat in self.cheats:
            beats = f"{cheat.num_beats} of {counted(cheat.num_graded, 'row')}"
            lines.append(
                f"{cheat.name:<18}{_number(cheat.mean):>8}{beats:>26}{cheat.num_failed:>8}"
            )
        lines += [f"{key}: {share:.0%} of the differences" for key, share in self.carriers.items()]
        return "\n".join([*lines, "", *(self.findings() or ["no cheat pays"])])

    def _is_paid(self, cheat: Cheat) -> bool:
        if cheat.mean is None or self.honest is None:
            return False
        return cheat.mean >= 0.8 * self.honest or cheat.num_beats >= max(1, 0.1 * cheat.num_graded)

    def _pays(self, cheat: Cheat) -> str:
        beats = f", and no less in {cheat.num_beats} of {counted(cheat.num_graded, 'row')}"
        return (
            f"{cheat.name} earns {_number(cheat.mean)} against {_number(self.honest)} for the "
            f"reference{beats if cheat.num_beats else ''}: {DANGERS[cheat.name]}"
        )


def audit(
    spec: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    references: Sequence[str | None] | None = None,
    response_format: Mapping[str, Any] | None = None,
    max_rows: int = 50,
    **options: Any,
) -> Audit:
    """Grade the reference answer and every cheat for rows spread over a dataset.

    Args:
        spec: a grader in the wire's form.
        rows: items, in the form that graders get.
        references: the right answers, one per row; by default the row's own, or else what
            the grader looks for (`references`).
        response_format: of the job; with it, answers that are not JSON are unscorable.
        max_rows: rows to grade; a judge is called once for each row and cheat.
        options: of `compile_grader`.

    Raises:
        GraderSpecError: the spec is malformed.
        InputError: `references` has another length than `rows`.
    """
    if references is not None and len(references) != len(rows):
        raise InputError(f"{len(references)} references for {len(rows)} rows")
    with compile_grader(spec, **options) as grader:

        def infer(item: Mapping[str, Any]) -> str | None:
            return right_answer(item, response_format, grader.spec)

        stride = max(1, -(-len(rows) // max_rows))
        picked = range(0, len(rows), stride)
        known = {
            row: text
            for row in picked
            if (text := references[row] if references else infer(rows[row])) is not None
        }
        texts = list(known.values())
        answers = {row: make_answers(text, rows[row], texts) for row, text in known.items()}
        grades = _grade(grader, rows, answers, response_format)
    found = _summarise(grader, grades, [row for row in picked if row not in known])
    if found.verdict is None:
        return found
    pairs = [(rows[row], text) for row, text in known.items()]
    return replace(found, verdict=explained(found.verdict, grader.spec, pairs))


def _grade(
    grader: CompiledGrader,
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[int, Mapping[str, str]],
    response_format: Mapping[str, Any] | None,
) -> dict[int, dict[str, Grade]]:
    every = [(row, name) for row, texts in answers.items() for name in texts]
    places = [place for place in every if place[1] not in POISONS]
    last = [place for place in every if place[1] in POISONS]
    grades = _grade_places(grader, rows, answers, response_format, places)
    for row, graded in _grade_places(grader, rows, answers, response_format, last).items():
        grades[row] |= graded
    return grades


def _grade_places(
    grader: CompiledGrader,
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[int, Mapping[str, str]],
    response_format: Mapping[str, Any] | None,
    places: Sequence[tuple[int, str]],
) -> dict[int, dict[str, Grade]]:
    pairs = [
        (Sample.from_text(answers[row][name], response_format=response_format), rows[row])
        for row, name in places
    ]
    grades: dict[int, dict[str, Grade]] = {row: {} for row in answers}
    for (row, name), grade in zip(places, grader.grade_many(pairs), strict=True):
        grades[row][name] = grade
    return grades


def _summarise(
    grader: CompiledGrader, grades: Mapping[int, Mapping[str, Grade]], unknown: Sequence[int]
) -> Audit:
    honest = {
        row: reward
        for row, by_name in grades.items()
        if (reward := _reward(by_name["reference"])) is not None
    }
    references = [by_name["reference"] for by_name in grades.values()]
    best = max(honest.values(), default=None)
    ungradable = dict.fromkeys(unknown, "neither the grader nor the row says what is right")
    for row, by_name in grades.items():
        if row not in honest:
            ungradable[row] = _why(by_name["reference"])
    return Audit(
        num_rows=len(grades) + len(unknown),
        honest=statistics.fmean(honest.values()) if honest else None,
        best=best,
        short=tuple(row for row, reward in honest.items() if reward < (best or 0.0) - 1e-9),
        ungradable=ungradable,
        cheats=tuple(_cheat(name, grades, honest) for name in CHEATS),
        carriers=_carriers(grader, [g for by_name in grades.values() for g in by_name.values()]),
        verdict=ungraded(references)
        or verdict(
            list(honest.values()),
            [_tried(reward, grades[row]) for row, reward in honest.items()],
            grader.floor_reward,
        ),
        dead=tuple(dead_leaves(grader.spec, references)),
    )


def _tried(reference: float, by_name: Mapping[str, Grade]) -> Tried:
    rewards = {name: _reward(grade) for name, grade in by_name.items() if name != "reference"}
    return Tried(reference, {name: each for name, each in rewards.items() if each is not None})


def _cheat(
    name: str, grades: Mapping[int, Mapping[str, Grade]], honest: Mapping[int, float]
) -> Cheat:
    tried = {row: grades[row][name] for row in honest}
    rewards = {row: g.reward for row, g in tried.items() if g.reward is not None}
    return Cheat(
        name=name,
        mean=statistics.fmean(rewards.values()) if rewards else None,
        num_beats=sum(reward >= honest[row] - 1e-9 for row, reward in rewards.items()),
        num_graded=len(rewards),
        num_failed=sum(grade.outcome == "failed" for grade in tried.values()),
        num_unscorable=sum(grade.outcome == "unscorable" for grade in tried.values()),
    )


def _carriers(grader: CompiledGrader, grades: Sequence[Grade]) -> dict[str, float]:
    """Return the share of each sub-grader in the covariance with the reward."""
    if grader.spec["type"] != "multi":
        return {}
    graded = [grade for grade in grades if grade.outcome == "graded"]
    if len(graded) < 2:
        return {}
    rewards = [grade.reward or 0.0 for grade in graded]
    scale = {leaf.key: [g.sub_rewards[leaf.key] or 0.0 for g in graded] for leaf in grader.leaves}
    together = {key: abs(statistics.covariance(subs, rewards)) for key, subs in scale.items()}
    total = sum(together.values())
    return {key: value / total for key, value in together.items()} if total else {}


def _reward(grade: Grade) -> float | None:
    return grade.reward if grade.outcome == "graded" else None


def _why(grade: Grade) -> str:
    details = [value for value in grade.errors.values() if isinstance(value, str)]
    return f"{grade.outcome}: {'; '.join(details or grade.errors)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
