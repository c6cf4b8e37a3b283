"""Alarms: signs that a job earns its reward without getting better, while there is still time.

Each training step reports figures of its answers (`watch` in its metric event): their mean, the
mean reward of the same answers, and how both vary together within the step. What the reward
explains is taken off: the slope is that of the first steps, at the end of its interval that
explains most. The rest is tested for a rise after every step (`trend`). An alarm needs both: the
evidence, and a rise that is large enough to matter. The rate of false alarms of a job is divided
among all kinds of alarms (Bonferroni), so that it holds for the job.

The proof is for steps that differ by luck once the reward is taken off. How often healthy jobs of
other kinds raise an alarm, and how late planted hacking does, is in tests/benchmarks/alarms.py. Not
here: the figures (`server.training.watching`), what a job does about an alarm (`on_alarm`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rftkit.diagnosis.finding import Finding
from rftkit.diagnosis.trend import Trend
from rftkit.t_distribution import t_quantile

__all__ = ["ALARMS", "RATE", "Alarm", "Alarms", "Kind", "threshold"]

Json = Mapping[str, Any]

RATE = 0.01
"""Share of healthy jobs that may raise an alarm of any kind."""
FIRST = 5
"""Steps at the beginning that later ones are compared with, and from which the slope is known."""
LAST = 5
"""Steps whose mean is the figure of now."""
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of alarm."""

    name: str
    """The name of its figure in the metric event."""
    title: str
    """What is watched, as a heading."""
    least: float
    """The smallest rise that matters, in units of the figure."""
    explained: bool
    """Whether the reward may explain a rise."""
    message: str
    """A sentence with {before}, {now} and {since}."""
    advice: str
    form: Literal["share", "tokens", "score"] = "share"
    """How the figure is formatted."""
    falls: bool = False
    """Whether the sign is a fall: the figure is watched with its sign reversed."""
    excused: float = 0.0
    """How much of a rise is excused when the figure that may explain it has risen by 1."""


KINDS = (
    Kind(
        "held_out",
        "held-out grader",
        0.05,
        True,
        "The held-out grader no longer follows the reward: it gave {before} in the first steps and "
        "gives {now} now.",
        "Read answers with a high reward and a low held-out grade before you continue; branch from "
        "a step before this one with a stricter grader.",
        "score",
        falls=True,
    ),
    Kind(
        "length",
        "length of answers",
        math.log(1.3),
        True,
        "Answers grow longer than the reward explains: from {before} to {now} tokens.",
        "Check whether the grader pays for padding (`rftkit check DATA -g GRADER`), and let it "
        "grade what is said, not how much.",
        "tokens",
    ),
    Kind(
        "repeated",
        "repetition",
        0.1,
        True,
        "Answers repeat themselves: {before} of their word sequences were repeats, now {now}.",
        "Lower `max_completion_tokens`, or let the grader take repetition into account.",
    ),
    Kind(
        "template",
        "template-like answers",
        0.15,
        True,
        "Answers to different prompts become alike: {before} of their word sequences were in "
        "answers to other prompts, now {now}.",
        "Read a few answers: a phrase that pays everywhere shows that the grader asks for words, "
        "not for content.",
    ),
    Kind(
        "mentions",
        "criteria mentioned without being right",
        0.1,
        False,
        "Criteria about presence are met more and more where those about correctness are not: the "
        "share of the first less that of the others was {before}, now {now}.",
        "Give criteria about correctness more weight, or make them required.",
        excused=0.5,
    ),
    Kind(
        "ungradable",
        "ungradable answers",
        0.05,
        False,
        "More answers cannot be graded: {before} at first, {now} now. The policy may be learning "
        "to avoid its grader.",
        "Read what the grader or the judge refused; lower `floor_reward`, so that an ungradable "
        "answer earns less than a poor one.",
    ),
    Kind(
        "cheats",
        "known cheats",
        0.05,
        False,
        "Known cheats appear among the answers: {before} at first, {now} now.",
        "`rftkit check DATA -g GRADER` shows what each cheat earns; close the one that pays.",
    ),
    Kind(
        "padding",
        "right answers padded with words",
        0.15,
        False,
        "Right answers come with more and more words around them: {before} of them at first, {now} "
        "now.",
        "Let the grader compare the whole answer with the right one, or grade its length.",
    ),
)
"""All kinds; a job's rate of false alarms is divided among them, whether it has their figures or
not."""


def threshold(rate: float = RATE) -> float:
    """The capital from which a kind of alarm is raised, for this rate of false alarms a job."""
    return len(KINDS) / rate


@dataclass(frozen=True, slots=True)
class Alarm:
    """The state of one kind of alarm after the last step."""

    kind: Kind
    num_steps: int
    """Steps with the figure."""
    before: float | None
    """The mean of the first steps; None when there are too few."""
    now: float | None
    """The mean of the last steps."""
    rise: float | None
    """How much more the figure rose than the reward explains, in its own unit (for length: its
    logarithm). A falling reward explains nothing, and the excess is never larger than the rise
    itself."""
    evidence: float
    """The largest capital of the test so far; an alarm is raised at `threshold`."""
    raised_at: int | None
    """The step at which it was raised; None if it was not."""


Means = tuple[float, float, float]
"""A figure, the part of it that is not explained, and what may explain it."""


@dataclass(slots=True)
class _Series:
    """The values of one figure, step by step."""

    kind: Kind
    trend: Trend
    slope: float = 0.0
    first: list[Json] = field(default_factory=list)
    recent: list[Means] = field(default_factory=list)
    """The values of the last steps."""
    start: Means | None = None
    """The sums over the first steps."""
    raised_at: int | None = None

    def add(self, figure: Json) -> None:
        """Add the value of one more step."""
        if self.start is None:
            self.first.append(figure)
            if len(self.first) == FIRST:
                self._begin()
            return
        self._take(figure)

    def _begin(self) -> None:
        if self.kind.explained:
            self.slope = explained(self.first, falls=self.kind.falls)
        for each in self.first:
            self._take(each)
        self.start = _means(self.recent)

    def _take(self, figure: Json) -> None:
        mean, by = figure["mean"], figure.get("by") or 0.0
        rest = (-mean if self.kind.falls else mean) - self.slope * by
        self.recent = [*self.recent, (mean, rest, by)][-LAST:]
        self.trend.add(rest)

    def status(self) -> Alarm:
        """The state of this alarm now."""
        found = Alarm(self.kind, self.trend.num, None, None, None, self.trend.peak, self.raised_at)
        if self.start is None:
            return found
        now, rest, by = _means(self.recent)
        rise = rest - self.start[1]
        rise -= self.kind.excused * max(0.0, by - self.start[2])
        if not self.kind.falls:
            rise = min(rise, now - self.start[0])
        return Alarm(
            self.kind, self.trend.num, self.start[0], now, rise, self.trend.peak, self.raised_at
        )


class Alarms:
    """All alarms of a job, up to a step."""

    def __init__(self, rate: float | None = None) -> None:
        """`rate` is the share of healthy jobs that may raise an alarm."""
        self.rate = rate or RATE
        self.raised: list[Finding] = []
        """The alarms so far, in the order of their steps; one stays when its figure falls again."""
        self._series: dict[str, _Series] = {}

    def add(self, step: int, total_steps: int | None, figures: Iterable[Json]) -> None:
        """Test the figures of one training step; steps must be in order."""
        for figure in figures:
            kind = ALARMS.get(figure["name"])
            if kind is None:  # an alarm of a newer rftkit
                continue
            series = self._series.setdefault(kind.name, _Series(kind, Trend(total_steps)))
            series.add(figure)
            self._judge(series, step, figure)

    @property
    def statuses(self) -> list[Alarm]:
        """The state of each kind of alarm whose figure the job reports."""
        return [s.status() for k in KINDS if (s := self._series.get(k.name)) is not None]

    def _judge(self, series: _Series, step: int, figure: Json) -> None:
        found = series.status()
        if series.raised_at is not None or found.rise is None or found.rise < series.kind.least:
            return
        if series.trend.peak >= threshold(self.rate):
            series.raised_at = step
            self.raised.append(self._finding(found, step, figure))

    def _finding(self, found: Alarm, step: int, figure: Json) -> Finding:
        kind = found.kind
        before, now = (written(kind, each) for each in (found.before, found.now))
        said = kind.message.format(before=before, now=now)
        if shown := figure.get("shown"):
            said += f" In step {step}: {', '.join(f'{n} {name}' for name, n in shown.items())}."
        said += f" At most {self.rate:.2g} of healthy jobs raise any alarm."
        evidence = {
            "name": kind.name,
            "step": step,
            "before": found.before,
            "now": found.now,
            "rise": found.rise,
            "evidence": found.evidence,
            "threshold": threshold(self.rate),
            "rate": self.rate,
        }
        return Finding(f"alarm_{kind.name}", "", said, kind.advice, evidence)


ALARMS: Mapping[str, Kind] = {kind.name: kind for kind in KINDS}


def written(kind: Kind, value: float | None) -> str:
    """A figure in words."""
    if value is None:
        return "–"
    if kind.form == "tokens":
        return f"{math.exp(value):.0f}"
    return f"{value:.0%}" if kind.form == "share" else f"{value:.2f}"


def explained(first: Sequence[Json], *, falls: bool = False) -> float:
    """The slope of a figure on the reward within steps: the end of its interval that explains most.

    A rise that the reward explains is never negative: a figure that falls with the reward within
    steps leaves all of its rise unexplained. Of a figure that `falls`, the slope is that of its
    opposite, which is never positive.
    """
    num = sum(each["num"] for each in first)
    cross, by_square, square = (sum(each.get(key) or 0.0 for each in first)
                                for key in ("cross", "by_square", "square"))  # fmt: skip
    freedom = num - len(first) - 1
    if by_square <= 0 or freedom < 2:
        return 0.0
    slope = (-cross if falls else cross) / by_square
    error = math.sqrt(max(0.0, square - cross * cross / by_square) / freedom / by_square)
    end = slope + t_quantile(0.5 + LEVEL / 2, freedom) * error
    return min(end, 0.0) if falls else max(end, 0.0)


def _means(values: Sequence[Means]) -> Means:
    mean, rest, by = (sum(each) / len(values) for each in zip(*values, strict=True))
    return mean, rest, by
