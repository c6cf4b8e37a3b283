"""Compare eval runs row by row: `compare(samples)` gives every number of a comparison.

Runs are paired by row. Repeats of a row are averaged first, and rows have equal weight. A run's
mean counts every row it has graded; a pair's difference counts the rows that both have graded. The
choice among finished runs uses every grade (`multiple_comparisons.run_means`), and a note reports
where these rows differ. A failed grade is left out and never a zero. Not here: fetching samples
(`runs`), the statistics (`stats`, `multiple_comparisons`) and the slices (`slices`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError
from rftkit.evals import multiple_comparisons
from rftkit.evals.cells import Array, make_cells
from rftkit.evals.comparison import Comparison, PairSummary, StepChoice
from rftkit.evals.job_verdict import job_verdict, with_one_base
from rftkit.evals.notes import notes_on
from rftkit.evals.samples import Samples
from rftkit.evals.sentences import choice_sentence
from rftkit.evals.signal_notes import signal_notes
from rftkit.evals.slices import By, slice_rows
from rftkit.evals.table import Table
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare", "pair"]

ENOUGH = 0.5
"""A run that has graded less than this share of the rows is not recommended."""


def compare(
    samples: Samples,
    *,
    baseline: str | None = None,
    after: str | None = None,
    slices: Sequence[str] | Mapping[str, By] = (),
    margin: float | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare runs with a baseline, row by row.

    Args:
        samples: From `evals.fetch`, `evals.run`, `evals.from_dump` or `evals.together`.
        baseline: Label of the run to compare with; default Step 0, else the first run.
        after: Label of the run that rows and slices compare; default the recommended run.
        slices: Keys of the items to group the rows by, such as `topic` or `meta.topic`; or names
            with functions from an item to a value.
        margin: Smaller differences do not matter; with it, runs can be shown to be the same.
        level: Confidence level of the intervals; 1 - level is the share of false alarms.
        seed: Seed of the resampling; the same seed gives the same numbers.

    Raises:
        NotFoundError: no run has that label.
        InputError: level or margin is out of range.
    """
    _check(level, margin)
    given, samples = samples, with_one_base(samples)
    cells = make_cells(samples)
    table = Table(samples, cells, level, margin, seed)
    first = _named(samples, given, baseline) if baseline else _baseline(samples)
    others = [label for label in samples.labels if label != first] if len(samples.frame) else []
    pairs = table.pairs(first or "", others)
    choice = _choose(table, first, pairs) if first and others else None
    focus = _named(samples, given, after) if after else _focus(choice, others)
    cuts = slices if isinstance(slices, Mapping) else {key: key for key in slices}
    return Comparison(
        samples=samples,
        runs=tuple(table.run(index) for index in range(len(samples.runs))),
        baseline=first,
        focus=focus,
        pairs=pairs,
        choice=choice,
        rows=_row_table(table, first, focus),
        slices=tuple(
            slice_rows(table, name, by, first, focus or first) for name, by in cuts.items() if first
        ),
        notes=(
            *notes_on(samples, cells, next((pair for pair in pairs if pair.after == focus), None)),
            *(note for pair in pairs if pair.after == focus for note in signal_notes(table, pair)),
        ),
        jobs=job_verdict(samples, level, seed),
        level=level,
        margin=margin,
        seed=seed,
    )


def _named(samples: Samples, given: Samples, label: str) -> str:
    """The label of a run; a Step 0 that is now one for several jobs is found by its old label."""
    if label not in samples.labels and given.run(label).step == 0:
        return next(run.label for run in samples.runs if run.step == 0)
    return samples.run(label).label


def pair(
    samples: Samples,
    before: str,
    after: str,
    *,
    margin: float | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> PairSummary:
    """Compare two runs, without a correction for other comparisons.

    Raises:
        NotFoundError: no run has that label.
        InputError: level or margin is out of range.
    """
    _check(level, margin)
    chosen = samples.select([before, after])
    return Table(chosen, make_cells(chosen), level, margin, seed).pairs(before, [after])[0]


def _check(level: float, margin: float | None) -> None:
    if not 0.5 <= level < 1:
        raise InputError(f"level must be from 0.5 to below 1, such as 0.95; found {level!r}")
    if margin is not None and not margin > 0:
        raise InputError(f"margin must be above zero, such as 0.02; found {margin!r}")


def _baseline(samples: Samples) -> str | None:
    """The first Step 0, else the first run; one that has finished if any has."""
    first = sorted(samples.runs, key=lambda run: (run.status != "completed", run.step != 0))
    return first[0].label if first else None


def _focus(choice: StepChoice | None, others: Sequence[str]) -> str | None:
    wanted = [choice.deploy, choice.best] if choice else []
    return next((label for label in wanted if label in others), others[-1] if others else None)


def _choose(table: Table, baseline: str, pairs: Sequence[PairSummary]) -> StepChoice | None:
    """The recommendation among the runs that can be compared with the baseline."""
    import numpy as np

    left_out = _left_out(table, baseline)
    labels = [label for label in table.samples.labels if label not in left_out]
    places = [table.samples.labels.index(label) for label in labels]
    rewards = table.rewards[:, places]
    rewards = rewards[np.isfinite(rewards).sum(axis=1) > 1]
    if len(labels) < 2 or not len(rewards):
        return None
    means = multiple_comparisons.run_means(rewards)[0].round(
        9
    )  # a difference in the last bits is only rounding
    best, deploy = _best(dict(zip(labels, means, strict=True)), baseline, pairs)
    better = {pair.after: pair for pair in pairs if pair.verdict == "better"}
    kept = multiple_comparisons.could_be_best(rewards, level=table.level, seed=table.seed)
    tied = [
        label
        for label, could_be in zip(labels, kept, strict=True)
        if could_be or label in (best, deploy) or _may_be_luck(table, label, best, len(labels))
    ]
    mean = float(means[labels.index(best)])
    expected = multiple_comparisons.expected_of_best(rewards, seed=table.seed)
    optimism = None if expected is None else max(0.0, mean - expected)
    gain = None
    if optimism is not None:
        gain = mean - optimism - float(means[labels.index(baseline)])
    wins = multiple_comparisons.win_shares(rewards, seed=table.seed)
    return StepChoice(
        baseline=baseline,
        num_comparisons=len(pairs),
        best=best,
        deploy=deploy,
        tied=tuple(tied),
        win_shares={label: float(wins[at]) for at, label in enumerate(labels)},
        optimism=optimism,
        expected=None if optimism is None else mean - optimism,
        expected_gain=gain,
        num_rows=len(rewards),
        left_out=left_out,
        sentence=choice_sentence(
            runs=[table.samples.runs[place] for place in places], best=best, deploy=deploy,
            tied=tied, mean=mean, is_level=bool(np.ptp(means) == 0), num_rows=len(rewards),
            num_graded=int(np.isfinite(rewards[:, labels.index(best)]).sum()),
            pair=better.get(deploy), baseline=baseline, expected_gain=gain, optimism=optimism,
            left_out=left_out,
        ),
    )  # fmt: skip


def _may_be_luck(table: Table, label: str, best: str, num_runs: int) -> bool:
    """Whether runs with different numbers of answers to a row differ by luck (`exchange`)."""
    p = table.exchange_p(label, best)
    return p is not None and 1 - (1 - p) ** (num_runs - 1) > 1 - table.level


def _best(
    means: Mapping[str, float], baseline: str, pairs: Sequence[PairSummary]
) -> tuple[str, str]:
    """The labels of the best run, and of the run to use: the best that is shown to beat the
    baseline. Where grades are missing, means may contradict what a pair shows on its own rows; a
    run that is shown to earn less than another is not the best then.
    """
    verdicts = {pair.after: pair.verdict for pair in pairs}
    shown = [label for label in means if verdicts.get(label) == "better"]
    behind = {label for label in means if verdicts.get(label) == "worse"}
    behind |= {baseline} if shown else set()
    # equal means: the baseline before others, then the earliest
    first = sorted(means, key=lambda label: (-means[label], label != baseline))
    best = next(label for label in first if label not in behind)
    return best, next((label for label in first if label in shown), baseline)


def _left_out(table: Table, baseline: str) -> dict[str, str]:
    """Runs that cannot be recommended, and why. If that is every run, unfinished ones are kept, and
    if it still is, those with few rows too.
    """
    import numpy as np

    known = np.isfinite(table.rewards)
    shared = known[:, [table.samples.labels.index(baseline)]] & known
    graded, common = known.sum(axis=0), shared.sum(axis=0)
    finished = [run.status == "completed" for run in table.samples.runs]
    most = int(max(graded[finished], default=0)) or int(max(graded, default=0))
    unrelated, unfinished, few = {}, {}, {}
    for at, run in enumerate(table.samples.runs):
        if run.label == baseline:
            continue
        if not table.samples.have_one_grader(baseline, run.label):
            unrelated[run.label] = "it has another grader"
        elif common[at] == 0:
            unrelated[run.label] = f"it shares no graded row with {baseline}"
        elif not finished[at]:
            unfinished[run.label] = f"it is {run.status}"
        if run.label not in unrelated and graded[at] < most * ENOUGH:
            few[run.label] = f"it has graded {graded[at]:,} of {counted(most, 'row')}"
    choices = (unrelated | few | unfinished, unrelated | few, unrelated)
    return next(found for found in choices if len(found) + 1 < len(known.T) or found == unrelated)


def _row_table(table: Table, baseline: str | None, focus: str | None) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    samples, keys = table.samples, table.cells.keys
    columns: dict[str, Any] = {
        "row": list(keys),
        "number": [samples.numbers.get(key, at) for at, key in enumerate(keys, 1)],
        "prompt": [samples.prompt(key) for key in keys],
    }
    for at, label in enumerate(samples.labels):
        columns[f"reward/{label}"] = table.rewards[:, at]
        columns[f"passed/{label}"] = table.passes[:, at]
    known = np.isfinite(table.rewards)
    columns["change"] = (
        table.difference(baseline, focus) if baseline and focus else np.full(len(keys), np.nan)
    )
    columns["swing"] = _spread(table.rewards, known)
    return pd.DataFrame(columns)


def _spread(values: Array, known: Any) -> Array:
    """Standard deviation of each row over the runs that graded it; nan with fewer than two."""
    import numpy as np

    count = known.sum(axis=1)
    filled = np.where(known, values, 0.0)
    mean = filled.sum(axis=1) / np.maximum(count, 1)
    squares = np.where(known, (values - mean[:, None]) ** 2, 0.0).sum(axis=1)
    return np.where(count > 1, np.sqrt(squares / np.maximum(count, 1)), np.nan)
