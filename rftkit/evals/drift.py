"""Signs that a job exploits its grader: a second grader, the training gap, longer answers.

A job learns what its grader rewards. Three signs show that it learns only that. A second grader,
never trained on, stops following the reward. Training rewards rise above validation. Answers grow.
A healthy job shows each sign in at most 5 of 100 cases, with few rows and noisy graders too
(`tests/eval_study.py`). A sign is no proof but a reason to read rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError
from rftkit.evals import stats
from rftkit.evals.cells import Array, make_cells
from rftkit.evals.comparison import Estimate
from rftkit.evals.multiple_comparisons import family
from rftkit.evals.samples import Samples
from rftkit.t_distribution import t_quantile

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Drift", "drift", "drift_of_jobs"]

LEVEL = 0.95
"""Of the intervals, and of the tests."""
GAP = 0.10
"""A larger gap of train minus validation reward is reported, if luck does not explain it."""
LONGER = 1.5
"""Growth of the answers above which it is reported, if luck does not explain it."""


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """The validations of a job, checked for signs that it exploits its grader."""

    frame: pd.DataFrame
    """One line per validation: `run`, `step`, `reward`, `reward_low`, `reward_high`, `watch`,
    `watch_low`, `watch_high` (the second grader's mean; empty without one), `train_reward` (mean
    of the training batches since the last validation), `gap` (train minus validation), `tokens`,
    `characters`."""
    watch: str | None
    """The name of the second grader; None without one."""
    parted_at: int | None
    """First step at which the reward has risen since the first validation and the second grader has
    not followed: it fell, or it did not rise and is below what it gave for such a reward at first.
    None if there is none. Luck alone gives one in at most 5 of 100 jobs."""
    gap: float | None
    """Train minus validation reward at the last validation; None when either is unknown."""
    gap_luck: float | None
    """A gap up to this may be luck (in 95 of 100 jobs without overfitting); None when there are too
    few steps or rows."""
    length_ratio: float | None
    """Length of the answers at the last validation divided by the first one; in tokens if known."""
    sentences: tuple[str, ...]
    """The findings, one sentence each; one sentence if there are none."""
    samples: Samples | None = None
    """The validations."""
    second: Samples | None = None
    """The same values under the second grader."""


def drift(
    samples: Samples,
    events: Iterable[dict[str, Any]] = (),
    *,
    watch: Samples | None = None,
    watch_name: str | None = None,
) -> Drift:
    """Check the validations of a job for signs that it exploits its grader.

    Args:
        samples: Its validations, from `fetch(client, "ftjob-…")`.
        events: Its events, from `rftkit.jobs.events`, for the training rewards.
        watch: The same samples under the second grader, from `grade_again`.
        watch_name: A name for that grader.
    """
    jobs = list(dict.fromkeys(run.job_id for run in samples.runs if run.step is not None))
    if len(jobs) > 1:
        raise InputError(
            f"these are validations of {len(jobs)} jobs, and drift is looked for in one job at a "
            "time; use evals.drift_of_jobs"
        )
    steps = sorted((r for r in samples.runs if r.step is not None), key=lambda r: r.step or 0)
    kept = samples.select([run.label for run in steps])
    second = watch.select(kept.labels) if watch is not None else None
    events = list(events)
    frame = _frame(kept, second, events)
    parted = _parted(kept, second) if second is not None else None
    last = frame.iloc[-1] if len(frame) else None
    gap = _number(last["gap"]) if last is not None else None
    luck = _gap_error(frame, events) if gap is not None else None
    ratio, unit = _length_ratio(frame)
    is_ahead = gap is not None and luck is not None and gap > max(GAP, luck)
    is_longer = ratio is not None and ratio > LONGER and _grew(kept, unit)
    name = (watch_name or "the second grader") if second is not None else None
    return Drift(
        frame=frame,
        watch=name,
        parted_at=parted,
        gap=gap,
        gap_luck=luck,
        length_ratio=ratio,
        sentences=tuple(
            _sentences(
                frame, name, parted, gap, ratio, unit, is_ahead=is_ahead, is_longer=is_longer
            )
        ),
        samples=kept,
        second=second,
    )


def drift_of_jobs(
    samples: Samples,
    events_of: Callable[[str], Iterable[dict[str, Any]]],
    *,
    watch: Samples | None = None,
    watch_name: str | None = None,
) -> dict[str, Drift]:
    """Job -> its validations, checked by `drift`; runs that are no validations are left out.

    Args:
        samples: The validations of any number of jobs.
        events_of: Gives the events of a job, as `rftkit.jobs.events` does.
        watch: The same samples under the second grader.
        watch_name: A name for that grader.
    """
    jobs = dict.fromkeys(run.job_id for run in samples.runs if run.step is not None)
    found = {}
    for job in jobs:
        own = [run.label for run in samples.runs if run.job_id == job and run.step is not None]
        second = watch.select(own) if watch is not None else None
        events = events_of(job) if job else ()
        found[job or ""] = drift(samples.select(own), events, watch=second, watch_name=watch_name)
    return found


def _frame(samples: Samples, second: Samples | None, events: list[dict[str, Any]]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    rewards = _means(samples)
    watched = _means(second) if second is not None else [Estimate(None)] * len(rewards)
    steps = [int(run.step or 0) for run in samples.runs]
    cells = make_cells(samples)
    tokens = cells.mean(samples.frame["tokens"])
    characters = cells.mean(samples.frame["answer"].str.len())
    train = _train_rewards(events, steps)
    values = [_blank(estimate.value) for estimate in rewards]
    return pd.DataFrame({
        "run": samples.labels,
        "step": steps,
        "reward": values,
        "reward_low": [_blank(each.low) for each in rewards],
        "reward_high": [_blank(each.high) for each in rewards],
        "watch": [_blank(each.value) for each in watched],
        "watch_low": [_blank(each.low) for each in watched],
        "watch_high": [_blank(each.high) for each in watched],
        "train_reward": train,
        "gap": np.asarray(train, float) - np.asarray(values, float),
        "tokens": [_mean(column) for column in tokens.T],
        "characters": [_mean(column) for column in characters.T],
    })  # fmt: skip


def _means(samples: Samples) -> list[Estimate]:
    rewards = samples.frame["reward"].to_numpy(float)
    support = stats.support_of(rewards)
    limits = {"support": support, "bounds": stats.bounds_of(rewards)}
    matrix = make_cells(samples).mean(rewards)
    return [stats.mean_interval(column, level=LEVEL, **limits) for column in matrix.T]


def _train_rewards(events: list[dict[str, Any]], steps: Sequence[int]) -> list[float]:
    """Mean training reward of the steps since the validation before; nan where there is none."""
    from rftkit.jobs import step_frame

    frame = step_frame(events)
    found = []
    for before, step in zip([-1, *steps], steps, strict=False):
        since = frame[(frame["step"] > max(before, 0)) & (frame["step"] <= step)]
        found.append(_mean(since["train_reward_mean"].to_numpy(float)))
    return found


def _gap_error(frame: pd.DataFrame, events: list[dict[str, Any]]) -> float | None:
    """How far training exceeds validation by chance; None when that cannot be estimated.

    Of validation the upper side of its interval; of training from how much neighbouring steps
    differ, so that a reward that rises is no error. The two as one (Zou and Donner 2008).
    """
    import numpy as np

    from rftkit.jobs import step_frame

    last = frame.iloc[-1]
    steps = step_frame(events)
    steps = steps[(steps["step"] > 0) & (steps["step"] <= last["step"])]
    rewards = steps["train_reward_mean"].dropna()
    before = frame["step"].iloc[-2] if len(frame) > 1 else 0
    num_since = int((steps.loc[rewards.index, "step"] > before).sum())
    if len(rewards) < 3 or not num_since or np.isnan(last["reward_high"]):
        return None
    spread = float(np.sqrt((np.diff(rewards.to_numpy(float)) ** 2).mean() / 2))
    # neighbouring differences share a step, so they count for less
    freedom = max(1, 2 * (len(rewards) - 1) // 3)
    half = t_quantile(0.5 + LEVEL / 2, freedom) * spread / np.sqrt(num_since)
    return float(np.hypot(half, last["reward_high"] - last["reward"]))


def _parted(samples: Samples, second: Samples) -> int | None:
    """The first validation at which the reward and the second grader diverge. Over the same rows
    the reward rose since the first validation, and the second grader either fell, or did not rise
    as much as rows with such a gain had at the first validation. All beyond what luck gives over
    all validations together. How noisy the second grader is does not matter: its noise does not
    change the slope between the two.
    """
    reward = make_cells(samples).mean(samples.frame["reward"])
    other = make_cells(second).mean(second.frame["reward"])
    if reward.shape[1] < 2 or reward.shape != other.shape:
        return None
    gains, seconds = reward[:, 1:] - reward[:, [0]], other[:, 1:] - other[:, [0]]
    slope = _least_slope(reward[:, 0], other[:, 0])
    parted = _shown(-seconds)
    if slope > 0:
        behind = _shown(slope * gains - seconds)
        parted |= behind & ~_shown(seconds)
    signs = _shown(gains) & parted
    steps = [run.step for run in samples.runs[1:]]
    return next((step for step, sign in zip(steps, signs, strict=True) if sign), None)


def _least_slope(first: Array, second: Array) -> float:
    """The lower end of the slope of the second grader on the reward, from row to row."""
    import numpy as np

    known = np.isfinite(first) & np.isfinite(second)
    x, y = first[known], second[known]
    squares = float(((x - x.mean()) ** 2).sum()) if len(x) else 0.0
    if len(x) < 4 or squares < 1e-12:
        return 0.0
    slope = float(((x - x.mean()) * y).sum()) / squares
    off = y - y.mean() - slope * (x - x.mean())
    error = float(np.sqrt((off**2).sum() / (len(x) - 2) / squares))
    return slope - t_quantile(0.5 + LEVEL / 2, len(x) - 2) * error


def _shown(differences: Array) -> Any:
    """Which columns are shown to be above zero, all looked at together, (columns,) bool."""
    import numpy as np

    _, p, _ = family(differences, level=LEVEL)
    return (p <= 1 - LEVEL) & (np.array([_mean(column) for column in differences.T]) > 0)


def _length_ratio(frame: pd.DataFrame) -> tuple[float | None, str]:
    for name in ("tokens", "characters"):
        known = frame[name].dropna()
        if len(known) > 1 and known.iloc[0] > 0:
            return float(known.iloc[-1] / known.iloc[0]), name
    return None, ""


def _grew(samples: Samples, unit: str) -> bool:
    """Whether the answers of the last validation are shown to be longer than those of the first."""
    frame = samples.frame
    lengths = frame["tokens"] if unit == "tokens" else frame["answer"].str.len()
    found = make_cells(samples).mean(lengths)
    return bool(_shown(found[:, [-1]] - found[:, [0]])[0])


def _sentences(
    frame: pd.DataFrame,
    watch: str | None,
    parted: int | None,
    gap: float | None,
    ratio: float | None,
    unit: str,
    *,
    is_ahead: bool,
    is_longer: bool,
) -> Iterable[str]:
    num_signs = 0
    if watch and parted is not None:
        num_signs += 1
        yield (
            f"At step {parted} the reward is above step {frame['step'].iloc[0]} and {watch} is "
            "not: the model exploits its grader. Read those rows before deploying."
        )
    if gap is not None and is_ahead:
        num_signs += 1
        yield (
            f"Training rewards are {gap:.3f} above validation at step {frame['step'].iloc[-1]}: "
            "the model may be memorizing its rows."
        )
    if ratio is not None and is_longer:
        num_signs += 1
        yield f"Answers grew to {ratio:.1f} times their first length ({unit})."
    if not num_signs:
        what = [f"{watch} is not shown to leave the reward"] if watch else []
        what += ["training is not shown to be ahead of validation"] if gap is not None else []
        what += ["answers are not shown to grow by half"] if ratio is not None else []
        yield f"No sign of drift: {', '.join(what)}." if what else "Nothing to watch for drift yet."


def _mean(values: Any) -> float:
    import numpy as np

    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def _blank(value: float | None) -> float:
    return float("nan") if value is None else value


def _number(value: Any) -> float | None:
    return None if value != value else float(value)
