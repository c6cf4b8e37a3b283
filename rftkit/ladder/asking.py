"""Ask one model with one prompt, grade the answers, and count what that costs.

The same settings hold for every prompt and every model of a comparison. Not here: which prompts are
tried (`search`), and comparisons (`rftkit.evals`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rftkit import evals
from rftkit.client import judge_call
from rftkit.evals.samples import Samples
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
    """Of `chat.completions.create`: temperature, max_completion_tokens."""
    cost: Cost = field(default_factory=Cost)

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
        """The graded answers of a model to rows; `options` replace those of the task."""
        start = time.perf_counter()
        asked = [row for row in rows for _ in range(samples)]
        answers = evals.ask(
            self.client,
            model,
            asked,
            response_format=self.response_format,
            prompt=prompt,
            **{**self.options, **options},
        )
        found = evals.graded_run(
            asked,
            answers,
            self.grader,
            name=name,
            model=model,
            response_format=self.response_format,
            prompt=prompt,
            grading={"complete": judge_call()},
        )
        self.cost.tokens += sum((each.prompt_tokens or 0) + (each.tokens or 0) for each in answers)
        self.cost.seconds += time.perf_counter() - start
        return found
