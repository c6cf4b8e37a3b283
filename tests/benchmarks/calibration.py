"""Do a calibration's intervals hold the truth? `python tests/benchmarks/calibration.py [N]`.

Simulates labels of answers by a judge that agrees with people at known rates (N times each, default
1,000), and prints how often the 95 % intervals of `rftkit.evals.agree` hold the truth: of the share
of verdicts that agree, of kappa, of the share by what people said, and of all four slices together.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from eval_study import samples_from

from rftkit.evals import Label, agree, agreement
from rftkit.evals.comparison import Estimate

NUM_SLICES = 4
CELLS = [(labels, accepted, agreeing) for labels in (40, 100) for accepted in (0.5, 0.8)
         for agreeing in (0.75, 0.9)]  # fmt: skip


def holds(found: Estimate, truth: float) -> bool:
    """Whether an interval has the truth in it."""
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def look(num: int, accepted: float, agreeing: float, simulations: int) -> list[float]:
    """Shares of intervals that hold the truth: agreement, kappa, accept, reject, all slices."""
    rng = np.random.default_rng([num, int(100 * accepted), int(100 * agreeing)])
    passes = accepted * agreeing + (1 - accepted) * (1 - agreeing)
    chance = passes * accepted + (1 - passes) * (1 - accepted)
    kappa = (agreeing - chance) / (1 - chance)
    seen: list[list[bool]] = [[] for _ in range(5)]
    for world in range(simulations):
        person = (rng.random(num) < accepted) * 1.0
        judge = np.where(rng.random(num) < agreeing, person, 1 - person)
        samples = samples_from(np.arange(num), np.zeros(num, int), judge)
        frame = samples.frame
        places = zip(frame["row"], frame["run"], frame["sample"], person, strict=True)
        labels = [Label(row, run, int(at), float(value)) for row, run, at, value in places]
        found = agree(samples, labels, threshold=0.5, seed=world)
        seen[0].append(holds(found.agreement, agreeing))
        if found.kappa.value is not None:
            seen[1].append(holds(found.kappa, kappa))
        for each in found.classes:
            seen[2 if each.label == "accept" else 3].append(holds(each.measured, agreeing))
        seen[4].append(_slices_hold(samples, labels, agreeing, world))
    return [float(np.mean(each)) if each else float("nan") for each in seen]


def _slices_hold(samples: Any, labels: list[Label], agreeing: float, seed: int) -> bool:
    """Whether the intervals of all slices hold together, as `calibrate` makes them."""
    level = 1 - 0.05 / NUM_SLICES
    parts = [labels[at::NUM_SLICES] for at in range(NUM_SLICES)]
    found = [agree(samples, part, threshold=0.5, level=level, seed=seed) for part in parts]
    return all(holds(each.agreement, agreeing) for each in found)


def main(simulations: int) -> None:
    """A markdown table, without the rank correlation, whose interval is costly."""
    agreement.correlation_over_rows = lambda *_, **__: Estimate(None)  # type: ignore[assignment]
    print(
        "| labels | accepted | agreeing | agreement | kappa | of accepted | of rejected | slices |"
    )
    print("|" + "---|" * 8)
    for num, accepted, agreeing in CELLS:
        shares = " | ".join(f"{each:.1%}" for each in look(num, accepted, agreeing, simulations))
        print(f"| {num} | {accepted:.0%} | {agreeing:.0%} | {shares} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
