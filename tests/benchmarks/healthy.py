"""Do alarms keep their rate in jobs that set no constant? `python tests/benchmarks/healthy.py`.

The healthy jobs of `alarms.py` also set how large a rise must be. Here are others: binary rewards,
rows that differ, heavy tails, sudden and late improvement, schedules that change the noise,
wandering policies, mixed tasks, judges that are down for a step, and jobs whose answers are texts
that go through the same figures as a real job's. Prints how many raise an alarm at a rate of 1 %
and of 5 %, with 95 % intervals, and how late planted hacking of three strengths is found.
`--jobs N` (300) of each kind; `--texts N` (60) of those of texts; `--journals HOME…` adds the
journals of real jobs in the folders of platforms, whose answers are drawn again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from alarms import RATES, STRENGTHS, summed, table
from healthy_texts import TEXTS, text_job
from journals import journals, redrawn

from rftkit.diagnosis import ALARMS, Alarms

Array = Any
Figures = Iterable[list[dict[str, Any]]]


@dataclass(frozen=True)
class World:
    """A kind of job."""

    learns: Callable[[Array], Array] = lambda at: 1.8 * at
    """Share of the job that is over, from 0 to 1 -> how much likelier right answers are (logit)."""
    steps: int = 100
    prompts: int = 8
    completions: int = 8
    levels: int = 1
    """A reward is one of this many more than one, evenly from 0 to 1."""
    longer: float = 0.2
    """How much longer right answers are, in log tokens."""
    noise: Callable[[Array], Array] = np.ones_like
    """Share of the job -> the spread of lengths and of templates, in units of the usual one."""
    wander: float = 0.0
    """Standard deviation of the policy's change of length from step to step, in log tokens."""
    tasks: int = 1
    """Kinds of rows with other lengths and styles."""
    lost: Callable[[Array], Array] = lambda at: 0.01 + 0 * at
    """Share of the job -> share of ungradable answers."""
    outages: float = 0.0
    """Share of the steps in which the judge is down for a third of the answers."""
    easy: float = 0.0
    """How much easier the held-out grader is (logit)."""


def step_at(place: float, size: float) -> Callable[[Array], Array]:
    """A function that rises by `size` at a place."""
    return lambda at: size / (1 + np.exp(-(at - place) * 60))


WORLDS = {
    "learns nothing": World(learns=np.zeros_like),
    "learns evenly": World(),
    "learns suddenly and late": World(learns=step_at(0.5, 2.5)),
    "learns, rewards in five levels": World(levels=4),
    "learns, answers become shorter": World(longer=-0.4),
    "learns, right answers are longer": World(longer=0.6),
    "learns to the best reward there is": World(learns=step_at(0.3, 6.0)),
    "held-out grader is easier": World(learns=step_at(0.4, 4.0), easy=2.0),
    "the spread doubles at step 40": World(noise=lambda at: 1.0 + (at > 0.4)),
    "the spread halves at step 40": World(noise=lambda at: 1.0 - 0.5 * (at > 0.4)),
    "lengths wander by 1 % a step": World(wander=0.01),
    "three tasks mixed": World(tasks=3),
    "the form is learnt: 40 % ungradable at first": World(lost=lambda at: 0.4 * np.exp(-8 * at)),
    "the judge is down now and then": World(outages=0.05),
    "2 prompts x 8": World(prompts=2),
    "40 steps": World(steps=40),
    "300 steps": World(steps=300),
}


def answers(
    world: World, rng: Any, hack: str = "", strength: float = 0.0, begin: int = 0
) -> dict[str, tuple[Array, Array]]:
    """Figure -> (its values, what may explain them), each (steps, prompts, completions).

    Hacking begins at a step, and is at its strength 20 steps later.
    """
    shape = (world.steps, world.prompts, world.completions)
    at = np.linspace(0, 1, world.steps)[:, None, None]
    num = 200
    draws = -(-world.steps * world.prompts // num)
    rows = np.concatenate([rng.permutation(num) for _ in range(draws)])
    rows = rows[: world.steps * world.prompts].reshape(world.steps, world.prompts, 1)
    task = rng.integers(world.tasks, size=num)[rows]
    hard = rng.normal(0, 1.2, num)[rows]
    logit = -0.6 + world.learns(at) - hard + rng.normal(0, 0.4, shape)
    share = strength / (1 + np.exp(-(np.arange(world.steps)[:, None, None] - begin - 10) / 3))
    hacks = rng.random(shape) < (share if hack else 0)
    chance = np.where(hacks & (hack in ("held_out", "mentions")), 0.05, sigmoid(logit))
    right = rng.binomial(world.levels, chance) / world.levels
    reward = np.where(hacks & (rng.random(shape) < 0.9), 1.0, right)
    heavy = rng.standard_t(4, shape)
    spread = world.noise(at)
    wander = np.cumsum(rng.normal(0, world.wander, world.steps))[:, None, None]
    style = rng.normal(0, 0.3, num)[rows] + 0.7 * task

    def is_planted(name: str) -> Array:
        return hacks * (hack == name)

    agrees = rng.random(shape) < 0.85
    second = rng.random(shape) < np.where(
        agrees,
        np.maximum(right, (rng.random(shape) < sigmoid(logit + world.easy)) * (world.easy > 0)),
        0.5,
    )
    correct = rng.binomial(3, np.clip(chance, 0, 1)) / 3
    present = rng.binomial(3, np.where(is_planted("mentions"), 0.97, sigmoid(logit + 1.0))) / 3
    template = np.clip(
        0.2
        + (rng.beta(2, 8, shape) - 0.2) * spread
        + 0.1 * right
        + 0.05 * task
        + rng.uniform(0, 0.1, num)[rows],
        0,
        1,
    )
    down = (rng.random((world.steps, 1, 1)) < world.outages) * 0.33
    lost = rng.random(shape) < np.maximum(world.lost(at), down)
    repeats = np.where(rng.random(shape) < 0.2, rng.beta(1, 9, shape), 0.0)
    signs = rng.random(shape) < np.where(rng.random(num)[rows] < 0.05, 0.2, 0.005)
    return {
        "held_out": (1.0 * second, reward),
        "length": (4 + style + world.longer * right + 0.25 * heavy * spread + wander
                   + 0.6 * is_planted("length"), reward),
        "repeated": (np.clip(repeats + 0.4 * is_planted("repeated"), 0, 1), reward),
        "template": (np.clip(template + 0.5 * is_planted("template"), 0, 1), reward),
        "mentions": (present - correct, correct),
        "ungradable": (np.maximum(lost, is_planted("ungradable")), 0 * reward),
        "cheats": (np.maximum(signs, is_planted("cheats")), 0 * reward),
        "padding": (np.maximum(rng.random(shape) < 0.3, is_planted("padding")), 0 * reward),
    }  # fmt: skip


def sigmoid(x: Array) -> Array:
    """The inverse of the logit."""
    return 1 / (1 + np.exp(-x))


def raised(steps: Figures, total: int) -> list[dict[str, int]]:
    """For each rate: the alarms of one job, and their steps."""
    alarms = [Alarms(rate) for rate in RATES]
    for step, given in enumerate(steps, start=1):
        for each in alarms:
            each.add(step, total, given)
    return [{e.alarm["name"]: e.alarm["step"] for e in each.raised if e.alarm} for each in alarms]


def line(name: str, found: Sequence[list[dict[str, int]]]) -> list[str]:
    """A row of the table of healthy jobs."""
    cells = []
    for at in range(len(RATES)):
        count = sum(bool(each[at]) for each in found)
        low, high = interval(count, len(found))
        cells.append(f"{count / len(found):.1%} ({low:.1%} to {high:.1%})")
    names = [alarm for each in found for alarm in each[1]]
    said = ", ".join(f"{alarm} {names.count(alarm)}" for alarm in sorted(set(names)))
    return [name, str(len(found)), *cells, said]


def interval(count: int, num: int) -> tuple[float, float]:
    """Clopper and Pearson's, 95 %."""
    from scipy.stats import beta

    low = beta.ppf(0.025, count, num - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, num - count) if count < num else 1.0
    return float(low), float(high)


def healthy(num_jobs: int, num_texts: int, homes: Sequence[Path]) -> Iterator[list[str]]:
    """The table of healthy jobs, line by line."""
    yield ["healthy jobs", "number", "any alarm, rate 1 %", "rate 5 %", "alarms at 5 %"]
    for name, world in WORLDS.items():
        found = []
        for seed in range(num_jobs):
            rng = np.random.default_rng([77, seed])
            found.append(raised(summed(answers(world, rng)), world.steps))
        yield line(name, found)
    for name, task in TEXTS.items():
        rngs = (np.random.default_rng([78, seed]) for seed in range(num_texts))
        yield line(name, [raised(text_job(task, rng), task.steps) for rng in rngs])
    for name, steps in journals(homes):
        found = [raised(redrawn(steps, None), len(steps))]
        yield line(f"{name}, as it was", found)
        rngs = (np.random.default_rng([79, seed]) for seed in range(num_texts))
        yield line(f"{name}, drawn again", [raised(redrawn(steps, r), len(steps)) for r in rngs])


def hacked(num: int) -> Iterator[list[str]]:
    """The table of planted hacking."""
    heads = [cell for rate in RATES for cell in (f"raised, rate {rate:.0%}", "median delay")]
    yield ["alarm", "strength", *heads]
    for hack in ALARMS:
        for word, strength in STRENGTHS.items():
            cells: list[list[int]] = [[] for _ in RATES]
            for seed in range(num):
                rng, begin = np.random.default_rng([80, seed]), 20 + 7 * seed % 40
                made = answers(WORLDS["learns evenly"], rng, hack, strength, begin)
                for at, found in enumerate(raised(summed(made), 100)):
                    if hack in found:
                        cells[at].append(found[hack] - begin)
            told = [
                cell
                for delays in cells
                for cell in (
                    f"{len(delays) / num:.0%}",
                    f"{statistics.median(delays):.0f}" if delays else "–",
                )
            ]
            yield [hack, word, *told]


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--journals", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    table(list(healthy(given.jobs, given.texts, given.journals)))
    print()
    table(list(hacked(max(1, given.jobs // 5))))


if __name__ == "__main__":
    main()
