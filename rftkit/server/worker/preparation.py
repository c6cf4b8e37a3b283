"""What comes before the first step of a job: its rows, its plan, and the events about both. After a
kill all of this runs again, but an event is added only once. Not here: the training itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rftkit.errors import RowError
from rftkit.formats import CLOSE, OPEN, open_objects
from rftkit.rows import Row
from rftkit.server.engine.base import Engine
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training.context import Check, Watch
from rftkit.server.training.encoding import Encoded, encode_rows
from rftkit.server.training.environment import with_functions
from rftkit.server.training.eval_records import make_job_eval
from rftkit.server.training.journal import Journal
from rftkit.server.training.knobs import Knobs
from rftkit.server.training.memory_check import full_budget
from rftkit.server.training.offline_plan import OfflinePlan, make_offline_plan
from rftkit.server.training.plan import CommonPlan, EngineFacts
from rftkit.server.training.prompt_check import Encode, check_prompts
from rftkit.server.training.rft_plan import make_plan
from rftkit.server.training.rollout import schema_of
from rftkit.server.worker.job_files import FILES, GRADED_ROWS, answers_of, graded_rows, prompts_of
from rftkit.tools import Tools

__all__ = ["Preparation"]

COMPARED = 256
"""Prompts to choose from for the comparison of log-probs, in a job that samples none."""


class Preparation:
    """One job before its first step."""

    def __init__(
        self,
        store: Store,
        job: Job,
        engine: Engine,
        journal: Journal,
        add_event: Callable[..., None],
        *,
        base: str,
        checks: Sequence[Check],
        watch: Watch,
        on_tick: Callable[[], None],
        tools: Tools | None = None,
    ) -> None:
        """A job, its engine of the model `base`, and its folder.

        Args:
            store: with the files.
            job: not started yet.
            engine: with the base model.
            journal: the job's folder.
            add_event: takes a text and perhaps a level; the same text is an event once.
            base: name of the base model.
            checks: the operator's, whose rows are prompts too.
            watch: wraps what a chat template does.
            on_tick: called between rows; may raise.
            tools: of the job.
        """
        self._store, self._job, self._engine, self._journal = store, job, engine, journal
        self._add_event = add_event
        self._base, self._checks, self._watch, self._on_tick = base, checks, watch, on_tick
        self._prompts: list[list[int]] = []
        self.examples: list[Encoded] = []
        self.valid_examples: list[Encoded] = []
        self._is_offline = job.method_type != "reinforcement"
        if self._is_offline:
            self._answered = {param: answers_of(store, job, param) for param in FILES}
            self.rows = [row.as_row() for row in self._answered["training_file"]]
            self.valid_rows = graded_rows(store, job, self._answered["validation_file"])
        else:
            self.rows, self.valid_rows = (
                with_functions(prompts_of(store, job, param), tools) for param in FILES
            )

    def plan(self, known: CommonPlan | None, thinking: str | None, kind: str) -> CommonPlan:
        """The job's plan: the known one, or one made of its rows; they are encoded on the way.

        Raises:
            RowError: the model's chat template does not take a row, or it is too long.
            InputError: what the plan needs is not there.
        """
        is_new = known is None
        if self._is_offline:
            tag = Knobs(self._job.metadata or {}).think_tag("thinking", thinking)
            self._encode(known.thinking if known else tag)
        plan = known or self._made(thinking, kind)
        if is_new and plan.tuning == "full":
            room = full_budget(self._engine, self._journal.folder)
            plan = dataclasses.replace(plan, memory_bytes=room)
        if is_new:
            plan = dataclasses.replace(plan, context_tokens=self._engine.context_tokens)
        self._render(plan, is_new)
        return plan

    def _made(self, thinking: str | None, kind: str) -> CommonPlan:
        engine = EngineFacts(
            kind=kind,
            thinking=thinking,
            memory_bytes=self._engine.memory_bytes,
            width=self._engine.width,
        )
        if self._is_offline:
            return make_offline_plan(self._job, len(self.examples), engine)
        return make_plan(self._job, len(self.rows), engine, self.rows)

    def _encode(self, tag: str | None) -> None:
        """The answers as tokens, of both files."""
        for param, into in zip(FILES, (self.examples, self.valid_examples), strict=True):
            rows = self._answered[param]
            if not rows:
                continue
            name = self._name(param)
            guard = partial(self._guard, name)
            try:
                into += encode_rows(self._engine, rows, tag, name, self._warn, guard)
            except RowError as error:
                raise RowError(error.message, param=param) from error

    def _render(self, plan: CommonPlan, is_new: bool) -> None:
        """Render every prompt with the model's chat template, and check that an answer has room.

        Raises:
            RowError: with the file's name and the line.
            Stopped: the job was cancelled meanwhile.
        """
        for name, param, rows in self._prompt_files():
            found, note = check_prompts(
                rows,
                self._encoder(name, plan),
                plan,
                self._engine.context_tokens,
                path=name,
                param=param,
                on_tick=self._on_tick,
            )
            if param == "training_file":
                self._prompts = found
            if note and is_new:
                self._warn(note)
        if self._is_offline:  # rows that are too long were cut
            encode = self._encoder(self._name("training_file"), plan)
            self._prompts = [encode(row) for row in self.rows[:COMPARED]]

    def _prompt_files(self) -> Iterator[tuple[str, str | None, list[Row]]]:
        """Name, parameter and rows of every file whose prompts are answered."""
        if not self._is_offline:
            yield self._name("training_file"), "training_file", self.rows
        if self._job.grading:
            is_named = GRADED_ROWS in (self._job.metadata or {})
            graded = GRADED_ROWS if is_named else "validation_file"
            param = f"metadata.{graded}" if is_named else graded
            yield self._name(graded), param, self.valid_rows
        for check in self._checks:
            yield f"checks.json, {check.category}", None, check.rows or []

    def _encoder(self, name: str, plan: CommonPlan) -> Encode:
        def encode(row: Row) -> list[int]:
            with self._guard(name, row.line):
                if plan.max_episode_steps is not None and row.tools:
                    self._engine.check_observed(row.messages, row.tools, plan.thinking)
                return self._engine.encode(row.messages, row.tools, plan.thinking)

        return encode

    def _guard(self, name: str, line: int) -> contextlib.AbstractContextManager[None]:
        """A time limit for what the chat template does to a row."""
        return self._watch(f"the chat template of {self._base}, given {name}:{line},")

    def start(self, plan: CommonPlan) -> Job:
        """Add the events of a job that starts; return the job, with every `auto` resolved that it
        shows.

        Raises:
            InputError: the log-probs of this engine differ from those of the model's own code.
        """
        job, engine = self._job, self._engine
        self._add_started_event(plan)
        if note := engine.compare(self._prompts):
            self._add_event(note)
        response_format = (job.grading or {}).get("response_format")
        if open_objects(response_format):
            self._add_event(f"The response format is open: {OPEN}; {CLOSE}")
        schema = schema_of(response_format)
        for note in engine.notes(schema, plan.reasoning, full=plan.tuning == "full"):
            self._add_event(note)
        if job.eval_id is None and job.grading is not None and not job.is_probe:
            job = self._store.update_job(job.id, eval_id=make_job_eval(self._store, job).id)
        if isinstance(plan, OfflinePlan):
            method = {**job.method, plan.method: {"hyperparameters": self._resolved(plan)}}
            job = self._store.update_job(job.id, method=method)
        return job

    def _resolved(self, plan: OfflinePlan) -> dict[str, Any]:
        """The hyperparameters as the service shows them once a job runs, without `auto`."""
        found = {
            "batch_size": plan.batch_size,
            "n_epochs": plan.n_epochs,
            "learning_rate_multiplier": plan.multiplier,
        }
        beta = {} if plan.beta is None else {"beta": plan.beta}
        return {**self._job.hyperparameters, **found, **beta}

    def _add_started_event(self, plan: CommonPlan) -> None:
        resolved = plan.shown(is_graded=self._job.grading is not None)
        ignored = resolved.pop("ignored")
        words = ", ".join(f"{name}={value}" for name, value in resolved.items())
        extra = "".join(f"; {name} has no effect: {why}" for name, why in ignored.items())
        if self._is_offline and (rest := len(self.examples) % plan.batch_size):
            extra += f"; the last batch of each epoch has {rest} rows"
        valid = len(self.valid_examples or self.valid_rows)
        self._store.add_event(
            self._job.id,
            f"Fine-tuning job started: {words}{extra}",
            data={
                "hyperparameters": resolved,
                "multipliers": plan.multipliers,
                "ignored": ignored,
                "response_format": bool((self._job.grading or {}).get("response_format")),
                "rows": {"train": len(self.examples or self.rows), "valid": valid},
                "engine": dict(self._engine.facts),
            },
            key="started",
        )

    def _name(self, param: str) -> str:
        file_id = getattr(self._job, param, None) or (self._job.metadata or {})[param]
        return self._store.file(file_id).filename

    def _warn(self, text: str) -> None:
        self._add_event(text, "warn")
