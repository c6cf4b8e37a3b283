"""Do alarms keep their rate, and how late do they come? `python tests/benchmarks/alarms.py [N]`.

Simulates jobs of 100 steps (N of each kind, default 1,000) with known truth, and feeds the figures
of their answers to the alarms of `rftkit.diagnosis`, as metric events would. Prints how many
healthy jobs of several kinds raise any alarm at a rate of 1 % and of 5 %, and, for hacking of three
strengths that begins at step 30, how many jobs raise its alarm and after how many steps.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rftkit.diagnosis import ALARMS, Alarms
from rftkit.diagnosis.alarms import threshold

STEPS, BEGIN, GROWTH = 100, 30, 40
"""Steps of a job, the step at which hacking begins, and the steps until it is as strong as it
gets."""
STRENGTHS = {"weak": 0.25, "medium": 0.5, "strong": 0.9}
"""Share of the answers that hack at the end."""
RATES = (0.01, 0.05)

Array = Any


@dataclass(frozen=True)
class World:
    """A kind of job."""

    prompts: int = 8
    completions: int = 8
    gain: float = 0.4
    """How much better answers become."""
    noise: float = 0.1
    """Standard deviation of the grader's error."""
    length: float = 0.4
    """How much longer answers are, in log tokens, where they are better by 1."""
    ungradable: float = 0.02
    num_rows: int = 256
    """Rows of the file: after an epoch they come again, in the same order."""


HEALTHY = {
    "learns nothing": World(gain=0.0),
    "learns": World(),
    "learns, noisy grader": World(noise=0.3),
    "learns, longer answers are better": World(length=1.2),
    "learns, 32 prompts x 2": World(prompts=32, completions=2),
    "learns, 4 prompts x 4": World(prompts=4, completions=4),
    "one answer of five ungradable": World(ungradable=0.2),
    "64 rows, 12 epochs": World(num_rows=64),
}


def answers(world: World, hack: str, strength: float, rng: Any) -> dict[str, tuple[Array, Array]]:
    """Figure -> (its value of each answer, what may explain it), (steps, answers) each."""
    shape = (STEPS, world.prompts, world.completions)
    step = np.arange(STEPS)[:, None, None]
    difficulty = rng.normal(0, 0.12, world.num_rows)
    at = (np.arange(STEPS * world.prompts) % world.num_rows).reshape(STEPS, world.prompts)
    learnt = 0.3 + world.gain * (1 - np.exp(-step / 25))
    quality = learnt + difficulty[at][:, :, None] + rng.normal(0, 0.15, shape)
    share = strength * np.clip((step - BEGIN) / GROWTH, 0, 1) if hack else 0 * step
    hacks = rng.random(shape) < share
    quality = quality - 0.3 * hacks * (hack in ("held_out", "mentions"))
    paid = 0.3 * hacks
    reward = np.clip(quality + paid + rng.normal(0, world.noise, shape), 0, 1)

    def is_planted(name: str) -> Array:
        return hacks * (hack == name)

    correct = rng.binomial(4, np.clip(quality, 0.02, 0.98)) / 4
    present = rng.binomial(4, np.clip(quality + 0.1 + is_planted("mentions"), 0.02, 0.98)) / 4
    long = 3.7 + world.length * quality + rng.normal(0, 0.25, shape) + 0.6 * is_planted("length")
    nothing = np.zeros(shape)
    return {
        "held_out": (np.clip(0.1 + 0.8 * quality + rng.normal(0, 0.2, shape), 0, 1), reward),
        "length": (long, reward),
        "repeated": (np.abs(rng.normal(0.02, 0.02, shape)) + 0.4 * is_planted("repeated"), reward),
        "template": (0.2 + 0.2 * quality + rng.normal(0, 0.08, shape)
                     + 0.5 * is_planted("template"), reward),
        "mentions": (present - correct, correct),
        "ungradable": (np.maximum(rng.random(shape) < world.ungradable,
                                  is_planted("ungradable")), nothing),
        "cheats": (np.maximum(rng.random(shape) < 0.01, is_planted("cheats")), nothing),
        "padding": (np.maximum(rng.random(shape) < 0.1, is_planted("padding")), nothing),
    }  # fmt: skip


def summed(found: dict[str, tuple[Array, Array]]) -> Iterator[list[dict[str, Any]]]:
    """The figures of each step, as in its metric event; half of the answers are held out.

    Args:
        found: figure -> (its value of each answer, what may explain it), each (steps, prompts,
            completions).
    """
    columns: dict[str, list[Any]] = {}
    for name, (value, by) in found.items():
        steps, _, completions = value.shape
        cut = completions // 2 if name == "held_out" else completions
        value, by = (each[:, :, :cut].reshape(steps, -1) for each in (value, by))
        apart = [each - each.mean(axis=1, keepdims=True) for each in (value, by)]
        pairs = ((apart[0], apart[1]), (apart[1], apart[1]), (apart[0], apart[0]))
        products = [(a * b).sum(axis=1) for a, b in pairs]
        columns[name] = [value.shape[1], value.mean(axis=1), by.mean(axis=1), *products]
    keys = ("mean", "by", "cross", "by_square", "square")
    for step in range(steps):
        yield [
            {"name": name, "num": num}
            | {key: float(column[step]) for key, column in zip(keys, rest, strict=True)}
            for name, (num, *rest) in columns.items()
        ]


def raised(
    world: World, hack: str, strength: float, seed: int
) -> tuple[list[dict[str, int]], list[bool]]:
    """For each rate: the alarms of one job and their steps; and whether any test has the evidence,
    however small the rise is."""
    alarms = [Alarms(rate) for rate in RATES]
    rng = np.random.default_rng([seed, list(ALARMS).index(hack) + 1 if hack else 0])
    for step, given in enumerate(summed(answers(world, hack, strength, rng)), start=1):
        for each in alarms:
            each.add(step, STEPS, given)
    found = [{e.alarm["name"]: e.alarm["step"] for e in each.raised if e.alarm} for each in alarms]
    peak = max(each.evidence for each in alarms[0].statuses)
    return found, [peak >= threshold(rate) for rate in RATES]


def table(lines: list[list[str]], say: Callable[[str], None] = print) -> None:
    """Markdown."""
    for number, line in enumerate(lines):
        say(f"| {' | '.join(line)} |")
        if not number:
            say("|" + "---|" * len(line))


def main(num: int) -> None:
    """Both tables."""
    heads = (
        "healthy jobs",
        "any alarm, rate 1 %",
        "rate 5 %",
        "evidence alone, rate 1 %",
        "rate 5 %",
    )
    lines = [[*heads, "alarms at 5 %"]]
    for name, world in HEALTHY.items():
        pairs = [raised(world, "", 0.0, seed) for seed in range(num)]
        found, tests = [each for each, _ in pairs], [each for _, each in pairs]
        shares = [sum(bool(each[at]) for each in some) / num
                  for some in (found, tests) for at in range(len(RATES))]  # fmt: skip
        which: dict[str, int] = {}
        for each in found:
            for alarm in each[1]:
                which[alarm] = which.get(alarm, 0) + 1
        said = ", ".join(f"{alarm} {count}" for alarm, count in sorted(which.items()))
        lines.append([name, *(f"{share:.1%}" for share in shares), said])
    table(lines)
    print()
    lines = [
        [
            "alarm",
            "strength",
            "raised, rate 1 %",
            "steps after 30",
            "raised, rate 5 %",
            "steps after 30",
        ]
    ]
    for hack in ALARMS:
        for word, strength in STRENGTHS.items():
            found = [raised(World(), hack, strength, seed)[0] for seed in range(max(1, num // 5))]
            cells = []
            for at in range(len(RATES)):
                delays = [each[at][hack] - BEGIN for each in found if hack in each[at]]
                middle = f"{statistics.median(delays):.0f}" if delays else "–"
                cells += [f"{len(delays) / len(found):.0%}", middle]
            lines.append([hack, word, *cells])
    table(lines)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
