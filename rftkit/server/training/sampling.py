"""Rows in, graded groups out, by way of the journal: nothing that it holds is made twice.

A completion is graded as soon as it has ended, while others are still being sampled. Each grade is
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
    "draft_and_grade",
    "graded",
    "graded_while_sampling",
    "reopen",
    "sampled",
    "ungraded_batch",
    "while_idle",
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

    prompts: list[list[int]]
    """Token ids, one list a row."""
    completions: list[list[Completion]]
    """The completions of each row."""
    seconds: float
    """How long sampling took."""


def graded(
    run: AnyRun,
    kind: str,
    step: int,
    plan: SamplingPlan,
    meanwhile: Callable[[], None] = lambda: None,
    complete: Callable[[list[Group]], tuple[list[Group], float]] | None = None,
) -> tuple[list[Group], float]:
    """The graded completions of each row, and the seconds they took.

    Nothing that the journal has is computed again: neither a finished record, nor completions and
    the grades that were given before a kill. `meanwhile` is called once, when the completions are
    there and graders may still work. `complete` may add to the groups before the record is written,
    and says how many seconds that took.
    """
    journal = run.journal
    record = journal.record(kind, step)
    if record is None:
        groups, seconds = draft_and_grade(run, kind, step, plan, meanwhile)
        if complete is not None:
            groups, more_seconds = complete(groups)
            seconds += more_seconds
        data = [rollout.group_to_dict(group) for group in groups]
        journal.write_record(kind, step, {"groups": data, "seconds": seconds})
        return groups, seconds
    meanwhile()
    by_line = {row.line: row for row in (*(run.rows if complete else ()), *plan.rows)}
    return [rollout.group_from_dict(each, by_line) for each in record["groups"]], record["seconds"]


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


def draft_and_grade(
    run: AnyRun,
    kind: str,
    step: int,
    plan: SamplingPlan,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[list[Group], float]:
    """The same without a record: only drafts and grades are looked up and kept."""
    return graded_while_sampling(
        run,
        run.grader,
        plan.rows,
        lambda completed: ungraded_batch(run, kind, step, plan, completed),
        known=run.journal.grades(kind, step),
        keep=functools.partial(run.journal.add_grade, kind, step),
        trace=functools.partial(run.trace_id, kind, step),
        meanwhile=meanwhile,
        group_size=plan.num,
        anchor=anchors(run, step) if kind == "valid" and run.grader.compares_group else None,
    )


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
    known = run.journal.draft(kind, step)
    if known is None:
        draft = sampled(run, plan, on_completion, kind, step)
        said = [[each.to_dict() for each in group] for group in draft.completions]
        kept = {"prompts": draft.prompts, "completions": said, "seconds": draft.seconds}
        run.journal.write_draft(kind, step, kept)
        return draft
    completions = [[Completion.from_dict(each) for each in group] for group in known["completions"]]
    return UngradedBatch(known["prompts"], completions, known["seconds"])


def sampled(
    run: AnyRun,
    plan: SamplingPlan,
    on_completion: OnCompletion | None = None,
    kind: str = CHECKS_KIND,
    step: int = 0,
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
    environment = None if run.tools is None else _environment(run, run.tools, plan, kind, step)
    if environment is None:
        completions = run.engine.sample(requests, on_tick=run.on_tick, on_completion=on_completion)
    else:
        completions = run.engine.sample(
            requests, on_tick=run.on_tick, on_completion=on_completion, environment=environment
        )
        run.clock.waiting += environment.idle_seconds
    return UngradedBatch(prompts, completions, time.perf_counter() - started)


def _environment(
    run: AnyRun, tools: Tools, plan: SamplingPlan, kind: str, step: int
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


def graded_while_sampling(
    run: AnyRun,
    grader: CompiledGrader,
    rows: Sequence[Row],
    sample: Callable[[OnCompletion | None], UngradedBatch],
    *,
    known: Mapping[Place, Kept] | None = None,
    keep: Callable[[Place, Kept], None] = lambda place, kept: None,
    trace: Callable[[Row, int], str | None] = lambda row, index: None,
    meanwhile: Callable[[], None] = lambda: None,
    group_size: int = 1,
    anchor: Anchor | None = None,
) -> tuple[list[Group], float]:
    """Grade what `sample` draws, each as soon as it has ended; and the seconds of both.

    Other threads grade. This one owns the models: it serves chats, and judges that ask this engine.
    When it is stopped no further grade is begun, and those under way are abandoned.

    Args:
        run: the job.
        grader: its own, or another.
        rows: what is asked.
        sample: draws, or has what was drawn; may tell of each completion as it ends.
        known: grades that need not be given again.
        keep: gets each new grade that did not fail, from any thread.
        trace: the trace id of a row's completion, for endpoint graders.
        meanwhile: called when all completions have ended.
        group_size: completions of a row, which a relative grader compares.
        anchor: what it compares each with instead.
    """
    comparison = functools.partial(Comparison, group_size, anchor)
    grading = _Grading(run.job.model, rows, known or {}, keep, trace, comparison)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(grading.grade, grader, run.response_format)
        try:
            draft = sample(None if _asks_this_engine(run, grader) else grading.completed)
            grading.end(draft)
            since = time.perf_counter()
            meanwhile()
            while not work.done():
                run.idle()
                time.sleep(WAIT_SECONDS)
        except BaseException:
            grading.stop()
            grader.close(now=True)  # a judge or an endpoint may hang
            while not work.done():
                with contextlib.suppress(Exception):  # the first error is the one to report
                    run.idle()
                time.sleep(WAIT_SECONDS)
            raise
    ended_at = work.result()
    return grading.groups(draft), draft.seconds + ended_at - since


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


class _Grading:
    """The grades of a step. One thread reports completions, others grade them."""

    def __init__(
        self,
        model: str,
        rows: Sequence[Row],
        known: Mapping[Place, Kept],
        keep: Callable[[Place, Kept], None],
        trace: Callable[[Row, int], str | None],
        comparison: Callable[[Callable[[FinishedCompletion], Grade | None]], Comparison],
    ) -> None:
        self._model, self._trace = model, trace
        self._comparison = comparison(self._known_grade)
        self._rows, self._known, self._keep = rows, known, keep
        self._ended: SimpleQueue[FinishedCompletion | None] = SimpleQueue()
        self._reported: set[Place] = set()
        self._grades: dict[Place, Grade] = {}
        self._is_stopped = threading.Event()

    def completed(self, i: int, index: int, completion: Completion) -> None:
        """A completion has ended."""
        self._reported.add((i, index))
        row = self._rows[i]
        trace = self._trace(row, index)
        self._ended.put(FinishedCompletion((i, index), row, completion, self._model, trace))

    def end(self, draft: UngradedBatch) -> None:
        """Take the final list of completions; some may not have been reported."""
        for i, group in enumerate(draft.completions):
            for index, completion in enumerate(group):
                if (i, index) not in self._reported:
                    self.completed(i, index, completion)
        self._ended.put(None)

    def stop(self) -> None:
        """Let no further grade begin."""
        self._is_stopped.set()
        self._ended.put(None)

    def grade(self, grader: CompiledGrader, response_format: Mapping[str, Any] | None) -> float:
        """Grade until the end; when that was.

        Raises:
            Stopped: after `stop`.
        """
        args = response_format, self._given
        if grader.compares_group:
            made = compare_all(grader, self._all_ended(), *args, self._comparison)
        else:
            made = rollout.grade_all(grader, self._ungraded(grader), *args)
        self._grades.update(made)
        return time.perf_counter()

    def groups(self, draft: UngradedBatch) -> list[Group]:
        """All groups, once everything is graded."""
        return [
            Group(
                row, prompt, [Rollout(c, self._grades[i, index]) for index, c in enumerate(group)]
            )
            for i, (row, prompt, group) in enumerate(
                zip(self._rows, draft.prompts, draft.completions, strict=True)
            )
        ]

    def _all_ended(self) -> Iterator[FinishedCompletion]:
        for each in iter(self._ended.get, None):
            if self._is_stopped.is_set():
                raise Stopped
            yield each

    def _ungraded(self, grader: CompiledGrader) -> Iterator[FinishedCompletion]:
        for each in self._all_ended():
            if each.completion.failure is not None:
                self._grades[each.place] = rollout.failed_episode(each.completion, grader)
            elif (grade := self._known_grade(each)) is not None:
                self._grades[each.place] = grade
            else:
                yield each

    def _known_grade(self, each: FinishedCompletion) -> Grade | None:
        """The grade that was given to the same tokens before a kill."""
        tokens, grade = self._known.get(each.place, ([], {}))
        if not grade or tokens != each.completion.tokens:
            return None
        try:
            return Grade(**grade)
        except TypeError:  # a damaged line, or one of another version: grade it again
            return None

    def _given(self, each: FinishedCompletion, grade: Grade) -> None:
        if grade.outcome != "failed":
            self._keep(each.place, (each.completion.tokens, dataclasses.asdict(grade)))
        if self._is_stopped.is_set():
            raise Stopped


def _asks_this_engine(run: AnyRun, grader: CompiledGrader) -> bool:
    """Whether a judge would use the same cores as sampling. Called during sampling it would only
    have smaller batches: a decode of two rows takes about as long as one of eight.
    """
    is_here = run.plan.engine == "torch" and settings.judge().base_url is None
    return is_here and types.asks_judge(grader.spec)
