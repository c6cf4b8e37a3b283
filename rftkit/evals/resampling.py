"""Rows drawn again, and their signs flipped: the randomness behind tests and bootstraps.

The same arguments give the same draws, and the last few are kept, since one comparison uses them
for every pair. Not here: what is made of them (`stats`, `multiple_comparisons`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from rftkit.evals.comparison import Estimate

__all__ = ["NUM_FLIPS", "over_rows", "random_signs", "resample_weights"]

NUM_FLIPS = 5000
"""Random sign flips of a test."""


@functools.lru_cache(4)
def random_signs(num_rows: int, num_flips: int, seed: int) -> Any:
    """Random -1 and 1, (flips, rows) float32: the same for the same arguments."""
    import numpy as np

    rng = np.random.default_rng(seed)
    bits = np.frombuffer(rng.bytes(-(-num_flips * num_rows // 8)), dtype=np.uint8)
    signs = np.unpackbits(bits)[: num_flips * num_rows].astype(np.float32)
    return (signs * 2 - 1).reshape(num_flips, num_rows)


@functools.lru_cache(4)
def resample_weights(num_rows: int, num_resamples: int, seed: int) -> Any:
    """How often each row is drawn in each bootstrap resample, (resamples, rows) float32."""
    import numpy as np

    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, num_rows, (num_resamples, num_rows))
    drawn += np.arange(num_resamples)[:, None] * num_rows
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_rows)
    return counts.reshape(num_resamples, num_rows).astype(np.float32)


def over_rows(
    rows: Any,
    measure: Callable[[Any], float | None],
    *,
    level: float = 0.95,
    num_resamples: int = 500,
    seed: int = 0,
) -> Estimate:
    """A measure of samples, such as a correlation, with a percentile bootstrap over their rows.

    Args:
        rows: The row of each sample, (samples,); samples of a row are drawn together.
        measure: Given indices of samples, the number; None where it is not defined.
        level: Of the interval.
        num_resamples: How often the rows are drawn.
        seed: Of the drawing.
    """
    import numpy as np

    names, place = np.unique(np.asarray(rows).astype(str), return_inverse=True)
    value = measure(np.arange(len(place))) if len(place) else None
    if value is None or len(names) < 3:
        return Estimate(value, None, None, len(names))
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(names) + 1))
    members = [order[a:b] for a, b in itertools.pairwise(starts)]
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(names), len(names)) for _ in range(num_resamples))
    seen = [measure(np.concatenate([members[row] for row in each])) for each in drawn]
    known = [each for each in seen if each is not None]
    if len(known) < num_resamples / 2:
        return Estimate(value, None, None, len(names))
    low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(low), float(high), len(names))
