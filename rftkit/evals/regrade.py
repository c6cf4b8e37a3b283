"""Grade stored samples again with another grader, and say what that changes for training.

The same answers, another grader: how the ranks agree, which rows flip between pass and fail, and,
because a job learns from *differences within a row's samples*, which advantages change their sign
and which prompts gain or lose their signal. Not here: sampling anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from rftkit.evals.comparison import Estimate
from rftkit.evals.samples import Samples

__all__ = ["Regrade", "RegradedRun"]


@dataclass(frozen=True, slots=True)
class RegradedRun:
    """One run under both graders."""

    label: str
    """Of the old run."""
    new_label: str
    """Of the new run beside it."""
    step: int | None
    """Optimizer step, when it is a job's validation."""
    before: Estimate
    """Mean reward under the old grader."""
    after: Estimate
    """Mean reward under the new grader."""
    rank_correlation: Estimate
    """Spearman, over samples that both graded; None when either never varies."""
    num_failed: int
    """Samples that the new grader could not grade."""


@dataclass(frozen=True, slots=True, eq=False)
class Regrade:
    """What an edited grader changes."""

    grader: str
    """Name of the new grader."""
    runs: tuple[RegradedRun, ...]
    """One per run that was graded again, in order."""
    samples: Samples
    """Old and new runs side by side: `compare` takes it."""
    rank_correlation: Estimate
    """Spearman over all samples that both graders scored."""
    flipped_to_pass: tuple[tuple[str, str, int], ...]
    """(row, run, sample) that failed and now pass."""
    flipped_to_fail: tuple[tuple[str, str, int], ...]
    """(row, run, sample) that passed and now fail."""
    num_advantages: int
    """Samples in groups (a row's samples in one run) of two or more graded by both."""
    flipped_advantages: tuple[tuple[str, str, int], ...]
    """(row, run, sample) whose advantage changes its sign: training would push the other way."""
    gained_signal: tuple[tuple[str, str], ...]
    """(row, run) whose rewards were all equal and now differ."""
    lost_signal: tuple[tuple[str, str], ...]
    """(row, run) whose rewards differed and are now all equal."""
    reordered: bool | None
    """Whether another run is best under the new grader; None with one run."""
    notes: tuple[str, ...] = ()
    """Each a sentence."""
    sentence: str = ""
    """In words."""
