"""Calibrate a judge: grade labelled answers with exactly this judge, and compare with people.

The labels are of answers, so they outlive a change of the judge; the calibration does not: it holds
the digest of the judge's model, prompt and settings (`rftkit.graders.calibrations`). Agreement is
that of `agree`, over all labels, by what people said (`Agreement.classes`), and by slices of the
rows. Not here: what a job does without a calibration.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError, nearest_name
from rftkit.evals.agreement import Agreement, Label, agree
from rftkit.evals.comparison import Estimate
from rftkit.evals.grading import grade_again
from rftkit.evals.samples import Samples
from rftkit.evals.sentences import interval
from rftkit.evals.slices import MISSING, rows_by
from rftkit.graders import calibrations, judges, validate
from rftkit.graders.calibrations import NOT_CALIBRATED
from rftkit.graders.relative import needs_group
from rftkit.wording import listed

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Calibrated", "SliceAgreement", "calibrate", "upload_calibration"]

MOST_SLICES = 50
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class SliceAgreement:
    """The labelled answers to the rows with one value of a key."""

    by: str
    """The key."""
    value: str
    found: Agreement
    """The agreement; its intervals hold together with those of the key's other values (Bonferroni).
    """
    fails: bool
    """Whether it is shown to agree less than the rest of the labels."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A judge compared with people."""

    part: str
    """Key of the judge in its multi grader; empty without one."""
    judge: Mapping[str, Any]
    """The spec of the judge."""
    digest: str
    """The digest of its model, prompt and settings."""
    overall: Agreement
    slices: tuple[SliceAgreement, ...]
    """The one that agrees least comes first."""
    num_failed: int
    """Labelled answers that the judge could not grade: left out, and no disagreement."""
    samples: Samples
    """The labelled answers with the judge's grades."""
    created_at: int
    """Unix seconds."""

    @property
    def sentences(self) -> list[str]:
        """How well it agrees, whom it misjudges, where it fails, and what to change."""
        said = [self.overall.sentence]
        if self.num_failed:
            said.append(f"The judge could not grade {self.num_failed} of the labelled answers.")
        for each in self.overall.classes if self.overall.kind == "verdict" else ():
            verb = "accept" if each.label == "accept" else "reject"
            said.append(
                f"Of the {each.num_labels} that people {verb} it {verb}s {interval(each.measured)}."
            )
        failing = [f"`{each.by}` = {each.value}" for each in self.slices if each.fails]
        if failing:
            said.append(f"It is shown to agree less than elsewhere where {listed(failing)}.")
        return said

    def record(self) -> calibrations.Calibration:
        """The record that a job needs."""
        is_verdict = self.overall.kind == "verdict"
        measured = self.overall.kappa if is_verdict else self.overall.correlation
        return calibrations.Calibration(
            digest=self.digest,
            name=str(self.judge.get("name") or self.part or self.judge["type"]),
            model=str(self.judge["model"]),
            statistic="kappa" if is_verdict else "rank correlation",
            value=measured.value,
            low=measured.low,
            high=measured.high,
            num_labels=self.overall.num_labels,
            threshold=self.overall.threshold,
            sentence=self.overall.sentence,
            created_at=self.created_at,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the record, and the agreement by class and slice."""
        return {
            **self.record().to_dict(),
            "part": self.part,
            "num_failed": self.num_failed,
            "agreement": _facts(self.overall),
            "slices": [
                {"by": each.by, "value": each.value, "fails": each.fails, **_facts(each.found)}
                for each in self.slices
            ],
            "sentences": self.sentences,
        }


def calibrate(
    samples: Samples,
    labels: Iterable[Label],
    grader: Mapping[str, Any],
    *,
    part: str | None = None,
    slices: Sequence[str] = (),
    threshold: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Calibrated:
    """Grade the labelled answers with a judge, and compare its grades with the labels.

    Args:
        samples: The answers; grades that they have already do not count.
        labels: People's labels of them, of one kind.
        grader: The grader of the job.
        part: Key of the judge in a multi grader; not needed when there is one judge.
        slices: Keys of the rows; the agreement is shown for each value.
        threshold: Rewards of at least this pass; default the judge's own pass threshold.
        seed: Of the resampling.
        options: Of `compile_grader`, such as `complete`, which calls the judge.

    Raises:
        GraderSpecError: The spec is malformed.
        InputError: The grader has no such judge, or it compares the answers of a group with each
            other (a relative grader without an anchor), or there are no labels of these samples.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"the threshold must be a finite number, found {threshold}")
    given = list(labels)
    key, judge = _judge(grader, part)
    cut = {by: _cut(samples, given, by) for by in slices}
    places = {(each.row, each.run, each.sample) for each in given}
    graded = grade_again(_labelled(samples, places), judge, **options)
    overall = agree(graded, given, threshold=threshold, seed=seed)
    if not len(graded.frame):
        raise InputError(
            f"none of the {len(given)} labels is of an answer of these runs; name the runs whose "
            "answers were labelled"
        )
    return Calibrated(
        part=key,
        judge=judge,
        digest=calibrations.digest(judge),
        overall=overall,
        slices=tuple(_slices(graded, given, cut, threshold, seed)),
        num_failed=int((graded.frame["outcome"] == "failed").sum()),
        samples=graded,
        created_at=int(time.time()),
    )


def upload_calibration(client: OpenAI, found: Calibrated) -> str:
    """Upload a calibration, so that jobs with this judge find it; return the id of the file."""
    content = json.dumps(found.record().to_dict(), ensure_ascii=False, indent=1).encode()
    name = calibrations.file_name(found.digest)
    return client.files.create(file=(name, content), purpose="user_data").id


def _judge(grader: Mapping[str, Any], part: str | None) -> tuple[str, dict[str, Any]]:
    """The key and the spec of the judge to calibrate."""
    found = judges(validate(grader, purpose="eval", groups=True))
    if not found:
        raise InputError(
            f"this grader asks no model, so there is no judge to calibrate: its type is "
            f"{grader.get('type')!r}"
        )
    single = {key: each for key, each in found.items() if not needs_group(each)}
    if part is None and len(single) > 1:
        raise InputError(
            f"this grader has several judges; choose one: --part {' or '.join(single)}"
        )
    key = next(iter(single or found)) if part is None else part
    if key not in found:
        known = ", ".join(filter(None, found)) or "the grader itself, without a part"
        raise InputError(f"this grader has no judge {key!r}; there is {known}")
    if key not in single:
        raise InputError(NOT_CALIBRATED.format(name=found[key].get("name") or key))
    return key, found[key]


def _labelled(samples: Samples, places: set[tuple[str, str, int]]) -> Samples:
    """Only the answers that have labels, because the judge need not grade others."""
    frame = samples.frame
    mine = [
        (row, run, sample) in places
        for row, run, sample in zip(frame["row"], frame["run"], frame["sample"], strict=True)
    ]
    return dataclasses.replace(samples, frame=frame[mine].reset_index(drop=True))


def _cut(samples: Samples, labels: Sequence[Label], by: str) -> dict[str, list[str]]:
    """Value -> the labelled rows with it; checked before a judge is paid."""
    rows = list(dict.fromkeys(each.row for each in labels if each.row in samples.items))
    groups = rows_by(samples, rows, by)
    if rows and set(groups) == {MISSING}:
        keys = dict.fromkeys(key for row in rows for key in samples.items[row])
        raise InputError(f"no labelled row has the key {by!r}; {nearest_name(by, keys)}")
    if len(groups) > MOST_SLICES:
        raise InputError(
            f"`{by}` has {len(groups)} different values among the labelled rows; slices need a key "
            f"with at most {MOST_SLICES}"
        )
    return groups


def _slices(
    samples: Samples,
    labels: Sequence[Label],
    cut: Mapping[str, Mapping[str, Sequence[str]]],
    threshold: float | None,
    seed: int,
) -> list[SliceAgreement]:
    found = []
    for by, groups in cut.items():
        level = 1 - (1 - LEVEL) / len(groups)
        for value, mine in groups.items():
            inside, outside = (
                [each for each in labels if (each.row in set(mine)) is is_in]
                for is_in in (True, False)
            )
            there = agree(samples, inside, threshold=threshold, level=level, seed=seed)
            rest = (
                agree(samples, outside, threshold=threshold, level=level, seed=seed)
                if outside
                else None
            )
            found.append(SliceAgreement(by, value, there, _is_worse(there, rest)))
    return sorted(found, key=_worst)


def _main(found: Agreement) -> Estimate:
    """The share that agrees; for numbers the rank correlation."""
    return found.agreement if found.kind == "verdict" else found.correlation


def _is_worse(there: Agreement, rest: Agreement | None) -> bool:
    """Whether the two intervals are apart, which is stricter than a test of the difference."""
    if rest is None:
        return False
    mine, others = _main(there), _main(rest)
    return mine.high is not None and others.low is not None and mine.high < others.low


def _worst(each: SliceAgreement) -> tuple[str, bool, float]:
    value = _main(each.found).value
    return (each.by, value is None, value or 0.0)


def _facts(found: Agreement) -> dict[str, Any]:
    shown = {name: getattr(found, name) for name in ("agreement", "kappa", "correlation", "bias")}
    return {
        "num_labels": found.num_labels,
        **{name: dataclasses.asdict(each) for name, each in shown.items()},
        "num_lenient": len(found.lenient),
        "num_harsh": len(found.harsh),
        "classes": [dataclasses.asdict(each) for each in found.classes],
        "suggested": found.suggested and dataclasses.asdict(found.suggested),
    }
