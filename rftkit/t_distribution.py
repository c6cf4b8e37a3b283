"""Student's t distribution in numpy. It is our own because scipy is large and only this is needed.

With t written as an angle, the density is a power of a cosine, and 64 Gauss-Legendre nodes
integrate it to about 1e-12.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
else:
    Array = Any

__all__ = ["t_cdf", "t_quantile"]


def t_cdf(t: float, df: float) -> float:
    """The cumulative distribution function: the probability of a value of at most `t`."""
    nodes, weights = _legendre()
    angle = math.atan(t / math.sqrt(df)) / 2
    area = angle * float((weights * _cosine_power(angle * (nodes + 1), df - 1)).sum())
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return 0.5 + scale * area


@functools.lru_cache(4096)
def t_quantile(p: float, df: int) -> float:
    """The quantile function: the value that is not exceeded with probability `p`, 0 < p < 1."""
    low, high = 0.0, 2.0
    upper = max(p, 1 - p)
    while t_cdf(high, df) < upper:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < upper else (low, middle)
    return math.copysign(high, p - 0.5)


@functools.cache
def _legendre() -> tuple[Array, Array]:
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(64)
    return nodes, weights


def _cosine_power(angles: Array, power: float) -> Array:
    import numpy as np

    return np.exp(power * np.log(np.cos(angles)))
