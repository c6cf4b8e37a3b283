"""The worker's own wiring, without a process: a job's judge is asked once for the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rftkit.graders import Sample
from rftkit.server.plan import make_plan
from rftkit.server.records import Job
from rftkit.server.worker import Worker

JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "rftkit-tiny",
    "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}],
}


def test_a_jobs_judge_is_not_asked_twice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        completion = {"text": '{"steps": [], "result": 0.5}', "stop_reason": "stop", "tokens": 3}
        return {"prompt_tokens": 2, "completions": [completion]}

    method = {"type": "reinforcement", "reinforcement": {"grader": JUDGE, "hyperparameters": {}}}
    job = Job(
        id="ftjob-1",
        created_at=0,
        model="rftkit-tiny",
        seed=1,
        training_file="file-a",
        validation_file="file-b",
        method=method,
    )
    for _ in range(2):  # the second worker follows a killed one
        worker = Worker(home, print)
        monkeypatch.setattr(worker.desk, "ask", ask)
        with worker._grader(job, make_plan(job, 4)) as grader:
            assert [grader.grade(Sample("same"), {}).reward for _ in range(2)] == [0.5, 0.5]
        worker.store.close()
    assert len(asked) == 1
