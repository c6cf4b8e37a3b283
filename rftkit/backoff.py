"""How long to wait before the next attempt. The callers decide what to repeat, and wait."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping

__all__ = ["backoff_seconds", "retry_after"]


def backoff_seconds(
    attempt: int, first: float, most: float = math.inf, *, jitter: float = 0.0
) -> float:
    """Return `first` doubled `attempt` times, at most `most`, then varied by ± the share `jitter`.

    Jitter keeps many callers from repeating at the same moment.
    """
    return min(most, first * 2.0 ** min(attempt, 64)) * random.uniform(1 - jitter, 1 + jitter)


def retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Return the seconds that a service asks its callers to wait; None if it does not.

    Reads `retry-after-ms` and `retry-after`, which is a number of seconds or a date (RFC 9110). A
    moment that is over, and what is neither, asks for nothing.
    """
    given = {name.lower(): value for name, value in (headers or {}).items()}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(given[name]) * unit
        except (KeyError, ValueError):
            continue
        return seconds if 0 < seconds < math.inf else None
    try:
        moment = email.utils.parsedate_to_datetime(given.get("retry-after", "")).timestamp()
    except (TypeError, ValueError, OverflowError):  # such as the year 99999
        return None
    return moment - time.time() if moment > time.time() else None
