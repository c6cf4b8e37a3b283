"""The files that the job of a rung trains on, made from the RFT rows and uploaded.

Supervised rows hold the reference answers. The pairs of dpo are the best and the worst of the
graded answers that the starting model gives to training rows. Not here: the jobs (`climb`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rftkit import datasets
from rftkit.datasets.io import Complete
from rftkit.errors import InputError
from rftkit.jobs import Method
from rftkit.ladder.asking import Cost, Task
from rftkit.ladder.rungs import Plan
from rftkit.ladder.sources import rows_of
from rftkit.rows import Row

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Files", "TrainingFiles"]

LEAST_PAIRS = 10
"""With fewer pairs the rung is refused, because services would refuse them."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one job."""

    train: str
    """File id."""
    valid: str | None
    """File id; None for a job without validation rows of its form."""
    notes: tuple[str, ...] = ()
    """Sentences about what was left out."""
    cost: Cost | None = None
    """The cost of the answers that were sampled for it; None if none were."""


class TrainingFiles:
    """Makes and uploads the files of a ladder's jobs; a file is uploaded once."""

    def __init__(self, client: OpenAI, data: Complete, plan: Plan, task: Task) -> None:
        self.client, self.data, self.plan, self.task = client, data, plan, task
        self._uploaded: dict[str, str] = {}

    def of(self, method: Method, model: str) -> Files:
        """The files for a method, for a job that starts from a model.

        Raises:
            InputError: The rows have no answers, or the model's answers give too few pairs.
        """
        if method == "supervised":
            return self._supervised()
        if method == "dpo":
            return self._preference(model)
        return Files(self.upload(self.data.train), self.upload(self.data.valid))

    def upload(self, path: Path) -> str:
        """The id of a file, which is uploaded once."""
        name = str(path)
        if name not in self._uploaded:
            self._uploaded[name] = datasets.upload(self.client, path).id
        return self._uploaded[name]

    def _supervised(self) -> Files:
        ids, notes = list[str](), list[str]()
        with TemporaryDirectory() as folder:
            for path in (self.data.train, self.data.valid):
                target = Path(folder) / f"{path.name.split('.')[0]}-supervised.jsonl"
                made = datasets.convert(
                    path,
                    target,
                    to="supervised",
                    grader=self.data.grader,
                    response_format=self.data.response_format,
                )
                if not made.num_rows:
                    raise InputError(f"no row of {path.name} has a reference answer to learn from")
                if made.num_refused:
                    left = f"{made.num_refused:,} rows of {path.name}"
                    notes.append(f"{left} have no reference answer and are left out.")
                ids.append(self.upload(target))
        return Files(ids[0], ids[1], tuple(notes))

    def _preference(self, model: str) -> Files:
        rows = _spread(rows_of(self.data.train), self.plan.pair_rows)
        task = replace(self.task, options={**self.task.options, "temperature": 1.0}, cost=Cost())
        sampled = task.run(model, rows, name="pairs", samples=self.plan.pair_samples)
        with TemporaryDirectory() as folder:
            target = Path(folder) / "train-pairs.jsonl"
            made = datasets.preferences(
                datasets.groups_of_samples(sampled), target, source="the model's graded answers"
            )
            if made.num_rows < LEAST_PAIRS:
                raise InputError(
                    f"the answers give {made.num_rows:,} pairs, and dpo needs {LEAST_PAIRS}: "
                    f"{made.num_flat:,} of {made.num_groups:,} groups have equal rewards"
                )
            note = (
                f"{made.num_rows:,} pairs of {made.num_groups:,} groups of answers; "
                f"{made.num_flat:,} groups were flat."
            )
            return Files(self.upload(target), None, (note,), task.cost)


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    return list(rows[:: max(1, -(-len(rows) // count))])
