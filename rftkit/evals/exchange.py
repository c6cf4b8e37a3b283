"""A test for runs with different numbers of answers to a row: do they differ, or is it chance?

The mean of one answer is coarser than that of ten. Where most answers pass, the difference of the
two is then small and positive in most rows and large and negative in few, although the runs are
alike: it is not as often up as down, and a test that flips its sign finds a difference that is not
there. If the runs are alike, however, each answer to a row could as well be one of the other run
(Fisher 1935). The answers of each row are dealt to the two runs again and again, as many to each as
it has. Not here: runs with as many answers (`stats.permutation_p`).
"""

from __future__ import annotations

from typing import Any

from rftkit.evals.cells import Array

__all__ = ["exchange_p"]

NUM_DRAWS, LEAST_DRAWS = 2000, 500
MOST_VALUES = 4_000_000
"""Draws times samples; with more samples there are fewer draws, down to `LEAST_DRAWS`."""


def exchange_p(rows: Any, is_after: Any, rewards: Array, *, seed: int = 0) -> float | None:
    """The two-sided p of the mean difference over rows; None if both have as many in each row.

    Args:
        rows: The row of each sample, (samples,) int.
        is_after: Whether the sample is of the second run, (samples,) bool.
        rewards: Of each sample, (samples,), all known.
        seed: Of the draws.
    """
    import numpy as np

    _, place = np.unique(rows, return_inverse=True)
    after, all_of = np.bincount(place, is_after), np.bincount(place)
    is_shared = (after > 0) & (after < all_of)
    if not (is_shared & (2 * after != all_of)).any():
        return None
    sums, squares = np.bincount(place, rewards), np.bincount(place, rewards**2)
    varies = squares - sums**2 / all_of > 1e-12
    kept = (is_shared & varies)[place]
    order = np.lexsort((~is_after[kept], place[kept]))  # samples of the second run first
    place, values = place[kept][order], rewards[kept][order]
    is_second = is_after[kept][order]
    weights = np.where(is_second, 1 / after[place], -1 / (all_of - after)[place])
    seen = abs(float(values @ weights)) * (1 - 1e-9)
    rng = np.random.default_rng(seed)
    num_draws = max(LEAST_DRAWS, min(NUM_DRAWS, MOST_VALUES // max(1, len(values))))
    as_large = 0
    for _ in range(num_draws // 100):
        dealt = np.argsort(place + rng.random((100, len(place))), axis=1)
        as_large += int((np.abs(values[dealt] @ weights) >= seen).sum())
    return (as_large + 1) / (num_draws // 100 * 100 + 1)
