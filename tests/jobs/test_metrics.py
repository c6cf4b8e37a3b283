"""Metric events to frames: every spelling, no invented zero."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sample_job
from hypothesis import given
from hypothesis import strategies as st

from rftkit import jobs
from rftkit.jobs.metrics import COLUMNS


def metric(step: int, **data: Any) -> jobs.Event:
    return {"type": "metrics", "data": {"step": step, "total_steps": 9, **data}}


def test_one_row_per_step_sorted() -> None:
    frame = jobs.step_frame(sample_job.events())
    assert list(frame["step"]) == list(range(sample_job.STEPS + 1))
    assert set(frame["total_steps"]) == {sample_job.STEPS}
    assert frame["train_reward_mean"].isna().sum() == 2  # step 0 and one without a grade
    assert list(frame.loc[frame["valid_reward_mean"].notna(), "step"]) == [0, 6, 18, 24]
    assert frame.loc[1, "sampling_seconds"] == 4.5
    assert frame.loc[9, "failed_grades"] == 2


@pytest.mark.parametrize(
    ("data", "column"),
    [
        ({"scores": {"train_reward_mean": 0.5}}, "train_reward_mean"),
        ({"train_reward_mean": 0.5}, "train_reward_mean"),
        ({"train_mean_reward": 0.5}, "train_reward_mean"),
        ({"scores": {"valid_reward_mean": 0.5}}, "valid_reward_mean"),
        ({"full_valid_mean_reward": 0.5}, "valid_reward_mean"),
        (
            {"scores": {"valid_reward_mean": None}, "full_valid_mean_reward": 0.5},
            "valid_reward_mean",
        ),
        (
            {"usage": {"samples": {"train_reasoning_tokens_mean": 0.5}}},
            "train_reasoning_tokens_mean",
        ),
        ({"reasoning_tokens_mean": 0.5}, "train_reasoning_tokens_mean"),
        ({"mean_unresponsive_rewards": 0.5}, "unresponsive_share"),
        ({"learning": {"kl": 0.5}}, "kl"),
    ],
)
def test_every_spelling_ends_in_one_column(data: dict[str, Any], column: str) -> None:
    frame = jobs.step_frame([metric(3, **data)])
    assert frame.loc[0, column] == 0.5
    assert frame[list(COLUMNS)].notna().to_numpy().sum() == 1


def test_a_repeated_step_counts_as_reported_last() -> None:
    events = [metric(1, train_mean_reward=0.1), metric(1, train_mean_reward=0.2)]
    assert list(jobs.step_frame(events)["train_reward_mean"]) == [0.2]


def test_without_metrics_the_frames_are_empty_with_their_columns() -> None:
    said: list[jobs.Event] = [
        {"type": "message", "data": None},
        {"type": "message", "data": {"other": 1}},
    ]
    for frame in (jobs.step_frame, jobs.grader_frame, jobs.error_frame, jobs.timing_frame):
        made = frame(said)
        assert len(made) == 0
        assert "step" in made.columns


@given(st.randoms(use_true_random=False))
def test_order_of_events_of_different_steps_does_not_matter(shuffler: random.Random) -> None:
    events = sample_job.events()
    expected = jobs.step_frame(events)
    shuffler.shuffle(events)
    assert jobs.step_frame(events).equals(expected)


def test_graders_have_a_row_per_step() -> None:
    latency = {"name": "a", "type": "python", "train_execution_latency_mean": 0.02}
    score = {"name": "a", "type": "python", "train_reward_mean": 0.5}
    frame = jobs.grader_frame(
        [metric(1, scores={"graders": [score]}, timing={"graders": [latency]})]
    )
    [row] = frame.to_dict("records")
    assert (row["grader"], row["type"], row["train_reward_mean"]) == ("a", "python", 0.5)
    assert row["train_execution_latency_mean"] == 0.02
    assert row["valid_reward_mean"] != row["valid_reward_mean"]  # not measured


def test_errors_are_tidy() -> None:
    frame = jobs.error_frame(sample_job.events())
    assert set(frame["error"]) == {"python_grader_runtime_error"}
    [worst] = frame[frame["count"] > 0].to_dict("records")
    assert (worst["step"], worst["split"], worst["rate"], worst["count"]) == (9, "train", 0.03, 2)


def test_timing_adds_up() -> None:
    frame = jobs.timing_frame(sample_job.events())
    parts = frame[["sampling", "training", "eval", "overhead"]].sum(axis=1)
    assert parts.to_numpy() == pytest.approx(frame["full_iteration"].to_numpy())


def test_the_result_file_gives_the_same_frames() -> None:
    text = (
        "step,train_mean_reward,full_valid_mean_reward,sampling_duration,learning/kl,"
        "scores/graders/python/a/b/train_reward_mean,"
        "errors/graders/python/a/b/errors/train_other_error_count\n"
        "0,,0.25,,,,\n"
        "1,0.5,,2.5,0.01,0.75,3\n"
    )
    events = jobs.events_from_csv(text)
    frame = jobs.step_frame(events)
    assert list(frame["step"]) == [0, 1]
    assert frame["valid_reward_mean"].notna().tolist() == [True, False]
    assert frame.loc[1, "sampling_seconds"] == 2.5
    assert frame.loc[1, "kl"] == 0.01
    [grader] = jobs.grader_frame(events).to_dict("records")
    assert (grader["grader"], grader["train_reward_mean"]) == ("a/b", 0.75)
    [error] = jobs.error_frame(events).to_dict("records")
    assert (error["grader"], error["error"], error["count"]) == ("a/b", "other_error", 3)
