"""Rows in, graded groups out, by way of the journal: nothing that it holds is made twice.

`graded` is the whole way: it samples, and `rollout.grade_all` calls the grader in another thread. A
completion is graded as soon as it has ended, while others are still being sampled. Each grade is
kept as it is given, with the tokens that it was given for, and so is each call that a job's tools
have answered; completions when all have ended; the step's record when all are graded. A kill
repeats at most the sampling call, and the grades and calls under way: a completion that is sampled
again the same has its grade, and its calls their answers. Not here: what a grade means (`rollout`),
how tools answer (`environment`), and files (`journal`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from rftkit import settings
from rftkit.errors import PlatformError
from rftkit.graders import CompiledGrader, Grade, types
from rftkit.rows import Row
from rftkit.server.engine.values import Completion, SampleRequest
from rftkit.server.training import rollout
from rftkit.server.training.comparing import Anchor, Comparison, compare_all
from rftkit.server.training.context import AnyRun, Stopped
from rftkit.server.training.environment import ToolEnvironment, trace_id
from rftkit.server.training.journal import Kept
from rftkit.server.training.rollout import FinishedCompletion, Group, Place, Rollout
from rftkit.tools import Tools

__all__ = [
    "CHECKS",
    "CHECKS_KIND",
    "VALIDATION",
    "SamplingPlan",
    "UngradedBatch",
    "graded",
    "recorded",
    "reopen",
    "sampled",
    "ungraded_batch",
    "while_idle",
    "write_record",
]

VALIDATION = 2**31
"""Replaces the step in the seed of a validation answer, so that every validation draws the same."""
CHECKS = 2**31 + 1
"""The same for answers to final checks."""
CHECKS_KIND = "checks"
"""The kind of a final check begins with this; its answers are in no journal."""
WAIT_SECONDS = 0.002
"""Seconds between polls for chats, while graders work and nothing is sampled."""

T = TypeVar("T")

OnCompletion = Callable[[int, int, Completion], None]
"""Gets (row, completion index, completion), as `Engine.sample` calls it."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What to sample from the policy."""

    rows: Sequence[Row]
    draw: int
    """The step, VALIDATION or CHECKS: with the same value a row gets the same answer again."""
    num: int
    """Completions of each row."""
    temperature: float


@dataclass(frozen=True, slots=True)
class UngradedBatch:
    """Completions that are not graded yet."""

    rows: Sequence[Row]
    prompts: list[list[int]]
    """Token ids, one list a row."""
    completions: list[list[Completion]]
    """The completions of each row."""
    seconds: float
    """How long sampling took."""

    @property
    def num(self) -> int:
        """Completions of each row."""
        return len(self.completions[0])


def graded(
    run: AnyRun,
    kind: str,
    step: int,
    asked: SamplingPlan | UngradedBatch,
    meanwhile: Callable[[], None] = lambda: None,
    *,
    grader: CompiledGrader | None = None,
    known: Mapping[Place, Kept] | None = None,
    is_traced: bool = True,
) -> tuple[list[Group], float]:
    """The graded completions of each row, and the seconds they took.

    Drafts and grades that the journal has are not made again. Other threads grade. This one owns
    the models: it samples, then serves chats, and judges that ask this engine. When it is stopped
    no further grade is begun, and those under way are abandoned.

    Args:
        run: the job.
        kind: of the drafts and grades in the journal.
        step: of the drafts and grades.
        asked: what to sample, or completions that exist already.
        meanwhile: called once, when all completions have ended and graders may still work.
        grader: another one than the job's.
        known: grades that need not be given again, besides those in the journal.
        is_traced: whether the grader gets the trace id that the tools were given.
    """
    grader = grader or run.grader
    anchor = anchors(run, step) if kind == "valid" and grader.compares_group else None
    waiting = _Waiting(run, kind, step, asked.rows, known or {}, is_traced)
    grades: dict[Place, Grade] = {}

    def grade() -> float:
        """Grade completions as they end, until there are no more; return when that was."""
        if grader.compares_group:
            how = Comparison(asked.num, anchor, waiting.known_grade)
            made = compare_all(grader, waiting, run.response_format, waiting.keep, how)
        else:
            ungraded = waiting.ungraded(grader, grades)
            made = rollout.grade_all(grader, ungraded, run.response_format, waiting.keep)
        grades.update(made)
        return time.perf_counter()

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(grade)
        try:
            report = None if _asks_this_engine(run, grader) else waiting.add
            draft = asked
            if isinstance(draft, SamplingPlan):
                draft = ungraded_batch(run, kind, step, draft, report)
            waiting.end(draft)
            since = time.perf_counter()
            meanwhile()
            while not work.done():
                run.idle()
                time.sleep(WAIT_SECONDS)
        except BaseException:
            waiting.stop()
            grader.close(now=True)  # a judge or an endpoint may hang
            while not work.done():
                with contextlib.suppress(Exception):  # the first error is the one to report
                    run.idle()
                time.sleep(WAIT_SECONDS)
            raise
    seconds = draft.seconds + work.result() - since
    return [
        Group(row, prompt, [Rollout(c, grades[i, index]) for index, c in enumerate(completions)])
        for i, (row, prompt, completions) in enumerate(
            zip(draft.rows, draft.prompts, draft.completions, strict=True)
        )
    ], seconds


def recorded(run: AnyRun, kind: str, step: int) -> tuple[list[Group], float] | None:
    """The graded groups of a finished record, and the seconds they took; None without one."""
    record = run.journal.record(kind, step)
    if record is None:
        return None
    rows = {row.line: row for row in (run.rows if kind == "steps" else run.valid_rows)}
    return [rollout.group_from_dict(each, rows) for each in record["groups"]], record["seconds"]


def write_record(
    run: AnyRun, kind: str, step: int, groups: Sequence[Group], seconds: float
) -> None:
    """Keep what `recorded` returns; the drafts and grades that it was made from are dropped."""
    data = [rollout.group_to_dict(group) for group in groups]
    run.journal.write_record(kind, step, {"groups": data, "seconds": seconds})


def reopen(run: AnyRun, kind: str, step: int) -> None:
    """Turn the record of a step back into a draft when some of its grades failed, so that only
    those are missing. Its completions stay, and so do the grades that were given; a kill in between
    leaves the record. Additions to a step's batch depend on all of its grades, so they are made
    again: with the same completions, whose grades are kept too.
    """
    record = run.journal.record(kind, step)
    if record is None:
        return
    if has_failed_episodes(record):
        _make_again(run, kind, step, record)
        return
    added = record["groups"][run.plan.batch_size :] if kind == "steps" else []
    record["groups"] = record["groups"][: len(record["groups"]) - len(added)]
    groups = [each["rollouts"] for each in record["groups"]]
    given = {
        (i, index): (each["completion"]["tokens"], each["grade"])
        for i, rollouts in enumerate(groups)
        for index, each in enumerate(rollouts)
        if each["grade"]["outcome"] != "failed"
    }
    failed = any(each["grade"]["outcome"] == "failed" for g in added for each in g["rollouts"])
    if failed or len(given) < sum(map(len, groups)):
        for i, group in enumerate(added):
            for index, each in enumerate(group["rollouts"]):
                if each["grade"]["outcome"] != "failed":
                    kept = (each["completion"]["tokens"], each["grade"])
                    run.journal.add_grade("refill", step, (i, index), kept)
        draft = {
            "prompts": [each["prompt_ids"] for each in record["groups"]],
            "completions": [[each["completion"] for each in rollouts] for rollouts in groups],
            "seconds": record["seconds"],
        }
        run.journal.reopen(kind, step, draft, given)


def has_failed_episodes(record: Mapping[str, Any]) -> bool:
    """Whether tools broke off an episode of a record."""
    each = [r["completion"] for group in record["groups"] for r in group["rollouts"]]
    return any(completion.get("failure") for completion in each)


def _make_again(run: AnyRun, kind: str, step: int, record: Mapping[str, Any]) -> None:
    """Forget a record in which tools broke off episodes, but neither grades nor answered calls.

    The same policy samples the same turns again, and only calls that failed are made.
    """
    journal = run.journal
    groups = record["groups"][: run.plan.batch_size] if kind == "steps" else record["groups"]
    kept = journal.calls(kind, step)
    for i, group in enumerate(groups):
        for index, each in enumerate(group["rollouts"]):
            for turn, answered in enumerate(each["completion"].get("turns", ())):
                for number, call in enumerate(answered["calls"]):
                    place = (i, index, turn, number)
                    if call["kind"] != "failed" and place not in kept:
                        journal.add_call(kind, step, place, call)
            if each["grade"]["outcome"] != "failed":
                grade = (each["completion"]["tokens"], each["grade"])
                journal.add_grade(kind, step, (i, index), grade)
    journal.drop_record(kind, step)


def anchors(run: AnyRun, step: int) -> Anchor:
    """The answers of the job's first validation (step 0, or the step that a branch continues from),
    with which a relative grader compares those of the others; at first each answer is its own.

    Raises:
        PlatformError: the journal has lost them.
    """
    first = run.first_step
    if step == first:
        return lambda each: each.completion
    record = run.journal.record("valid", first)
    if record is None:
        raise PlatformError(
            f"the relative grader compares the answers of step {step} with those of step {first}, "
            f"which are lost: {run.journal.folder / 'valid'}. Create it again: rftkit job rerun"
        )
    by_line = {each["line"]: each["rollouts"] for each in record["groups"]}
    return lambda each: Completion.from_dict(by_line[each.row.line][each.place[1]]["completion"])


def ungraded_batch(
    run: AnyRun, kind: str, step: int, plan: SamplingPlan, on_completion: OnCompletion | None = None
) -> UngradedBatch:
    """The completions of a step, from the journal or sampled now; each is reported as it ends."""
    if kind.startswith(CHECKS_KIND):
        return sampled(run, kind, step, plan, on_completion)
    known = run.journal.draft(kind, step)
    if known is None:
        draft = sampled(run, kind, step, plan, on_completion)
        said = [[each.to_dict() for each in group] for group in draft.completions]
        kept = {"prompts": draft.prompts, "completions": said, "seconds": draft.seconds}
        run.journal.write_draft(kind, step, kept)
        return draft
    completions = [[Completion.from_dict(each) for each in group] for group in known["completions"]]
    return UngradedBatch(plan.rows, known["prompts"], completions, known["seconds"])


def sampled(
    run: AnyRun, kind: str, step: int, plan: SamplingPlan, on_completion: OnCompletion | None
) -> UngradedBatch:
    """Completions under the policy, drawn now; in a job with tools these answer its calls."""
    started = time.perf_counter()
    prompts = [run.encode(row) for row in plan.rows]
    requests = [
        SampleRequest(
            prompt_ids=prompt,
            seeds=[(run.plan.seed, plan.draw, row.line, index) for index in range(plan.num)],
            max_tokens=run.plan.most_tokens(len(prompt)),
            temperature=plan.temperature,
            schema=run.schema(row),
            thinking=run.plan.reasoning_after(len(prompt)),
            room=run.plan.room_after(len(prompt)),
        )
        for row, prompt in zip(plan.rows, prompts, strict=True)
    ]
    environment = None if run.tools is None else _environment(run, run.tools, kind, step, plan)
    if environment is None:
        completions = run.engine.sample(requests, on_tick=run.on_tick, on_completion=on_completion)
    else:
        completions = run.engine.sample(
            requests, on_tick=run.on_tick, on_completion=on_completion, environment=environment
        )
        run.clock.waiting += environment.idle_seconds
    return UngradedBatch(plan.rows, prompts, completions, time.perf_counter() - started)


def _environment(
    run: AnyRun, tools: Tools, kind: str, step: int, plan: SamplingPlan
) -> ToolEnvironment:
    is_kept = not kind.startswith(CHECKS_KIND)

    def render(row: Row, messages: list[Any], replies: Any) -> list[int]:
        with run.watch(f"the chat template of {run.model_base}, given line {row.line},"):
            return run.engine.observed(
                [*row.messages, *messages], replies, row.tools, run.plan.thinking
            )

    return ToolEnvironment(
        tools,
        plan.rows,
        run.plan.max_episode_steps or 1,
        lambda i, index: trace_id(run.job.id, kind, step, plan.rows[i].line, index),
        render,
        run.journal.calls(kind, step) if is_kept else {},
        functools.partial(run.journal.add_call, kind, step) if is_kept else lambda *_: None,
    )


def while_idle(run: AnyRun, grader: CompiledGrader, work: Callable[[], T]) -> T:
    """The result of `work`, which only grades. It runs in another thread, while this one serves
    chats.

    When the job is stopped, the grades under way are abandoned.
    """
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(work)
        try:
            while not task.done():
                run.idle()
                time.sleep(WAIT_SECONDS)
        except BaseException:
            grader.close(now=True)
            raise
        return task.result()


class _Waiting:
    """The completions of a step that wait for a grade: one thread adds them, another grades them.

    Iterating takes each as it ends, until the last one.
    """

    def __init__(
        self,
        run: AnyRun,
        kind: str,
        step: int,
        rows: Sequence[Row],
        known: Mapping[Place, Kept],
        is_traced: bool,
    ) -> None:
        self._run, self._kind, self._step, self._rows = run, kind, step, rows
        self._is_kept, self._is_traced = not kind.startswith(CHECKS_KIND), is_traced
        self._known = {**(run.journal.grades(kind, step) if self._is_kept else {}), **known}
        self._ended: SimpleQueue[FinishedCompletion | None] = SimpleQueue()
        self._added: set[Place] = set()
        self._is_stopped = threading.Event()

    def add(self, i: int, index: int, completion: Completion) -> None:
        """A completion has ended."""
        self._added.add((i, index))
        row, trace = self._rows[i], None
        if self._is_traced:
            trace = self._run.trace_id(self._kind, self._step, row, index)
        model = self._run.job.model
        self._ended.put(FinishedCompletion((i, index), row, completion, model, trace))

    def end(self, draft: UngradedBatch) -> None:
        """Take the final list of completions; some may not have been added."""
        for i, group in enumerate(draft.completions):
            for index, completion in enumerate(group):
                if (i, index) not in self._added:
                    self.add(i, index, completion)
        self._ended.put(None)

    def stop(self) -> None:
        """Let no further grade begin."""
        self._is_stopped.set()
        self._ended.put(None)

    def __iter__(self) -> Iterator[FinishedCompletion]:
        for each in iter(self._ended.get, None):
            if self._is_stopped.is_set():
                raise Stopped
            yield each

    def ungraded(
        self, grader: CompiledGrader, grades: dict[Place, Grade]
    ) -> Iterator[FinishedCompletion]:
        """Those that a grader has to grade; the grades of the others go to `grades`."""
        for each in self:
            if each.completion.failure is not None:
                grades[each.place] = rollout.failed_episode(each.completion, grader)
            elif (grade := self.known_grade(each)) is not None:
                grades[each.place] = grade
            else:
                yield each

    def known_grade(self, each: FinishedCompletion) -> Grade | None:
        """The grade that was given to the same tokens before a kill."""
        tokens, grade = self._known.get(each.place, ([], {}))
        if not grade or tokens != each.completion.tokens:
            return None
        try:
            return Grade(**grade)
        except TypeError:  # a damaged line, or one of another version: grade it again
            return None

    def keep(self, each: FinishedCompletion, grade: Grade) -> None:
        """Keep a new grade that did not fail; called from any thread."""
        if grade.outcome != "failed" and self._is_kept:
            kept = (each.completion.tokens, dataclasses.asdict(grade))
            self._run.journal.add_grade(self._kind, self._step, each.place, kept)
        if self._is_stopped.is_set():
            raise Stopped


def _asks_this_engine(run: AnyRun, grader: CompiledGrader) -> bool:
    """Whether a judge would use the same cores as sampling. Called during sampling it would only
    have smaller batches: a decode of two rows takes about as long as one of eight.
    """
    is_here = run.plan.engine == "torch" and settings.judge().base_url is None
    return is_here and types.asks_judge(grader.spec)
