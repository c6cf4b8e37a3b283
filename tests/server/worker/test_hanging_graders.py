"""A job whose graders hang is cancelled or paused within seconds, and loses nothing."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hanging import hanging
from in_process import add_job, messages, run

from rftkit.server.training.journal import Journal
from rftkit.server.worker import worker as worker_module
from rftkit.server.worker.worker import Worker

SLEEP = "import time\ndef grade(sample, item):\n    time.sleep(60)\n    return 1.0"


@pytest.mark.parametrize(
    ("kind", "action"),
    [("endpoint", "cancelled"), ("score_model", "pausing"), ("python", "cancelled")],
)
def test_a_job_leaves_graders_that_hang(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, kind: str, action: str
) -> None:
    monkeypatch.setattr(worker_module, "PAUSE_SECONDS", 0.0)
    with hanging() as (url, called):
        monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", f"{url}/v1")
        content = [{"role": "user", "content": "{{sample.output_text}}"}]
        graders: dict[str, dict[str, Any]] = {
            "endpoint": {"name": "g", "type": "endpoint", "url": url},
            "score_model": {"name": "g", "type": "score_model", "model": "j", "input": content},
            "python": {"name": "g", "type": "python", "source": SLEEP},
        }
        job = add_job(worker, grader=graders[kind])

        def act() -> None:
            while worker.store.job(job.id).status != "running":
                time.sleep(0.01)
            if kind == "python":
                time.sleep(1.0)
            else:
                assert called.acquire(timeout=60)
            worker.store.update_job(job.id, status=action)

        thread = threading.Thread(target=act)
        thread.start()
        job = run(worker, job)
        thread.join()
    assert job.status == {"cancelled": "cancelled", "pausing": "paused"}[action]
    if action == "pausing":
        assert "Paused within a step" in messages(worker, job)[-1]
        assert Journal(worker.home / "jobs" / job.id).draft("valid", 0) is not None
