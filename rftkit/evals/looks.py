"""Many looks at once: which of many runs is better than the baseline, best, or just lucky.

Whoever looks at 20 checkpoints finds a "better" one by luck alone. Here the rows are flipped: if
a checkpoint is no better than the baseline, each row's difference could as well have had the other
sign. All looks of a row flip together, since they share its baseline answer; the largest of all
looks under thousands of flips says how large luck gets (single-step max-T, Westfall and Young 1993,
with row-wise signs). Not here: one pair alone (`stats`), and words (`words`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rftkit.evals.resampling import random_signs, resample_weights

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
else:
    Array = Any

__all__ = ["could_be_best", "expected_of_best", "family", "win_shares"]

NUM_FLIPS = 5000
NUM_RESAMPLES = 2000
NUM_SPLITS, NUM_FOLDS = 50, 10


def family(
    differences: Array, *, level: float = 0.95, num_flips: int = NUM_FLIPS, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Test all looks against one baseline together.

    Args:
        differences: (rows, looks), a look's reward minus the baseline's; nan where not graded.
        level: That no look at all gives a false alarm.
        num_flips: Random sign flips.
        seed: Of the flips.

    Returns:
        Two-sided p of each look alone, the same family-wise, and the multiple of each look's
        standard error that makes intervals which hold together; nan where there are too few rows.
        Such an interval leaves zero out exactly when the family-wise p is at most 1 - level.
    """
    import numpy as np

    count = np.isfinite(differences).sum(axis=0)
    known = np.nan_to_num(differences)
    scale = np.sqrt((known**2).sum(axis=0))
    scale[scale == 0] = np.inf
    seen = np.abs(known.sum(axis=0)) / scale
    unit = (known / scale).astype(np.float32)
    lucky = np.abs(random_signs(len(known), num_flips, seed) @ unit)  # (flips, looks)
    largest = np.sort(lucky.max(axis=1, initial=0.0))
    enough = seen * (1 - 1e-5)
    above = num_flips - np.searchsorted(largest, enough)
    p = np.where(count > 0, (above + 1) / (num_flips + 1), np.nan)
    alone = np.where(count > 0, ((lucky >= enough).sum(axis=0) + 1) / (num_flips + 1), np.nan)
    # the statistic above is a fixed function of Student's t, so its critical value is one of t's
    critical = float(largest[min(num_flips - 1, math.ceil(level * (num_flips + 1)) - 1)])
    critical *= 1 + 1e-5  # what ties with it does not pass it, here as in p
    room = count - critical**2
    multiple = np.sqrt(
        np.divide(count - 1.0, room, out=np.full(len(count), np.nan), where=room > 0)
    )
    return alone, p, critical * multiple


def could_be_best(
    rewards: Array, *, level: float = 0.95, num_flips: int = NUM_FLIPS, seed: int = 0
) -> list[bool]:
    """Which runs cannot be ruled out as the best: with `level` confidence it is among them.

    A run is ruled out when the largest of its deficits against the others is larger than luck
    makes the largest of so many (the same flips, one-sided).

    Args:
        rewards: (rows, runs), complete.
        level: That the best is not ruled out.
        num_flips: Random sign flips.
        seed: Of the flips.
    """
    import numpy as np

    centred = rewards - rewards.mean(axis=1, keepdims=True)
    sums = random_signs(len(rewards), num_flips, seed) @ centred.astype(np.float32)
    gram = centred.T @ centred
    squares = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram
    scale = np.sqrt(np.maximum(squares, 0))
    scale[scale < 1e-9] = np.inf  # the same rewards in every row: no deficit either
    totals = centred.sum(axis=0)
    kept = []
    for run in range(rewards.shape[1]):
        others = np.arange(rewards.shape[1]) != run
        seen = ((totals[others] - totals[run]) / scale[others, run]).max(initial=0.0)
        lucky = ((sums[:, others] - sums[:, [run]]) / scale[others, run]).max(axis=1, initial=0.0)
        kept.append(bool((np.sum(lucky >= seen * (1 - 1e-5)) + 1) / (num_flips + 1) > 1 - level))
    return kept


def expected_of_best(rewards: Array, *, seed: int = 0) -> float | None:
    """What the best of many runs would earn on new rows: the winner's curse taken off.

    Over and over the rows are dealt into ten parts; the run that is best on nine is measured on
    the tenth, which had no say in choosing it. None with fewer than four rows.

    Args:
        rewards: (rows, runs), complete.
        seed: Of the dealing.
    """
    import numpy as np

    n = len(rewards)
    if n < 4:
        return None
    rng = np.random.default_rng(seed)
    starts = np.linspace(0, n, min(NUM_FOLDS, n), endpoint=False).astype(int)
    sizes = np.diff([*starts, n])[:, None]
    total, held_out = rewards.sum(axis=0), 0.0
    for _ in range(NUM_SPLITS):
        parts = np.add.reduceat(rewards[rng.permutation(n)], starts, axis=0)  # (folds, runs)
        chosen = ((total - parts) / (n - sizes)).argmax(axis=1)
        held_out += float(parts[np.arange(len(parts)), chosen].sum())
    return held_out / n / NUM_SPLITS


def win_shares(rewards: Array, *, seed: int = 0) -> Array:
    """In what share of bootstrap resamples of the rows each run has the highest mean.

    Args:
        rewards: (rows, runs), complete.
        seed: Of the resampling.
    """
    import numpy as np

    means = resample_weights(len(rewards), NUM_RESAMPLES, seed) @ rewards.astype(np.float32)
    best = means >= means.max(axis=1, keepdims=True)  # runs that tie share a win
    shares: Array = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares
