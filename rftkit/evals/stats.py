"""Intervals and tests over rows: from the mean of some rows to rows like them.

Rows are the independent units. Repeats of a row are averaged first, so that five answers to one
question are one observation of that question. Which interval is used where was chosen by
simulation (`tests/benchmarks/evals.py` prints the table), not by taste:

* mean of a run: Wilson's score interval when every row is one of two values, else Student's t
  with Hall's correction for skewness. Plain t covers 78 to 94 % where 95 are promised, when
  rewards sit near an end of their range.
* mean of fewer than `FEW` rewards from 0 to 1: Wilson's interval for as many rows as have this
  standard error (Korn and Graubard 1998). With 4 to 19 rows it covers 93 to 100 %, where Hall's
  covers 32 to 100 % and leaves the range; with 40 rows 92 to 95 %, Hall's 93 to 98 %.
* mean of paired differences: Student's t; Tango's score interval when every row is -h, 0 or h.
  Differences are nearly symmetric, and correcting their skewness, or a bias-corrected or
  studentised bootstrap, covers less (82 to 94 %) because it trusts a skewness that is noise.

Everything is numpy on plain arrays. `nan` is "not graded": it is left out, never zero. Not here:
many comparisons at once (`multiple_comparisons`), and sentences.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from rftkit.evals.comparison import Estimate, Verdict
from rftkit.evals.resampling import NUM_FLIPS, random_signs
from rftkit.t_distribution import t_cdf, t_quantile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
else:
    Array = Any

__all__ = [
    "EXACT",
    "FEW",
    "POWER",
    "as_tested",
    "bounds_of",
    "detectable",
    "difference_interval",
    "direction",
    "equivalence_p",
    "hull",
    "kappa",
    "mcnemar_p",
    "mean_interval",
    "permutation_p",
    "standard_error",
    "support_of",
    "within",
]

POWER = 0.8
"""The power of `detectable`: how often a difference of that size would be found."""

FEW = 50
"""With fewer rows than this, a run's mean gets an interval for small samples."""

MANY = 20
"""So many samples with only two values have no others."""

EXACT = 12
"""With at most so many differing rows, every way to flip their signs is enumerated."""

_NORMAL = NormalDist()
Support = tuple[float, float] | None
"""The two values that a sample can have, when it is one of two; None otherwise."""


def support_of(values: Array) -> Support:
    """The two values that samples have, when they have two; None otherwise.

    A few samples with two values may have had others, unless these are 0 and 1.
    """
    import numpy as np

    known = _known(values)
    seen = np.unique(known)
    if len(seen) != 2 or (len(known) < MANY and tuple(seen) != (0.0, 1.0)):
        return None
    return float(seen[0]), float(seen[1])


def bounds_of(values: Array) -> Support:
    """The range of rewards, 0 to 1, where every sample is within it; None where it is not known."""
    known = _known(values)
    return (0.0, 1.0) if len(known) and known.min() >= 0 and known.max() <= 1 else None


def within(estimate: Estimate, bounds: Support) -> Estimate:
    """The same interval, cut to the values that are possible."""
    if bounds is None or estimate.low is None or estimate.high is None:
        return estimate
    low, high = bounds
    return replace(estimate, low=max(low, estimate.low), high=min(high, estimate.high))


def hull(first: Estimate, *others: Estimate) -> Estimate:
    """The first estimate, its interval wide enough for those of the others too."""
    known = [each for each in (first, *others) if each.low is not None]
    return replace(
        first,
        low=min((each.low for each in known if each.low is not None), default=None),
        high=max((each.high for each in known if each.high is not None), default=None),
    )


def mean_interval(
    values: Array, *, level: float = 0.95, support: Support = None, bounds: Support = None
) -> Estimate:
    """The mean of rows with its interval.

    Args:
        values: One number per row, (rows,); nan where a row has none.
        level: How often the interval should hold the truth.
        support: The two values that one sample can have, such as (0, 1) for pass and fail.
        bounds: The least and the largest value of a sample; the interval stays within them.
    """
    values = _known(values)
    n = len(values)
    if n == 0:
        return Estimate(None)
    mean = float(values.mean())
    if support and (_is_among(values, support) or _is_flat(values)):
        return Estimate(mean, *_wilson(mean, n, level, support), n)
    if bounds and n < FEW:
        return Estimate(
            mean, *_wilson(mean, _as_many_rows(values, bounds, level), level, bounds), n
        )
    if n < 2 or _is_flat(values):
        return Estimate(mean, None, None, n)
    return within(Estimate(mean, *_hall(values, level), n), bounds)


def difference_interval(
    values: Array, *, level: float = 0.95, support: Support = None, bounds: Support = None
) -> Estimate:
    """The mean of paired differences with its interval; arguments as in `mean_interval`.

    `support` and `bounds` are those of the samples whose differences these are.
    """
    values = _known(values)
    n = len(values)
    if n == 0:
        return Estimate(None)
    mean = float(values.mean())
    if support and _is_among(values, (support[0] - support[1], 0.0, support[1] - support[0])):
        return Estimate(mean, *_tango(values, level, support[1] - support[0]), n)
    if n < 2 or _is_flat(values):
        return Estimate(mean, None, None, n)
    half = t_quantile(0.5 + level / 2, n - 1) * standard_error(values)
    found = Estimate(mean, mean - half, mean + half, n)
    return within(found, bounds and (bounds[0] - bounds[1], bounds[1] - bounds[0]))


def permutation_p(values: Array, *, seed: int = 0) -> float | None:
    """Two-sided sign-flip test that paired differences are as often up as down.

    Exact up to `EXACT` rows that differ; with random flips beyond. None without rows.
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).any():
        return None
    values = np.nan_to_num(values)
    changed = values[values != 0]
    seen = abs(changed.sum()) * (1 - 1e-6)
    if len(changed) <= EXACT:
        ways = np.arange(2 ** len(changed))[:, None]
        signs = (ways >> np.arange(len(changed)) & 1) * 2.0 - 1  # (2 ** rows, rows)
        return float((np.abs(signs @ changed) >= seen).mean())
    sums = random_signs(len(values), NUM_FLIPS, seed) @ values.astype(np.float32)
    num_as_large = int(np.sum(np.abs(sums) >= seen))
    return float((num_as_large + 1) / (NUM_FLIPS + 1))


def as_tested(estimate: Estimate, p: float | None, alpha: float) -> Estimate:
    """A difference whose interval agrees with its test. An interval and a test of another kind can
    differ slightly. Where the test finds no difference, the interval is widened to zero; where the
    interval holds zero, `direction` finds none either.
    """
    if estimate.low is None or estimate.high is None or (p is not None and p <= alpha):
        return estimate
    return replace(estimate, low=min(estimate.low, 0.0), high=max(estimate.high, 0.0))


def direction(estimate: Estimate, p: float | None, alpha: float) -> Verdict:
    """Better or worse where both the test and the interval of a difference say so."""
    if not estimate.value or p is None or p > alpha:
        return "unclear"
    if (
        estimate.low is not None
        and estimate.high is not None
        and (estimate.low <= 0 <= estimate.high)
    ):
        return "unclear"
    return "better" if estimate.value > 0 else "worse"


def mcnemar_p(num_fixed: int, num_broken: int) -> float | None:
    """Exact two-sided McNemar test; None when no row changed."""
    n = num_fixed + num_broken
    if n == 0:
        return None
    tail = sum(math.comb(n, k) for k in range(min(num_fixed, num_broken) + 1))
    return min(1.0, 2 * tail / (1 << n))


def equivalence_p(values: Array, margin: float) -> float | None:
    """Two one-sided t tests that the mean difference lies inside ±margin: the larger p.

    None when there are fewer than two rows, or when all differences are equal.
    """
    values = _known(values)
    if len(values) < 2 or _is_flat(values):
        return None
    mean, error, df = float(values.mean()), standard_error(values), len(values) - 1
    return max(1 - t_cdf((mean + margin) / error, df), t_cdf((mean - margin) / error, df))


def detectable(
    values: Array, *, level: float = 0.95, critical: float | None = None
) -> float | None:
    """The smallest true difference that these rows would show in `POWER` of repetitions.

    From the spread of the paired differences; None when it is unknown. `critical` is the number of
    standard errors that counts as shown, if it is corrected for several comparisons.
    """
    values = _known(values)
    if len(values) < 2 or _is_flat(values):
        return None
    df = len(values) - 1
    shown = t_quantile(0.5 + level / 2, df) if critical is None else critical
    return (shown + t_quantile(POWER, df)) * standard_error(values)


def kappa(first: Array, second: Array) -> float | None:
    """Cohen's kappa of two arrays of verdicts, 0 or 1; None when both are constant."""
    if not len(first):
        return None
    agree = float((first == second).mean())
    p, q = float(first.mean()), float(second.mean())
    chance = p * q + (1 - p) * (1 - q)
    return None if chance == 1 else (agree - chance) / (1 - chance)


def _known(values: Array) -> Array:
    import numpy as np

    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]


def _is_flat(values: Array) -> bool:
    """Whether all are equal, except for the last bits of their sums."""
    return float(values.max() - values.min()) <= 1e-12 * (1 + float(abs(values).max()))


def standard_error(values: Array) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _is_among(values: Array, allowed: tuple[float, ...]) -> bool:
    import numpy as np

    return bool(np.isin(values, np.asarray(allowed)).all())


def _wilson(
    mean: float, n: float, level: float, support: tuple[float, float]
) -> tuple[float, float]:
    """Wilson (1927): the shares that a score test at this level would not reject."""
    low, high = support
    z = _NORMAL.inv_cdf(0.5 + level / 2)
    share = (mean - low) / (high - low)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    ends = (max(0.0, centre - half), min(1.0, centre + half))
    return low + ends[0] * (high - low), low + ends[1] * (high - low)


def _as_many_rows(values: Array, bounds: tuple[float, float], level: float) -> float:
    """The number of pass-or-fail rows that would have the same standard error (Korn and Graubard).

    Rewards between the ends vary less than passes and fails, so they count as more rows. The
    quantile of t makes up for a spread that few rows show only roughly.
    """
    low, high = bounds
    n, share = len(values), (float(values.mean()) - low) / (high - low)
    if n < 2 or _is_flat(values):
        return n
    error = standard_error(values) / (high - low)
    rough = _NORMAL.inv_cdf(0.5 + level / 2) / t_quantile(0.5 + level / 2, n - 1)
    return share * (1 - share) * (rough / error) ** 2


def _hall(values: Array, level: float) -> tuple[float, float]:
    """Student's t after Hall's (1992) cubic transformation takes the skewness out."""
    n, mean = len(values), float(values.mean())
    error = standard_error(values)
    skewness = _skewness(values)
    t = t_quantile(0.5 + level / 2, n - 1)
    if abs(skewness) < 1e-6:
        return mean - t * error, mean + t * error

    def undo(value: float) -> float:
        inner = 1 + skewness * (value / math.sqrt(n) - skewness / (6 * n))
        return 3 * math.sqrt(n) / skewness * (math.cbrt(inner) - 1)

    return mean - undo(t) * error, mean - undo(-t) * error


def _tango(values: Array, level: float, step: float) -> tuple[float, float]:
    """Tango (1998): score interval of the difference of two paired shares, by bisection."""
    n, up, down = len(values), int((values > 0).sum()), int((values < 0).sum())
    z = _NORMAL.inv_cdf(0.5 + level / 2)

    def score(d: float) -> float:
        b = -up - down + (2 * n - up + down) * d
        c = -down * d * (1 - d)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * share + d * (1 - d))
        return (up - down - n * d) / math.sqrt(max(variance, 1e-300))

    def end(target: float, low: float, high: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > target else (low, middle)
        return (low + high) / 2

    seen = (up - down) / n
    return step * end(z, -1.0, seen), step * end(-z, seen, 1.0)


def _skewness(values: Array) -> float:
    centred = values - values.mean()
    return float((centred**3).mean() / (centred**2).mean() ** 1.5)
