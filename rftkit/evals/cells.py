"""Samples as matrices, rows by runs: the mean over the repeats of each row in each run.

Not here: intervals and tests over the rows of such a matrix (`stats`, `multiple_comparisons`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.evals.samples import SCORE, Samples

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
else:
    Array = Any

__all__ = ["Cells", "make_cells", "scores"]


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Where each sample of a frame belongs: a row and a run."""

    keys: tuple[str, ...]
    """Row keys, by the row's number: the rows of every matrix."""
    labels: tuple[str, ...]
    """Run labels: the columns of every matrix."""
    row: Any
    """Row index of each sample, (samples,) int."""
    run: Any
    """Run index of each sample, (samples,) int."""

    def mean(self, values: Any) -> Array:
        """Mean of the known values of each row in each run; nan where there are none."""
        import numpy as np

        values = np.asarray(values, dtype=float)
        known = np.isfinite(values)
        count = self._sum(known.astype(float))
        total = self._sum(np.where(known, values, 0.0))
        empty = np.full(count.shape, np.nan)
        mean: Array = np.divide(total, count, out=empty, where=count > 0)
        return mean

    def count(self, chosen: Any = None) -> Array:
        """Number of samples of each row in each run; of the chosen ones, when given."""
        import numpy as np

        return self._sum(np.ones(len(self.row)) if chosen is None else np.asarray(chosen, float))

    def _sum(self, weights: Array) -> Array:
        import numpy as np

        shape = (len(self.keys), len(self.labels))
        place = self.row * shape[1] + self.run
        flat: Array = np.bincount(place, weights, minlength=shape[0] * shape[1]).astype(float)
        return flat.reshape(shape)


def make_cells(samples: Samples) -> Cells:
    """The cells of a frame."""
    import numpy as np
    import pandas as pd

    row, found = pd.factorize(samples.frame["row"])
    names = [str(key) for key in found]
    order = sorted(range(len(names)), key=lambda at: (samples.numbers.get(names[at], 0), names[at]))
    place = np.empty(len(names), dtype=int)
    place[order] = np.arange(len(names))
    columns = {label: index for index, label in enumerate(samples.labels)}
    run = samples.frame["run"].map(columns).to_numpy(dtype=int)
    keys = tuple(names[at] for at in order)
    return Cells(keys, tuple(samples.labels), place[row], run)


def scores(samples: Samples, grader: str) -> Array:
    """Scores of one grader, (samples,): nan where it failed.

    The local platform scores an unscorable answer with the grader's lowest reward; where a service
    gives it no score, it counts as 0. The means of a job's metric events follow the same rule.
    """
    import numpy as np

    given = samples.frame[SCORE + grader].to_numpy(dtype=float)
    unscorable = samples.frame["outcome"].to_numpy() == "unscorable"
    scored: Array = np.where(unscorable & ~np.isfinite(given), 0.0, given)
    return scored
