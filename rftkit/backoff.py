"""How long to wait before the next attempt. The callers decide what to repeat, and wait."""

from __future__ import annotations

import math
import random

__all__ = ["backoff_seconds"]


def backoff_seconds(
    attempt: int, first: float, most: float = math.inf, *, jitter: float = 0.0
) -> float:
    """Return `first` doubled `attempt` times, at most `most`, then varied by ± the share `jitter`.

    Jitter keeps many callers from repeating at the same moment.
    """
    return min(most, first * 2.0 ** min(attempt, 64)) * random.uniform(1 - jitter, 1 + jitter)
