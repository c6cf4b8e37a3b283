"""A job that is paid for the wrong thing: it pauses for its alarm, says why, and goes on."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from in_process import ROWS
from typer.testing import CliRunner

from rftkit import client as rftkit_client
from rftkit import jobs
from rftkit.cli import app as cli
from rftkit.diagnosis import story_of
from rftkit.widgets import JobMonitor

LONG = {
    "type": "python",
    "name": "long",
    "source": "def grade(sample, item):\n    return min(1.0, len(sample['output_text']) / 8)",
}
"""What the job is paid for: length."""
SHORT = {**LONG, "name": "short", "source": LONG["source"].replace("return", "return 1 -")}
"""What it should be: the second grader, which training never sees."""


def test_a_planted_hack_pauses_the_job_and_resume_goes_on(
    platform: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "\n".join(map(json.dumps, ROWS)).encode()
    file = platform.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
    job = jobs.create(
        platform,
        model="rftkit-tiny",
        training_file=file,
        validation_file=file,
        grader=LONG,
        held_out=SHORT,
        hyperparameters={
            "batch_size": 4, "n_epochs": 20, "eval_interval": 10, "learning_rate_multiplier": 3,
        },
        metadata={
            "max_completion_tokens": "8", "guidance": "none", "on_alarm": "pause",
            "alarm_rate": "0.5", "warmup_steps": "20", "schedule": "constant",
        },
        seed=1,
    )  # fmt: skip
    paused = jobs.wait(platform, job.id, poll_seconds=0.2)
    assert paused.status == "paused"
    raised, pause = alarms_of(platform, job.id)
    step = raised["data"]["alarm"]["step"]
    assert (raised["level"], pause["level"]) == ("warn", "error")
    assert raised["data"]["alarm"]["name"] == "held_out"
    assert "no longer follows the reward" in raised["message"]
    assert pause["message"].startswith("The job pauses, as metadata `on_alarm` asks: The held-out")
    assert f"rftkit job create --from {job.id}@STEP" in pause["message"]
    assert max(steps_of(platform, job.id)) == step, "at the step that raised it"
    monkeypatch.setattr(rftkit_client, "connect", lambda *_: platform)
    shown = CliRunner().invoke(cli.app, ["job", "show", job.id])
    assert "as metadata `on_alarm` asks" in " ".join(shown.output.split())
    panel = JobMonitor(job.id, client=platform)
    assert f"raised at step {step}" in panel.to_html()
    panel.close()

    platform.fine_tuning.jobs.resume(job.id)
    ended = jobs.wait(platform, job.id, poll_seconds=0.2)
    assert ended.status == "succeeded", "it does not pause again for the same alarm"
    again = [
        each
        for each in alarms_of(platform, job.id)
        if each["data"]["alarm"] == pause["data"]["alarm"]
    ]
    assert [each["id"] for each in again] == [raised["id"], pause["id"]]
    assert steps_of(platform, job.id) == list(range(41))
    [status] = [
        each
        for each in story_of(jobs.events(platform, job.id)).alarms.statuses
        if each.kind.name == "held_out"
    ]
    assert status.raised_at == step


def alarms_of(client: openai.OpenAI, job_id: str) -> list[Any]:
    """The events about alarms, oldest first."""
    return [e for e in jobs.events(client, job_id) if (e.get("data") or {}).get("alarm")]


def steps_of(client: openai.OpenAI, job_id: str) -> list[int]:
    """The steps of metric events, in their order."""
    return [e["data"]["step"] for e in jobs.events(client, job_id) if e["type"] == "metrics"]
