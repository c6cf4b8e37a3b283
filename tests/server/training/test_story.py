"""The training story over a toy engine of a few lines: what a kill repeats, what is kept, counted.

The engine's policy is one number that each update changes; a kill is an exception that nothing
catches, thrown at every place where something is written, one place after the other.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rftkit.graders import compile_grader
from rftkit.rows import Row
from rftkit.server.engine.base import Completion, NotFiniteError, StepStats
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training import journal as journal_module
from rftkit.server.training import rft
from rftkit.server.training.eval_records import make_job_eval
from rftkit.server.training.journal import Journal
from rftkit.server.training.plan import make_plan

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
    eos_ids: frozenset[int] = frozenset({9})
    context_tokens = 100
    facts: dict[str, Any] = {}

    def __init__(self) -> None:
        self.policy, self.samples = 0, 0

    def encode(self, messages: Any, tools: Any = None, thinking: str | None = None) -> list[int]:
        return [int(messages[-1]["content"])]

    def sample(
        self, requests: Sequence[Any], adapter: Any = "policy", *, on_completion: Any, **_: Any
    ) -> Any:
        self.samples += 1

        def said(key: tuple[int, ...]) -> Completion:
            bit = (sum(key) + self.policy) % 2
            return Completion([bit, 9], str(bit), [-0.5, 0.0], "stop")

        answers = [[said(key) for key in request.seeds] for request in requests]
        for i, group in enumerate(answers):
            for index, completion in enumerate(group):
                on_completion(i, index, completion)
        return answers

    def train_step(self, groups: Any, settings: Any, **_: Any) -> StepStats:
        tokens = [t for group in groups for row in group.tokens_G_T for t in row]
        rewards = [a > 0 for group in groups for a in group.advantages_G]
        self.policy = (self.policy * 31 + len(tokens) + sum(rewards)) % 1_000_003
        return StepStats(0.0, 1.0, 0.0, 0.5, None, 0.0, 0.0, len(tokens))

    def start_policy(self, config: Any, seed: int, adapter: Any = None) -> None:
        self.policy = seed

    def save(self, folder: Path) -> None:
        self.save_adapter(folder)

    def save_adapter(self, folder: Path) -> None:
        (folder / "policy.json").write_text(json.dumps(self.policy))

    def load(self, folder: Path) -> None:
        self.policy = json.loads((folder / "policy.json").read_text())


class World:
    """What outlives a kill, and the counts."""

    def __init__(self, home: Path) -> None:
        self.home, self.store, self.engine = home, Store.open(home), Toy()
        self.grades = self.jobs = 0

    def add_job(self, **metadata: str) -> Job:
        """A job of six steps, a validation every second one."""
        given = {"batch_size": 4, "n_epochs": 3, "eval_interval": 2, "compute_multiplier": 0.5}
        self.jobs += 1
        job = self.store.add_job(
            Job(
                id=f"ftjob-{self.jobs:04d}", created_at=0, status="running",
                model="toy", seed=7, training_file="f", validation_file="f", metadata=metadata,
                method={"reinforcement": {"grader": GRADER, "hyperparameters": given}},
            )
        )  # fmt: skip
        return self.store.update_job(job.id, eval_id=make_job_eval(self.store, job).id)

    def train(self, job: Job) -> Job:
        """What a worker does with it, once."""
        with compile_grader(GRADER) as grader:
            real = grader.grade

            def counted(sample: Any, item: Any) -> Any:
                self.grades += 1
                return real(sample, item)

            grader.grade = counted  # type: ignore[method-assign]
            run = rft.Run(
                job=job, plan=make_plan(job, len(ROWS)), store=self.store, engine=self.engine,
                grader=grader, journal=Journal(self.home / "jobs" / job.id), rows=ROWS,
                valid_rows=ROWS[:4], model_base="toy",
            )  # fmt: skip
            with contextlib.suppress(rft.Stopped):
                rft.train(run)
        return self.store.job(job.id)

    def final(self, job: Job) -> str:
        """The policy it ended with."""
        return (self.home / "jobs" / job.id / "checkpoints/step-6/policy.json").read_text()

    def counts(self) -> tuple[int, int]:
        """Samplings and grades since the last look."""
        found = self.engine.samples, self.grades
        self.engine.samples = self.grades = 0
        return found


@pytest.fixture
def world(home: Path) -> Any:
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


def arm(patch: pytest.MonkeyPatch, bomb: Bomb) -> None:
    """Let every durable write of job and store count down."""

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
        (Journal, "add_grade"), (Store, "add_event"), (Store, "add_checkpoint"),
        (Store, "update_job"), (Store, "add_model"), (Store, "add_file"), (Store, "add_items"),
    ):  # fmt: skip
        patch.setattr(owner, name, around(getattr(owner, name)))


def test_a_kill_at_any_write_repeats_at_most_what_was_under_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = world.train(world.add_job())
    assert calm.status == "succeeded", calm.error
    samples, grades = world.counts()
    assert (samples, grades) == (6 + 4, 6 * 16 + 4 * 4)
    place = 1
    while True:
        job = world.add_job()
        with monkeypatch.context() as patch:
            arm(patch, Bomb(place))
            try:
                world.train(job)
            except Killed:
                pass
            else:
                break  # that many things are not written
        done = world.train(world.store.job(job.id))
        assert done.status == "succeeded", (place, done.error)
        assert world.final(done) == world.final(calm)
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
