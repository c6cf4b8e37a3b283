"""Probes and what else this platform tells beyond the protocol, on the real platform."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import openai
import pytest
import sample_job
from conftest import GRADER, Served

from rftkit import datasets, jobs
from rftkit.errors import InputError
from rftkit.server.api.private import NOT_PLANNED

SETTINGS: dict[str, Any] = {"batch_size": 4, "learning_rate_multiplier": 5.0}


@pytest.fixture(scope="module")
def probed(platform: openai.OpenAI) -> Any:
    """A finished probe of tiny_copy."""
    data = datasets.bundled("tiny_copy")
    job = jobs.probe(
        platform,
        model="rftkit-tiny",
        training_file=datasets.upload(platform, data.train).id,
        validation_file=datasets.upload(platform, data.valid).id,
        grader=data.grader,
        hyperparameters=SETTINGS,
        metadata={"max_completion_tokens": "8"},
        seed=1,
    )
    return jobs.wait(platform, job.id, poll_seconds=0.1)


def test_a_probe_takes_two_steps_and_keeps_nothing(platform: openai.OpenAI, probed: Any) -> None:
    assert probed.status == "succeeded"
    assert probed.fine_tuned_model is None
    assert probed.eval_id is None
    frame = jobs.step_frame(jobs.events(platform, probed.id))
    assert frame["step"].tolist() == [0, 1, 2]
    assert jobs.checkpoints(platform, probed.id) == []
    assert probed.id not in {model.id for model in platform.models.list()}
    health: Any = platform.get(urljoin(str(platform.base_url), "/health"), cast_to=object)
    assert not (Path(health["home"]) / "jobs" / probed.id).exists()


def test_lists_leave_probes_out_unless_asked(platform: openai.OpenAI, probed: Any) -> None:
    assert probed.id not in {job.id for job in platform.fine_tuning.jobs.list(limit=100)}
    found = platform.fine_tuning.jobs.list(metadata=jobs.PROBE)
    assert probed.id in {job.id for job in found}


def test_the_estimate_adds_up(platform: openai.OpenAI, probed: Any) -> None:
    found = jobs.estimate(jobs.events(platform, probed.id))
    assert found.total_steps == found.hyperparameters["total_steps"] == 24
    assert found.num_validations == 5
    low, high = found.seconds
    assert 0 < low <= high
    assert found.host_memory_bytes > 50_000_000
    assert found.device_memory_bytes is None
    assert found.judge_tokens == {}
    assert found.cost(usd_per_hour=3600) == pytest.approx((low, high))


def test_a_plan_is_what_the_job_then_says(platform: openai.OpenAI, probed: Any) -> None:
    metadata = {"max_completion_tokens": "8"}
    planned = jobs.plan(platform, 256, SETTINGS, metadata)
    assert planned is not None
    said = jobs.estimate(jobs.events(platform, probed.id)).hyperparameters
    assert said["memory_bytes"] > 50_000_000
    assert planned["hyperparameters"] == {k: v for k, v in said.items() if k not in NOT_PLANNED} | {
        "stratify": "auto"
    }  # which key that is, only rows can say
    assert set(planned["reasons"]) >= {"batch_size", "n_epochs", "eval_interval"}


def test_an_impossible_plan_names_the_setting(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="batch_size"):
        jobs.plan(served.client, 10, {"batch_size": 0})


def test_only_a_finished_probe_gives_an_estimate() -> None:
    with pytest.raises(InputError, match="finished probe"):
        jobs.estimate([])


def test_judge_tokens_are_scaled_to_the_whole_job() -> None:
    def metric(step: int, **usage: int) -> dict[str, Any]:
        timing = {"step": {"eval": 2.0 if step == 0 else 0.0, "full_iteration": 3.0}}
        graders = [{"name": "judge", "model": "gpt", **usage}]
        return {"step": step, "timing": timing, "usage": {"graders": graders}}

    plan = {"total_steps": 10, "eval_interval": 4}
    data = [
        {"hyperparameters": plan, "rows": {"train": 40, "valid": 20}},
        metric(0, valid_prompt_tokens_count=100, valid_completion_tokens_count=10),
        metric(1, train_prompt_tokens_count=50, train_completion_tokens_count=5),
        metric(2, train_prompt_tokens_count=70, train_completion_tokens_count=7),
        {"probe": {"validated_rows": 4, "host_memory_bytes": 1, "device_memory_bytes": 2}},
    ]
    found = jobs.estimate([{"message": "", "created_at": 0, "data": each} for each in data])
    # four validations of 20 rows, of which 4 were seen; ten steps, of which 2 were seen
    assert found.num_validations == 4
    assert found.validation_seconds == 10
    assert found.judge_tokens == {"gpt": (100 * 5 * 4 + 120 * 5, 10 * 5 * 4 + 12 * 5)}
    assert found.cost(usd_per_million_prompt_tokens=1e6) == (2600, 2600)


def test_a_service_without_these_routes_is_never_sent_a_probe() -> None:
    with sample_job.serving() as url:
        client = openai.OpenAI(base_url=url, api_key="none")
        assert jobs.abilities(client) == frozenset()
        with pytest.raises(InputError, match="whole job"):
            jobs.probe(client, model="m", training_file="f", validation_file="f", grader=GRADER)
        assert jobs.rollouts(client, sample_job.JOB) is None


def test_rollouts_of_a_job_without_a_step(served: Served) -> None:
    job = served.create_job()
    found = jobs.rollouts(served.client, job.id)
    assert found is not None
    assert (found["step"], found["groups"]) == (None, [])
    assert jobs.rollouts(served.client, job.id, step=3) is None
    assert jobs.rollouts(served.client, "ftjob-none") is None


def test_rollouts_are_those_of_the_step(platform: openai.OpenAI) -> None:
    data = datasets.bundled("tiny_copy")
    job = jobs.create(
        platform,
        model="rftkit-tiny",
        training_file=datasets.upload(platform, data.train).id,
        validation_file=datasets.upload(platform, data.valid).id,
        grader=data.grader,
        hyperparameters={
            "batch_size": 64,
            "n_epochs": 1,
            "eval_interval": 4,
            "compute_multiplier": 1.0,
        },
        metadata={"max_completion_tokens": "8"},
        seed=1,
    )
    job = jobs.wait(platform, job.id, poll_seconds=0.1)
    newest, second = jobs.rollouts(platform, job.id), jobs.rollouts(platform, job.id, 2)
    assert newest is not None
    assert second is not None
    assert (newest["step"], newest["num_steps"], len(newest["groups"])) == (4, 4, 64)
    rows = {row.line: row.item for row in datasets.read(data.train)}
    rewards = []
    for group in second["groups"]:
        assert group["item"] == rows[group["line"]]
        assert len(group["rollouts"]) == 8
        rewards += [each["grade"]["reward"] for each in group["rollouts"]]
    frame = jobs.step_frame(jobs.events(platform, job.id)).set_index("step")
    assert sum(rewards) / len(rewards) == pytest.approx(frame["train_reward_mean"][2])
    json.dumps(second)


def test_the_platform_says_what_it_can_do(served: Served) -> None:
    abilities = {"imports", "plan", "probe", "rollouts", "tools", "weights"}
    assert jobs.abilities(served.client) == abilities
