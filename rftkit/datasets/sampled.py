"""One row and the rewards of a model's completions for it.

Not here: running the model, and shares over rows (`learnability`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

from rftkit.datasets.findings import Place

__all__ = ["KINDS", "Kind", "SampledRow", "suggest_threshold"]

Kind = Literal["always right", "always wrong", "in between", "unknown"]
KINDS: tuple[Kind, ...] = ("always right", "always wrong", "in between", "unknown")
SAME = 9  # decimals to which two rewards are compared


@dataclass(frozen=True, slots=True)
class SampledRow:
    """One row and the rewards that the model earned on it."""

    place: Place
    rewards: tuple[float | None, ...]
    """One per completion; None where the grader failed or no answer arrived."""
    answers: tuple[str, ...]
    """The model's answers; empty where none arrived."""
    trouble: tuple[str, ...]
    """The reasons for missing rewards, each once."""

    @property
    def graded(self) -> list[float]:
        """The rewards that are not None."""
        return [round(reward, SAME) for reward in self.rewards if reward is not None]

    @property
    def mean(self) -> float | None:
        """Mean reward; None when there is no grade."""
        return sum(self.graded) / len(self.graded) if self.graded else None

    @property
    def spread(self) -> float | None:
        """Highest minus lowest reward."""
        return max(self.graded) - min(self.graded) if self.graded else None

    def passes(self, threshold: float) -> int:
        """Return how many completions earned at least `threshold`."""
        return sum(reward >= threshold for reward in self.graded)

    def kind(self, threshold: float) -> Kind:
        """How useful the row is for training this model; `unknown` with fewer than two graded
        completions.
        """
        if len(self.graded) < 2:
            return "unknown"
        if self.spread:
            return "in between"
        return "always right" if self.graded[0] >= threshold else "always wrong"

    def flat_chance(self, group_size: int) -> float | None:
        """Estimate the probability that all completions of a group earn the same reward.

        Up to the number of graded completions this is the unbiased estimate: the share of all
        subsets of that size that are flat. Larger groups are extrapolated with Jeffreys' prior.
        """
        counts, n = Counter(self.graded).values(), len(self.graded)
        if n < 2:
            return None
        if group_size <= n:
            return sum(comb(count, group_size) for count in counts) / comb(n, group_size)
        return min(1.0, sum(_posterior_power(count, n, group_size) for count in counts))


def suggest_threshold(rows: Sequence[SampledRow]) -> float | None:
    """Return the threshold at which two completions of one row differ most often.

    None when no row has two different rewards.
    """
    candidates = sorted({reward for row in rows for reward in row.graded})[1:]
    best = max(candidates, key=lambda one: (_told_apart(rows, one), one), default=None)
    return best if best is not None and _told_apart(rows, best) > 0 else None


def _told_apart(rows: Sequence[SampledRow], threshold: float) -> float:
    """Return the share of pairs of completions that the threshold separates, averaged over rows."""
    shares = [
        row.passes(threshold) * (n - row.passes(threshold)) / comb(n, 2)
        for row in rows
        if (n := len(row.graded)) >= 2
    ]
    return sum(shares) / len(shares) if shares else 0.0


def _posterior_power(count: int, n: int, power: int) -> float:
    """E[p^power] under Beta(count + 1/2, n - count + 1/2)."""
    value = 1.0
    for step in range(power):
        value *= (count + 0.5 + step) / (n + 1 + step)
    return value
