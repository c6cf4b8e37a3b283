"""Agreement of a grader with people: can its rewards be believed?

`agree` compares a grader's rewards with labels that people gave to the same samples. It uses kappa
for verdicts and rank correlation for numbers. It suggests another threshold only if that one is
shown to agree better, corrected for the search among all thresholds. `noise` measures how much a
grader disagrees with itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ConfigDict

from rftkit.errors import InputError
from rftkit.evals import kappas, stats
from rftkit.evals.cells import Array
from rftkit.evals.comparison import Estimate
from rftkit.evals.correlation import correlation_over_rows
from rftkit.evals.samples import Samples
from rftkit.evals.sentences import decimals, interval
from rftkit.wording import counted

__all__ = ["Agreement", "ClassAgreement", "Label", "Threshold", "agree"]

MOST_CLASSES = 12
"""If labels have more different numbers than this, they are treated as a scale."""


@dataclass(frozen=True, slots=True)
class Label:
    """A person's label of one sample."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    row: str
    """Key of the row."""
    run: str
    """Label of the run."""
    sample: int
    """Number of the sample in its row."""
    value: float
    """1 accept, 0 reject, or a number on the reward's scale."""
    kind: Literal["verdict", "number"] = "verdict"
    """Whether it was accept or reject, or a number."""
    by: str = ""
    """Who gave the label; empty when one person labels alone."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A pass threshold that was tried against the labels."""

    value: float
    """Samples with at least this reward pass."""
    kappa: float | None
    """Agreement with people at this threshold, beyond chance; None when all verdicts are alike."""
    num_lenient: int
    """Samples that the grader passes and people reject."""
    num_harsh: int
    """Samples that the grader fails and people accept."""


@dataclass(frozen=True, slots=True)
class ClassAgreement:
    """The samples that people gave one label."""

    label: str
    """`accept`, `reject`, or the number."""
    num_labels: int
    """Samples with this label that the grader has graded."""
    measured: Estimate
    """For verdicts, the share on which grader and people agree; for numbers, the mean of reward
    minus label. Rows are the units."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A grader compared with labels of people."""

    num_labels: int
    """Labelled samples that the grader has graded."""
    num_left_out: int
    """Labels whose sample is missing or was not graded."""
    kind: Literal["verdict", "number"]
    """What the labels are."""
    threshold: float | None
    """The reward from which a sample passes, if one was given; otherwise the grader's own verdicts
    count."""
    agreement: Estimate
    """Share of verdicts that agree, rows as units; value None for numbers."""
    kappa: Estimate
    """Cohen's kappa of the verdicts; value None for numbers, or when all verdicts are alike."""
    correlation: Estimate
    """Spearman's rank correlation of reward and label; value None when either never varies."""
    lenient: tuple[tuple[str, str, int], ...]
    """(row, run, sample) that the grader passes, or scores higher, against people; worst first."""
    harsh: tuple[tuple[str, str, int], ...]
    """(row, run, sample) that the grader fails, or scores lower, against people; worst first."""
    bias: Estimate
    """Mean of reward minus label: above zero the grader is lenient."""
    thresholds: tuple[Threshold, ...]
    """Every threshold that makes a difference, by value; empty for numbers."""
    suggested: Threshold | None
    """The threshold that is shown to agree better with people than the present one; None when none
    is: a random grader gets one in at most 5 of 100 cases."""
    sentence: str
    """How well grader and people agree, in which direction it errs, and what to change."""
    gain: float | None = None
    """The least by which kappa grows with the suggested threshold; None without one."""
    classes: tuple[ClassAgreement, ...] = ()
    """Counts by people's label; empty for numbers with many different values."""


def agree(
    samples: Samples,
    labels: Iterable[Label],
    *,
    threshold: float | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Compare a grader with labels of people.

    Where several people labelled one sample, their mean counts; verdicts by majority, and ties
    are left out.

    Args:
        samples: The graded samples.
        labels: People's labels, of one kind: verdicts, or numbers on the reward's scale.
        threshold: Rewards of at least this pass; default the grader's own verdicts, or 0.5 for
            samples without a verdict.
        level: Confidence level of the intervals.
        seed: Seed of the resampling.

    Raises:
        InputError: There is no label, or verdicts and numbers are mixed.
    """
    import numpy as np

    given = list(labels)
    kinds = {each.kind for each in given}
    if len(kinds) != 1:
        raise InputError(
            "there are no labels yet: label some rows first"
            if not given
            else "the labels mix verdicts and numbers; use one kind at a time"
        )
    kind = kinds.pop()
    people = _people(given, kind)
    frame = samples.frame
    lines = dict(zip(zip(frame["row"], frame["run"], frame["sample"], strict=True),
                     range(len(frame)), strict=True))  # fmt: skip
    rewards = frame["reward"].to_numpy(float)
    known = [
        (place, lines[place], value)
        for place, value in people.items()
        if place in lines and np.isfinite(rewards[lines[place]])
    ]
    places = [place for place, _, _ in known]
    lines_known = [line for _, line, _ in known]
    grader = rewards[lines_known]
    person = np.array([value for _, _, value in known], dtype=float)
    passes = (grader >= (0.5 if threshold is None else threshold)).astype(float)
    if threshold is None:
        own = frame["passed"].astype("Float64").to_numpy(float, na_value=np.nan)[lines_known]
        passes = np.where(np.isfinite(own), own, passes)
    num_left_out = len(given) - _covered(given, places)
    return _compared(places, grader, passes, person, kind, threshold, num_left_out, level, seed)


def _people(labels: Sequence[Label], kind: str) -> dict[Any, float]:
    """One label for each sample, combined from everyone who labelled it."""
    values: dict[Any, list[float]] = {}
    for each in labels:
        values.setdefault((each.row, each.run, each.sample), []).append(each.value)
    means = {place: sum(each) / len(each) for place, each in values.items()}
    if kind == "number":
        return means
    return {place: float(mean > 0.5) for place, mean in means.items() if mean != 0.5}


def _covered(labels: Sequence[Label], places: Sequence[Any]) -> int:
    known = set(places)
    return sum((each.row, each.run, each.sample) in known for each in labels)


def _compared(
    places: list[Any],
    grader: Array,
    passes: Array,
    person: Array,
    kind: Literal["verdict", "number"],
    threshold: float | None,
    num_left_out: int,
    level: float,
    seed: int,
) -> Agreement:
    import numpy as np

    rows = np.array([place[0] for place in places], dtype=object)
    correlation = correlation_over_rows(rows, grader, person, level=level, seed=seed)
    agreement = kappa = bias = Estimate(None)
    tried: tuple[Threshold, ...] = ()
    best, gain = None, None
    if kind == "verdict":
        off, weight = passes - person, grader
        tried = _thresholds(grader, person)
        agreement, kappa, gains = _measured(rows, grader, passes, person, tried, level, seed)
        at = _suggested(tried, gains)
        best, gain = (None, None) if at is None else (tried[at], float(gains[at]))
    else:
        off = weight = grader - person
        bias = stats.mean_interval(_row_means(rows, off), level=level)
    worst = np.argsort(-weight, kind="stable")  # the most lenient first, the harshest last
    found = Agreement(
        num_labels=len(places),
        num_left_out=num_left_out,
        kind=kind,
        threshold=threshold,
        agreement=agreement,
        kappa=kappa,
        correlation=correlation,
        lenient=tuple(places[at] for at in worst if off[at] > 1e-9),
        harsh=tuple(places[at] for at in worst[::-1] if off[at] < -1e-9),
        bias=bias,
        thresholds=tried,
        suggested=best,
        sentence="",
        gain=gain,
        classes=_classes(rows, grader, passes, person, kind, level),
    )
    return replace(found, sentence=_sentence(found))


def _measured(
    rows: Array,
    grader: Array,
    passes: Array,
    person: Array,
    tried: Sequence[Threshold],
    level: float,
    seed: int,
) -> tuple[Estimate, Estimate, Array]:
    """Share and kappa of the verdicts, and what each threshold gains at least in kappa."""
    import numpy as np

    num = len(set(rows))
    if not num:
        return Estimate(None), Estimate(None), np.empty(0)
    choices = np.column_stack([passes, *((grader >= each.value) * 1.0 for each in tried)])
    drawn = [kappas.draw_agreement(rows, choices, person, prior, seed=seed)
             for prior in kappas.PRIORS]  # fmt: skip
    share = float((passes == person).mean())
    is_luck = bool(tried) and kappas.luck_p(rows, choices, person, seed=seed) > 1 - level
    gains = [kappas.gains(kappa[:, 0], kappa[:, 1:], level) for _, kappa in drawn]
    return (
        kappas.interval_of(share, [shares[:, 0] for shares, _ in drawn], num, level),
        kappas.interval_of(
            stats.kappa(passes, person), [kappa[:, 0] for _, kappa in drawn], num, level
        ),
        np.full(len(tried), -np.inf) if is_luck else np.minimum(*gains),
    )


def _suggested(tried: Sequence[Threshold], gains: Array) -> int | None:
    """The threshold with the best agreement among those whose gain is certain; the middle one of a
    tie.
    """
    sure = [at for at, gain in enumerate(gains) if gain > 0 and tried[at].kappa is not None]
    return max(
        sure, key=lambda at: (tried[at].kappa or 0.0, -abs(tried[at].value - 0.5)), default=None
    )


def _classes(
    rows: Array, grader: Array, passes: Array, person: Array, kind: str, level: float
) -> tuple[ClassAgreement, ...]:
    """Agreement by label: a judge that passes everything agrees on all that people accept."""
    import numpy as np

    given = np.unique(person)
    if kind == "number" and len(given) > MOST_CLASSES:
        return ()
    found = []
    for label in given:
        mine = person == label
        if kind == "verdict":
            means = _row_means(rows[mine], (passes == person)[mine] * 1.0)
            share = stats.mean_interval(means, level=level, support=(0.0, 1.0), bounds=(0.0, 1.0))
            found.append(ClassAgreement("accept" if label else "reject", int(mine.sum()), share))
        else:
            off = stats.mean_interval(_row_means(rows[mine], (grader - person)[mine]), level=level)
            found.append(ClassAgreement(f"{label:g}", int(mine.sum()), off))
    return tuple(found)


def _row_means(rows: Array, values: Array) -> Array:
    """The mean of each row's samples: rows are the independent units."""
    import numpy as np

    _, place = np.unique(rows.astype(str), return_inverse=True)
    means: Array = np.bincount(place, values) / np.bincount(place)
    return means


def _thresholds(grader: Array, person: Array) -> tuple[Threshold, ...]:
    """Every threshold that changes a verdict: one between each two neighbouring rewards."""
    import numpy as np

    seen = np.unique(grader)
    between = (seen[1:] + seen[:-1]) / 2
    if len(between) > 200:
        between = between[np.linspace(0, len(between) - 1, 200).astype(int)]
    tried = []
    for value in between:
        passes = (grader >= value).astype(float)
        tried.append(
            Threshold(
                value=float(value),
                kappa=stats.kappa(passes, person),
                num_lenient=int((passes > person).sum()),
                num_harsh=int((passes < person).sum()),
            )
        )
    return tuple(tried)


def _sentence(found: Agreement) -> str:
    if not found.num_labels:
        return "No labelled sample has a grade, so the grader cannot be compared with people."
    labels = counted(found.num_labels, "label")
    lenient, harsh = len(found.lenient), len(found.harsh)
    if found.kind == "number":
        said = f"Rank correlation with people {interval(found.correlation)} on {labels}"
        said += f"; the grader minus people is {interval(found.bias, with_sign=True)} on average."
        return said + _one_label(found)
    said = f"Agrees with people on {_share(found.agreement.value)} of {labels}"
    if found.kappa.value is not None:
        said += f" (kappa {interval(found.kappa)})"
    said += f"; lenient in {lenient}, harsh in {harsh}."
    better = found.suggested
    if better is not None and better.kappa is not None and found.gain is not None:
        said += (
            f" A threshold of {better.value:.3g} agrees better (kappa {better.kappa:.2f} on these "
            f"labels, at least {found.gain:.{decimals(found.gain, least=2)}f} more)."
        )
    if found.num_labels < 30:
        said += " With fewer than 30 labels this is a first impression."
    return said + _one_label(found)


def _one_label(found: Agreement) -> str:
    """A sentence for labels that are all the same, which cannot show agreement."""
    if len(found.classes) != 1:
        return ""
    label = found.classes[0].label
    if found.kind == "number":
        return f" All labels are {label}, so there is no order to compare: label other answers too."
    other = "reject" if label == "accept" else "accept"
    return (
        f" People {label} all of them, so a judge that {label}s everything would look right: label "
        f"answers that people {other} too."
    )


def _share(value: float | None) -> str:
    """`97%`; a share is never rounded to all or to none."""
    if value is None:
        return "–"
    digits = next((n for n in range(4) if value in (0, 1) or 0 < round(value, n + 2) < 1), 4)
    return f"{value:.{digits}%}"
