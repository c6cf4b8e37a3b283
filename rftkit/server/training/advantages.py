"""From the grades of a group to advantages: one function for each name, one table.

`mean` and `std` look at the total reward. `per_grader` and `maxrl` look at each sub-grader
separately and add the results up, with the weights of the formula. They act against a policy that
drifts to one answer: an answer that is rare and right has a large advantage. With `mean` the
expected advantage of an answer that ignores the prompt is zero, however common the answer is. Not
here: which completions form a group (`rollout`), and what an advantage is multiplied with (`loss`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.graders import Grade, types
from rftkit.graders.formula import Formula, compile_formula
from rftkit.graders.outcome import Fault
from rftkit.server.training.rollout import advantages as centred

__all__ = [
    "ADVANTAGES",
    "PER_GRADER_NAMES",
    "Leaf",
    "Weighing",
    "advantages",
    "by_leaf",
    "weighing",
]

Advantages = list[float | None]
"""The advantage of each completion; None where the grader failed."""

LINEAR = 1e-6  # share of the reward; a larger difference is not rounding
PROBES = 8


@dataclass(frozen=True, slots=True)
class Leaf:
    """A sub-grader, as part of the total reward."""

    key: str
    """Its key in `sub_rewards`; empty for a grader that is not a multi."""
    low: float
    """Its lowest reward, which also stands for an unscorable answer."""
    high: float
    """Its highest reward."""
    weight: float
    """How much the total changes when the leaf goes from `low` to `high`."""

    def of(self, grade: Grade) -> float | None:
        """The leaf's reward from 0 (`low`) to 1 (`high`); None when the grader failed."""
        if grade.outcome == "failed":
            return None
        value = self.reward(grade)
        return 0.0 if value is None else (value - self.low) / (self.high - self.low)

    def reward(self, grade: Grade) -> float | None:
        """The leaf's own reward, as the grader gave it."""
        return grade.sub_rewards.get(self.key) if self.key else grade.reward


@dataclass(frozen=True, slots=True)
class Weighing:
    """The leaves of a grader, and whether their weighted sum is its formula."""

    leaves: tuple[Leaf, ...]
    is_exact: bool
    """False: the formula is not a sum, and the weights approximate it where all leaves are
    half-way."""


def weighing(spec: Mapping[str, Any]) -> Weighing:
    """The weight of each sub-grader in a grader's formula.

    For a formula that is not a sum, a leaf's weight is the change of the total when the leaf goes
    from its lowest to its highest reward while the others are half-way. Where the formula has no
    value there (a logarithm of 0, for instance), all leaves weigh the same.

    Args:
        spec: normalised, of any type.
    """
    parts = types.parts(spec)
    ranges = {key: _range(part) for key, part in parts.items()}
    if spec["type"] != "multi":
        [(low, high)] = ranges.values()
        return Weighing((Leaf("", low, high, 1.0),), is_exact=True)
    formula = compile_formula(spec["calculate_output"], parts)
    middle = {key: (low + high) / 2 for key, (low, high) in ranges.items()}
    try:
        leaves = tuple(
            Leaf(key, low, high, formula({**middle, key: high}) - formula({**middle, key: low}))
            for key, (low, high) in ranges.items()
        )
        return Weighing(leaves, _is_sum(formula, middle, leaves))
    except Fault:
        equal = tuple(Leaf(key, *ranges[key], 1.0 / len(parts)) for key in parts)
        return Weighing(equal, is_exact=False)


def _range(part: Mapping[str, Any]) -> tuple[float, float]:
    """Lowest and highest reward of a leaf; a python grader may give others, 0 and 1 are usual."""
    low, high = part.get("range") or (0.0, 1.0)
    return (float(low), float(high)) if high > low else (0.0, 1.0)


def _is_sum(formula: Formula, middle: Mapping[str, float], leaves: Sequence[Leaf]) -> bool:
    """Whether the formula agrees with the weighted sum at places all over the ranges."""
    base = formula(middle)
    for probe in range(PROBES):
        # Fixed places that no formula is likely to be written around.
        at = [math.modf(0.37 + 0.618034 * (probe + 1) * (n + 1))[0] for n in range(len(leaves))]
        values = {
            leaf.key: leaf.low + x * (leaf.high - leaf.low)
            for leaf, x in zip(leaves, at, strict=True)
        }
        total = sum(leaf.weight * (x - 0.5) for leaf, x in zip(leaves, at, strict=True))
        if abs(formula(values) - base - total) > LINEAR * max(1.0, abs(base)):
            return False
    return True


def advantages(
    name: str, grades_G: Sequence[Grade], leaves: Sequence[Leaf], floor: float
) -> Advantages:
    """The advantages of a group's completions.

    Args:
        name: a key of `ADVANTAGES`.
        grades_G: of the group.
        leaves: of the grader.
        floor: least number to divide by, as a share of the range from lowest to highest reward.
    """
    return ADVANTAGES[name](grades_G, leaves, floor)


def mean(grades_G: Sequence[Grade], leaves: Sequence[Leaf], floor: float) -> Advantages:
    """Reward minus the mean of the group's rewards.

    Not divided by the group's deviation, which would blow up groups that hardly differ (Liu et al.
    2025, arXiv:2503.20783).
    """
    return centred([grade.reward for grade in grades_G])


def std(grades_G: Sequence[Grade], leaves: Sequence[Leaf], floor: float) -> Advantages:
    """The same, divided by the group's deviation or the floor (Shao et al. 2024, arXiv:2402.03300).

    The floor is a share of the largest change of the total that the leaves can make.
    """
    own = centred([grade.reward for grade in grades_G])
    return _over(own, max(_deviation(own), floor * sum(abs(x.weight) for x in leaves)))


def per_grader(grades_G: Sequence[Grade], leaves: Sequence[Leaf], floor: float) -> Advantages:
    """The same for each sub-grader on its own; then the sum by the weights of the formula.

    GDPO (Liu et al. 2026, arXiv:2601.05242), without its second normalisation over the batch.
    """
    return _summed(grades_G, by_leaf("per_grader", grades_G, leaves, floor))


def maxrl(grades_G: Sequence[Grade], leaves: Sequence[Leaf], floor: float) -> Advantages:
    """Each sub-grader's reward less its mean, over that mean or the floor; then the weighted sum.

    MaxRL (Tajwar et al. 2026, arXiv:2602.02710): for rewards of 0 and 1 the gradient approaches
    that of the likelihood of a right answer. A leaf's lowest reward counts as 0.
    """
    return _summed(grades_G, by_leaf("maxrl", grades_G, leaves, floor))


ADVANTAGES: dict[str, Callable[[Sequence[Grade], Sequence[Leaf], float], Advantages]] = {
    "mean": mean,
    "std": std,
    "per_grader": per_grader,
    "maxrl": maxrl,
}
PER_GRADER_NAMES = ("per_grader", "maxrl")
"""The names of those that use each sub-grader separately."""


def by_leaf(
    name: str, grades_G: Sequence[Grade], leaves: Sequence[Leaf], floor: float
) -> list[Advantages]:
    """The contribution of each leaf to the advantages of a group, in the order of the leaves.

    Args:
        name: one of `PER_GRADER_NAMES`.
        grades_G: of the group.
        leaves: of the grader.
        floor: as for `advantages`.
    """
    result: list[Advantages] = []
    for leaf in leaves:
        values = [leaf.of(grade) for grade in grades_G]
        own = centred(values)
        known = [value for value in values if value is not None]
        if leaf.weight and known:
            unit = _deviation(own) if name == "per_grader" else sum(known) / len(known)
            own = _over(own, max(unit, floor) / leaf.weight)
        else:
            own = [None] * len(values)
        result.append(own)
    return result


def _summed(grades_G: Sequence[Grade], parts: Sequence[Advantages]) -> Advantages:
    total: Advantages = [None if grade.reward is None else 0.0 for grade in grades_G]
    for own in parts:
        for g, part in enumerate(own):
            if part is not None:
                total[g] = (total[g] or 0.0) + part
    return total


def _deviation(own: Advantages) -> float:
    known = [value for value in own if value is not None]
    return math.sqrt(sum(value * value for value in known) / len(known)) if known else 0.0


def _over(own: Advantages, divisor: float) -> Advantages:
    return [None if value is None else value / divisor if value else 0.0 for value in own]
