"""The results of a comparison of eval runs, as plain values that views draw.

A count of rows comes with their keys (`Samples.items`), so that a view can link a number to its
rows. None means unknown, never zero. `compare`, `stats` and `multiple_comparisons` compute the
numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rftkit.evals.samples import Samples

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Comparison",
    "Estimate",
    "JobVerdict",
    "PairSummary",
    "RunSummary",
    "Slice",
    "SliceTable",
    "StepChoice",
    "Verdict",
]

Verdict = Literal["better", "worse", "same", "unclear"]
"""`same` if a margin was given and the difference is shown to be inside it, however certain it is
that there is a difference."""


FEW = 5
"""With more rows than this, only rows with equal values have no interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over rows with its interval."""

    value: float | None
    """The mean; None when nothing was graded."""
    low: float | None = None
    """Lower end of the interval; None with too few rows, or when all have the same value."""
    high: float | None = None
    """Upper end."""
    num_rows: int = 0
    """The number of rows: the independent units, however many samples each has."""

    @property
    def why_no_interval(self) -> str:
        """Why the ends are None, in words."""
        return "too few rows" if self.num_rows <= FEW else "the same in every row"

    @property
    def half_width(self) -> float | None:
        """Half of the interval, in units of the value."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The totals of one run."""

    label: str
    """The label of the run, as in `Samples.labels`."""
    step: int | None
    """Optimizer step, when the run is a job's validation."""
    model: str | None
    """The model that answered."""
    num_rows: int
    """Rows with at least one sample."""
    num_samples: int
    """Answers."""
    reward: Estimate
    """Mean reward: rows have equal weight, and repeats of a row are one unit of the interval."""
    pass_rate: Estimate
    """Share of samples that passed, with equal weight per row; value None without verdicts."""
    graders: Mapping[str, Estimate]
    """Mean score of each grader by its name, when there are several; over samples it scored."""
    num_failed: int
    """Samples whose grader or request failed: they are in no mean."""
    num_unscorable: int
    """Samples that could not be scored: they count with the floor reward."""
    num_truncated: int
    """Answers that hit their token limit."""
    tokens: Estimate
    """Mean completion tokens; value None when they were not counted."""
    characters: Estimate
    """Mean characters of the answers."""
    within_row: float | None
    """Standard deviation of the reward between samples of one row; None with one sample a row."""
    failed_rows: tuple[str, ...] = ()
    """Keys of rows with at least one failed sample."""
    unscorable_rows: tuple[str, ...] = ()
    """Keys of rows with at least one unscorable sample."""

    @property
    def failed_share(self) -> float | None:
        """0–1, of samples."""
        return self.num_failed / self.num_samples if self.num_samples else None

    @property
    def unscorable_share(self) -> float | None:
        """0–1, of samples."""
        return self.num_unscorable / self.num_samples if self.num_samples else None

    @property
    def truncated_share(self) -> float | None:
        """0–1, of samples."""
        return self.num_truncated / self.num_samples if self.num_samples else None


@dataclass(frozen=True, slots=True)
class PairSummary:
    """Two runs on the rows that both have graded: `after` minus `before`."""

    before: str
    """Label."""
    after: str
    """Label."""
    num_rows: int
    """Rows graded in both; the numbers below use only these."""
    num_left_out: int
    """Rows that only one of the two has, or that only one has graded."""
    difference: Estimate
    """Mean paired difference of the reward. Its interval holds simultaneously for all
    `num_comparisons` pairs: it is the only interval of this difference, and says what the verdict
    says."""
    graders: Mapping[str, Estimate]
    """The same difference in each grader, by name, if there are several."""
    pass_difference: Estimate
    """Mean paired difference of the pass rate; value None without verdicts."""
    fixed_rows: tuple[str, ...]
    """Keys of rows that failed before and pass after (most samples of the row, if several)."""
    broken_rows: tuple[str, ...]
    """Keys of rows that passed before and fail after."""
    num_unchanged: int
    """Rows that pass in both or fail in both; rows with as many passes as fails are left out."""
    up_rows: tuple[str, ...]
    """Keys of rows whose mean reward rose, the largest gain first."""
    down_rows: tuple[str, ...]
    """Keys of rows whose mean reward fell, the largest loss first."""
    mcnemar_p: float | None
    """Exact McNemar test of fixed against broken rows, two-sided; None when there are neither."""
    p: float | None
    """Sign-flip permutation test of the reward differences, two-sided, corrected for
    `num_comparisons`: the verdict uses it."""
    num_comparisons: int
    """Number of pairs that were compared together."""
    margin: float | None
    """The user's margin: smaller differences do not matter; None without one."""
    equivalence_p: float | None
    """Two one-sided tests that the difference is inside the margin: the larger p of the two."""
    detectable: float | None
    """The smallest true difference that these rows would show in four of five repetitions,
    corrected like `p`."""
    verdict: Verdict
    """The conclusion from `p` and the interval of `difference`, which always agree; at most 5 % of
    all families of pairs have a false alarm."""
    sentence: str
    """The result as a sentence, with the difference that was found or could have been detected."""
    ungraded: tuple[int, int] | None = None
    """Ungraded samples of `before` and of `after`, if they differ by more than chance explains.
    Then `difference` also covers the results with the lowest or the highest reward in place of each
    missing grade. None otherwise."""

    @property
    def num_fixed(self) -> int:
        """Rows that failed before and pass after."""
        return len(self.fixed_rows)

    @property
    def num_broken(self) -> int:
        """Rows that passed before and fail after."""
        return len(self.broken_rows)


@dataclass(frozen=True, slots=True)
class StepChoice:
    """Which of many runs to deploy, and how certain that is."""

    baseline: str
    """Label of the run that the others are compared with: `Step 0`."""
    num_comparisons: int
    """Number of runs that were compared with it."""
    best: str
    """Label of the highest mean reward, the baseline included."""
    deploy: str
    """Label of the run to use: the best of those shown to beat the baseline, else the baseline."""
    tied: tuple[str, ...]
    """Labels that cannot be ruled out as the best (the best included), in order of runs."""
    win_shares: Mapping[str, float]
    """Per label, the share of bootstrap resamples of the rows in which it has the highest mean."""
    optimism: float | None
    """How much the best run's mean is too high because it was chosen (the winner's curse)."""
    expected: float | None
    """Mean reward to expect of the best run on new rows: its mean minus the optimism."""
    expected_gain: float | None
    """The expected reward minus that of the baseline."""
    num_rows: int
    """Rows that at least two of the runs have graded; rows need not be complete (see
    `multiple_comparisons.run_means`)."""
    sentence: str
    """The recommendation in words."""
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Label -> why this run is not considered: it has not finished, or few rows are graded."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of one value of a key."""

    value: str
    """What the rows have in common, as text."""
    num_rows: int
    """Rows with this value, graded in at least one run."""
    rows: tuple[str, ...]
    """The keys of these rows."""
    means: Mapping[str, Estimate]
    """Mean reward per run label."""
    difference: Estimate
    """`after` minus `before` of the table, paired, on these rows alone; the intervals of all
    slices hold together."""
    p: float | None
    """Sign-flip test of the difference, corrected (Holm) for the number of slices; two-sided."""
    verdict: Verdict
    """better, worse or unclear, by `p`."""
    is_small: bool
    """The slice has too few rows for a reliable interval."""


@dataclass(frozen=True, slots=True)
class SliceTable:
    """The rows grouped by a key: where the reward rose and where it fell, the worst first."""

    by: str
    """The key, or the name of the grouping function."""
    before: str
    """Label."""
    after: str
    """Label."""
    slices: tuple[Slice, ...]
    """The worst first: the lowest upper end of the difference's interval."""
    notes: tuple[str, ...] = ()
    """Slices too small, rows without the key, too many values: each a sentence."""


@dataclass(frozen=True, slots=True)
class JobVerdict:
    """Which setting of several jobs won."""

    means: Mapping[str, float]
    """Setting -> mean reward of its jobs' last validations, the highest first."""
    lead: Estimate | None
    """How much the first setting is ahead of the second, paired by row and corrected for the number
    of settings; None with one setting."""
    is_sure: bool
    """Whether the comparison shows that lead."""
    gain: Estimate | None
    """How much the first setting gained over the base model; None without a Step 0."""
    sentence: str
    """The result in one or two sentences."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Several runs compared: everything a view of the comparison shows."""

    samples: Samples
    """The samples compared; `samples.answers(key)` follows a row through all checkpoints."""
    runs: tuple[RunSummary, ...]
    """The runs, in the order of `samples.runs`."""
    baseline: str | None
    """Label of the run that the others are compared with; None when there are no runs."""
    focus: str | None
    """Label of the run that rows and slices compare with it: `after` if given, else the run that
    `choice` recommends, else the best, else the last; None with fewer than two runs."""
    pairs: tuple[PairSummary, ...]
    """Every other run against the baseline, in order; `evals.pair` makes any other."""
    choice: StepChoice | None
    """The recommended run; None with fewer than two runs, or if no run shares a graded row with the
    baseline."""
    rows: pd.DataFrame
    """One line per row, by number: `row` (key), `number`, `prompt`, `reward/<label>` and
    `passed/<label>` per run (means over samples, missing when none is graded), `change` (focus
    minus baseline), `swing` (standard deviation of the reward between runs)."""
    slices: tuple[SliceTable, ...] = ()
    """One entry for each key that was asked for."""
    notes: tuple[str, ...] = ()
    """What a reader must know before the numbers, one sentence each."""
    jobs: JobVerdict | None = None
    """Which setting won, when the runs are validations of several jobs."""
    level: float = 0.95
    """Confidence level of every interval."""
    margin: float | None = None
    """Differences smaller than this do not matter."""
    seed: int = 0
    """Seed of every resampling."""

    def summary(self, label: str) -> RunSummary:
        """The summary of one run."""
        return next(run for run in self.runs if run.label == label)

    def pair(self, label: str) -> PairSummary:
        """The pair of the baseline and another run."""
        return next(pair for pair in self.pairs if pair.after == label)

    def to_dict(self) -> dict[str, Any]:
        """Everything but samples and rows, as plain JSON."""
        left_out = {"samples", "rows"}
        names = [f.name for f in dataclasses.fields(self) if f.name not in left_out]
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
