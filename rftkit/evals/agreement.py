"""Can the grader be believed? It is held against people, and against itself.

`agree` compares a grader's rewards with labels that people gave to the same samples: kappa where
the labels are verdicts, rank correlation where they are numbers. `judge_noise` is what a grader
that was asked several times about the same answers disagrees with itself: no gain smaller than
that can be believed. Not here: the widget that asks for labels (it only needs `Label`), and the
grading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rftkit.evals.comparison import Estimate

__all__ = ["Agreement", "JudgeNoise", "Label", "Threshold"]


@dataclass(frozen=True, slots=True)
class Label:
    """What a person said of one sample."""

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
    """Who said so; empty when one person labels alone."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A pass threshold that was tried against the labels."""

    value: float
    """Samples with at least this reward pass."""
    kappa: float | None
    """Agreement with people at this threshold, beyond chance; None when all verdicts are alike."""
    num_lenient: int
    """Samples that would pass and people reject."""
    num_harsh: int
    """Samples that would fail and people accept."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A grader held against labels of people."""

    num_labels: int
    """Labelled samples that the grader has graded."""
    num_left_out: int
    """Labels whose sample is missing or was not graded."""
    kind: Literal["verdict", "number"]
    """What the labels are."""
    threshold: float | None
    """At which rewards count as passes here; None for numbers."""
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
    """The threshold that agrees best with people."""
    sentence: str
    """In words: how well, in which direction it errs, what to change."""


@dataclass(frozen=True, slots=True)
class JudgeNoise:
    """How much a grader disagrees with itself about the very same answers."""

    num_samples: int
    """Samples that were graded at least twice."""
    num_grades: int
    """Their grades, together."""
    one_grade: float | None
    """Standard deviation of one grade around what the grader gives on average."""
    band: float | None
    """Half-width (95 %) of what the noise alone does to the difference of two runs' means: a
    smaller gain is grey."""
    num_rows: int
    """Rows per run that `band` is for."""
    flips: float | None
    """Share of samples whose verdict is not the same each time; None without a threshold."""
    sentence: str
    """In words."""
