"""The work behind GraderLab: answers to some rows, graded by a spec.

Answers come from the rows themselves, from one text, or from a model. Sampled answers are cached,
so that an edit of the grader does not run the model again. This module shows nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
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
from rftkit.graders.misspelt import Misspelt, closed_fields, misspelt
from rftkit.graders.template import lone_path
from rftkit.graders.types import calls_out
from rftkit.rows import Row
from rftkit.views.rows import REFUSED
from rftkit.widgets.graderform import template_fields
from rftkit.widgets.rowsource import SAMPLED_ROWS, RowSource, source_of
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Bench", "Line", "calls_out", "evenly_spaced"]

AUDITED_ROWS = 40
POLL_SECONDS = 0.05
"""Seconds between two checks for new answers and for Stop."""
DRAFTED_ROWS = 500

Spec = dict[str, Any]


@dataclass(slots=True)
class Line:
    """One answer to one row, and its grade."""

    row: int
    """Number of the row, from 0."""
    item: dict[str, Any]
    sample: Sample | None
    """The sample; None if there is no answer to grade."""
    grade: Grade
    before: float | None = None
    """The reward that the previous grader gave to the same answer."""

    @property
    def answer(self) -> str | None:
        """The text of the answer."""
        return self.sample.output_text if self.sample else None

    def record(self) -> dict[str, Any]:
        """The line as a table row."""
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
    """Rows, their answers, and the compiled grader."""

    def __init__(
        self, source: Any, response_format: Mapping[str, Any] | None, client: OpenAI | None
    ) -> None:
        self.rows: RowSource = source_of(source)
        self.format: Mapping[str, Any] | None = response_format
        self._client = client
        self._samples: dict[tuple[str, int, int], Sample] = {}
        self._compiled: tuple[Spec, CompiledGrader] | None = None
        self.rows.wait()

    def template_fields(self, numbers: Sequence[int]) -> list[str]:
        """The fields that templates may name, found in some rows."""
        items = self.items(numbers)
        answers = [datasets.reference_answer(item, self.format) for item in items]
        return template_fields(items, self.format, answers)

    def draft(self, numbers: Sequence[int]) -> Spec:
        """A first grader, from some rows."""
        return datasets.draft_grader(self.items(numbers), self.format)

    def draft_format(self, spec: Spec) -> Spec | None:
        """A response format for what a grader reads, from rows of the whole dataset."""
        return datasets.draft_format(spec, self.items(evenly_spaced(len(self.rows), DRAFTED_ROWS)))

    def misspelt(self, spec: Spec, fields: Sequence[str]) -> list[Misspelt]:
        """Names in the templates that occur in no row and no answer.

        Args:
            spec: normalised.
            fields: from `template_fields`.
        """
        closed = closed_fields(self.format)
        seen = [name for name in map(_answer_field, fields) if name]
        return misspelt(
            spec,
            item_keys=[*self.rows.keys(), "messages", "tools"],
            answer_keys=seen if closed is None else closed,
            items_are_known=len(self.rows) <= SAMPLED_ROWS,
            answers_are_known=closed is not None,
        )

    def items(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Rows; of a table that has no rows yet, its records. A row that is refused is empty."""
        is_table = "messages" not in self.rows.keys()  # noqa: SIM118
        items = self.rows.items(numbers)
        return [
            {key: value for key, value in item.items() if is_table and key != REFUSED}
            if REFUSED in item
            else item
            for item in items
        ]

    def grade(
        self,
        spec: Spec,
        numbers: Sequence[int],
        samples: Sequence[Sample | None],
        task: Task,
        missing: str = "the row has no reference answer, so nothing is graded",
    ) -> list[Line]:
        """Grade one answer for each row; `missing` says why a row may have none."""
        unanswered = Grade(None, "failed", {}, {"no_answer": missing})
        items = self.items(numbers)
        found = [(s, item) for s, item in zip(samples, items, strict=True) if s is not None]

        def progress(done: int, _: Grade) -> None:
            task.report(f"Graded {done + 1:,} of {len(found):,} rows …")

        graded = iter(self._compile(spec).grade_many(found, progress=progress))
        return [
            Line(number, item, sample, next(graded) if sample is not None else unanswered)
            for number, item, sample in zip(numbers, items, samples, strict=True)
        ]

    def references(self, spec: Spec | None, numbers: Sequence[int]) -> list[Sample | None]:
        """The reference answers of the rows."""
        texts = [reference_answer(item, self.format, grader=spec) for item in self.items(numbers)]
        return [None if words is None else self.sample(words) for words in texts]

    def sample(self, words: str) -> Sample:
        """A text as if a model had answered it."""
        return Sample.from_text(words, response_format=self.format)

    def ask(
        self, model: str, numbers: Sequence[int], max_tokens: int, task: Task, stop: Event
    ) -> list[Sample | None]:
        """Answers of a model, sampled once for each row, as in training at temperature 1.

        When `stop` is set it returns those that are there; others that are under way are kept when
        they come.

        Raises:
            InputError: no model is named, or it returns no answer.
        """
        if not model:
            raise InputError("choose a model, or another source of answers")
        todo = [n for n in numbers if (model, max_tokens, n) not in self._samples]
        if todo:
            self._sample(model, todo, max_tokens, task, stop)
        return [self._samples.get((model, max_tokens, number)) for number in numbers]

    def _sample(
        self, model: str, todo: Sequence[int], max_tokens: int, task: Task, stop: Event
    ) -> None:
        from rftkit import evals

        answers: dict[int, evals.Answer] = {}
        rows = [Row(item, n + 1) for n, item in zip(todo, self.rows.items(todo), strict=True)]
        task.report(f"Running {model} on {len(todo):,} rows …")

        def keep(index: int, answer: evals.Answer) -> None:
            answers[index] = answer
            if answer.sample is not None:
                self._samples[model, max_tokens, todo[index]] = answer.sample
            task.report(f"{model} answered {len(answers):,} of {len(todo):,} rows …")

        pool = ThreadPoolExecutor(1)  # not a context, which would wait for requests under way
        work = pool.submit(
            evals.ask,
            self.client(),
            model,
            rows,
            response_format=self.format,
            on_answer=keep,
            stop=lambda: stop.is_set() or task.cancelled,
            temperature=1,
            max_completion_tokens=max_tokens,
        )
        pool.shutdown(wait=False)
        while not (work.done() or task.cancelled or stop.wait(POLL_SECONDS)):
            pass
        if not work.done():
            return
        failed = [answer.error for answer in work.result() if answer.sample is None]
        if len(failed) == len(todo) and not stop.is_set():
            raise InputError(f"{model} returned no answer: {failed[0]}")

    def discard_answers(self) -> None:
        """Discard the sampled answers, so that the model runs again."""
        self._samples.clear()

    def audit(self, spec: Spec) -> Audit:
        """What cheap tricks earn, over rows of the whole dataset."""
        numbers = evenly_spaced(len(self.rows), AUDITED_ROWS)
        items = [item for item in self.rows.items(numbers) if REFUSED not in item]
        return audit(spec, items, response_format=self.format, complete=_judge(), workers=1)

    def client(self) -> OpenAI:
        """The client for models; the local platform unless another was given."""
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
        """The compiled grader, kept until the spec changes, with its python grader processes."""
        if self._compiled is None or self._compiled[0] != spec:
            self.close()
            self._compiled = spec, compile_grader(spec, complete=_judge(), workers=1)
        return self._compiled[1]


def _answer_field(name: str) -> str:
    """`category` of `sample.output_json.category`; empty for anything else."""
    path = lone_path(f"{{{{{name}}}}}")
    steps = path.steps if path and path.namespace == "sample" else ()
    return str(steps[1]) if len(steps) == 2 else ""


def evenly_spaced(size: int, count: int) -> list[int]:
    """Up to `count` numbers below `size`, evenly spaced."""
    return list(range(0, size, max(1, size // count)))[:count]


def _judge() -> Any:
    from rftkit.client import judge_call

    return judge_call()
