"""Jobs from the client's side, against the real application with its store moved by hand."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import GRADER, Served
from openai.types.fine_tuning import FineTuningJob

from rftkit import jobs
from rftkit.errors import JobFailedError


def test_create_sends_plain_dicts(served: Served) -> None:
    multi = {"type": "multi", "graders": {"a": GRADER}, "calculate_output": "2 * a"}
    answer_format = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object"}},
    }
    file_id = served.upload()
    job = jobs.create(
        served.client,
        model="rftkit-tiny",
        training_file=file_id,
        validation_file=file_id,
        grader=multi,
        response_format=answer_format,
        hyperparameters={"batch_size": 2},
        suffix="mine",
        seed=3,
        metadata={"team": "blue"},
    )
    method = served.platform.store.job(job.id).method["reinforcement"]
    assert method["grader"]["graders"]["a"]["type"] == "string_check"
    assert method["response_format"] == answer_format
    assert method["hyperparameters"]["batch_size"] == 2
    assert (job.seed, job.metadata) == (3, {"team": "blue"})


def test_wait_follows_to_the_end_and_shows_every_event_once(served: Served) -> None:
    job, store = served.create_job(), served.platform.store
    heard: list[str] = []
    script = iter(
        [
            lambda: store.update_job(job.id, status="running"),
            lambda: [store.add_event(job.id, f"event {number}") for number in range(250)],
            lambda: None,
            lambda: store.update_job(job.id, status="succeeded", fine_tuned_model="ft:x"),
        ]
    )

    def on_update(update: jobs.Update) -> None:
        heard.extend(event["message"] for event in update.events)
        next(script, lambda: None)()

    done = jobs.wait(served.client, job.id, on_update, poll_seconds=0)
    assert done.fine_tuned_model == "ft:x"
    assert heard[1:] == [f"event {number}" for number in range(250)]
    assert [event["message"] for event in jobs.events(served.client, job.id)] == heard


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("failed", {"code": "bad", "message": "no rows", "param": "training_file"}, "no rows"),
        ("failed", {}, "no reason given"),
        ("cancelled", None, "was cancelled"),
    ],
)
def test_wait_raises_when_there_is_no_model(
    served: Served, status: str, error: Any, expected: str
) -> None:
    job = served.create_job()
    served.platform.store.update_job(job.id, status=status, error=error)
    with pytest.raises(JobFailedError, match=expected):
        jobs.wait(served.client, job.id, poll_seconds=0)


def test_wait_comes_back_when_a_job_is_paused(served: Served) -> None:
    job = served.create_job()
    served.platform.store.update_job(job.id, status="paused")
    assert str(jobs.wait(served.client, job.id, poll_seconds=0).status) == "paused"


def test_an_unknown_status_is_not_an_end(served: Served) -> None:
    job, store = served.create_job(), served.platform.store
    statuses = iter(["pausing", "pending_review", "succeeded"])
    seen: list[str] = []

    def on_update(update: jobs.Update) -> None:
        seen.append(update.job.status)
        store.update_job(job.id, status=next(statuses))

    store.update_job(job.id, status="running")
    with pytest.raises(StopIteration):
        jobs.wait(served.client, job.id, on_update, poll_seconds=0)
    assert seen == ["running", "pausing", "pending_review", "succeeded"]


def test_an_empty_error_is_none() -> None:
    job = FineTuningJob.construct(id="ftjob-1", error={})
    assert jobs.error_of(job) is None


def test_checkpoints_and_the_best(served: Served) -> None:
    job, store = served.create_job(), served.platform.store
    for step, reward in ((8, 0.5), (16, 0.7), (24, 0.7), (30, None)):
        metrics = {"full_valid_mean_reward": reward, "train_reward_mean": 0.4}
        store.add_checkpoint(job.id, step, f"ft:x:ckpt-step-{step}", metrics, "")
    kept = jobs.checkpoints(served.client, job.id)
    assert [each.step for each in kept] == [8, 16, 24, 30]
    assert kept[0].train_reward_mean == 0.4
    best = jobs.best(kept)
    assert best is not None
    assert (best.step, best.model) == (16, "ft:x:ckpt-step-16")


def test_no_measured_checkpoint_is_best() -> None:
    assert jobs.best([]) is None
    assert jobs.best([jobs.Checkpoint(1, "m", 0.9, None, "c")]) is None
