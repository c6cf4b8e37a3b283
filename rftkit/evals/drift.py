"""Is the reward still what it stands for? A second grader, the training gap, longer answers.

A job learns to please its grader. Three signs that it pleases the grader and nobody else: a second
grader, scored at each validation and never trained on, stops following the reward; training
rewards run ahead of validation; answers grow. Not here: proof. Each sign is a reason to read rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.evals import stats
from rftkit.evals.cells import Array, make_cells
from rftkit.evals.comparison import Estimate
from rftkit.evals.looks import family
from rftkit.evals.samples import Samples

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Drift", "drift"]

GAP = 0.10
"""Train minus validation reward from which on overfitting is said aloud."""
LONGER = 1.5
"""Growth of the answers from which on it is said aloud."""


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """The validations of a job, watched for a reward that no longer means what it did."""

    frame: pd.DataFrame
    """One line per validation: `run`, `step`, `reward`, `reward_low`, `reward_high`, `watch`,
    `watch_low`, `watch_high` (the second grader's mean; empty without one), `train_reward` (mean
    of the training batches since the last validation), `gap` (train minus validation), `tokens`,
    `characters`."""
    watch: str | None
    """Name of the second grader; None when there is none."""
    parted_at: int | None
    """First step at which the reward is shown to be above the first validation, while the second
    grader is not and falls behind it; None if never."""
    gap: float | None
    """Train minus validation reward at the last validation; None when either is unknown."""
    length_ratio: float | None
    """Length of the answers at the last validation by that of the first, tokens if known."""
    sentences: tuple[str, ...]
    """What was found, a sentence each; says so when nothing was."""


def drift(
    samples: Samples,
    events: Iterable[dict[str, Any]] = (),
    *,
    watch: Samples | None = None,
    watch_name: str | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Drift:
    """Watch the validations of a job for a reward that no longer means what it did.

    Args:
        samples: Its validations, from `fetch(client, "ftjob-…")`.
        events: Its events, from `rftkit.jobs.events`, for the training rewards.
        watch: The same samples under the second grader, from `grade_again`.
        watch_name: What to call that grader.
        level: Of intervals.
        seed: Of tests.
    """
    steps = sorted((r for r in samples.runs if r.step is not None), key=lambda r: r.step or 0)
    kept = samples.select([run.label for run in steps])
    second = watch.select(kept.labels) if watch is not None else None
    frame = _frame(kept, second, list(events), level)
    parted = _parted(kept, second, level, seed) if second is not None else None
    last = frame.iloc[-1] if len(frame) else None
    gap = _number(last["gap"]) if last is not None else None
    ratio, unit = _length_ratio(frame)
    name = (watch_name or "the second grader") if second is not None else None
    return Drift(
        frame=frame,
        watch=name,
        parted_at=parted,
        gap=gap,
        length_ratio=ratio,
        sentences=tuple(_sentences(frame, name, parted, gap, ratio, unit)),
    )


def _frame(
    samples: Samples, second: Samples | None, events: list[dict[str, Any]], level: float
) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    rewards = _means(samples, level)
    watched = _means(second, level) if second is not None else [Estimate(None)] * len(rewards)
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


def _means(samples: Samples, level: float) -> list[Estimate]:
    matrix = make_cells(samples).mean(samples.frame["reward"])
    return [stats.mean_interval(column, level=level) for column in matrix.T]


def _train_rewards(events: list[dict[str, Any]], steps: Sequence[int]) -> list[float]:
    """Mean training reward of the steps since the validation before; nan where there is none."""
    from rftkit.jobs import step_frame

    frame = step_frame(events)
    found = []
    for before, step in zip([-1, *steps], steps, strict=False):
        since = frame[(frame["step"] > max(before, 0)) & (frame["step"] <= step)]
        found.append(_mean(since["train_reward_mean"].to_numpy(float)))
    return found


def _parted(samples: Samples, second: Samples, level: float, seed: int) -> int | None:
    """The first validation at which the two have parted.

    Parted means: over the same rows the reward gained since the first validation, and the second
    grader's gain is smaller, both beyond what luck gives over all validations together.
    """
    reward = make_cells(samples).mean(samples.frame["reward"])
    other = make_cells(second).mean(second.frame["reward"])
    if reward.shape[1] < 2 or reward.shape != other.shape:
        return None
    gains, lags = reward[:, 1:] - reward[:, [0]], other[:, 1:] - other[:, [0]]
    # each on its own scale: a grader from 0 to 10 is no better than one from 0 to 1
    apart = gains / _scale(reward) - lags / _scale(other)
    gained = _shown(gains, level, seed)
    parted = _shown(apart, level, seed)
    not_gained = ~_shown(lags, level, seed)
    signs = gained & parted & not_gained
    steps = [run.step for run in samples.runs[1:]]
    return next((step for step, sign in zip(steps, signs, strict=True) if sign), None)


def _scale(values: Array) -> float:
    import numpy as np

    spread = float(np.nanstd(values))
    return spread or 1.0


def _shown(differences: Array, level: float, seed: int) -> Any:
    """Which columns are shown to be above zero, all looked at together, (columns,) bool."""
    import numpy as np

    _, p, _ = family(differences, level=level, seed=seed)
    return (p <= 1 - level) & (np.array([_mean(column) for column in differences.T]) > 0)


def _length_ratio(frame: pd.DataFrame) -> tuple[float | None, str]:
    for name in ("tokens", "characters"):
        known = frame[name].dropna()
        if len(known) > 1 and known.iloc[0] > 0:
            return float(known.iloc[-1] / known.iloc[0]), name
    return None, ""


def _sentences(
    frame: pd.DataFrame,
    watch: str | None,
    parted: int | None,
    gap: float | None,
    ratio: float | None,
    unit: str,
) -> Iterable[str]:
    said = 0
    if watch and parted is not None:
        said += 1
        yield (
            f"At step {parted} the reward is above step {frame['step'].iloc[0]} and {watch} is "
            "not: the model learns to please its grader. Read those rows before deploying."
        )
    if gap is not None and gap > GAP:
        said += 1
        yield (
            f"Training rewards are {gap:.3f} above validation at step {frame['step'].iloc[-1]}: "
            "the model may be learning its rows by heart."
        )
    if ratio is not None and ratio > LONGER:
        said += 1
        yield f"Answers grew to {ratio:.1f} times their first length ({unit})."
    if not said:
        what = [f"{watch} follows the reward"] if watch else []
        what += ["training and validation stay together"] if gap is not None else []
        what += ["answers keep their length"] if ratio is not None else []
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
