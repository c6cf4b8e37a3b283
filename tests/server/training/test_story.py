"""The training story over a toy engine of a few lines: what a kill repeats, what is kept, counted.

The engine's policy is one number that each update changes; a kill is an exception that nothing
catches, thrown at every place where something is written, one place after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rftkit.diagnosis import story_of
from rftkit.errors import RequestError
from rftkit.graders import Grade, compile_grader
from rftkit.rows import Row
from rftkit.server.engine.values import Completion, NotFiniteError, StepStats, TrainGroup
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training import journal as journal_module
from rftkit.server.training import loop, rft
from rftkit.server.training.checkpoints import sweep
from rftkit.server.training.context import Run, Stopped
from rftkit.server.training.eval_records import make_job_eval
from rftkit.server.training.journal import Journal
from rftkit.server.training.rft_plan import make_plan

GRADER = {
    "type": "string_check", "name": "even", "operation": "eq", "reference": "0",
    "input": "{{sample.output_text}}",
}  # fmt: skip
ROWS = [Row({"messages": [{"role": "user", "content": str(n)}]}, line=n + 1) for n in range(8)]


class Killed(BaseException):
    """What a SIGKILL is to the story."""


class Toy:
    """An engine whose policy is one number."""

    thinking = None
    width = None
    eos_ids: frozenset[int] = frozenset({9})
    context_tokens = 100
    facts: dict[str, Any] = {}

    def __init__(self) -> None:
        self.policy, self.samples = 0, 0

    def encode(self, messages: Any, tools: Any = None, thinking: str | None = None) -> list[int]:
        return [int(messages[-1]["content"])]

    def encode_answer(self, text: str, schema: str | None) -> list[int] | None:
        return [int(text), 9]

    def sample(
        self, requests: Sequence[Any], adapter: Any = "policy", *, on_completion: Any, **_: Any
    ) -> Any:
        self.samples += 1

        def said(key: tuple[int, ...]) -> Completion:
            bit = (sum(key) + self.policy) // 4 % 2  # one group in four is flat
            return Completion([bit, 9], str(bit), [-0.5, 0.0], "stop")

        answers = [[said(key) for key in request.seeds] for request in requests]
        for i, group in enumerate(answers if on_completion else ()):
            for index, completion in enumerate(group):
                on_completion(i, index, completion)
        return answers

    def train_step(self, groups: Any, settings: Any, **_: Any) -> StepStats:
        tokens = [t for group in groups for row in group.tokens_G_T for t in row]
        rewards = [a > 0 for group in groups for a in group.advantages_G]
        seen = len(tokens) + sum(rewards) + int(settings.learning_rate * 1e9)
        self.policy = (self.policy * 31 + seen) % 1_000_003
        return StepStats(0.0, 1.0, 0.0, 0.01, None, 0.0, 0.0, len(tokens))

    def start_policy(self, config: Any, seed: int, adapter: Any = None) -> None:
        self.policy = seed

    def save(self, folder: Path) -> None:
        self.save_adapter(folder)

    def save_adapter(self, folder: Path) -> None:
        (folder / "policy.json").write_text(json.dumps(self.policy))

    def load(self, folder: Path) -> None:
        self.policy = json.loads((folder / "policy.json").read_text())


class Padding(Toy):
    """From step 9 on its answers grow, whatever they earn."""

    def sample(self, requests: Sequence[Any], *rest: Any, **options: Any) -> Any:
        def padded(said: Completion, step: int) -> Completion:
            more = max(0, step - 8) if step < 100 else 0  # validations have numbers of their own
            tokens = [*said.tokens, *[9] * more]
            logprobs = [*said.sampling_logprobs, *[0.0] * more]
            return dataclasses.replace(said, tokens=tokens, sampling_logprobs=logprobs)

        found = super().sample(requests, *rest, **options)
        return [
            [padded(said, key[1]) for said, key in zip(group, request.seeds, strict=True)]
            for group, request in zip(found, requests, strict=True)
        ]


class World:
    """What outlives a kill, and the counts."""

    def __init__(self, home: Path) -> None:
        self.home, self.store = home, Store.open(home)
        self.engine: Toy = Toy()
        self.given = {"batch_size": 4, "n_epochs": 3, "eval_interval": 2, "compute_multiplier": 0.5}
        self.grades = self.jobs = 0
        self.is_broken: Callable[[], bool] = lambda: False
        """Whether the next grade fails."""
        self.fails: Callable[[str], bool] = lambda prompt: False
        """Whether the grader fails for this prompt, by the policy that answered."""

    def add_job(self, **metadata: str) -> Job:
        """A job of six steps, a validation every second one; unguided if nothing else is asked."""
        metadata = {"guidance": "none"} | metadata
        self.jobs += 1
        job = self.store.add_job(
            Job(
                id=f"ftjob-{self.jobs:04d}", created_at=0, status="running",
                model="toy", seed=7, training_file="f", validation_file="f", metadata=metadata,
                method={"reinforcement": {"grader": GRADER, "hyperparameters": self.given}},
            )
        )  # fmt: skip
        return self.store.update_job(job.id, eval_id=make_job_eval(self.store, job).id)

    def train(self, job: Job) -> Job:
        """What a worker does with it, once."""
        with compile_grader(GRADER) as grader:
            real = grader.grade

            def counted(sample: Any, item: Any) -> Any:
                self.grades += 1
                if self.is_broken() or self.fails(item["messages"][-1]["content"]):
                    return Grade(None, "failed", errors={"other_error": True})
                return real(sample, item)

            grader.grade = counted  # type: ignore[method-assign]
            run = Run(
                job=job, plan=make_plan(job, len(ROWS)), store=self.store, engine=self.engine,
                compiled_grader=grader, journal=Journal(self.home / "jobs" / job.id), rows=ROWS,
                valid_rows=ROWS[:4], model_base="toy",
            )  # fmt: skip
            with contextlib.suppress(Stopped):
                loop.train(run, rft)
        return self.store.job(job.id)

    def left(self, job: Job) -> Any:
        """What a job has left, without ids and times."""
        job = self.store.job(job.id)
        assert job.eval_id is not None
        runs = self.store.runs(job.eval_id, limit=100)[0]
        kept = self.store.checkpoints(job.id)
        models, short = self.store.models(), job.id.removeprefix("ftjob-")
        return {
            "status": job.status,
            "checkpoints": [(each.step, each.metrics) for each in kept],
            "folders": sorted(Path(each.folder).name for each in kept),
            "on disk": sorted(p.name for p in self._folder(job).iterdir()),
            "models": [m.name.partition(short)[2] for m in models if m.job_id == job.id],
            "runs": [(run.name, run.result_counts) for run in runs],
            "rewards": {
                event.data["step"]: (
                    event.data.get("train_mean_reward"), event.data.get("full_valid_mean_reward"),
                )
                for event in self.store.events(job.id, limit=1000)[0]
                if event.type == "metrics" and event.data
            },
            "weights": {p.parent.name: p.read_text() for p in self._folder(job).glob("*/policy*")},
        }  # fmt: skip

    def _folder(self, job: Job) -> Path:
        return self.home / "jobs" / job.id / "checkpoints"

    def final(self, job: Job) -> str:
        """The policy it ended with."""
        return (self.home / "jobs" / job.id / "checkpoints/step-6/policy.json").read_text()

    def groups(self, job: Job, step: int) -> list[Any]:
        """What the journal has of a step."""
        record = Journal(self.home / "jobs" / job.id).record("steps", step)
        assert record is not None
        return list(record["groups"])

    def warnings(self, job: Job) -> list[str]:
        """What its events warn of, oldest first."""
        events = self.store.events(job.id, limit=1000)[0][::-1]
        return [event.message for event in events if event.level == "warn"]

    def counts(self) -> tuple[int, int]:
        """Samplings and grades since the last look."""
        found = self.engine.samples, self.grades
        self.engine.samples = self.grades = 0
        return found


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    # It grades reference answers before the first step; here the grades of a step are counted.
    monkeypatch.setattr(rft, "warn_of_grader", lambda run: None)
    world = World(home)
    yield world
    world.store.close()


class Bomb:
    """Kills at the n-th thing that is written, before or after it."""

    def __init__(self, place: int) -> None:
        self.left = place

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def arm(patch: pytest.MonkeyPatch, bomb: Bomb, *, grades: bool = True) -> None:
    """Let every durable write of job and store count down, those of single grades or not."""

    def around(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            bomb.tick()
            result = real(*arguments, **options)
            bomb.tick()
            return result

        return call

    for name in ("write_whole", "_write_folder"):
        patch.setattr(journal_module, name, around(getattr(journal_module, name)))
    for owner, name in (
        *([(Journal, "add_grade")] if grades else []),
        (Store, "add_event"), (Store, "add_checkpoint"),
        (Store, "update_job"), (Store, "add_model"), (Store, "add_file"), (Store, "add_items"),
        (Store, "try_status"), (Store, "drop_checkpoint"), (shutil, "rmtree"),
    ):  # fmt: skip
        patch.setattr(owner, name, around(getattr(owner, name)))


def was_killed(
    world: World, job: Any, monkeypatch: pytest.MonkeyPatch, place: int, *, grades: bool = False
) -> bool:
    """Train a job and kill it at the write of this number; False: it has fewer."""
    with monkeypatch.context() as patch:
        arm(patch, Bomb(place), grades=grades)
        try:
            world.train(job)
        except Killed:
            return True
    return False


def continued(world: World, job: Any) -> None:
    """Let another worker take the job up, if it runs, and sweep as a worker does first."""
    if (now := world.store.job(job.id)).status == "running":
        world.train(now)
    sweep(world.store, world.home / "jobs" / job.id / "checkpoints")


ALL_MEANS = {
    "advantage": "per_grader", "guidance": "references", "refill": "2", "schedule": "cosine",
    "warmup_steps": "2", "updates_per_batch": "2", "minibatch_size": "2", "entropy_floor": "0.6",
}  # fmt: skip


@pytest.mark.parametrize("metadata", [{"refill": "0", "guidance": "none"}, ALL_MEANS])
def test_a_kill_at_any_write_repeats_at_most_what_was_under_way(
    world: World, monkeypatch: pytest.MonkeyPatch, metadata: dict[str, str]
) -> None:
    calm = world.train(world.add_job(**metadata))
    assert calm.status == "succeeded", calm.error
    samples, grades = world.counts()
    steps = [world.groups(calm, step) for step in range(1, 7)]
    refilled = sum(len(groups) > 4 for groups in steps)
    guided = sum("guided" in group for groups in steps for group in groups)
    assert bool(refilled) == bool(guided) == (metadata == ALL_MEANS)
    assert (samples, grades) == (6 + 4 + refilled, 4 * sum(map(len, steps)) + guided + 4 * 4)
    place = 1
    while True:
        job = world.add_job(**metadata)
        if not was_killed(world, job, monkeypatch, place, grades=True):
            break  # that many things are not written
        done = world.train(world.store.job(job.id))
        assert done.status == "succeeded", (place, done.error)
        assert world.final(done) == world.final(calm)
        assert world.warnings(done) == world.warnings(calm) != []
        again = world.counts()
        assert samples <= again[0] <= samples + 1
        assert grades <= again[1] <= grades + 1
        events = world.store.events(job.id, limit=1000)[0]
        steps = [event.data["step"] for event in events if event.type == "metrics" and event.data]
        assert steps == [6, 5, 4, 3, 2, 1, 0]
        assert done.usage_metrics is not None
        assert calm.usage_metrics is not None
        assert done.usage_metrics["tokens"] == calm.usage_metrics["tokens"]
        assert len(done.result_files) == 1
        place += 1 if place < 8 else 17
    assert place > 60


@pytest.fixture
def no_sync(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that need not outlive a power cut, which makes many jobs quick."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    world.store._db.execute("PRAGMA synchronous = OFF")


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_loses_no_checkpoint_run_or_number(
    world: World, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    calm = world.left(world.train(world.add_job()))
    assert calm["status"] == "succeeded"
    place = 1
    while True:
        job = world.add_job()
        if not was_killed(world, job, monkeypatch, place):
            break
        continued(world, job)
        assert world.left(job) == calm, place
        place += stride
    assert place > 100


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("staleness", ["0", "1"])
@pytest.mark.parametrize("place", range(25, 200, 35))
def test_a_kill_that_damages_the_newest_files_leaves_the_same_job(
    world: World, monkeypatch: pytest.MonkeyPatch, place: int, staleness: str
) -> None:
    """A power cut may leave a file empty, of each kind; also where a step is sampled ahead."""
    calm = world.left(world.train(world.add_job(max_staleness=staleness)))
    job = world.add_job(max_staleness=staleness)
    was_killed(world, job, monkeypatch, place)
    folder = world.home / "jobs" / job.id
    for kind in ("steps", "valid", "drafts"):
        for newest in sorted((folder / kind).glob("*.json.gz"))[-1:]:
            newest.write_bytes(b"")
    if (now := world.store.job(job.id)).status == "running":
        world.train(now)
    sweep(world.store, folder / "checkpoints")
    assert world.left(job) == calm


@pytest.mark.usefixtures("no_sync")
def test_a_cancel_at_any_write_leaves_a_cancelled_job_without_a_final_model(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cancel(Bomb):
        def tick(self) -> None:
            if world.store._db.in_transaction:
                return  # another process would wait for its end
            self.left -= 1
            if self.left == 0:
                world.store.cancel_job(job.id)

    place, ended = 1, False
    while not ended:
        job = world.add_job()
        with monkeypatch.context() as patch:
            arm(patch, Cancel(place), grades=False)
            with contextlib.suppress(RequestError):  # it had ended
                world.train(job)
        found = world.store.job(job.id)
        keys = {event.key for event in world.store.events(job.id, limit=1000)[0]}
        is_whole = {"model", "completed"} <= keys and bool(found.result_files)
        assert is_whole or not ({"model", "completed"} & keys or found.result_files), place
        final = [m for m in world.store.models() if m.job_id == job.id and "ckpt" not in m.name]
        if found.status == "cancelled":
            assert not is_whole
            assert found.fine_tuned_model is None
            assert not final
        else:
            assert is_whole
            ended = found.status == "succeeded" and "cancelled" not in keys
        place += 1 if place > 100 else 5


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("place", [40, 90, 140])
def test_a_database_put_back_to_an_older_copy_is_filled_from_the_journal(
    world: World, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    calm = world.left(world.train(world.add_job()))
    job = world.add_job()
    was_killed(world, job, monkeypatch, place)
    with contextlib.closing(sqlite3.connect(":memory:")) as copy:
        world.store._db.backup(copy)
        world.train(world.store.job(job.id))
        world.counts()
        copy.backup(world.store._db)
    world.train(world.store.job(job.id))
    assert world.left(job) == calm
    assert world.counts() == (0, 0)


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("gap", [1, 4, 9])
def test_a_kill_at_any_write_of_a_pause_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, gap: int
) -> None:
    class PauseThenKill(Bomb):
        def tick(self) -> None:
            self.left -= 1
            if self.left <= 0 and not world.store._db.in_transaction:
                with contextlib.suppress(RequestError):  # it was asked to pause, or has ended
                    world.store.pause_job(job.id)
            if self.left == -gap:
                raise Killed

    calm = world.left(world.train(world.add_job()))
    for place in range(5, 200, 11):
        job = world.add_job()
        with monkeypatch.context() as patch:
            arm(patch, PauseThenKill(place), grades=False)
            with contextlib.suppress(Killed):
                world.train(job)
        for _ in range(3):
            if (now := world.store.job(job.id)).status in ("running", "pausing"):
                world.train(now)
            if world.store.job(job.id).status == "paused":
                resumed(world, job)
        sweep(world.store, world.home / "jobs" / job.id / "checkpoints")
        left = world.left(job)
        for name in ("models", "on disk"):  # the model of a pause stays
            assert set(left[name]) >= set(calm[name]), place
        assert {step: left["weights"][step] for step in calm["weights"]} == calm["weights"]
        ignored = {"models": None, "on disk": None, "weights": None}
        assert {**left, **ignored} == {**calm, **ignored}, place


BREAKS = {
    "baseline": 0,
    "first step": 4,
    "second validation": 36,
    "a later step": 60,
    "the last step": 92,
    "the last validation": 108,
    "half of the last validation": 110,
}
"""After how many grades: 16 a step, 4 a validation."""


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("staleness", ["0", "1"])
@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_what_failed_is_graded_again_after_a_repair_and_nothing_else_is(
    world: World, broken: int, staleness: str
) -> None:
    calm = world.left(world.train(world.add_job(max_staleness=staleness)))
    world.counts()
    seen = 0

    def is_broken() -> bool:
        nonlocal seen
        seen += 1
        return seen > broken  # until it is repaired

    world.is_broken = is_broken
    job = world.train(world.add_job(max_staleness=staleness))
    assert job.status == "paused"
    said = world.store.events(job.id, limit=1000)[0]
    assert any("Fix what they need and resume" in event.message for event in said)
    world.counts()
    world.store.resume_job(job.id)  # too early
    job = world.train(world.store.update_job(job.id, status="running"))
    assert job.status == "paused"
    asked_again = world.counts()
    assert asked_again[0] == 0
    assert 0 < asked_again[1] <= 16 * 2  # each tries twice
    world.is_broken = lambda: False
    world.store.resume_job(job.id)
    job = world.train(world.store.update_job(job.id, status="running"))
    assert job.status == "succeeded", job.error
    left = world.left(job)
    for name in ("models", "on disk"):  # the model of a pause stays
        assert set(left.pop(name)) >= set(calm.pop(name))
    assert {step: left["weights"][step] for step in calm["weights"]} == calm["weights"]
    assert {**left, "weights": None} == {**calm, "weights": None}


def policies(world: World, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The policies of a calm job, before its first step and after each."""
    found = [7]
    update = rft.update

    def noted(run: Any, step: int, groups: Any) -> Any:
        stats = update(run, step, groups)
        found.append(world.engine.policy)
        return stats

    with monkeypatch.context() as patch:
        patch.setattr(rft, "update", noted)
        world.train(world.add_job())
    return found


def failed(world: World, job: Job) -> dict[str, int]:
    """Where failed grades are counted, as far as there are any."""
    events = world.store.events(job.id, limit=1000)[0]
    counts = {
        f"{name} of {event.data['step']}": event.data["learning"][name]
        for event in events
        if event.type == "metrics" and event.data
        for name in ("failed_grades", "valid_failed_grades")
        if event.data["learning"].get(name)
    }
    assert job.eval_id is not None
    runs = world.store.runs(job.eval_id, limit=100)[0]
    return counts | {
        f"items of {run.name}": n for run in runs if (n := run.result_counts["errored"])
    }


def torn_and_paused(
    world: World, monkeypatch: pytest.MonkeyPatch, **options: str
) -> Callable[[], Job]:
    """Makes jobs with a few failed grades at the baseline and in step 1, paused at step 4."""
    first = policies(world, monkeypatch)[0]
    lines = {group["line"] for group in world.groups(world.store.job("ftjob-0001"), 1)}
    torn = str(min(lines) - 1)
    assert torn in "0123"  # it is a validation row too
    world.fails = lambda prompt: prompt == torn and world.engine.policy == first

    def paused() -> Job:
        job = world.add_job(**{"error_budget": "0.3"} | options)
        third = world.home / "jobs" / job.id / "steps" / "000003.json.gz"
        world.is_broken = third.exists  # the whole of step 4 fails
        job = world.train(job)
        assert job.status == "paused"
        world.is_broken = lambda: False
        return job

    return paused


def resumed(world: World, job: Job) -> Job:
    world.store.resume_job(job.id)
    return world.train(world.store.update_job(job.id, status="running"))


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("refill", ["0", "2"])
def test_failures_within_the_budget_are_graded_again_after_a_repair_of_a_later_step(
    world: World, monkeypatch: pytest.MonkeyPatch, refill: str
) -> None:
    """Of a validation in its place; of a training step beside the grade that was learnt from."""
    options = {"error_budget": "0.3", "refill": refill}
    paused = torn_and_paused(world, monkeypatch, **options)
    whole = world.train(world.add_job(**options))
    assert whole.status == "succeeded"
    assert failed(world, whole) == {}  # it was graded again before the job ended
    assert any("regraded" in each for group in world.groups(whole, 1) for each in group["rollouts"])
    job = paused()
    lost = failed(world, job)
    assert {"valid_failed_grades of 0", "items of Step 0", "failed_grades of 1"} <= lost.keys()
    world.counts()
    job = resumed(world, job)
    assert job.status == "succeeded", job.error
    assert failed(world, job) == {}
    assert world.final(job) == world.final(whole)
    assert world.left(job)["runs"] == world.left(whole)["runs"]
    assert world.left(job)["rewards"] == world.left(whole)["rewards"]
    if refill == "0":  # what was still to do, one answer of the baseline, a group of step 1
        assert world.counts()[1] == 16 * 3 + 4 * 2 + 1 + 4
    found = [each for group in world.groups(job, 1) for each in group["rollouts"]]
    later = ["regraded" in each for each in found]
    assert any(later)
    assert [each["grade"]["outcome"] == "failed" for each in found] == later
    said = [event.message for event in world.store.events(job.id, limit=1000)[0]]
    assert any("Training answers of step 1" in each and "its update stays" in each for each in said)
    assert any(each.startswith("Validation after step 0") for each in said)


@pytest.mark.usefixtures("no_sync")
def test_a_kill_while_earlier_steps_are_graded_again_leaves_the_same_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = torn_and_paused(world, monkeypatch)
    calm = resumed(world, paused())
    assert calm.status == "succeeded"
    wanted = world.left(calm)
    place = 1
    while True:
        job = paused()
        world.store.resume_job(job.id)
        job = world.store.update_job(job.id, status="running")
        if not was_killed(world, job, monkeypatch, place):
            break
        continued(world, job)
        assert world.left(job) == wanted, place
        assert failed(world, job) == {}, place
        place += 3
    assert place > 30


@pytest.mark.usefixtures("no_sync")
def test_a_replayed_step_is_judged_with_the_steps_before_it_as_it_was_at_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it has more failed grades than the budget allows, with the steps before it fewer."""
    policy = policies(world, monkeypatch)[2]
    kept = {group["line"] for group in world.groups(world.store.job("ftjob-0001"), 3)}
    torn = str(max(kept) - 1)
    assert torn in "4567"  # it is no validation row
    world.fails = lambda prompt: world.engine.policy == policy and prompt == torn
    calm = world.train(world.add_job(error_budget="0.2"))
    assert calm.status == "succeeded"
    assert any("regraded" in each for group in world.groups(calm, 3) for each in group["rollouts"])
    wanted = world.left(calm)
    for place in range(60, 140, 4):
        job = world.add_job(error_budget="0.2")
        was_killed(world, job, monkeypatch, place)
        continued(world, job)
        assert world.left(job) == wanted, place


def test_a_pause_repeats_nothing(world: World) -> None:
    calm = world.train(world.add_job())
    wanted = world.counts()
    job = world.add_job(max_core_seconds="0.0000001")
    assert world.train(job).status == "paused"
    world.store.resume_job(job.id)
    done = world.train(world.store.update_job(job.id, status="running"))
    assert done.status == "succeeded"
    assert world.counts() == wanted
    assert world.final(done) == world.final(calm)


OLDER = {
    "flat_groups", "truncated_share", "failed_grades", "learning_rate", "loss", "entropy", "kl",
    "clip_fraction", "grad_norm", "valid_truncated_share", "valid_failed_grades",
}  # fmt: skip
"""Figures of `learning` that metric events had in the first versions."""


def test_a_job_that_an_older_program_began_continues(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed with a KeyError: events did not report how many answers were graded."""
    wanted = world.final(world.train(world.add_job()))
    job, real, taken = world.add_job(), world.engine.train_step, 0

    def train_step(*arguments: Any, **options: Any) -> StepStats:
        nonlocal taken
        taken += 1
        if taken == 5:
            raise Killed
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(world.engine, "train_step", train_step)
        with pytest.raises(Killed):
            world.train(job)
    for event in world.store.events(job.id, limit=1000)[0]:
        if event.type == "metrics" and event.data is not None:
            learning = {k: v for k, v in event.data["learning"].items() if k in OLDER}
            data = {k: v for k, v in event.data.items() if k not in ("watch", "answers")}
            world.store.revise_event(event.id, event.message, {**data, "learning": learning})
    done = world.train(world.store.job(job.id))
    assert done.status == "succeeded", done.error
    assert world.final(done) == wanted


def of_alarms(world: World, job: Job) -> Any:
    """What a job's events have of alarms: figures by step, evidence, and events by their step."""
    events = world.store.events(job.id, limit=1000)[0][::-1]
    told = [{"type": event.type, "data": event.data} for event in events]
    statuses = story_of(told).alarms.statuses
    raised = [
        (event.message.replace(job.id, "JOB"), event.data)
        for event in events
        if (event.data or {}).get("alarm")
    ]
    watch = {d["step"]: d["watch"] for e in told if (d := e["data"] or {}).get("watch")}
    return {"watch": watch, "standings": statuses, "raised": raised}


@pytest.mark.usefixtures("no_sync")
def test_alarms_are_the_same_after_a_kill_at_any_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the job pauses for its alarm: it does so once, and goes on when it is resumed."""
    world.engine = Padding()
    world.given |= {"n_epochs": 12, "eval_interval": 8}

    def finish(job: Job) -> Job:
        job = world.train(job)
        if job.status == "paused":
            world.store.resume_job(job.id)
            job = world.train(world.store.update_job(job.id, status="running"))
        assert job.status == "succeeded", job.error
        return job

    metadata = {"alarm_rate": "0.5", "on_alarm": "pause"}
    calm = of_alarms(world, finish(world.add_job(**metadata)))
    assert sorted(calm["watch"]) == list(range(1, 25))
    [(_, raised), (said, paused)] = calm["raised"]
    assert raised["alarm"] == paused["alarm"]
    assert raised["alarm"]["name"] == "length"
    assert 9 < raised["alarm"]["step"] < 24
    assert said.startswith("The job pauses, as metadata `on_alarm` asks: Answers grow longer")
    place = 1
    while True:
        job = world.add_job(**metadata)
        if not was_killed(world, job, monkeypatch, place):
            break
        now = world.store.job(job.id)
        if now.status == "pausing":  # a worker that starts again finds it so
            now = world.train(now)
        done = now if now.status == "succeeded" else finish(now)
        assert of_alarms(world, done) == calm, place
        place += 9
    assert place > 100


def test_the_best_three_and_the_last_stay_on_disk(world: World) -> None:
    job = world.train(world.add_job())
    kept = world.store.checkpoints(job.id)
    assert kept[0].model_name == job.fine_tuned_model
    folders = {str(path) for path in (world.home / "jobs" / job.id / "checkpoints").iterdir()}
    assert folders == {each.folder for each in kept}


def test_an_update_that_is_not_a_number_names_its_step_and_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: Toy, groups: Any, settings: Any, **_: Any) -> StepStats:
        raise NotFiniteError("loss nan", [0])

    job = world.add_job()
    monkeypatch.setattr(Toy, "train_step", explode)
    with pytest.raises(FloatingPointError, match=r"loss nan, at step 1; caused by line \d"):
        world.train(job)


def with_signal(groups: Sequence[Any], *_: Any) -> list[Any]:
    """Every group, also the flat ones, as the update gets them."""
    return [
        (group, TrainGroup(group.prompt_ids, [[1]], [[0.0]], [1.0], None, None)) for group in groups
    ]


@pytest.mark.parametrize(("wanted", "sizes"), [(8, [4]), (3, [2, 2]), (1, [1, 1, 1, 1])])
def test_minibatches_are_the_batch_in_parts_and_an_error_in_one_names_its_own_line(
    world: World, monkeypatch: pytest.MonkeyPatch, wanted: int, sizes: list[int]
) -> None:
    seen: list[list[list[int]]] = []

    def explode(self: Toy, groups: Any, settings: Any, **_: Any) -> StepStats:
        seen.append([group.prompt_ids for group in groups])
        if sum(map(len, seen)) == 4:
            raise NotFiniteError("loss nan", [len(groups) - 1])
        return StepStats(0.0, 1.0, 0.0, 0.01, None, 0.0, 0.0, 1)

    monkeypatch.setattr(Toy, "train_step", explode)
    monkeypatch.setattr(rft.rollout, "train_groups", with_signal)
    job = world.add_job(minibatch_size=str(wanted))
    with pytest.raises(FloatingPointError) as caught:
        world.train(job)
    assert [len(part) for part in seen] == sizes
    last = world.groups(job, 1)[3]
    assert str(caught.value).endswith(f"at step 1; caused by line {last['line']}")


def test_the_stats_of_minibatches_are_those_of_the_whole_batch() -> None:
    parts = [
        StepStats(1.0, 5.0, 0.0, 2.0, 0.1, 0.0, 0.0, 10),
        StepStats(4.0, 6.0, 0.5, 5.0, 0.2, 0.3, 0.9, 20),
    ]
    whole = rft.merged(parts, 2)
    assert (whole.loss, whole.entropy, whole.num_tokens) == (3.0, 4.0, 30)
    assert (whole.clip_fraction, whole.logprob_gap_max, whole.grad_norm) == (0.25, 0.0, 5.0)
    again = rft.merged([*parts, parts[1], parts[1]], 2)
    assert (again.loss, again.entropy, again.num_tokens) == (3.0, 4.0, 70)
    assert rft.merged(parts[:1], 1) is parts[0]
