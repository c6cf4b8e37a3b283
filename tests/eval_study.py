"""Worlds with known truth, to see whether intervals and verdicts of comparisons keep their word.

A world has rows of different difficulty; runs answer each row several times. Three kinds of
rewards: *binary*, *high* (binary, nine of ten pass) and *skewed* (0 to 1, most near 0). What a run
earns on average is known exactly. Used by the tests with few simulations and by
`tests/benchmarks/evals.py` with many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rftkit.evals import looks, stats

KINDS = ("binary", "high", "skewed")
ROWS, REPEATS = (50, 200, 1000), (1, 5)
NUM_LOOKS = 20
DIFFICULTY = {"binary": (0.6, 0.9), "high": (4.5, 0.5), "skewed": (1.0, 2.0)}
"""Parameters of the beta law of a row's chance, or size."""
SCALE = {"binary": 1.0, "high": 1.0, "skewed": 1 / 3}
"""What a unit of it is worth in reward."""
HEADROOM = {"binary": (0.1, 0.2), "high": (0.4, 0.8), "skewed": (0.1, 0.2)}
"""Gains whose power is asked for, as shares of what is missing to 1."""


def base(kind: str) -> float:
    """Mean chance of a row."""
    a, b = DIFFICULTY[kind]
    return a / (a + b)


def truth(kind: str, gain: float = 0.0) -> float:
    """Mean reward of a run whose chances are `gain` higher."""
    return (base(kind) + gain) * SCALE[kind]


def draw(rng: Any, kind: str, rows: int, repeats: int, gains: tuple[float, ...]) -> Any:
    """One world: mean reward of each row in each run, (rows, runs)."""
    chance = rng.beta(*DIFFICULTY[kind], (rows, 1))
    chances = chance + np.asarray(gains) * (1 - chance) / (1 - base(kind))
    if kind == "skewed":
        return chances * rng.beta(1.0, 2.0, (repeats, rows, len(gains))).mean(axis=0)
    return rng.binomial(repeats, chances) / repeats


@dataclass(frozen=True)
class Cell:
    """What was found for one kind, number of rows and number of repeats; shares are 0 to 1."""

    kind: str
    rows: int
    repeats: int
    run: float
    """How often the interval of a run's mean held the truth."""
    difference: float
    """How often that of a paired difference did."""


def coverage(kind: str, rows: int, repeats: int, simulations: int, seed: int = 0) -> Cell:
    rng = np.random.default_rng([seed, rows, repeats, KINDS.index(kind)])
    gain = 0.4 * (1 - base(kind))
    support = (0.0, 1.0) if kind != "skewed" else None
    held = [0, 0]
    for _ in range(simulations):
        rewards = draw(rng, kind, rows, repeats, (0.0, gain))
        run = stats.mean_interval(rewards[:, 1], support=support)
        pair = stats.difference_interval(rewards[:, 1] - rewards[:, 0], support=support)
        held[0] += _holds(run, truth(kind, gain))
        held[1] += _holds(pair, truth(kind, gain) - truth(kind))
    return Cell(kind, rows, repeats, held[0] / simulations, held[1] / simulations)


@dataclass(frozen=True)
class Looks:
    """What looking at 20 steps found; shares of simulations are 0 to 1."""

    kind: str
    rows: int
    repeats: int
    false_alarms: float
    """Some step was called better, and none was."""
    power: dict[float, float]
    """Gain in reward of the last ten steps -> how often one of them was called better."""
    flattery: float
    """Mean of the best run less its truth, when all are equal."""
    flattery_left: float
    """The same after the winner's curse was taken off."""


def look(kind: str, rows: int, repeats: int, simulations: int, seed: int = 0) -> Looks:
    rng = np.random.default_rng([seed, rows, repeats, KINDS.index(kind), 1])
    alarms, flattery, left = 0, 0.0, 0.0
    for _ in range(simulations):
        rewards = draw(rng, kind, rows, repeats, (0.0,) * (NUM_LOOKS + 1))
        alarms += bool(_better(rewards).any())
        best = rewards.mean(axis=0).max()
        flattery += best - truth(kind)
        left += (looks.expected_of_best(rewards) or 0.0) - truth(kind)
    power = {}
    for share in HEADROOM[kind]:
        gain = share * (1 - base(kind))
        gains = (0.0,) * (NUM_LOOKS // 2 + 1) + (gain,) * (NUM_LOOKS // 2)
        tries = max(20, simulations // 5)
        seen = sum(
            bool(_better(draw(rng, kind, rows, repeats, gains))[NUM_LOOKS // 2 :].any())
            for _ in range(tries)
        )
        power[round(gain * SCALE[kind], 3)] = seen / tries
    return Looks(kind, rows, repeats, alarms / simulations, power, flattery / simulations,
                 left / simulations)  # fmt: skip


def _better(rewards: Any) -> Any:
    """Which steps a comparison calls better than the first run."""
    differences = rewards[:, 1:] - rewards[:, :1]
    _, p, _ = looks.family(differences, num_flips=2000)
    return (p <= 0.05) & (differences.mean(axis=0) > 0)


def _holds(estimate: Any, value: float) -> bool:
    return estimate.low is not None and estimate.low <= value <= estimate.high
