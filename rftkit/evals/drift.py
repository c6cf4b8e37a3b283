"""Is the reward still what it stands for? A second grader, the training gap, longer answers.

A job learns to please its grader. Three signs that it pleases the grader and nobody else: a second
grader, scored at each validation and never trained on, stops following the reward; training
rewards run ahead of validation; answers grow. Not here: proof. Each sign is a reason to read rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Drift"]


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """The validations of a job, watched for a reward that no longer means what it did."""

    frame: pd.DataFrame
    """One line per validation: `run`, `step`, `reward`, `reward_low`, `reward_high`, `watch`,
    `watch_low`, `watch_high` (the second grader's mean; empty without one), `train_reward` (mean
    of the training batches since the last validation), `gap` (train minus validation), `tokens`,
    `characters`."""
    watch: str | None
    """Name of the second grader; None when there is none."""
    parted_at: int | None
    """First step from which the reward gained and the second grader lost; None if never."""
    gap: float | None
    """Train minus validation reward at the last validation; None when either is unknown."""
    length_ratio: float | None
    """Length of the answers at the last validation by that of the first, tokens if known."""
    sentences: tuple[str, ...]
    """What was found, a sentence each; says so when nothing was."""
