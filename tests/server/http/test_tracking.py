"""Jobs with integrations are followed by a process of their own, to their end and only once."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from conftest import FakeLink, Served
from in_process import ROWS

from rftkit.server.http import tracking
from rftkit.server.http.tracking import keep_tracking
from rftkit.server.inference import backlog
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store, now

SAYS = "import sys; sys.stderr.write('noise\\nrftkit tracker: wandb is away\\n')"


@pytest.fixture
def platform_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.01)
    store = Store.open(home)
    yield Platform(store=store, worker=FakeLink(), home=home)
    store.close()


def add_job(platform: Platform, status: str, **extra: Any) -> str:
    job = Job(
        id=f"ftjob-{status}-{len(extra)}", created_at=now(), model="m", seed=1, status=status,
        training_file="", validation_file="", extra=extra,
        method={"type": "dpo", "dpo": {"hyperparameters": {}}},
    )  # fmt: skip
    return platform.store._insert(job).id


WANDB = {"integrations": [{"type": "wandb", "wandb": {}}]}


def kept(platform: Platform, seconds: float = 0.0, until: Path | None = None) -> None:
    """Keep tracking for a while, or until a file is there."""

    async def run() -> None:
        assert platform.home is not None
        task = asyncio.create_task(keep_tracking(platform, platform.home))
        deadline = time.monotonic() + (60 if until else seconds)
        while time.monotonic() < deadline and not (until and until.is_file()):
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def said(platform: Platform, job_id: str) -> list[str]:
    return [event.message for event in platform.store.events(job_id)[0]]


def test_an_ended_job_is_followed_once_and_its_tracker_makes_an_event(
    platform_here: Platform, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "COMMAND", SAYS)
    job = add_job(platform_here, "succeeded", **WANDB)
    other = add_job(platform_here, "succeeded")
    kept(platform_here, until=home / "trackers" / f"{job}.ended")
    assert said(platform_here, job) == ["wandb is away"]
    assert said(platform_here, other) == []
    monkeypatch.setattr(tracking, "COMMAND", "raise SystemExit('followed again')")
    kept(platform_here, 0.3)
    assert said(platform_here, job) == ["wandb is away"]


def test_a_locked_database_ends_no_tracking(
    platform_here: Platform, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "COMMAND", SAYS)
    monkeypatch.setattr(backlog, "RETRY_SECONDS", 0.01)
    real, locked = tracking._due, iter([1, 1])

    def due(*given: Any) -> Any:
        if next(locked, None):
            raise sqlite3.OperationalError("database is locked")
        return real(*given)

    monkeypatch.setattr(tracking, "_due", due)
    job = add_job(platform_here, "succeeded", **WANDB)
    kept(platform_here, until=home / "trackers" / f"{job}.ended")
    assert said(platform_here, job) == ["wandb is away"]


def test_a_process_that_dies_is_started_again_and_given_up_in_words(
    platform_here: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "COMMAND", "raise SystemExit('no memory')")
    job = add_job(platform_here, "running", **WANDB)
    for _ in range(40):
        kept(platform_here, 1.0)
        if said(platform_here, job):
            break
    assert said(platform_here, job) == ["what follows the job ended 3 times: no memory"]


def test_a_tracker_that_does_not_listen_is_ended_with_the_server(
    platform_here: Platform, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = "import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    there = home / "there"
    monkeypatch.setattr(tracking, "COMMAND", f"{deaf}pathlib.Path({str(there)!r}).touch(); "
                        "time.sleep(600)")  # fmt: skip
    monkeypatch.setattr(tracking, "END_SECONDS", 0.1)
    add_job(platform_here, "running", **WANDB)
    kept(platform_here, until=there)


def test_integrations_are_kept_and_shown(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    given: Any = [{"type": "wandb", "wandb": {"project": "p"}}]
    job = served.create_job(integrations=given)
    assert [each.to_dict() for each in job.integrations] == given
    events = served.client.fine_tuning.jobs.list_events(job.id).data
    assert not any("unknown" in event.message for event in events)
    assert served.client.fine_tuning.jobs.retrieve(job.id).integrations == job.integrations
    assert served.create_job().integrations == []


@pytest.mark.slow
def test_a_real_job_fills_the_files_of_tensorboard(platform: openai.OpenAI) -> None:
    with urlopen(str(platform.base_url).replace("/v1/", "/health")) as response:
        home = Path(json.load(response)["home"])
    file = platform.files.create(
        file=("rows.jsonl", "\n".join(map(json.dumps, ROWS)).encode()), purpose="fine-tune"
    ).id
    grader = {
        "type": "string_check", "name": "exact", "operation": "eq",
        "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
    }  # fmt: skip
    method: Any = {
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "hyperparameters": {"n_epochs": 1, "batch_size": 4}},
    }
    integrations: Any = [{"type": "tensorboard"}]
    job = platform.fine_tuning.jobs.create(
        model="rftkit-tiny", training_file=file, validation_file=file, method=method,
        integrations=integrations, metadata={"max_completion_tokens": "6"},
    )  # fmt: skip
    mark = home / "trackers" / f"{job.id}.ended"
    deadline = time.monotonic() + 240
    while not mark.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    folder = home / "trackers" / "tensorboard" / job.id
    found = b"".join(path.read_bytes() for path in folder.glob("events.*"))
    assert b"train/reward/mean" in found
    assert b"valid/answers" in found
    assert (folder / f"{job.id}.html").is_file()
