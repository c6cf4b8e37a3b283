"""The matrices of one comparison, each made once, and the summaries of a run and of a pair.

Not here: choosing among runs, slices and notes (`compare`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rftkit.evals import multiple_comparisons, stats
from rftkit.evals.cells import Array, Cells, scores
from rftkit.evals.comparison import Estimate, PairSummary, RunSummary, Verdict
from rftkit.evals.exchange import exchange_p
from rftkit.evals.samples import Samples
from rftkit.evals.sentences import pair_sentence

__all__ = ["Table"]

OTHER_GRADER = "{after} and {before} have different graders, so their rewards cannot be compared."


@dataclass(frozen=True, slots=True)
class _Correction:
    """One pair of runs among those that are compared together."""

    alone: float
    """p of this pair alone."""
    together: float
    """Family-wise p."""
    multiple: float
    """Standard errors to each side of intervals that hold together."""
    num: int
    """Pairs looked at."""


class Table:
    """The matrices of one comparison, each made once."""

    def __init__(
        self, samples: Samples, cells: Cells, level: float, margin: float | None, seed: int
    ) -> None:
        self.samples, self.cells = samples, cells
        self.level, self.margin, self.seed = level, margin, seed
        import numpy as np

        frame = samples.frame
        self.rewards = cells.mean(frame["reward"])
        passed = frame["passed"].astype("Float64")
        self.passes = cells.mean(passed.to_numpy(float, na_value=float("nan")))
        self.support = stats.support_of(frame["reward"].to_numpy(float))
        self.bounds = stats.bounds_of(frame["reward"].to_numpy(float))
        scored = {name: scores(samples, name) for name in samples.graders}
        self.graders = {name: cells.mean(values) for name, values in scored.items()}
        self.limits = {
            name: {"support": stats.support_of(values), "bounds": stats.bounds_of(values)}
            for name, values in scored.items()
        }
        """The arguments of `mean_interval` for each grader."""
        self.tokens = cells.mean(frame["tokens"])
        self.characters = cells.mean(frame["answer"].str.len())
        self.deviation = _within_rows(cells, frame["reward"].to_numpy(float), self.rewards)
        self.is_graded = np.isfinite(frame["reward"].to_numpy(float))
        self.ungraded = cells.count(~self.is_graded)
        outcome = frame["outcome"].to_numpy()
        self.failed = cells.count(outcome == "failed")
        self.unscorable = cells.count(outcome == "unscorable")
        self.truncated = cells.count(frame["truncated"])
        self.counts = cells.count()

    def run(self, at: int) -> RunSummary:
        """The totals of one run."""
        run = self.samples.runs[at]
        many = len(self.graders) > 1
        return RunSummary(
            label=run.label,
            step=run.step,
            model=run.model,
            num_rows=int((self.counts[:, at] > 0).sum()),
            num_samples=int(self.counts[:, at].sum()),
            reward=self.mean_reward(self.rewards[:, at]),
            pass_rate=self._mean(self.passes[:, at], (0.0, 1.0)),
            graders={
                name: stats.mean_interval(means[:, at], level=self.level, **self.limits[name])
                for name, means in self.graders.items()
                if many
            },
            num_failed=int(self.failed[:, at].sum()),
            num_unscorable=int(self.unscorable[:, at].sum()),
            num_truncated=int(self.truncated[:, at].sum()),
            tokens=self._mean(self.tokens[:, at]),
            characters=self._mean(self.characters[:, at]),
            within_row=self.deviation[at],
            failed_rows=self.keys(self.failed[:, at] > 0),
            unscorable_rows=self.keys(self.unscorable[:, at] > 0),
        )

    def difference(self, before: str, after: str) -> Array:
        """Reward of one run minus that of another, (rows,); of another grader it is nan."""
        import numpy as np

        labels = self.cells.labels
        if not self.samples.have_one_grader(before, after):
            return np.full(len(self.cells.keys), np.nan)
        found = self.rewards[:, labels.index(after)] - self.rewards[:, labels.index(before)]
        found[np.abs(found) < 1e-12] = 0.0  # a difference in the last bits is only rounding
        return found

    def pairs(self, before: str, afters: Sequence[str]) -> tuple[PairSummary, ...]:
        """Every other run against one, corrected for how many there are."""
        import numpy as np

        if not afters:
            return ()
        differences = np.column_stack([self.difference(before, after) for after in afters])
        alone, together, multiple = multiple_comparisons.family(
            differences, level=self.level, seed=self.seed
        )
        found = []
        for at, after in enumerate(afters):
            changed = np.nan_to_num(differences[:, at]).astype(bool).sum()
            one = float(alone[at])
            if changed <= stats.EXACT:
                one = stats.permutation_p(differences[:, at]) or float("nan")
            one, all_of = self._with_exchange(before, after, one, float(together[at]), len(afters))
            correction = _Correction(one, max(one, all_of), float(multiple[at]), len(afters))
            found.append(self._pair(before, after, differences[:, at], correction))
        return tuple(found)

    def exchange_p(self, before: str, after: str, places: Sequence[int] = ()) -> float | None:
        """The p-value of `exchange.exchange_p`, on these rows only if any are given."""
        import numpy as np

        first, last = (self.cells.labels.index(label) for label in (before, after))
        row, run = self.cells.row, self.cells.run
        mine = self.is_graded & ((run == first) | (run == last))
        if len(places):
            mine &= np.isin(row, places)
        rewards = self.samples.frame["reward"].to_numpy(float)
        return exchange_p(row[mine], run[mine] == last, rewards[mine], seed=self.seed)

    def _with_exchange(
        self, before: str, after: str, alone: float, together: float, num: int
    ) -> tuple[float, float]:
        """The larger of both p-values: this one, and that of exchanging the answers of two runs to
        a row.
        """
        p = self.exchange_p(before, after)
        return (
            (alone, together) if p is None else (max(alone, p), max(together, 1 - (1 - p) ** num))
        )

    def if_ungraded_counted(self, before: str, after: str) -> tuple[Array, Array] | None:
        """The differences if missing grades spoke against `after`, and if they spoke for it.

        None where both runs miss about as many: then missing grades do not show which is better.
        Where one misses more than chance explains, its grader may fail on its bad answers, so
        missing grades count as the lowest and the highest reward of all samples. Only rows that
        both were asked count.
        """
        import numpy as np

        columns = [self.cells.labels.index(before), self.cells.labels.index(after)]
        asked = (self.counts[:, columns] > 0).all(axis=1)
        missing = self.ungraded[:, columns] / np.maximum(self.counts[:, columns], 1)
        more = np.where(asked, missing[:, 1] - missing[:, 0], np.nan)
        p = stats.permutation_p(more, seed=self.seed)
        if p is None or p > 1 - self.level or not self.is_graded.any():
            return None
        rewards = self.samples.frame["reward"].to_numpy(float)
        seen = rewards[self.is_graded]
        low, high = (
            self.cells.mean(np.where(self.is_graded, rewards, end))[:, columns]
            for end in (seen.min(), seen.max())
        )
        against, for_it = low[:, 1] - high[:, 0], high[:, 1] - low[:, 0]
        return np.where(asked, against, np.nan), np.where(asked, for_it, np.nan)

    def mean_reward(self, rewards: Array) -> Estimate:
        """The mean of some rows' rewards."""
        return stats.mean_interval(
            rewards, level=self.level, support=self.support, bounds=self.bounds
        )

    def mean_difference(self, differences: Array, *, level: float | None = None) -> Estimate:
        """The mean of some rows' differences; at the table's level unless another is given."""
        return stats.difference_interval(
            differences, level=level or self.level, support=self.support, bounds=self.bounds
        )

    def keys(self, chosen: Any) -> tuple[str, ...]:
        """Keys of chosen rows, (rows,) bool."""
        return tuple(self.cells.keys[at] for at in chosen.nonzero()[0])

    def _mean(self, values: Array, support: stats.Support = None) -> Estimate:
        return stats.mean_interval(values, level=self.level, support=support)

    def _pair(
        self, before: str, after: str, difference: Array, correction: _Correction
    ) -> PairSummary:
        import numpy as np

        labels = self.cells.labels
        old, new = self.passes[:, labels.index(before)], self.passes[:, labels.index(after)]
        both = np.isfinite(difference)
        either = (self.counts[:, [labels.index(before), labels.index(after)]] > 0).any(axis=1)
        fixed, broken = (old < 0.5) & (new > 0.5) & both, (old > 0.5) & (new < 0.5) & both
        kept = both & (((old < 0.5) & (new < 0.5)) | ((old > 0.5) & (new > 0.5)))
        alpha, many = 1 - self.level, correction.num > 1
        found = self._for_all(difference, correction)
        ungraded = self.if_ungraded_counted(before, after)
        if ungraded is not None:
            found = stats.hull(found, *(self._for_all(each, correction) for each in ungraded))
        p = correction.together if many else correction.alone
        found = stats.as_tested(found, p, alpha)
        width = self.bounds[1] - self.bounds[0] if self.bounds is not None else np.inf
        found = stats.within(found, (-width, width))
        critical = correction.multiple if many and np.isfinite(correction.multiple) else None
        detectable = stats.detectable(difference, level=self.level, critical=critical)
        if detectable is not None and detectable > width:
            detectable = None  # no difference of rewards is that large
        order = np.argsort(np.nan_to_num(difference), kind="stable")
        summary = PairSummary(
            before=before,
            after=after,
            num_rows=int(both.sum()),
            num_left_out=int((either & ~both).sum()),
            difference=found,
            graders=self._graders(before, after),
            pass_difference=stats.difference_interval(
                np.where(both, new - old, np.nan), level=self.level, support=(0.0, 1.0)
            ),
            fixed_rows=self.keys(fixed),
            broken_rows=self.keys(broken),
            num_unchanged=int(kept.sum()),
            up_rows=tuple(self.cells.keys[at] for at in order[::-1] if difference[at] > 0),
            down_rows=tuple(self.cells.keys[at] for at in order if difference[at] < 0),
            mcnemar_p=stats.mcnemar_p(int(fixed.sum()), int(broken.sum())),
            p=p if both.any() else None,
            num_comparisons=correction.num,
            margin=self.margin,
            equivalence_p=stats.equivalence_p(difference, self.margin) if self.margin else None,
            detectable=detectable,
            verdict="unclear",
            sentence="",
            ungraded=None if ungraded is None else self._num_ungraded(before, after),
        )  # fmt: skip
        summary = replace(summary, verdict=self._verdict(summary))
        is_one = self.samples.have_one_grader(before, after)
        return replace(summary, sentence=pair_sentence(summary) if is_one else OTHER_GRADER.format(
            before=before, after=after))  # fmt: skip

    def _for_all(self, difference: Array, correction: _Correction) -> Estimate:
        """The mean difference, its interval corrected for all comparisons."""
        alone = self.mean_difference(difference)
        return _widened(alone, difference, correction.multiple) if correction.num > 1 else alone

    def _graders(self, before: str, after: str) -> dict[str, Estimate]:
        """The mean difference in each grader, when there are several."""
        first, last = (self.cells.labels.index(label) for label in (before, after))
        return {
            name: stats.difference_interval(
                means[:, last] - means[:, first], level=self.level, **self.limits[name]
            )
            for name, means in self.graders.items()
            if len(self.graders) > 1
        }

    def _num_ungraded(self, before: str, after: str) -> tuple[int, int]:
        columns = [self.cells.labels.index(before), self.cells.labels.index(after)]
        asked = (self.counts[:, columns] > 0).all(axis=1)
        old, new = self.ungraded[asked][:, columns].sum(axis=0)
        return int(old), int(new)

    def _verdict(self, pair: PairSummary) -> Verdict:
        # testing many pairs for sameness needs its own correction: Bonferroni, for it is rare
        alpha, shown = (1 - self.level) / pair.num_comparisons, pair.difference
        if pair.margin is not None and shown.low is not None and shown.high is not None:
            is_inside = -pair.margin <= shown.low and shown.high <= pair.margin
            if is_inside and pair.equivalence_p is not None and pair.equivalence_p <= alpha:
                return "same"
        return stats.direction(shown, pair.p, 1 - self.level)


def _widened(alone: Estimate, difference: Array, multiple: float) -> Estimate:
    import numpy as np

    if alone.value is None or alone.low is None or alone.high is None or not np.isfinite(multiple):
        return replace(alone, low=None, high=None)
    known = difference[np.isfinite(difference)]
    if len(known) < 2:
        return alone
    half = multiple * stats.standard_error(known)
    return replace(
        alone, low=min(alone.low, alone.value - half), high=max(alone.high, alone.value + half)
    )


def _within_rows(cells: Cells, rewards: Array, means: Array) -> list[float | None]:
    """Per run, the pooled standard deviation of samples around their row's mean."""
    import numpy as np

    known = np.isfinite(rewards)
    off = np.where(known, rewards - means[cells.row, cells.run], 0.0)
    counts = cells.count(known)
    free = np.maximum(counts - 1, 0).sum(axis=0)
    squares = cells.count(off**2).sum(axis=0)
    return [float(np.sqrt(s / f)) if f else None for s, f in zip(squares, free, strict=True)]
