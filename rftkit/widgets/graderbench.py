"""The work behind GraderLab: answers to some rows, graded by a spec, line by line.

Answers come from the rows themselves, from one text, or fresh from a model; these are kept while
the model stays, so that an edit of the grader asks nobody again. Not here: anything that is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit import datasets
from rftkit.errors import InputError
from rftkit.graders import (
    Audit,
    CompiledGrader,
    Grade,
    Sample,
    audit,
    compile_grader,
    reference_answer,
)
from rftkit.graders.types import calls_out
from rftkit.rows import Row
from rftkit.views.rows import REFUSED
from rftkit.widgets.graderform import places
from rftkit.widgets.rowsource import RowSource, source_of
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Bench", "Line", "calls_out", "spread"]

"""Graders that cost something: they run when they are told to, not at every edit."""
AUDITED_ROWS = 40

Spec = dict[str, Any]


@dataclass(slots=True)
class Line:
    """One answer to one row, and its grade."""

    row: int
    """Number of the row, from 0."""
    item: dict[str, Any]
    sample: Sample | None
    """None when there is no answer to grade."""
    grade: Grade
    before: float | None = None
    """What the last other grader gave the same answer."""

    @property
    def answer(self) -> str | None:
        """The text of the answer."""
        return self.sample.output_text if self.sample else None

    def record(self) -> dict[str, Any]:
        """As a line of a table."""
        grade = self.grade
        details = [value for value in grade.errors.values() if isinstance(value, str) and value]
        return {
            "row": self.row,
            "answer": self.answer,
            **{f"reward/{key}": reward for key, reward in grade.sub_rewards.items()},
            "reward": grade.reward,
            "before": self.before,
            "outcome": grade.outcome,
            "details": details[-1].splitlines()[-1] if details else "",
            "seconds": grade.seconds,
        }


class Bench:
    """Rows, and whoever answers and grades them."""

    def __init__(
        self, source: Any, response_format: Mapping[str, Any] | None, client: OpenAI | None
    ) -> None:
        self.rows: RowSource = source_of(source)
        self.format = response_format
        self._client = client
        self._samples: dict[tuple[str, int], Sample] = {}
        self._compiled: tuple[Spec, CompiledGrader] | None = None
        self.rows.wait()

    def slots(self, numbers: Sequence[int]) -> list[str]:
        """What templates may name, learnt from some rows."""
        items = [item for item in self.rows.items(numbers) if REFUSED not in item]
        answers = [datasets.reference_answer(item, self.format) for item in items]
        return places(items, self.format, answers)

    def grade(
        self, spec: Spec, numbers: Sequence[int], samples: Sequence[Sample | None], task: Task
    ) -> list[Line]:
        """Grade one answer for each row."""
        items = self.rows.items(numbers)
        found = [(s, item) for s, item in zip(samples, items, strict=True) if s is not None]

        def progress(done: int, _: Grade) -> None:
            task.say(f"Graded {done + 1:,} of {len(found):,} rows …")

        graded = iter(self._compile(spec).grade_many(found, progress=progress))
        return [
            Line(number, item, sample, next(graded) if sample is not None else _UNANSWERED)
            for number, item, sample in zip(numbers, items, samples, strict=True)
        ]

    def references(self, spec: Spec | None, numbers: Sequence[int]) -> list[Sample | None]:
        """What the rows, or the grader, say is right."""
        said = [
            reference_answer(item, self.format, grader=spec) for item in self.rows.items(numbers)
        ]
        return [None if words is None else self.sample(words) for words in said]

    def sample(self, words: str) -> Sample:
        """An answer as a model would have given it."""
        return Sample.from_text(words, response_format=self.format)

    def ask(self, model: str, numbers: Sequence[int], task: Task) -> list[Sample | None]:
        """Fresh answers of a model, asked once for each row.

        Raises:
            InputError: no model is named, or it answers nothing.
        """
        from rftkit import evals

        if not model:
            raise InputError("choose a model to ask, or other answers")
        todo = [number for number in numbers if (model, number) not in self._samples]
        if todo:
            task.say(f"Asking {model} about {len(todo):,} rows …")
            rows = [Row(item, n + 1) for n, item in zip(todo, self.rows.items(todo), strict=True)]
            said = evals.ask(self.client(), model, rows, response_format=self.format, temperature=1)
            for number, answer in zip(todo, said, strict=True):
                if answer.sample is not None:
                    self._samples[model, number] = answer.sample
            if all(answer.sample is None for answer in said):
                raise InputError(f"{model} gave no answer: {said[0].error}")
        return [self._samples.get((model, number)) for number in numbers]

    def forget(self) -> None:
        """Forget the answers of models, so that they are asked again."""
        self._samples.clear()

    def audit(self, spec: Spec) -> Audit:
        """What cheap tricks earn, over rows of the whole dataset."""
        numbers = spread(len(self.rows), AUDITED_ROWS)
        items = [item for item in self.rows.items(numbers) if REFUSED not in item]
        return audit(spec, items, response_format=self.format, complete=_judge(), workers=1)

    def client(self) -> OpenAI:
        """Who is asked; the local platform unless another was given."""
        if self._client is None:
            from rftkit.client import connect

            self._client = connect()
        return self._client

    def close(self) -> None:
        """End the processes of python graders."""
        if self._compiled is not None:
            self._compiled[1].close(now=True)
            self._compiled = None

    def _compile(self, spec: Spec) -> CompiledGrader:
        """Kept until the spec changes, so that the processes of python graders are too."""
        if self._compiled is None or self._compiled[0] != spec:
            self.close()
            self._compiled = spec, compile_grader(spec, complete=_judge(), workers=1)
        return self._compiled[1]


def spread(size: int, count: int) -> list[int]:
    """Up to `count` numbers under `size`, evenly apart."""
    return list(range(0, size, max(1, size // count)))[:count]


_UNANSWERED = Grade(
    None, "failed", {}, {"no_answer": "the row has no reference answer, so nothing is graded"}
)


def _judge() -> Any:
    from rftkit.client import judge_call

    return judge_call()
