"""Spearman's rank correlation, and its interval over rows."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from rftkit.evals.comparison import Estimate
from rftkit.evals.resampling import over_rows

if TYPE_CHECKING:
    from rftkit.evals.cells import Array

__all__ = ["correlation_over_rows", "spearman"]


def spearman(first: Array, second: Array) -> float | None:
    """Rank correlation, ties sharing their mean rank; None when either never varies."""
    import numpy as np

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def correlation_over_rows(
    rows: Any, first: Any, second: Any, *, level: float = 0.95, num_resamples: int = 500,
    seed: int = 0,
) -> Estimate:  # fmt: skip
    """Spearman's rank correlation with an interval that also holds where all agree.

    A bootstrap only draws pairs that were seen. Where they are in perfect order, so is every
    resample. The interval therefore also covers Fisher's, with the standard error of Bonett and
    Wright (2000), around the correlation that one more, discordant pair would give.
    """
    drawn = over_rows(
        rows, lambda at: spearman(first[at], second[at]),
        level=level, num_resamples=num_resamples, seed=seed,
    )  # fmt: skip
    r, n = drawn.value, drawn.num_rows
    if r is None or n < 5:
        return replace(drawn, low=None, high=None)
    r *= 1 - 1 / n
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt((1 + r * r / 2) / (n - 3))
    low, high = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    ends = [end for end in (drawn.low, drawn.high, drawn.value) if end is not None]
    return replace(drawn, low=min(low, *ends), high=max(high, *ends))


def _ranks(values: Array) -> Array:
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
