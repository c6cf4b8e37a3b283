"""What a terminal shows of a job."""

from __future__ import annotations

import io
from typing import Any

import pytest
import sample_job
from openai.types.fine_tuning import FineTuningJob

from rftkit import jobs
from rftkit.jobs.progress import duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def update(*events: jobs.Event, status: str = "running", **job: Any) -> jobs.Update:
    wire = sample_job.job(status=status, **job)
    return jobs.Update(FineTuningJob.construct(**wire), list(events))


def story() -> list[jobs.Update]:
    said, warning, *metrics, last = sample_job.events()
    done = update(last, status="succeeded")
    return [update(said, status="queued"), update(warning), *map(update, metrics), done]


def shown(stream: io.StringIO, updates: list[jobs.Update]) -> str:
    progress = jobs.Progress(stream)
    for each in updates:
        progress(each)
    return stream.getvalue()


def test_one_plain_line_per_step_where_nothing_is_live() -> None:
    lines = shown(io.StringIO(), story()).splitlines()
    assert lines[0] == "waiting for the worker"
    assert lines[1].startswith("warn: reasoning_effort")
    steps = [line for line in lines if line.startswith("step")]
    assert len(steps) == sample_job.STEPS + 1
    assert steps[0] == "step  0/24 · valid 0.300"
    assert steps[7] == (
        "step  7/24 · 2:41 left · train 0.616 · valid 0.300 → 0.583 · 418 tok/s · no signal 24%"
    )
    assert "left" not in steps[-1]
    assert lines[-1] == f"{sample_job.JOB} succeeded: ft:smollm2-135m-instruct:local:review:sample"


def test_what_comes_before_the_first_step_is_told_where_nothing_is_live() -> None:
    """Minutes, on a slow processor: the model is loaded, compared and validated."""

    def said(message: str) -> jobs.Event:
        return {"id": message, "level": "info", "type": "message", "message": message}

    settings = "Fine-tuning job started: " + ", ".join(f"setting_{i}={i}" for i in range(40))
    validating = "Validating smollm2-135m-instruct on 60 rows before training"
    story = [update(), update(said(settings)), update(said(validating))]
    first, second, third = shown(io.StringIO(), story).splitlines()
    assert first == "loading the model"
    assert second.startswith("Fine-tuning job started: setting_0=0, ")
    assert second.endswith(" …")
    assert len(second) <= 120
    assert third == validating


def test_a_terminal_keeps_validations_only() -> None:
    text = shown(Terminal(), story())
    kept = [line.rpartition("\x1b[K")[2] for line in text.split("\n") if line]
    assert [line.split("·")[0].strip() for line in kept if line.startswith("step")] == [
        "step  0/24", "step  6/24", "step 18/24", "step 24/24",
    ]  # fmt: skip
    assert kept[-1].endswith("succeeded: ft:smollm2-135m-instruct:local:review:sample")
    assert "━" in text


def test_the_live_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = shown(Terminal(), story()[:12])
    live = text.rpartition("\x1b[K")[2]
    assert live == "step  9/24 ━━━━┄┄┄┄┄┄ · 2:19 left · valid 0.300 → 0.583"


def test_attached_in_the_middle_of_a_job() -> None:
    metrics = sample_job.events()[2:12]
    lines = shown(io.StringIO(), [update(*metrics[:-1]), update(metrics[-1])]).splitlines()
    assert [line[:10] for line in lines] == ["step  8/24", "step  9/24"]
    assert "valid 0.300 → 0.583" in lines[0]


def test_attached_after_the_end() -> None:
    lines = shown(io.StringIO(), [update(*sample_job.events(), status="succeeded")]).splitlines()
    assert lines[-2].startswith("step 24/24")
    assert "succeeded" in lines[-1]


def test_paused_says_what_to_do() -> None:
    assert "rftkit job resume" in shown(io.StringIO(), [update(status="paused")])


def test_failed_says_why_once() -> None:
    why = {"id": "e", "level": "error", "type": "message", "message": "the grader broke"}
    error = {"code": "x", "message": "the grader broke", "param": None}
    text = shown(io.StringIO(), [update(why, status="failed", error=error)])
    assert text == f"error: the grader broke\n{sample_job.JOB} failed\n"


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 187, 3723)] == [
        "0 s",
        "59 s",
        "1:00",
        "3:07",
        "1:02:03",
    ]
