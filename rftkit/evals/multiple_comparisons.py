"""Multiple comparisons: which of many runs is better than the baseline, best, or just lucky.

With 20 checkpoints, one of them looks "better" by luck alone. The test here flips signs: if a
checkpoint is no better than the baseline, each row's difference could as well have the other sign.
All comparisons of a row flip together, since they share its baseline answer. The largest statistic
of each of thousands of flips shows how large luck gets (single-step max-T, Westfall and Young 1993,
with row-wise signs). `stats` tests one pair alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rftkit.evals.resampling import NUM_FLIPS, random_signs, resample_weights

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
else:
    Array = Any

__all__ = ["could_be_best", "expected_of_best", "family", "run_means", "win_shares"]

NUM_RESAMPLES = 2000
NUM_SPLITS, NUM_FOLDS = 50, 10
NUM_FITS = 200


def family(
    differences: Array, *, level: float = 0.95, num_flips: int = NUM_FLIPS, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Test many runs against one baseline together.

    Args:
        differences: (rows, runs), a run's reward minus the baseline's; nan where not graded.
        level: The probability that none of the comparisons is a false alarm.
        num_flips: Number of random sign flips.
        seed: Seed of the flips.

    Returns:
        For each run: its two-sided p alone, its family-wise p, and the multiple of its standard
        error for simultaneous intervals; nan where there are too few rows. Such an interval
        excludes zero exactly when the family-wise p is at most 1 - level.
    """
    import numpy as np

    count = np.isfinite(differences).sum(axis=0)
    known = np.nan_to_num(differences)
    scale = np.sqrt((known**2).sum(axis=0))
    scale[scale == 0] = np.inf
    seen = np.abs(known.sum(axis=0)) / scale
    unit = (known / scale).astype(np.float32)
    lucky = np.abs(random_signs(len(known), num_flips, seed) @ unit)  # (flips, runs)
    largest = np.sort(lucky.max(axis=1, initial=0.0))
    enough = seen * (1 - 1e-5)
    above = num_flips - np.searchsorted(largest, enough)
    p = np.where(count > 0, (above + 1) / (num_flips + 1), np.nan)
    alone = np.where(count > 0, ((lucky >= enough).sum(axis=0) + 1) / (num_flips + 1), np.nan)
    # the statistic above is a fixed function of Student's t, so its critical value is one of t's
    critical = float(largest[min(num_flips - 1, math.ceil(level * (num_flips + 1)) - 1)])
    critical *= 1 + 1e-5  # a tie does not exceed it, as in p
    room = count - critical**2
    multiple = np.sqrt(
        np.divide(count - 1.0, room, out=np.full(len(count), np.nan), where=room > 0)
    )
    return alone, p, critical * multiple


def could_be_best(
    rewards: Array, *, level: float = 0.95, num_flips: int = NUM_FLIPS, seed: int = 0
) -> list[bool]:
    """Which runs cannot be ruled out as the best; the best is among them with confidence `level`.

    A run is ruled out when its largest deficit against the others exceeds what luck gives for
    that many comparisons (the same flips, one-sided).

    Args:
        rewards: (rows, runs); nan where not graded: each two runs meet on the rows of both.
        level: The probability that the best run is not ruled out.
        num_flips: Random sign flips.
        seed: Of the flips.
    """
    import numpy as np

    signs = random_signs(len(rewards), num_flips, seed)
    kept = []
    for run in range(rewards.shape[1]):
        deficits = np.nan_to_num(rewards - rewards[:, [run]])
        scale = np.sqrt((deficits**2).sum(axis=0))
        scale[scale < 1e-9] = np.inf  # the same rewards in every row: no deficit either
        unit = (deficits / scale).astype(np.float32)
        seen = unit.sum(axis=0).max(initial=0.0)
        lucky = (unit.T @ signs.T).max(axis=0, initial=0.0)  # numpy is faster along this axis
        kept.append(bool((np.sum(lucky >= seen * (1 - 1e-5)) + 1) / (num_flips + 1) > 1 - level))
    return kept


def run_means(rewards: Array) -> tuple[Array, Array]:
    """Each run's mean reward over all rows, including those it has not graded.

    A reward is modelled as a row effect plus a run effect, fitted by least squares to the grades.
    With complete rows the result is the plain means. So a run does not gain by missing hard rows.

    Args:
        rewards: (rows, runs); nan where not graded. Every row and every run has a grade.

    Returns:
        The means, (runs,), and the rewards minus the effect of their row, (rows, runs), nan where
        not graded.
    """
    import numpy as np

    known, runs = np.isfinite(rewards), np.zeros(rewards.shape[1])
    filled = np.nan_to_num(rewards)

    def mean(values: Array, axis: int) -> Array:
        found: Array = np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis)
        return found

    rows = mean(filled, 1)[:, None]
    for _ in range(NUM_FITS):
        before, runs = runs, mean(filled - rows, 0)
        rows = mean(filled - runs, 1)[:, None]
        if np.abs(runs - before).max(initial=0.0) < 1e-9:
            break
    return rows.mean() + runs, np.where(known, filled - rows, np.nan)


def expected_of_best(rewards: Array, *, seed: int = 0) -> float | None:
    """The reward to expect of the best of many runs on new rows, without the winner's curse.

    Repeated ten-fold cross-validation: the run that is best on nine parts of the rows is measured
    on the tenth, which did not help to choose it. None with fewer than four rows.

    Args:
        rewards: (rows, runs); nan where not graded, see `run_means`.
        seed: Seed of the partition.
    """
    import numpy as np

    n = len(rewards)
    if n < 4:
        return None
    means, own = run_means(rewards)
    known, own = np.isfinite(own), np.nan_to_num(own)
    level = float((means - own.sum(axis=0) / known.sum(axis=0)).mean())
    rng = np.random.default_rng(seed)
    starts = np.linspace(0, n, min(NUM_FOLDS, n), endpoint=False).astype(int)
    total, count = own.sum(axis=0), known.sum(axis=0)
    held_out = num_held_out = 0.0
    for _ in range(NUM_SPLITS):
        order = rng.permutation(n)
        parts = np.add.reduceat(own[order], starts, axis=0)  # (folds, runs)
        sizes = np.add.reduceat(known[order].astype(int), starts, axis=0)
        rest = np.maximum(count - sizes, 1)
        chosen = np.where(count > sizes, (total - parts) / rest, -np.inf).argmax(axis=1)
        held_out += float(parts[np.arange(len(parts)), chosen].sum())
        num_held_out += float(sizes[np.arange(len(parts)), chosen].sum())
    return level + held_out / num_held_out if num_held_out else None


def win_shares(rewards: Array, *, seed: int = 0) -> Array:
    """The share of bootstrap resamples of the rows in which each run has the highest mean.

    Args:
        rewards: (rows, runs); nan where not graded, see `run_means`.
        seed: Of the resampling.
    """
    import numpy as np

    _, own = run_means(rewards)
    known = np.isfinite(own).astype(np.float32)
    weights = resample_weights(len(rewards), NUM_RESAMPLES, seed)
    count = weights @ known
    sums = weights @ np.nan_to_num(own).astype(np.float32)
    means = np.where(count > 0, sums / np.maximum(count, 1), -np.inf)
    best = means >= means.max(axis=1, keepdims=True)  # runs that tie share a win
    shares: Array = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares
