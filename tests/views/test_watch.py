"""Where a job stands and what it tried, as markup: words for every state, nothing hidden."""

from __future__ import annotations

from typing import Any

import pytest
import sample_job
from sample_job import PROBE, events

from rftkit import views
from rftkit.jobs import step_frame
from rftkit.jobs.estimate import Estimate
from rftkit.jobs.estimate import estimate as estimate_of
from rftkit.views import launch

STEPS = step_frame(events()).to_dict("records")


def job_status(status: str = "running", **options: Any) -> str:
    changes = {"status": status, "finished_at": None, "estimated_finish": sample_job.CREATED + 90}
    return views.job_status(sample_job.job(**changes), STEPS, **options)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("validating_files", "… checking the files"),
        ("queued", "… waiting for the worker"),
        ("running", "▶ running"),
        ("paused", "‖ paused"),
        ("succeeded", "✓ succeeded"),
        ("failed", "✗ failed"),
        ("brand_new", "brand_new"),
    ],
)
def test_every_status_has_words(status: str, words: str) -> None:
    assert words in job_status(status)


def test_it_says_step_time_and_rewards() -> None:
    html = job_status(polled_at=sample_job.CREATED + 60)
    assert '<progress max="24" value="24" aria-label="steps">' in html
    assert "1:00 since creation" in html
    assert "about 30 s left" in html
    assert "Validation, step 24" in html
    assert "+0.49, from 0.30 at step 0" in html
    assert "Failed grades" in html
    assert "As of 2026-09-21" in html


def test_it_says_how_old_it_is() -> None:
    assert "rk-expires" not in job_status()
    expiring = job_status(expires_after=10.0)
    assert "animation-delay: 10s" in expiring
    assert "No update for 10 seconds" in expiring
    stale = job_status(stale=f"no answer {PROBE}", expires_after=10.0)
    assert "rk-expires" not in stale
    assert "<script>" not in stale
    assert "Older steps are still loading" in job_status(unread=True)


def test_an_error_is_shown_and_escaped() -> None:
    html = job_status("failed", error=PROBE)
    assert "<img" not in html
    assert "&lt;img src=x" in html


def test_a_job_without_a_step() -> None:
    html = views.job_status(sample_job.job(status="queued", finished_at=None), [])
    assert "waiting for the worker" in html
    assert "<progress" not in html


def group(line: int, *rewards: float | None, item: dict[str, Any] | None = None) -> dict[str, Any]:
    def rollout(index: int, reward: float | None) -> dict[str, Any]:
        outcome = "failed" if reward is None else "graded"
        grade = {"reward": reward, "outcome": outcome, "sub_rewards": {}, "errors": {}}
        stop = "length" if index == 0 else "stop"
        return {"text": f"said {index} {PROBE}", "stop_reason": stop, "tokens": 3, "grade": grade}

    return {
        "line": line,
        "item": item,
        "rollouts": [rollout(index, reward) for index, reward in enumerate(rewards)],
    }


def test_rollouts_come_best_first_with_their_advantage() -> None:
    item = {"messages": [{"role": "user", "content": "Which colour?"}], "answer": "red"}
    found = {"step": 3, "groups": [group(1, 0.25, 0.75, None, item=item), group(2, 0.5, 0.5)]}
    html = views.rollouts(found)
    assert "Step 3: 5 completions in 2 groups; in 1 all rewards are equal, so that" in html
    assert "! 1 failed; spread 0.50" in html
    assert "= flat, no signal" in html
    assert "reference answer to learn from" not in html
    first = html.index("reward 0.75 (+0.25)")
    assert first < html.index("reward 0.25 (−0.25)") < html.index("not graded")
    assert "3 tokens, cut off" in html
    assert "(file deleted)" in html
    assert "<script>document" not in html


def test_a_flat_group_with_a_reference_answer_is_not_without_signal() -> None:
    guided = group(1, 0.0, 0.0) | {"guided": group(1, 1.0)["rollouts"]}
    shown = views.rollouts({"step": 3, "groups": [guided]})
    assert shown.plain.endswith("and 1 of these has a reference answer to learn from.")
    assert "= flat, guided by its reference" in shown
    assert "= flat, no signal" not in shown
    assert (
        shown.index("mean 0.00") < shown.index("Its reference answer") < shown.index("reward 1.00")
    )


def test_rollouts_that_are_not_there() -> None:
    assert "does not return training completions" in views.rollouts(None)
    assert "No training step is complete yet" in views.rollouts({"step": None, "groups": []})


def test_a_long_estimate_is_read_at_a_glance() -> None:
    estimate = Estimate(
        total_steps=100,
        num_validations=5,
        ready_seconds=10.0,
        step_seconds=(30.0, 36.0),
        validation_seconds=60.0,
        host_memory_bytes=3 * 2**30,
        device_memory_bytes=20 * 2**30,
        judge_tokens={"gpt-x": (1_000_000.0, 50_000.0)},
        hyperparameters={},
    )
    html = launch.estimated(estimate, estimate.cost(3.0, 2.0, 8.0))
    for words in ("55:00 to 1:05:00", "3.0 GiB", "20.0 GiB", "1,000,000 in, 50,000 out"):
        assert words in html
    assert "$5.15 to $5.65" in html


def test_an_estimate_counts_calls_turns_and_waiting() -> None:
    base = {"scores": {}, "timing": {"step": {"full_iteration": 4.0, "eval": 2.0}}}
    line = {"name": "search", "valid_calls_per_rollout_mean": 2.0}
    baseline = {**base, "step": 0, "tools": [line]}
    steps = [
        {
            **base, "step": step, "completion_tokens_mean": 40.0, "learning": {"turns_mean": 2.5},
            "timing": {"step": {"full_iteration": 10.0, "waiting": float(step)}},
            "tools": [{"name": "search", "train_calls_per_rollout_mean": 1.5,
                       "train_latency_median": 0.2}],
        }
        for step in (1, 2)
    ]  # fmt: skip
    settings = {
        "total_steps": 10, "eval_interval": 5, "batch_size": 4, "completions_per_prompt": 8,
        "eval_samples": 1,
    }  # fmt: skip
    probe = {"validated_rows": 4, "host_memory_bytes": 1, "device_memory_bytes": None}
    data = [{"hyperparameters": settings, "rows": {"valid": 20}}, baseline, *steps]
    data.append({"probe": probe})
    found = estimate_of([{"data": each, "created_at": 0, "message": ""} for each in data])
    assert found.episodes is not None
    assert found.episodes.calls["search"].num == 10 * 4 * 8 * 1.5 + 3 * 20 * 2
    assert found.episodes.waiting_seconds == (1.0, 2.0)
    text = launch.estimated(found)
    for words in ("600, 0.20 s each", "2.5 turns, 40 tokens", "1.00 to 2.00 s"):
        assert words in text


def test_settings_say_what_auto_means() -> None:
    plan = {
        "hyperparameters": {"batch_size": 8, "total_steps": 24, "eval_interval": 6},
        "reasons": {"batch_size": "8 prompts a step", "eval_interval": "a quarter"},
        "ignored": {},
    }
    html = launch.settings({"batch_size": 8}, plan)
    assert "24 steps, a validation every 6" in html
    assert "a quarter" in html
    assert "does not report what `auto` means" in launch.settings({}, None)


def test_a_rollout_of_several_turns_shows_what_was_called_and_what_came_back() -> None:
    shown = group(1, 0.25, 0.75, item={"messages": [{"role": "user", "content": "Which?"}]})
    calls = [
        {"id": "c1", "name": "look", "arguments": "{}", "text": PROBE, "kind": "error",
         "seconds": 0.25},
        {"id": "c2", "name": "look", "arguments": "{}", "text": "down", "kind": "failed",
         "seconds": 1.5},
    ]  # fmt: skip
    function = {"name": "look", "arguments": '{"at": 1}'}
    shown["rollouts"][1] |= {
        "turns": 2,
        "calls": calls,
        "failure": "the tool 'look' failed: down",
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
            {"role": "tool", "tool_call_id": "c1", "content": PROBE},
        ],
    }
    html = views.rollouts({"step": 3, "groups": [shown]})
    assert "2 turns, 2 calls, 1 error, slowest call 1.50 s" in html
    assert "! the tool look failed: down" in html
    assert "look({&quot;at&quot;: 1})" in html or "look({&#34;at&#34;: 1})" in html
    assert "<script>document" not in html
