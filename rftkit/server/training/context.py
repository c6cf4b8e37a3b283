"""What one job needs while it trains. Plain values; the verbs are in `rft` and its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rftkit.graders import AnswerField, CompiledGrader, answer_fields
from rftkit.rows import Row
from rftkit.server.engine.base import Engine
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training.advantages import Weighing, weighing
from rftkit.server.training.history import History
from rftkit.server.training.journal import Journal
from rftkit.server.training.plan import Plan

__all__ = ["Check", "Run", "Stopped"]


class Stopped(Exception):
    """The job was paused or cancelled; what was asked for is in its status."""


@dataclass(frozen=True, slots=True)
class Check:
    """One category of the final checks."""

    category: str
    grader: dict[str, Any]
    pass_threshold: float
    """Least mean reward that passes."""
    rows: list[Row] | None = None
    """What is asked; None: the validation rows."""


@dataclass
class Run:
    """Everything one job needs while it trains."""

    job: Job
    plan: Plan
    store: Store
    engine: Engine
    grader: CompiledGrader
    journal: Journal
    rows: list[Row]
    valid_rows: list[Row]
    model_base: str
    """The base model's name, for the names of checkpoints."""
    start_adapter: Path | None = None
    """Adapter the policy starts from, when the job continues a fine-tuned model."""
    on_tick: Callable[[], None] = lambda: None
    """Called between micro-steps: serves chats, notices a cancel."""
    idle: Callable[[], None] = lambda: None
    """Called while only graders work: chats need not share with training then."""
    checks: list[Check] = field(default_factory=list)
    """What the operator wants of a final model."""
    compile: Callable[[dict[str, Any]], CompiledGrader] | None = None
    """Makes the graders of `checks`."""
    weighing: Weighing = field(init=False)
    """The sub-graders and what each is worth in the total."""
    failures: list[tuple[int, int]] = field(default_factory=list)
    """(failed, all) grades of the last steps."""
    trained_tokens: int = 0
    seconds_of_steps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weighing = weighing(self.grader.spec)

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The job's response format."""
        value: dict[str, Any] | None = self.job.method["reinforcement"].get("response_format")
        return value

    @cached_property
    def answer_fields(self) -> list[AnswerField]:
        """The places of an answer whose values metric events count."""
        items = [row.item for row in self.rows]
        return answer_fields(self.grader.spec, self.response_format, items)

    @cached_property
    def history(self) -> History:
        """What the job has reported so far."""
        return History(self.store, self.job.id, self.plan.max_completion_tokens)

    def model_name(self, step: int | None) -> str:
        """`ft:{base}:local:{suffix}:{id}`, with `:ckpt-step-{N}` unless it is the final model."""
        base = Path(self.model_base).name
        name = f"ft:{base}:local:{self.job.suffix or ''}:{self.job.id.removeprefix('ftjob-')[:8]}"
        return name if step is None else f"{name}:ckpt-step-{step}"
