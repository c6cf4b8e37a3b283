"""The noise of a grader: how much its grades differ when it grades the same answers again.

A judge that gives 0.6 today and 0.8 tomorrow moves the reward curve without any learning.
`judge_noise` grades several times and measures this; a gain inside that band may be noise.
`agreement` measures whether the grader is right.
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
from rftkit.wording import counted

__all__ = ["JudgeNoise", "judge_noise", "noise_of"]


@dataclass(frozen=True, slots=True)
class JudgeNoise:
    """How much a grader disagrees with itself on the same answers."""

    num_samples: int
    """Samples that were graded at least twice."""
    num_grades: int
    """The number of their grades."""
    one_grade: float | None
    """Standard deviation of one grade around what the grader gives on average."""
    band: float | None
    """Half-width (95 %) of the effect of the noise alone on the difference of two runs' means: a
    smaller gain may be noise."""
    num_rows: int
    """Rows per run that `band` is for."""
    flips: float | None
    """Share of samples whose verdict differs between repeats; None without a threshold."""
    sentence: str
    """The result as a sentence."""


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
    """Grade some stored samples several times, and measure how much the grades differ.

    Args:
        samples: Where to take them from, spread over runs and rewards at random.
        grader: The spec; a judge must be free to answer anew: no `cache`, no fixed `seed`.
        times: How often each is graded.
        max_samples: How many samples.
        seed: Of the choice.
        progress: Show a bar.
        options: Options of `rftkit.graders.compile_grader`; `complete=` calls the judge.

    Raises:
        GraderSpecError: The spec is malformed.
        InputError: There is nothing to grade, or `times` is below two.
    """
    import numpy as np

    if times < 2 or not len(samples.frame):
        raise InputError("noise needs samples, and at least two grades each (times=2)")
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
                          "No sample was graded twice: the noise is unknown.")  # fmt: skip
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
    samples = counted(num_samples, "sample")
    if one < 1e-9:
        return f"The grader gave {samples} the same grade each time: no noise."
    sentence = (
        f"On the same answers, a repeated grade differs by {one:.3f} (standard deviation, "
        f"{samples}). Between two runs of {counted(num_rows, 'row')} the noise alone "
        f"makes ±{band:.3f}: smaller gains may be noise."
    )
    return (
        sentence if flips is None else f"{sentence} {flips:.0%} of verdicts differ between repeats."
    )
