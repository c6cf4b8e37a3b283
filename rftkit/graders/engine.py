"""Compile a spec once into closures, then grade: `grade(sample, item)` -> Grade.

The same code grades in a notebook, in graders/run, in training and in validation. A compiled
grader is a list of leaves (the sub-graders of a multi, or the grader itself) and, for a multi, a
formula; it turns what a leaf returns or raises into one of the three outcomes. Not here: how one
type is compiled (`leaves`), many rows as a table (`frames`), the audit of a grader (`audit`).
"""

from __future__ import annotations

import json
import operator
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

from rftkit import settings
from rftkit.graders import types
from rftkit.graders.calls import Calls
from rftkit.graders.embeddings import EmbeddingCall
from rftkit.graders.formula import Formula, compile_formula
from rftkit.graders.judge import CompletionCall, Usage
from rftkit.graders.leaves import (
    COMPILERS,
    Context,
    Score,
    num_threads,
)
from rftkit.graders.outcome import MAX_REWARD, Fault, Grade, Sample, Scored
from rftkit.graders.parse import parse
from rftkit.graders.posting import HttpCall
from rftkit.graders.relative import EQUAL, RelativeJudge, refuse_single
from rftkit.graders.sandbox import Limits
from rftkit.graders.types import Purpose

__all__ = [
    "CompiledGrader",
    "Leaf",
    "compile_grader",
    "grade",
    "param_of",
]

T = TypeVar("T")
R = TypeVar("R")
Judged = dict[str, dict[str, Any]]
"""See `Grade.judged`."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A grader with its own reward and its own line in metric events."""

    key: str
    """The variable of the formula; the grader's name when it is not part of a multi."""
    name: str
    type: str


class CompiledGrader:
    """A grader ready to grade. A context manager, safe to call from several threads."""

    def __init__(
        self,
        spec: dict[str, Any],
        scores: dict[str, Score],
        formula: Formula | None,
        *,
        floor_reward: float,
        threads: int,
        closers: Sequence[Callable[..., None]],
        grades_cut: bool = False,
        comparing: Mapping[str, RelativeJudge] | None = None,
    ) -> None:
        """With `grades_cut`, answers that reached the token limit are graded like others."""
        self.spec = spec
        """The normalised spec."""
        self.leaves = _leaves(spec)
        self.floor_reward = floor_reward
        """The reward of an unscorable sample."""
        self._lowest = {key: types.lowest(part) for key, part in types.parts(spec).items()}
        self._scores, self._formula = scores, formula
        self._threads, self._closers = threads, closers
        self._grades_cut = grades_cut
        self._comparing = comparing or {}

    @property
    def compares_group(self) -> bool:
        """Whether it compares the answers of a group, which `grade_group` gives it."""
        return bool(self._comparing)

    def grade(self, sample: Sample, item: Any) -> Grade:
        """Grade one sample of a row. Never raises because of their contents."""
        return self._grade(sample, item, self._scores, perf_counter())

    def grade_group(
        self, samples: Sequence[Sample], item: Any, anchors: Sequence[Sample] | None = None
    ) -> list[Grade]:
        """Grade the samples of one row together; relative graders compare them with each other.

        Args:
            samples: of one row.
            item: the row.
            anchors: one for each sample: a relative grader that has no anchor of its own compares
                the sample with it, and not with the others.
        """
        start = perf_counter()
        compared = {
            key: self._compare(judge, samples, item, anchors)
            for key, judge in self._comparing.items()
            if anchors is None or not judge.has_anchor
        }
        return [
            self._grade(
                sample, item, self._scores | {key: all_[g] for key, all_ in compared.items()}, start
            )
            for g, sample in enumerate(samples)
        ]

    def grade_together(self, samples: Sequence[Sample], item: Any) -> list[Grade]:
        """Grade the samples of one row: as a group if the grader compares them, else one by one."""
        if self.compares_group:
            return self.grade_group(samples, item)
        return self.grade_many([(sample, item) for sample in samples])

    def grade_groups(
        self,
        groups: Iterable[tuple[Sequence[Sample], Any, Sequence[Sample] | None]],
        *,
        progress: Callable[[int, list[Grade]], None] | None = None,
    ) -> list[list[Grade]]:
        """Grade many groups, as `grade_many` does; each has the arguments of `grade_group`."""
        return self._in_threads(groups, lambda group: self.grade_group(*group), progress)

    def _grade(self, sample: Sample, item: Any, scores: Mapping[str, Score], start: float) -> Grade:
        if (fault := self._fault_of(sample)) is not None:
            return self._unscorable(fault, start)
        if self._formula is None:
            return self._grade_one(sample, item, scores[""], start)
        return self._grade_multi(sample, item, scores, start)

    def _fault_of(self, sample: Sample) -> Fault | None:
        """Why a sample cannot be scored. Hosted evals grade a text that was cut off as it is."""
        if sample.truncated and self._grades_cut:
            return None
        if sample.truncated or (sample.expects_json and sample.output_json is None):
            return _what_is_wrong(sample)
        return None

    def _compare(
        self,
        judge: RelativeJudge,
        samples: Sequence[Sample],
        item: Any,
        anchors: Sequence[Sample] | None,
    ) -> list[Score]:
        """What the leaf makes of each sample, as functions. Samples that cannot be scored are left
        out, and the tokens of the group are counted once.
        """
        usage: Usage = {}
        result: dict[int, float | Scored | Fault] = {}
        there = [g for g, sample in enumerate(samples) if self._fault_of(sample) is None]
        if anchors is None:
            try:
                texts = [_said(samples[g]) for g in there]
                result = dict(zip(there, judge.group(texts, item, usage), strict=True))
            except Exception as error:
                result = dict.fromkeys(there, _as_fault(error))
        else:
            for g in there:
                anchor = anchors[g]
                try:
                    result[g] = (
                        judge.against(_said(samples[g]), _said(anchor), item, usage)
                        if self._fault_of(anchor) is None
                        else 1.0  # better than an answer that cannot be scored
                    )
                except Exception as error:
                    result[g] = _as_fault(error)
        used = {there[0]: usage} if there else {}
        return [_known(result.get(g), used.get(g)) for g in range(len(samples))]

    def grade_many(
        self,
        pairs: Iterable[tuple[Sample, Any]],
        *,
        progress: Callable[[int, Grade], None] | None = None,
    ) -> list[Grade]:
        """Grade many in order. Slow graders run in parallel; `progress` gets (index, grade).

        Each pair is graded as soon as it arrives: `pairs` may block until a completion is ready.
        """
        return self._in_threads(pairs, lambda pair: self.grade(*pair), progress)

    def _in_threads(
        self,
        tasks: Iterable[T],
        do: Callable[[T], R],
        progress: Callable[[int, R], None] | None,
    ) -> list[R]:
        results: dict[int, R] = {}
        todo, turn = enumerate(tasks), threading.Lock()
        stop = threading.Event()

        def work() -> None:
            while True:
                with turn:  # each task goes to exactly one thread
                    index, task = next(todo, (-1, None))
                if task is None or stop.is_set():
                    return
                results[index] = result = do(task)
                if progress:
                    progress(index, result)

        if self._threads == 1:
            work()
        else:
            _run_threads(work, min(self._threads, operator.length_hint(tasks, self._threads)), stop)
        return [results[index] for index in range(len(results))]

    def close(self, *, now: bool = False) -> None:
        """End the processes of python graders; grading again starts new ones.

        Waits for grades in progress. With `now` they fail at once, calls of judges and endpoints
        included, and the grader accepts no further grades of these kinds.
        """
        for close in self._closers:
            close(now=now)

    def __enter__(self) -> CompiledGrader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(now=kind is not None)

    def _grade_one(self, sample: Sample, item: Any, score: Score, start: float) -> Grade:
        usage: Usage = {}
        try:
            reward, judged = _run(score, sample, item, usage)
        except Fault as fault:
            if fault.outcome == "unscorable":
                return self._unscorable(fault, start)
            seconds, judged = perf_counter() - start, _under("", fault.judged)
            return Grade(None, "failed", {}, fault.errors, seconds, usage, judged=judged)
        seconds, judged = perf_counter() - start, _under("", judged)
        return Grade(reward, "graded", {}, {}, seconds, usage, judged=judged)

    def _grade_multi(
        self, sample: Sample, item: Any, scores: Mapping[str, Score], start: float
    ) -> Grade:
        rewards: dict[str, float | None] = {}
        seconds: dict[str, float] = {}
        faults: dict[str, Fault] = {}
        usages: dict[str, Usage] = {}
        judged: Judged = {}
        then = start
        for key, score in scores.items():
            usage: Usage = {}
            try:
                rewards[key], result = _run(score, sample, item, usage)
            except Fault as fault:
                rewards[key], faults[key], result = None, fault, fault.judged
            judged |= _under(key, result)
            now = perf_counter()
            seconds[key] = now - then
            then = now
            if usage:
                usages[key] = usage
        reward: float | None = None
        if not faults:
            try:
                reward = _bounded(self._formula(rewards))  # type: ignore[misc, arg-type]
            except Fault as fault:
                faults[""] = fault
        if not faults:
            return Grade(
                reward, "graded", rewards, {}, then - start, _total(usages), {}, seconds, usages,
                judged,
            )  # fmt: skip
        return self._multi_fault(rewards, faults, then - start, seconds, usages, judged)

    def _multi_fault(
        self,
        rewards: dict[str, float | None],
        faults: dict[str, Fault],
        total_seconds: float,
        seconds: dict[str, float],
        usages: dict[str, Usage],
        judged: Judged,
    ) -> Grade:
        failed = any(fault.outcome == "failed" for fault in faults.values())
        if not failed:
            rewards = {k: self._lowest[k] if v is None else v for k, v in rewards.items()}
        errors: dict[str, bool | str] = {}
        for fault in faults.values():
            errors = fault.errors | errors
        return Grade(
            None if failed else self.floor_reward,
            "failed" if failed else "unscorable",
            rewards,
            errors,
            total_seconds,
            _total(usages),
            {key: fault.errors for key, fault in faults.items() if key},
            seconds,
            usages,
            judged,
        )

    def _unscorable(self, fault: Fault, start: float) -> Grade:
        subs: dict[str, float | None] = {**self._lowest} if self._formula else {}
        return Grade(self.floor_reward, "unscorable", subs, fault.errors, perf_counter() - start)


def compile_grader(
    spec: Mapping[str, Any],
    *,
    purpose: Purpose = "rft",
    complete: CompletionCall | None = None,
    embed: EmbeddingCall | None = None,
    http: HttpCall | None = None,
    cache: MutableMapping[str, str] | None = None,
    workers: int = 2,
    concurrency: int = 8,
    limits: Limits | None = None,
    floor_reward: float | None = None,
    unconfined: bool | None = None,
    groups: bool = False,
) -> CompiledGrader:
    """Check a spec and compile it. Close the result, or use it in a `with`.

    Args:
        spec: a grader in the wire's form.
        purpose: `eval` allows `label_model`, and grades answers that were cut off; in training
            these get the floor reward.
        complete: calls a judge; without it, model graders fail with a message that says so.
        embed: embeds texts for `cosine`.
        http: calls endpoint graders; default a plain HTTP POST.
        cache: judges' answers, such as a `JudgeCache`; default none.
        workers: processes for each python grader.
        concurrency: calls of judges and endpoints at once.
        limits: of a python grader's call.
        floor_reward: reward of an unscorable sample; default `range[0]` of a score_model, else 0.
        unconfined: run python graders without isolation; default `RFTKIT_UNCONFINED_GRADERS`.
        groups: the caller grades whole groups (`grade_group`); without it a relative grader needs
            an anchor, and is refused by name.

    Raises:
        GraderSpecError: `param` names the field.
        PlatformError: a python grader, and this machine cannot isolate it.
    """
    parsed = parse(spec, purpose=purpose)
    parts = types.parts(parsed)
    for key, part in parts.items():
        if not groups:
            refuse_single(part, param_of(key))
    num_python = sum(part["type"] == "python" for part in parts.values())
    context = Context(
        purpose=purpose,
        workers=max(1, workers // max(1, num_python)),
        limits=limits or Limits(),
        unconfined=settings.unconfined_graders() if unconfined is None else unconfined,
        complete=complete,
        embed=embed,
        http=http,
        cache=cache,
        concurrency=concurrency,
        calls=Calls(concurrency),
    )
    context.closers.append(context.calls.close)
    formula = None
    if parsed["type"] == "multi":
        formula = compile_formula(parsed["calculate_output"], parts, param="calculate_output")
    scores = {
        key: COMPILERS[part["type"]](part, param_of(key), context) for key, part in parts.items()
    }
    relative = [key for key, part in parts.items() if types.compares_group(part)]
    return CompiledGrader(
        parsed,
        scores,
        formula,
        floor_reward=types.lowest(parsed) if floor_reward is None else floor_reward,
        threads=max(num_threads(part["type"], context) for part in parts.values()),
        closers=context.closers,
        grades_cut=purpose == "eval",
        comparing=dict(zip(relative, context.comparing, strict=True)),
    )


def grade(spec: Mapping[str, Any], sample: Sample | str, item: Any, **options: Any) -> Grade:
    """Compile a spec, grade one sample, close. `options` are those of `compile_grader`.

    Raises:
        GraderSpecError: `param` names the field.
    """
    with compile_grader(spec, **options) as grader:
        return grader.grade(Sample.from_text(sample) if isinstance(sample, str) else sample, item)


def _run(
    score: Score, sample: Sample, item: Any, usage: Usage
) -> tuple[float, dict[str, Any] | None]:
    """Grade one leaf; any other exception is a failure of the grader, with its name."""
    try:
        found = score(sample, item, usage)
    except Exception as error:
        raise _as_fault(error) from error
    reward, judged = (found.reward, found.judged) if isinstance(found, Scored) else (found, None)
    return _bounded(reward), judged


def _said(sample: Sample) -> str:
    """An answer as a judge compares it, with its tool calls."""
    calls = [json.dumps(call.get("function", call)) for call in sample.output_tools]
    return "\n".join(filter(None, [sample.output_text, *calls])) if calls else sample.output_text


def _as_fault(error: Exception) -> Fault:
    if isinstance(error, Fault):
        return error
    return Fault("other_error", f"{type(error).__name__}: {error}")


def _known(result: float | Scored | Fault | None, used: Usage | None) -> Score:
    """A leaf whose answer is there already."""

    def score(sample: Sample, item: Any, usage: Usage) -> float | Scored:
        usage.update(used or {})
        if isinstance(result, Fault):
            raise result
        return EQUAL if result is None else result

    return score


def _under(key: str, judged: dict[str, Any] | None) -> Judged:
    return {key: judged} if judged else {}


def _bounded(reward: float) -> float:
    if abs(reward) <= MAX_REWARD:
        return reward
    raise Fault(
        "other_error",
        f"the reward is {reward:.4g}, and a reward must be between -{MAX_REWARD:g} and "
        f"{MAX_REWARD:g}; scale it, for example to 0…1",
    )


def _what_is_wrong(sample: Sample) -> Fault:
    if sample.truncated:
        return Fault(
            "truncated_observation_error", "the answer hit its token limit", unscorable=True
        )
    return Fault(
        "sample_parse_error", "the answer is not the JSON that was asked for", unscorable=True
    )


def param_of(key: str) -> str:
    """Return the path of the leaf in its spec, for the `param` of errors."""
    return f"graders.{key}" if key else ""


def _leaves(parsed: dict[str, Any]) -> list[Leaf]:
    parts = types.parts(parsed).items()
    return [Leaf(key or part["name"], part["name"], part["type"]) for key, part in parts]


def _run_threads(work: Callable[[], None], count: int, stop: threading.Event) -> None:
    """Run `work` in several threads; an exception in one, or an interrupt, stops all."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, name="grade", daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if failures:
        raise failures[0]


def _total(usages: Mapping[str, Usage]) -> Usage:
    total: Usage = {}
    for usage in usages.values():
        for model, counts in usage.items():
            sums = total.setdefault(model, {})
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
    return total
