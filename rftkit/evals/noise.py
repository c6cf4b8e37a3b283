"""A grader held against itself: what it says when it is asked again about the very same answers.

A judge that gives 0.6 today and 0.8 tomorrow moves the reward curve by itself. `judge_noise` asks
it several times and says how much; a gain inside that band is grey. Not here: whether the grader
is right (`agreement`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

from rftkit.errors import InputError
from rftkit.evals.cells import Array
from rftkit.evals.grading import grade_again
from rftkit.evals.samples import Samples
from rftkit.evals.words import many

__all__ = ["JudgeNoise", "judge_noise", "noise_of"]


@dataclass(frozen=True, slots=True)
class JudgeNoise:
    """How much a grader disagrees with itself about the very same answers."""

    num_samples: int
    """Samples that were graded at least twice."""
    num_grades: int
    """Their grades, together."""
    one_grade: float | None
    """Standard deviation of one grade around what the grader gives on average."""
    band: float | None
    """Half-width (95 %) of what the noise alone does to the difference of two runs' means: a
    smaller gain is grey."""
    num_rows: int
    """Rows per run that `band` is for."""
    flips: float | None
    """Share of samples whose verdict is not the same each time; None without a threshold."""
    sentence: str
    """In words."""


def judge_noise(
    samples: Samples,
    grader: Mapping[str, Any],
    *,
    times: int = 3,
    max_samples: int = 100,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> JudgeNoise:
    """Grade some stored samples several times, and say how much the grader differs from itself.

    Args:
        samples: Where to take them from, spread over runs and rewards at random.
        grader: The spec; a judge must be free to answer anew: no `cache`, no fixed `seed`.
        times: How often each is graded.
        max_samples: How many samples.
        seed: Of the choice.
        progress: Show a bar.
        options: Of `rftkit.graders.compile_grader`; `complete=` asks the judge.

    Raises:
        GraderSpecError: The spec is malformed.
        InputError: There is nothing to grade, or `times` is below two.
    """
    import numpy as np

    if times < 2 or not len(samples.frame):
        raise InputError("noise needs samples, and to be asked at least twice (times=2)")
    rng = np.random.default_rng(seed)
    count = min(max_samples, len(samples.frame))
    chosen = np.sort(rng.choice(len(samples.frame), count, replace=False))
    some = replace(samples, frame=samples.frame.iloc[chosen].reset_index(drop=True))
    graded = [grade_again(some, grader, progress=progress, **options) for _ in range(times)]
    rewards = np.column_stack([each.frame["reward"].to_numpy(float) for each in graded])
    passed = [each.frame["passed"].astype("Float64") for each in graded]
    verdicts: Any = np.column_stack([each.to_numpy(float, na_value=np.nan) for each in passed])
    counts = samples.frame.groupby("run").agg(rows=("row", "nunique"), lines=("row", "size"))
    return noise_of(
        rewards,
        verdicts,
        num_rows=int(counts["rows"].max()),
        num_samples_per_row=float((counts["lines"] / counts["rows"]).min()),
    )


def noise_of(
    rewards: Array,
    verdicts: Array | None = None,
    *,
    num_rows: int,
    num_samples_per_row: float = 1.0,
) -> JudgeNoise:
    """The noise of a grader from its repeated grades.

    Args:
        rewards: (samples, times); nan where it failed.
        verdicts: The same, 1 for a pass and 0 for a fail; nan where unknown.
        num_rows: Rows per run, for the band.
        num_samples_per_row: Samples per row and run, for the band.
    """
    import numpy as np

    known = np.isfinite(rewards)
    times = known.sum(axis=1)
    kept = times > 1
    if not kept.any():
        return JudgeNoise(0, 0, None, None, num_rows, None,
                          "No sample was graded twice: the noise cannot be told.")  # fmt: skip
    rewards, known, times = rewards[kept], known[kept], times[kept]
    filled = np.where(known, rewards, 0.0)
    means = filled.sum(axis=1) / times
    squares = np.where(known, (rewards - means[:, None]) ** 2, 0.0).sum()
    one = math.sqrt(float(squares) / float((times - 1).sum()))
    # two runs' means, each of num_rows * samples grades, differ by this much from noise alone
    band = NormalDist().inv_cdf(0.975) * one * math.sqrt(2 / (num_rows * num_samples_per_row))
    flips = None if verdicts is None else _flips(verdicts[kept])
    return JudgeNoise(
        num_samples=int(kept.sum()),
        num_grades=int(times.sum()),
        one_grade=one,
        band=band,
        num_rows=num_rows,
        flips=flips,
        sentence=_sentence(one, band, flips, int(kept.sum()), num_rows),
    )


def _flips(verdicts: Array) -> float | None:
    import numpy as np

    known = np.isfinite(verdicts).sum(axis=1) > 1
    if not known.any():
        return None
    return float((np.nanmax(verdicts[known], axis=1) != np.nanmin(verdicts[known], axis=1)).mean())


def _sentence(one: float, band: float, flips: float | None, num_samples: int, num_rows: int) -> str:
    if one < 1e-9:
        return f"The grader said the same each time of {many(num_samples, 'sample')}: no noise."
    said = (
        f"Asked again about the same answers, one grade moves by {one:.3f} (standard deviation, "
        f"{many(num_samples, 'sample')}). Between two runs of {many(num_rows, 'row')} the noise "
        f"alone makes ±{band:.3f}: smaller gains are grey."
    )
    return said if flips is None else f"{said} {flips:.0%} of verdicts are not the same each time."
