"""Whether a figure rises from step to step: a test that may be repeated after every step.

If a job's figure does not change, only chance orders its values: they are exchangeable. Then the
rank of each new value among all values so far is uniform, and independent of the ranks before
(Rényi 1962). So is p, the share of values that are larger than the new one, where values equal to
it, itself among them, count by a random fraction. The test bets on small p. A bet of 1 becomes
k·p^(k-1), which is 1 on average, so the capital of any series of bets grows only by luck: with
probability of at most 1 in c it is ever above c times its start, however long the job runs (Ville's
inequality; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2022, chapter 8).
The uniform numbers are drawn from the number of the value alone, so a replayed job has the same
capital.

The capital is divided: among powers k, and among the steps, each part waiting for its own step, so
that a rise which begins late is found too. Not here: figures and how large a rise must be to matter
(`alarms`).
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort

__all__ = ["Trend"]

POWERS = (0.1, 0.25, 0.5)
"""Bets: the smaller, the more they pay for values above nearly all others."""
HORIZON = 100
"""Steps among which the capital is divided when the job does not say how many it has."""


class Trend:
    """The evidence that a series of numbers rises."""

    def __init__(self, horizon: int | None = None) -> None:
        """`horizon` is how many values are expected; more may come."""
        self._share = 1.0 / max(1, horizon or HORIZON)
        self._sorted: list[float] = []
        self._waiting = 1.0
        self._bets = [0.0] * len(POWERS)
        self.peak = 1.0
        """The largest capital so far. By chance it reaches c in at most 1 of c jobs."""

    @property
    def num(self) -> int:
        """How many values there are."""
        return len(self._sorted)

    @property
    def capital(self) -> float:
        """The present capital of a bet that started with 1."""
        return self._waiting + sum(self._bets)

    def add(self, value: float) -> None:
        """Bet on one more value."""
        larger = len(self._sorted) - bisect_right(self._sorted, value)
        equal = len(self._sorted) - larger - bisect_left(self._sorted, value) + 1
        insort(self._sorted, value)
        p = (larger + _uniform(len(self._sorted)) * equal) / len(self._sorted)
        begun = min(self._share, self._waiting)
        self._waiting -= begun
        self._bets = [
            (bet + begun / len(POWERS)) * power * p ** (power - 1)
            for bet, power in zip(self._bets, POWERS, strict=True)
        ]
        self.peak = max(self.peak, self.capital)


def _uniform(number: int) -> float:
    """A number above 0 and at most 1, always the same for the same input."""
    return 1.0 - random.Random(number).random()
