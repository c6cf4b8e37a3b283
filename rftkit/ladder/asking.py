"""Ask one model with one prompt, grade the answers, and count what that costs.

The same settings hold for every prompt and every model of a comparison. Answers and grades that are
kept in a file are not asked for again. Not here: which prompts are tried (`search`), and
comparisons (`rftkit.evals`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rftkit import evals
from rftkit.client import judge_call
from rftkit.errors import InputError
from rftkit.evals import Answer
from rftkit.evals.samples import Samples
from rftkit.graders import Sample
from rftkit.ladder.kept import Kept
from rftkit.prompts import Prompt
from rftkit.rows import Row

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Cost", "Task"]


@dataclass(slots=True)
class Cost:
    """What was spent so far."""

    seconds: float = 0.0
    """Wall time."""
    tokens: int = 0
    """Tokens read and written by the models, as the service counted them."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task for models: its grader, and the settings of every request."""

    client: OpenAI
    grader: Mapping[str, Any]
    """The spec, as on the wire."""
    response_format: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `chat.completions.create`: temperature, max_completion_tokens."""
    cost: Cost = field(default_factory=Cost)
    kept: Kept | None = None
    """The file that keeps answers and grades as they arrive; None keeps none."""

    def run(
        self,
        model: str,
        rows: Sequence[Row],
        *,
        name: str,
        prompt: Prompt | None = None,
        samples: int = 1,
        **options: Any,
    ) -> Samples:
        """The graded answers of a model to rows; `options` replace those of the task.

        Raises:
            InputError: Not one answer could be graded.
        """
        start = time.perf_counter()
        asked = [row for row in rows for _ in range(samples)]
        answers = self._answers(model, asked, prompt, {**self.options, **options})
        found = evals.graded_run(
            asked,
            answers,
            self.grader,
            name=name,
            model=model,
            response_format=self.response_format,
            prompt=prompt,
            grading={
                "complete": judge_call(),
                **({"journal": self.kept.path} if self.kept else {}),
            },
        )
        self.cost.tokens += sum((each.prompt_tokens or 0) + (each.tokens or 0) for each in answers)
        self.cost.seconds += time.perf_counter() - start
        if (found.frame["outcome"] == "failed").all():
            reasons = found.frame["error"].dropna()
            why = f": {reasons.iloc[0]}" if len(reasons) else ""
            raise InputError(f"no answer of {model} could be graded{why}")
        return found

    def _answers(
        self, model: str, rows: Sequence[Row], prompt: Prompt | None, options: Mapping[str, Any]
    ) -> list[Answer]:
        """An answer to each row; stored answers are not requested again."""
        settings: dict[str, Any] = {
            "response_format": self.response_format,
            "prompt": prompt,
            **options,
        }
        if self.kept is None:
            return evals.ask(self.client, model, rows, **settings)
        keys = [self.kept.key(self._question(model, row, prompt, options)) for row in rows]
        known = {at: found for at, key in enumerate(keys) if (found := self.kept.find(key))}
        todo = [at for at in range(len(rows)) if at not in known]
        keep = _keeper(self.kept, [keys[at] for at in todo])
        fresh = evals.ask(self.client, model, [rows[at] for at in todo], on_answer=keep, **settings)
        self.cost.seconds += sum(each["seconds"] for each in known.values())
        answers = {at: _answer_of(each) for at, each in known.items()}
        answers |= dict(zip(todo, fresh, strict=True))
        return [answers[at] for at in range(len(rows))]

    def _question(
        self, model: str, row: Row, prompt: Prompt | None, options: Mapping[str, Any]
    ) -> Any:
        """Everything that an answer depends on."""
        messages = row.messages if prompt is None else prompt.before(row.messages)
        return [model, messages, row.tools, self.response_format, options]


def _keeper(kept: Kept, keys: Sequence[str]) -> Callable[[int, Answer], None]:
    """Keeps answers as they come, each with the seconds since the one before it."""
    since = time.perf_counter()

    def keep(at: int, answer: Answer) -> None:
        nonlocal since
        now = time.perf_counter()
        if answer.error is None:
            kept.add(keys[at], {"seconds": now - since, **asdict(answer)})
        since = now

    return keep


def _answer_of(kept: Mapping[str, Any]) -> Answer:
    value = {name: each for name, each in kept.items() if name not in ("seconds", "sample")}
    return Answer(sample=Sample(**kept["sample"]), **value)
