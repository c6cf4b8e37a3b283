"""What one job needs while it trains. Plain values; the verbs are in `loop` and the methods."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from rftkit.diagnosis import Story
from rftkit.graders import AnswerField, CompiledGrader, answer_fields, reference_answer
from rftkit.lineage import origin_of
from rftkit.rows import Row
from rftkit.server.engine.base import Engine
from rftkit.server.engine.written_calls import CallForm
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training.accounts import JudgeAccount
from rftkit.server.training.advantages import Weighing, weighing
from rftkit.server.training.clock import Clock
from rftkit.server.training.encoding import Encoded
from rftkit.server.training.environment import trace_id
from rftkit.server.training.history import History
from rftkit.server.training.journal import Journal
from rftkit.server.training.offline_plan import OfflinePlan
from rftkit.server.training.plan import CommonPlan, Plan
from rftkit.server.training.rollout import schema_of
from rftkit.tools import Tools

__all__ = ["AnyRun", "Check", "OfflineRun", "RftRun", "Run", "Stopped", "Watch", "unwatched"]

Watch = Callable[[str], contextlib.AbstractContextManager[None]]
"""Wraps work that may hang, which it names; after a time limit the process is replaced."""
P = TypeVar("P", bound=CommonPlan, covariant=True)


def unwatched(what: str) -> contextlib.AbstractContextManager[None]:
    """No time limit."""
    return contextlib.nullcontext()


class Stopped(Exception):
    """The job was paused or cancelled; its status says which."""


@dataclass(frozen=True, slots=True)
class Check:
    """One category of the final checks."""

    category: str
    grader: dict[str, Any]
    pass_threshold: float
    """The least mean reward that passes."""
    rows: list[Row] | None = None
    """The rows to answer; None: the validation rows."""


@dataclass
class Run(Generic[P]):
    """Everything one job needs while it trains."""

    job: Job
    plan: P
    store: Store
    engine: Engine
    journal: Journal
    rows: list[Row]
    """Training prompts."""
    valid_rows: list[Row]
    """Validation prompts, which are answered and graded; empty when the job has none."""
    model_base: str
    """The base model's name, for the names of checkpoints."""
    compiled_grader: CompiledGrader | None = None
    """The grader of the answers; None if the job has none."""
    held_out: CompiledGrader | None = None
    """A second grader, whose grades are watched and never learnt from; None: there is none."""
    examples: list[Encoded] = field(default_factory=list)
    """The training rows of a method that learns from their answers."""
    valid_examples: list[Encoded] = field(default_factory=list)
    """The same for the validation file."""
    tools: Tools | None = None
    """The tools that answer the model's calls; None without tools."""
    start_adapter: Path | None = None
    """Adapter the policy starts from, when the job continues a fine-tuned model."""
    on_tick: Callable[[], None] = lambda: None
    """Called between micro-steps: serves chats, notices a cancel."""
    watch: Watch = unwatched
    """Wraps what a chat template does."""
    idle: Callable[[], None] = lambda: None
    """Called while only graders work: chats need not share with training then."""
    checks: list[Check] = field(default_factory=list)
    """The operator's checks of a final model."""
    compile: Callable[[dict[str, Any]], CompiledGrader] | None = None
    """Makes the graders of `checks`."""
    judges: JudgeAccount | None = None
    """The tokens that the judges of `grader` and `compile` have used."""
    clock: Clock = field(default_factory=Clock)
    """Seconds of the step under way."""
    failures: list[tuple[int, int]] = field(default_factory=list)
    """(failed, all) grades of the last steps."""
    unscorable: list[tuple[int, int]] = field(default_factory=list)
    """(unscorable, all) answers of the last training steps, as long as no weight changes."""
    references: dict[int, tuple[float, float]] = field(default_factory=dict)
    """For dpo: line of a training row → log-probs of its two answers at the start of the job."""
    saved_at: float = field(default_factory=time.monotonic)
    """When the state was saved last."""
    trained_tokens: int = 0
    seconds_of_steps: list[float] = field(default_factory=list)

    @property
    def grader(self) -> CompiledGrader:
        """The grader of the answers; only for a job that has one."""
        assert self.compiled_grader is not None, "the job has no grader"
        return self.compiled_grader

    @property
    def is_graded(self) -> bool:
        """Whether answers to the validation rows are graded: then there is a step 0 too."""
        return self.compiled_grader is not None and bool(self.valid_rows)

    @property
    def first_step(self) -> int:
        """The step of another job that this one continues from; 0 if it is not a branch."""
        return int(getattr(self.plan, "branch_step", 0))

    @cached_property
    def weighing(self) -> Weighing:
        """The sub-graders and their weights in the total."""
        return weighing(self.grader.spec)

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The job's response format."""
        return (self.job.grading or {}).get("response_format")

    @property
    def judge_tokens(self) -> dict[str, dict[str, int]]:
        """The tokens that judges have read and written so far, by model."""
        return self.judges.totals if self.judges else {}

    def trace_id(self, kind: str, step: int, row: Row, index: int) -> str | None:
        """The trace id by which the tools and the grader of a rollout recognise it; None without
        tools.
        """
        if self.tools is None:
            return None
        return trace_id(self.job.id, kind, step, row.line, index)

    def encode(self, row: Row) -> list[int]:
        """The token ids of a row's prompt."""
        with self.watch(f"the chat template of {self.model_base}, given line {row.line},"):
            return self.engine.encode(row.messages, row.tools, self.plan.thinking)

    def schema(self, row: Row) -> str | None:
        """The rules of decoding for the answer to a row; see `rollout.schema_of`."""
        if self.response_format is None or not row.tools:
            return schema_of(self.response_format)
        most = 1 if row.item.get("parallel_tool_calls") is False else None
        return schema_of(self.response_format, row.tools, self._call_form, most_calls=most)

    @cached_property
    def _call_form(self) -> CallForm:
        with self.watch(f"the chat template of {self.model_base}, given tool calls,"):
            return self.engine.call_form

    @cached_property
    def answer_fields(self) -> list[AnswerField]:
        """The places of an answer whose values metric events count."""
        items = [row.item for row in self.rows]
        return answer_fields(self.grader.spec, self.response_format, items)

    @cached_property
    def right_answers(self) -> dict[int, str]:
        """Line of a training row -> its right answer, where grader or row say what that is."""
        spec, format_ = self.grader.spec, self.response_format
        known = ((row.line, reference_answer(row.item, format_, grader=spec)) for row in self.rows)
        return {line: answer for line, answer in known if answer is not None}

    @cached_property
    def history(self) -> History:
        """The metrics that the job has reported so far."""
        has_format = self.response_format is not None
        settings = {**self.plan.to_dict(), "response_format": has_format}
        return History(self.store, self.job.id, Story.under(settings))

    def model_name(self, step: int | None) -> str:
        """`ft:{base}:local:{suffix}:{id}`, with `:ckpt-step-{N}` unless it is the final model."""
        return self._name_of(self.job, step)

    def start_name(self) -> str:
        """The model that training starts from; of a branch the checkpoint that it continues."""
        origin = origin_of(self.job.metadata)
        if origin is None:
            return self.job.model
        return self._name_of(self.store.job(origin.job_id), origin.step)

    def _name_of(self, job: Job, step: int | None) -> str:
        base = Path(self.model_base).name
        name = f"ft:{base}:local:{job.suffix or ''}:{job.id.removeprefix('ftjob-')[:8]}"
        return name if step is None else f"{name}:ckpt-step-{step}"


AnyRun = Run[CommonPlan]
"""A job of any method."""
RftRun = Run[Plan]
OfflineRun = Run[OfflinePlan]
