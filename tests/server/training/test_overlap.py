"""Grading runs while the others are still being sampled: in what order, and what an end leaves."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import in_process
import pytest
from in_process import add_job

from rftkit.errors import EngineLostError
from rftkit.graders import Completion as Answer
from rftkit.graders import compile_grader
from rftkit.rows import Row
from rftkit.server.engine.values import Completion, LoraConfig
from rftkit.server.inference.judge import judge_call
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training import sampling
from rftkit.server.training.context import Run, Stopped
from rftkit.server.training.journal import Journal
from rftkit.server.training.rft_plan import make_plan
from rftkit.server.training.rollout import Group
from rftkit.server.worker.worker import Worker, WorkerPlatform

JUDGE = {
    "type": "score_model", "name": "judge", "model": "rftkit-tiny", "range": [0, 1],
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
}  # fmt: skip
ROWS = [Row({"messages": [{"role": "user", "content": str(n)}]}, line=n + 1) for n in range(3)]
PATIENCE = 20.0
"""Seconds after which a test gives up."""


class Judge:
    """A judge whose calls are told; `on_call` may wait or raise."""

    def __init__(self, on_call: Callable[[str], None] = lambda said: None) -> None:
        self.calls: list[str] = []
        self._on_call = on_call

    def __call__(self, *, messages: Any, **_: Any) -> Answer:
        said = messages[-1]["content"]
        self.calls.append(said)
        self._on_call(said)
        return Answer(json.dumps({"steps": [], "result": int(said) / 100}), "stop", {})


class Engine:
    """Says 0, 1, 2, …; `between` is called after each completion that has ended."""

    def __init__(self, between: Callable[[int], None] = lambda number: None) -> None:
        self.samples = 0
        self._between = between

    def encode(self, *_: Any) -> list[int]:
        return [1]

    def sample(
        self, requests: Sequence[Any], *, on_tick: Any, on_completion: Any = None
    ) -> list[list[Completion]]:
        self.samples += 1
        results = []
        for i, request in enumerate(requests):
            results.append([])
            for index in range(len(request.seeds)):
                number = sum(map(len, results))
                results[i].append(Completion([number, 9], str(number), [-0.5, 0.0], "stop"))
                if on_completion is not None:
                    on_completion(i, index, results[i][-1])
                self._between(number)
                on_tick()
        return results


class World:
    """What outlives a kill."""

    def __init__(self, home: Path) -> None:
        self.home, self.store = home, Store.open(home)
        self.on_tick: Callable[[], None] = lambda: None

    def graded(self, engine: Any, judge: Judge, spec: dict[str, Any] = JUDGE) -> list[Group]:
        """The first step: three rows, four completions each."""
        job = Job(
            id="ftjob-1", created_at=0, model="toy", seed=7, training_file="f",
            validation_file="f", metadata={},
            method={"reinforcement": {"grader": spec, "hyperparameters": {}}},
        )  # fmt: skip
        with compile_grader(spec, complete=judge, concurrency=2) as grader:
            run = Run(
                job=job, plan=make_plan(job, len(ROWS)), store=self.store, engine=engine,
                compiled_grader=grader, journal=Journal(self.home / "jobs" / job.id), rows=ROWS,
                valid_rows=[], model_base="toy", on_tick=lambda: self.on_tick(),
            )  # fmt: skip
            return sampling.graded(run, "steps", 1, sampling.SamplingPlan(ROWS, 1, 4, 1.0))[0]


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", "http://elsewhere/v1")
    world = World(home)
    yield world
    world.store.close()


def rewards(groups: Sequence[Group]) -> list[float | None]:
    return [reward for group in groups for reward in group.rewards_G]


def test_the_graders_of_a_job_read_the_name_of_its_model(world: World) -> None:
    spec = {"type": "string_check", "name": "m", "operation": "eq", "input": "{{sample.model}}",
            "reference": "toy"}  # fmt: skip
    assert rewards(world.graded(Engine(), Judge(), spec)) == [1.0] * 12


def threads() -> list[str]:
    """Names of threads that grade."""
    return [each.name for each in threading.enumerate() if each.name == "grade"]


ALL = [number / 100 for number in range(12)]


def test_a_completion_is_graded_while_the_others_are_sampled(world: World) -> None:
    order: list[str] = []
    asked = threading.Semaphore(0)

    def on_call(said: str) -> None:
        order.append(f"graded {said}")
        asked.release()

    def between(number: int) -> None:
        assert asked.acquire(timeout=PATIENCE)  # the next one only when this one is graded
        order.append(f"sampled past {number}")

    groups = world.graded(Engine(between), Judge(on_call))
    assert rewards(groups) == ALL
    assert order == [said for n in range(12) for said in (f"graded {n}", f"sampled past {n}")]


def test_no_more_calls_at_once_than_the_grader_allows(world: World) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def on_call(_: str) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        threading.Event().wait(0.01)
        with lock:
            under_way -= 1

    assert rewards(world.graded(Engine(), Judge(on_call))) == ALL
    assert most == 2


@pytest.mark.parametrize("raised", [Stopped(), EngineLostError("away"), KeyboardInterrupt()])
def test_when_sampling_ends_early_no_grade_is_begun_and_hanging_judges_are_abandoned(
    world: World, raised: BaseException
) -> None:
    end, begun = threading.Event(), threading.Semaphore(0)

    def on_call(_: str) -> None:
        begun.release()
        end.wait(PATIENCE)

    def between(number: int) -> None:
        if number == 7:
            assert all(begun.acquire(timeout=PATIENCE) for _ in range(2))
            raise raised

    judge = Judge(on_call)
    with pytest.raises(type(raised)):
        world.graded(Engine(between), judge)
    assert not end.is_set()
    assert sorted(judge.calls) == ["0", "1"]  # two threads: either may come first
    assert threads() == []
    end.set()

    again = Judge()
    assert rewards(world.graded(Engine(), again)) == ALL
    assert sorted(again.calls, key=int) == [str(number) for number in range(12)]


class Killed(BaseException):
    """What a SIGKILL is to the story."""


def test_a_kill_in_sampling_leaves_grades_of_what_is_then_said_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The completions are not kept yet: sampled again, the same ones have their grades."""
    given = threading.Semaphore(0)
    keep = Journal.add_grade

    def kept(*arguments: Any) -> None:
        keep(*arguments)
        given.release()

    def kill(number: int) -> None:
        if number == 11:
            assert all(given.acquire(timeout=PATIENCE) for _ in range(12))
            raise Killed

    monkeypatch.setattr(Journal, "add_grade", kept)
    with pytest.raises(Killed):
        world.graded(Engine(kill), Judge())

    class Another(Engine):
        """Says something else where it said 5."""

        def sample(self, requests: Any, **options: Any) -> Any:
            tell = options["on_completion"]

            def other(i: int, index: int, said: Completion) -> None:
                if said.text == "5":
                    said.tokens[0] = 50
                    said = dataclasses.replace(said, text="50")
                tell(i, index, said)

            return super().sample(requests, **{**options, "on_completion": other})

    engine, judge = Another(), Judge()
    groups = world.graded(engine, judge)
    assert judge.calls == ["50"]
    assert rewards(groups) == [*ALL[:5], 0.5, *ALL[6:]]
    assert engine.samples == 1


class RefusedError(Exception):
    """Asking again at once is of no use, says the status."""

    status_code = 400


def test_a_grade_that_fails_is_tried_once_more_and_is_never_zero(world: World) -> None:
    def on_call(said: str) -> None:
        if said == "3" or (said == "5" and judge.calls.count("5") == 1):
            raise RefusedError

    judge = Judge(on_call)
    groups = world.graded(Engine(), judge)
    assert rewards(groups) == [*ALL[:3], None, *ALL[4:]]
    assert sorted(judge.calls[:12], key=int) == [str(number) for number in range(12)]
    assert sorted(judge.calls[12:]) == ["3", "5"]  # after all others


def test_a_judge_that_is_the_policys_own_engine_gets_its_turn_and_changes_nothing(
    worker: Worker,
) -> None:
    """Asked beside sampling it would only take longer; but the next step may sample meanwhile."""
    spec = {**JUDGE, "sampling_params": {"temperature": 0.0, "max_completions_tokens": 8}}
    engine = worker.engines.get("rftkit-tiny")
    engine.start_policy(LoraConfig(), 1)
    rows = [Row(row, line=n + 1) for n, row in enumerate(in_process.ROWS)]
    job = add_job(worker, grader=spec)
    depth, within = 0, []
    sample, begin = engine.sample, engine.begin

    def begun(*arguments: Any) -> Any:  # what the judge is asked
        within.append(depth == 1)
        return begin(*arguments)

    def watched(requests: Any, adapter: Any = "policy", **options: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            return sample(requests, adapter, **options)
        finally:
            depth -= 1

    engine.sample, engine.begin = watched, begun
    found = {}
    asks = {step: sampling.SamplingPlan(rows, step, 4, 1.0) for step in (1, 2)}
    with compile_grader(
        spec, complete=judge_call(WorkerPlatform(worker.chats, worker.store))
    ) as grader:
        for way in ("alone", "ahead"):
            run = Run(
                job=job, plan=make_plan(job, len(rows)), store=worker.store, engine=engine,
                compiled_grader=grader, journal=Journal(worker.home / "jobs" / way), rows=rows,
                valid_rows=[], model_base="rftkit-tiny", on_tick=worker._on_tick(job.id),
                idle=worker._idle(job.id),
            )  # fmt: skip
            ahead = functools.partial(sampling.ungraded_batch, run, "steps", 2, asks[2])
            within.clear()
            one, _ = sampling.graded(run, "steps", 1, asks[1], *([ahead] if way == "ahead" else []))
            assert any(within) == (way == "ahead")
            two, _ = sampling.graded(run, "steps", 2, asks[2])
            found[way] = [
                (each.completion, each.grade.outcome, each.grade.reward)
                for group in one + two
                for each in group.rollouts
            ]
    assert found["alone"] == found["ahead"]
