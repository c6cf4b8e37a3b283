"""Worlds with known truth, to see whether intervals and verdicts of comparisons keep their word.

A world has rows of different difficulty; runs answer each row several times. Three kinds of
rewards: *binary*, *high* (binary, nine of ten pass) and *skewed* (0 to 1, most near 0). What a run
earns on average is known exactly. Used by the tests with few simulations and by
`tests/benchmarks/evals.py` with many.

Missing grades (`PATTERNS`): 20 steps compared with the first run, 60 rows, one answer each.
*better* is how often any step was called better when all are equal (200 worlds; at most 5 %);
*seen* is how often one of the ten steps that gain (`GAIN`) was called better and recommended (40
worlds; with complete rows it is the line `0 %`):

    grades missing   binary: better, seen   nine of ten          skewed
    0 %                  3.5%      92%         0.5%      32%         2.0%     100%
    10 %                 1.5%      75%         1.5%       8%         2.0%     100%
    20 %                 1.5%      72%         0.5%      12%         2.0%      98%
    30 %                 0.0%      70%         1.0%       5%         3.5%      95%
    hard rows            1.5%      18%         0.5%      15%         3.0%      50%
    low rewards          0.0%      45%         2.0%       2%         1.5%      90%
    one run's            2.0%      90%         1.5%      28%         1.0%     100%
    repeats              2.0%      98%         1.5%      90%         3.5%     100%

Drift (`drifting`), 60 jobs of each kind of reward and 20, 50 or 200 validation rows, where the
second grader gains as much as the reward with noise of 0.3 or 1.0 a grade and no row is memorized:
"memorizing" in 0 to 3 %, parted graders in 0 to 2 %. Training that is 0.3 ahead is seen in 97 to
100 %; a second grader that stays where it was in 37 % (binary, 20 rows) to 100 % (200 rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rftkit.evals import Label, agree, compare, drift, kappas, multiple_comparisons, stats
from rftkit.evals.cells import make_cells
from rftkit.evals.samples import COLUMNS, Run, Samples
from rftkit.evals.table import Table

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
        left += (multiple_comparisons.expected_of_best(rewards) or 0.0) - truth(kind)
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
    _, p, _ = multiple_comparisons.family(differences, num_flips=2000)
    return (p <= 0.05) & (differences.mean(axis=0) > 0)


GAIN = {"binary": 0.2, "high": 0.09, "skewed": 0.1}
"""Gains in reward that are looked for among missing grades."""
PATTERNS = ("0 %", "10 %", "20 %", "30 %", "hard rows", "low rewards", "one run's", "repeats")
"""How grades go missing: at random; 10 to 60 % of a row, more the harder it is; 40 % of rewards
below one half, in all runs alike, or in the last run only; and 1 to 5 answers, not one, per row
and run, a tenth of them without a grade."""


@dataclass(frozen=True)
class Missing:
    """What comparisons of 20 steps found while grades were missing; shares are 0 to 1."""

    kind: str
    pattern: str
    false_alarms: float
    """Some step was called better, and none was."""
    power: float
    """A better step was called better, and recommended."""
    rows: float
    """Mean number of rows that the recommendation rests on."""


def missing(
    kind: str, pattern: str, num_equal: int, num_better: int, *, rows: int = 60, seed: int = 0
) -> Missing:
    """Worlds in which all steps are equal, and worlds in which ten of twenty are better."""
    rng = np.random.default_rng([seed, rows, KINDS.index(kind), PATTERNS.index(pattern)])
    equal = (0.0,) * (NUM_LOOKS + 1)
    gain = GAIN[kind] / SCALE[kind]
    better = (0.0,) * (NUM_LOOKS // 2 + 1) + (gain,) * (NUM_LOOKS // 2)
    alarms, seen, used = 0, 0, 0
    for _ in range(num_equal):
        samples = _with_missing(rng, kind, pattern, rows, equal)
        table = Table(samples, make_cells(samples), 0.95, None, 0)
        alarms += any(pair.verdict == "better" for pair in table.pairs("0", samples.labels[1:]))
    for _ in range(num_better):
        choice = compare(_with_missing(rng, kind, pattern, rows, better)).choice
        seen += choice is not None and int(choice.deploy) > NUM_LOOKS // 2
        used += choice.num_rows if choice else 0
    return Missing(kind, pattern, alarms / num_equal, seen / num_better, used / num_better)


def _with_missing(rng: Any, kind: str, pattern: str, rows: int, gains: tuple[float, ...]) -> Any:
    """The samples of one world, some of them without a grade."""
    shape = (rows, len(gains))
    chance = rng.beta(*DIFFICULTY[kind], (rows, 1))
    chances = chance + np.asarray(gains) * (1 - chance) / (1 - base(kind))
    times = rng.integers(1, 6, shape) if pattern == "repeats" else np.ones(shape, int)
    row, run = (np.repeat(index.ravel(), times.ravel()) for index in np.indices(shape))
    if kind == "skewed":
        rewards = chances[row, run] * rng.beta(1.0, 2.0, len(row))
    else:
        rewards = rng.binomial(1, chances[row, run]).astype(float)
    low = rewards < (0.5 if kind != "skewed" else 0.1)
    share = {
        "hard rows": 0.1 + 0.5 * (1 - chance[row, 0]),
        "low rewards": 0.4 * low,
        "one run's": 0.4 * (low & (run == len(gains) - 1)),
        "repeats": 0.1,
    }
    gone = rng.random(len(row)) < (
        share[pattern] if pattern in share else float(pattern[:-2]) / 100
    )
    return samples_from(row, run, np.where(gone, np.nan, rewards))


def samples_from(row: Any, run: Any, rewards: Any) -> Samples:
    """Samples with these rewards, nan for a failed grade, (samples,) each."""
    frame = pd.DataFrame(dict.fromkeys(COLUMNS), index=range(len(row)))
    failed = ~np.isfinite(rewards)
    frame["run"], frame["row"] = run.astype(str), row.astype(str)
    frame["sample"] = frame.groupby(["run", "row"]).cumcount()
    frame["reward"], frame["outcome"] = rewards, np.where(failed, "failed", "graded")
    frame["passed"] = pd.array([pd.NA] * len(row), dtype="boolean")
    frame["truncated"], frame["answer"], frame["tokens"] = False, "a", np.nan
    names = [str(each) for each in np.unique(run)]
    names.sort(key=int)
    keys = [str(each) for each in np.unique(row)]
    runs = tuple(Run(name, f"evalrun_{name}", int(name)) for name in names)
    return Samples(runs, frame, {key: {} for key in keys}, {key: int(key) for key in keys})


def labelled(num: int, accepted: float, agreeing: float, simulations: int, seed: int = 0) -> float:
    """How often the interval of kappa holds the truth.

    Args:
        num: Labels, each of another row.
        accepted: Share that people accept.
        agreeing: Share of either kind of which the grader says the same.
        simulations: Worlds; those in which kappa is not defined are drawn again.
        seed: Of the worlds.
    """
    rng = np.random.default_rng([seed, num, int(100 * accepted), int(100 * agreeing)])
    passes = accepted * agreeing + (1 - accepted) * (1 - agreeing)
    chance = passes * accepted + (1 - passes) * (1 - accepted)
    truth, held, count = (agreeing - chance) / (1 - chance), 0, 0
    while count < simulations:
        person = (rng.random(num) < accepted) * 1.0
        grader = np.where(rng.random(num) < agreeing, person, 1 - person)
        kappa = stats.kappa(grader, person)
        if kappa is None:
            continue
        drawn = [kappas.draw_agreement(np.arange(num), grader[:, None], person, prior, seed=count)
                 for prior in kappas.PRIORS]  # fmt: skip
        found = kappas.interval_of(kappa, [each[1][:, 0] for each in drawn], num, 0.95)
        held, count = held + _holds(found, truth), count + 1
    return held / simulations


def random_grader(num: int, levels: int, simulations: int, seed: int = 0) -> float:
    """How often another threshold is called better for a grader that knows nothing.

    Args:
        num: Labels.
        levels: Different rewards; 0: any number from 0 to 1.
        simulations: Worlds.
        seed: Of the worlds.
    """
    rng = np.random.default_rng([seed, num, levels, 7])
    claims = 0
    for _ in range(simulations):
        rewards = rng.integers(0, levels, num) / (levels - 1) if levels else rng.random(num)
        samples = samples_from(np.arange(num), np.zeros(num, int), rewards)
        labels = [Label(str(row), "0", 0, float(rng.random() < 0.6)) for row in range(num)]
        claims += agree(samples, labels).suggested is not None
    return claims / simulations


@dataclass(frozen=True)
class Signs:
    """How often a job shows signs of drift; shares are 0 to 1."""

    by_heart: float
    """Training was called ahead of validation."""
    parted: float
    """The second grader was called to have left the reward."""


def drifting(
    kind: str, rows: int, simulations: int, *, noise: float = 0.3, follows: float = 1.0,
    overfit: float = 0.0, seed: int = 0,
) -> Signs:  # fmt: skip
    """Jobs of 20 steps and five validations that gain.

    Args:
        kind: Of rewards.
        rows: Of validation.
        simulations: Jobs.
        noise: Of the second grader, standard deviation of a grade.
        follows: Its gain as a share of the reward's; 0: it stays where it was.
        overfit: What training earns beyond validation.
        seed: Of the jobs.
    """
    rng = np.random.default_rng([seed, rows, KINDS.index(kind), int(100 * noise)])
    signs = [0, 0]
    for _ in range(simulations):
        gains = np.linspace(0, 0.4 * (1 - base(kind)), 5)
        rewards = draw(rng, kind, rows, 1, tuple(gains))
        own = rewards - (1 - follows) * gains * SCALE[kind] + rng.normal(0, noise, rewards.shape)
        row, run = (index.ravel() for index in np.indices(rewards.shape))
        events = [
            {"type": "metrics", "data": {"step": step, "train_reward_mean": overfit + draw(
                rng, kind, 16, 4, (gains[-1] * step / 20,)).mean()}}
            for step in range(1, 21)
        ]  # fmt: skip
        samples = samples_from(row, 5 * run, rewards.ravel())
        watch = samples_from(row, 5 * run, own.ravel())
        found = drift(samples, events, watch=watch)
        signs[0] += any("memorizing" in each for each in found.sentences)
        signs[1] += found.parted_at is not None
    return Signs(signs[0] / simulations, signs[1] / simulations)


def _holds(estimate: Any, value: float) -> bool:
    return estimate.low is not None and estimate.low <= value <= estimate.high
