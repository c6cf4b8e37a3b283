"""Learning rates of steps by hand, and the settings that are refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from rftkit.errors import RequestError
from rftkit.graders import Grade
from rftkit.rows import Row
from rftkit.server.engine.tinker.remote import refuse
from rftkit.server.engine.values import Completion
from rftkit.server.store.records import Job
from rftkit.server.training.plan import EngineFacts, Plan, base_rate
from rftkit.server.training.rft_plan import make_plan
from rftkit.server.training.rollout import Group, Rollout
from rftkit.server.training.schedule import entropy_of, guarded_rate, learning_rate


def plan(thinking: str | None = None, engine: str = "torch", **metadata: str) -> Plan:
    given = {"batch_size": 1, "n_epochs": 1, "learning_rate_multiplier": 1.0}
    job = Job(
        id="j", created_at=0, model="m", seed=1, training_file="f", validation_file="f",
        metadata=metadata,
        method={"reinforcement": {"hyperparameters": given}},
    )  # fmt: skip
    return make_plan(job, 5, EngineFacts(kind=engine, thinking=thinking))


def shares(made: Plan) -> list[float]:
    return [learning_rate(made, step) / made.learning_rate for step in range(1, 6)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", "0", [1, 1, 1, 1, 1]),
        ("constant", "2", [1 / 3, 2 / 3, 1, 1, 1]),
        ("linear", "0", [1, 0.775, 0.55, 0.325, 0.1]),
        ("linear", "2", [1 / 3, 2 / 3, 1, 0.55, 0.1]),
        ("cosine", "2", [1 / 3, 2 / 3, 1, 0.55, 0.1]),
        ("cosine", "4", [0.2, 0.4, 0.6, 0.8, 1]),
        ("linear", "9", [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_rates_by_hand(schedule: str, warmup: str, expected: list[float]) -> None:
    assert shares(plan(schedule=schedule, warmup_steps=warmup)) == pytest.approx(expected)


def test_the_entropy_guard_slows_down_in_proportion() -> None:
    completion = Completion([1, 2], "x", [-0.1, -0.3], "stop")
    groups = [Group(Row({}, 1), [1], [Rollout(completion, Grade(1.0, "graded"))])]
    assert entropy_of(groups) == pytest.approx(0.2)
    guarded, free = plan(entropy_floor="0.8", schedule="constant", warmup_steps="0"), plan()
    assert guarded_rate(guarded, 1, groups) == pytest.approx(guarded.learning_rate / 4)
    assert guarded_rate(guarded, 1) == pytest.approx(guarded.learning_rate)  # nothing sampled
    assert guarded_rate(free, 5, groups) == guarded_rate(free, 5)


def test_a_plan_of_before_these_settings_does_what_it_did() -> None:
    new = {
        "advantage", "advantage_floor", "stratify", "guidance", "refill", "schedule",
        "warmup_steps", "updates_per_batch", "minibatch_size", "entropy_floor",
    }  # fmt: skip
    old = {name: value for name, value in plan().to_dict().items() if name not in new}
    opened = Plan(**json.loads(json.dumps(old)))
    assert shares(opened) == [1.0] * 5
    assert (opened.advantage, opened.stratify, opened.guidance) == ("mean", None, "none")
    assert (opened.refill, opened.updates_per_batch, opened.entropy_floor) == (0, 1, 0.0)
    assert opened.minibatch_size == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("advantage", "gae", "one of mean, std, per_grader, maxrl"),
        ("advantage_floor", "0", "a number from 0.001 to 1"),
        ("guidance", "yes", "one of none, references"),
        ("schedule", "wsd", "one of constant, linear, cosine"),
        ("warmup_steps", "-1", "a number from 0"),
        ("updates_per_batch", "1.5", "a whole number"),
        ("minibatch_size", "0", "a number from 1"),
        ("refill", "many", "a number"),
        ("stratify", " ", "a key of the rows, auto or none"),
        ("clip_high", "-1", "a number from 0"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name: str, value: str, message: str) -> None:
    given: Any = {name: value}
    with pytest.raises(RequestError, match=message) as caught:
        plan(**given)
    assert caught.value.param == f"metadata.{name}"


def test_guidance_is_refused_where_it_cannot_be_and_off_there_by_default() -> None:
    with pytest.raises(RequestError, match="references have no reasoning"):
        plan("<think>", guidance="references")
    with pytest.raises(RequestError, match="did not sample"):
        plan(engine="tinker", guidance="references")
    with pytest.raises(RequestError, match="did not sample"):
        refuse({"guidance": "references"})
    refuse({"guidance": "none", "advantage": "per_grader", "schedule": "cosine"})
    assert plan("<think>").guidance == plan(engine="tinker").guidance == "none"
    assert dataclasses.replace(plan(guidance="references")).guidance == "references"


@pytest.mark.parametrize(
    ("width", "rate"), [(None, 1e-3), (64, 1e-3), (576, 1e-3), (1024, 6.38e-4), (4096, 2.16e-4)]
)
def test_the_base_rate_falls_with_the_width_of_the_model(width: int | None, rate: float) -> None:
    assert base_rate("lora", width) == pytest.approx(rate, rel=0.01)
    assert base_rate("full", width) == pytest.approx(rate / 10, rel=0.01)
