"""Whole jobs on `rftkit-tiny` through the official client: they learn, repeat, stop and survive."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from rftkit import jobs
from rftkit.client import connect, stop_server

TERMINAL = ("succeeded", "failed", "cancelled", "paused")
TINY: dict[str, Any] = {"batch_size": 16, "eval_interval": 6, "eval_samples": 4}
COPY = Path(__file__).parents[3] / "datasets" / "tiny_copy"


def create(client: openai.OpenAI, rows: bytes | None = None, **options: Any) -> Any:
    """A job on tiny_copy of twelve steps."""
    train = rows or (COPY / "train.jsonl").read_bytes()
    files = [
        client.files.create(file=(name, content), purpose="fine-tune").id
        for name, content in (
            ("train.jsonl", train),
            ("valid.jsonl", (COPY / "valid.jsonl").read_bytes()),
        )
    ]
    seed, model = options.pop("seed", 1), options.pop("model", "rftkit-tiny")
    metadata = {"max_completion_tokens": "8", **options.pop("metadata", {})}
    method = {
        "grader": json.loads((COPY / "grader.json").read_text()),
        "hyperparameters": {**TINY, "n_epochs": 1, "learning_rate_multiplier": 5, **options},
    }
    return client.fine_tuning.jobs.create(
        model=model,
        training_file=files[0],
        validation_file=files[1],
        seed=seed,
        method={"type": "reinforcement", "reinforcement": method},  # type: ignore[typeddict-item]
        metadata=metadata,
    )


def until(client: openai.OpenAI, job_id: str, is_there: Callable[[Any], bool]) -> Any:
    """The job, once something is so."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if is_there(job):
            return job
        time.sleep(0.05)
    raise AssertionError(f"{job_id} is still {job.status}")


def ended(job: Any) -> bool:
    return job.status in TERMINAL


def steps_done(client: openai.OpenAI, job_id: str) -> int:
    return max((event["data"]["step"] for event in metric_events(client, job_id)), default=-1)


def metric_events(client: openai.OpenAI, job_id: str) -> list[Any]:
    events = jobs.events(client, job_id)
    return [event for event in events if event["type"] == "metrics"]


def validation(client: openai.OpenAI, job_id: str) -> dict[int, float]:
    """Step → validation reward."""
    return {
        event["data"]["step"]: event["data"]["scores"]["valid_reward_mean"]
        for event in metric_events(client, job_id)
        if "valid_reward_mean" in event["data"]["scores"]
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_validation_reward_rises(platform: openai.OpenAI, seed: int) -> None:
    job = until(platform, create(platform, seed=seed).id, ended)
    assert job.status == "succeeded", job.error
    rewards = validation(platform, job.id)
    assert sorted(rewards) == [0, 6, 12, 16]
    assert rewards[16] > rewards[0] + 0.10

    checkpoints = platform.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [each.step_number for each in checkpoints] == [16, 12, 6]
    assert checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-12"
    names = {model.id for model in platform.models.list()}
    assert {each.fine_tuned_model_checkpoint for each in checkpoints} <= names

    answer = platform.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "copy: abc"}],
        temperature=0,
        max_completion_tokens=8,
    )
    assert answer.choices[0].message.content == "abc"

    [result] = job.result_files
    lines = platform.files.content(result).text.splitlines()
    assert lines[0].startswith("step,train_mean_reward,full_valid_mean_reward")
    assert len(lines) == 1 + 17

    runs = platform.evals.runs.list(job.eval_id, order="asc").data
    assert [run.name for run in runs] == ["Step 0", "Step 6", "Step 12", "Step 16"]


def test_rewards_shuffled_across_rows_teach_nothing(platform: openai.OpenAI) -> None:
    rows = [json.loads(line) for line in (COPY / "train.jsonl").read_text().splitlines()]
    answers = [row["answer"] for row in rows]
    random.Random(5).shuffle(answers)
    shuffled = b"".join(
        json.dumps({**row, "answer": answer}).encode() + b"\n"
        for row, answer in zip(rows, answers, strict=True)
    )
    job = until(platform, create(platform, shuffled).id, ended)
    rewards = validation(platform, job.id)
    assert rewards[16] < rewards[0] + 0.02


def test_the_same_seed_gives_the_same_run(platform: openai.OpenAI) -> None:
    def curve() -> list[Any]:
        job = until(platform, create(platform, seed=11, n_epochs=1).id, ended)
        return [
            (event["data"]["scores"], event["data"].get("completion_tokens_mean"))
            for event in metric_events(platform, job.id)
        ]

    assert curve() == curve()


def test_the_first_event_states_what_auto_became(platform: openai.OpenAI) -> None:
    job = create(platform, learning_rate_multiplier="auto", reasoning_effort="high")
    until(platform, job.id, lambda job: steps_done(platform, job.id) >= 0)
    [started] = [e for e in jobs.events(platform, job.id) if "started" in e["message"]]
    resolved = started["data"]["hyperparameters"]
    assert resolved["guidance"] == "references"  # the rows say what is right
    assert resolved["learning_rate"] == pytest.approx(2e-3)  # updates of 8 prompts
    assert resolved["completions_per_prompt"] == 64 / 16
    assert "reasoning_effort has no effect" in started["message"]
    assert started["data"]["multipliers"]["compute_multiplier"] == 4 / 8
    assert started["data"]["multipliers"]["learning_rate_multiplier"] > 0
    platform.fine_tuning.jobs.cancel(job.id)


def test_cancel_stops_and_the_next_job_runs(platform: openai.OpenAI) -> None:
    long = create(platform, n_epochs=50)
    until(platform, long.id, lambda job: steps_done(platform, job.id) >= 1)
    assert platform.fine_tuning.jobs.cancel(long.id).status == "cancelled"
    after = until(platform, create(platform).id, ended)
    assert after.status == "succeeded"
    assert steps_done(platform, long.id) < 700


def test_pause_keeps_a_model_and_resume_ends_where_a_straight_run_ends(
    platform: openai.OpenAI,
) -> None:
    straight = until(platform, create(platform, seed=21).id, ended)
    job = create(platform, seed=21)
    until(platform, job.id, lambda job: steps_done(platform, job.id) >= 3)
    platform.fine_tuning.jobs.pause(job.id)
    paused = until(platform, job.id, lambda job: job.status in ("paused", "succeeded"))
    assert paused.status == "paused"
    step = steps_done(platform, job.id)
    assert any(f"ckpt-step-{step}" in model.id for model in platform.models.list())
    platform.fine_tuning.jobs.resume(job.id)
    resumed = until(platform, job.id, lambda job: job.status in ("succeeded", "failed"))
    assert resumed.status == "succeeded", resumed.error
    assert validation(platform, job.id) == validation(platform, straight.id)


def adapter_bytes(home: Path, job_id: str) -> bytes:
    return (home / "jobs" / job_id / "checkpoints/step-16/adapter_model.safetensors").read_bytes()


def worker_pid(home: Path) -> int:
    server = json.loads((home / "server.json").read_text())["pid"]
    for child in psutil.Process(server).children():
        if "rftkit.server.worker" in child.cmdline():
            return child.pid
    raise AssertionError("no worker")


def test_a_killed_worker_loses_nothing(
    home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chance = random.Random(0)
    with connect() as client:
        try:
            straight = until(client, create(client, seed=31).id, ended)
            job = create(client, seed=31)
            for _ in range(3):
                goal = steps_done(client, job.id) + chance.randint(1, 4)
                until(
                    client,
                    job.id,
                    lambda job, goal=goal: steps_done(client, job.id) >= min(goal, 14),  # type: ignore[misc]
                )
                time.sleep(chance.random() * 0.3)
                os.kill(worker_pid(home), signal.SIGKILL)
                time.sleep(0.5)
            survived = until(client, job.id, ended)
            assert survived.status == "succeeded", survived.error
            assert adapter_bytes(home, survived.id) == adapter_bytes(home, straight.id)
            assert validation(client, survived.id) == validation(client, straight.id)
            steps = [event["data"]["step"] for event in metric_events(client, survived.id)]
            assert steps == list(range(17))
        finally:
            stop_server(home)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (b'{"messages": [{"role": "user", "content": "a"}], "answer": "a"}\n{"oops": \n',
         "train.jsonl:2: not valid JSON"),
        (b'{"answer": "a"}\n', "train.jsonl:1: the row has no `messages`"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}\n',
         "train.jsonl:1: the last message must be the user's"),
        (b'{"messages": [{"role": "user", "content": "a"}], "reply": "a"}\n',
         "train.jsonl:1: "),
        (b"\n", "train.jsonl has no rows"),
    ],
)  # fmt: skip
def test_a_bad_row_fails_the_job_with_file_and_line(
    platform: openai.OpenAI, train: bytes, said: str
) -> None:
    job = until(platform, create(platform, train).id, ended)
    assert job.status == "failed"
    assert job.error.param == "training_file"
    assert job.error.message.startswith(said)
    assert not platform.fine_tuning.jobs.checkpoints.list(job.id).data
