"""Jobs with tools by a real worker: the tiny model, its engine, and servers over HTTP.

Decoding is constrained to a call or an answer, so that a model that has never seen a tool calls.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_tools import definition
from in_process import NUMBERS, adapters, messages, metrics, run

from rftkit import tools as rftkit_tools
from rftkit.server.engine.values import Completion
from rftkit.server.store.records import Job
from rftkit.server.store.store import now
from rftkit.server.training.journal import Journal
from rftkit.server.worker.worker import Worker

GRADER = {
    "type": "python",
    "name": "calls",
    "source": "def grade(sample, item):\n    return min(1.0, 0.5 * len(sample['output_tools']))\n",
}
SEARCH = {"type": "function", "function": {"name": "c"}}
"""As short as it can be: the context of the tiny model is 512 letters."""
ANSWER = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"name": {"enum": ["a", "b"]}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
}
ROWS = [
    {"messages": [{"role": "user", "content": f"copy: {a}{b}"}], "tools": [SEARCH]}
    for a in "abcd"
    for b in "ef"
]


class Calls:
    """What the server was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_broken = False

    def c(self) -> str:
        """Look something up."""
        self.asked.append("c")
        if self.is_broken:
            raise RuntimeError("down")
        return "found"


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def served(calls: Calls) -> Iterator[list[dict[str, Any]]]:
    server = rftkit_tools.serve([calls.c])
    yield server.entries
    server.close()


def add_job(
    worker: Worker, entries: list[dict[str, Any]], rows: list[Any] = ROWS, **metadata: str
) -> Job:
    content = "\n".join(json.dumps(row) for row in rows).encode()
    file = worker.store.add_file(content, "rows.jsonl", "fine-tune")
    hyper = {"batch_size": 4, "n_epochs": 1, "eval_interval": 1, "learning_rate_multiplier": 5}
    return worker.store.add_job(
        Job(
            id=f"ftjob-{next(NUMBERS):024x}", created_at=now(), model="rftkit-tiny", seed=1,
            training_file=file.id, validation_file=file.id,
            method={
                "type": "reinforcement",
                "reinforcement": {
                    "grader": GRADER, "hyperparameters": hyper, "response_format": ANSWER,
                    "tools": entries, "max_episode_steps": 3,
                },
            },
            metadata={"max_completion_tokens": "160", **metadata},
        )
    )  # fmt: skip


def completions(worker: Worker, job: Job, step: int) -> list[Completion]:
    record = Journal(worker.home / "jobs" / job.id).record("steps", step)
    assert record is not None
    return [
        Completion.from_dict(each["completion"]) for g in record["groups"] for each in g["rollouts"]
    ]


def test_a_job_with_tools_learns_from_what_it_sampled(
    worker: Worker, served: list[dict[str, Any]], calls: Calls
) -> None:
    job = run(worker, add_job(worker, served))
    assert job.status == "succeeded", job.error
    assert calls.asked
    episodes = completions(worker, job, 1)
    assert max(len(each.turns) for each in episodes) == 2
    said = [turn.text for each in episodes for turn in each.turns]
    assert all(text.startswith('<tool_call>\n{"name": "c"') for text in said), "as it is trained"
    assert all("found" in call["text"] for e in episodes for t in e.turns for call in t.calls)
    data = metrics(worker, job)[1]
    assert data["learning"]["logprob_gap_max"] < 0.05
    assert data["completion_tokens_mean"] == pytest.approx(
        sum(each.num_sampled for each in episodes) / len(episodes)
    )
    [line] = data["tools"]
    assert line["train_calls_per_rollout_mean"] > 0


def test_a_killed_worker_goes_on_to_the_same_weights_without_a_call_made_twice(
    worker: Worker,
    served: list[dict[str, Any]],
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm = run(worker, add_job(worker, served))
    assert calm.status == "succeeded", calm.error
    num = len(calls.asked)

    class Killed(BaseException):
        pass

    real, count = Journal.add_call, 0

    def dying(*arguments: Any) -> None:
        nonlocal count
        real(*arguments)
        count += 1
        if count == num // 2:
            raise Killed

    calls.asked.clear()
    job = add_job(worker, served)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add_call", dying)
        with pytest.raises(Killed):
            run(worker, job)
    job = run(worker, dataclasses.replace(worker.store.job(job.id)))
    assert job.status == "succeeded", job.error
    assert adapters(worker.home, job) == adapters(worker.home, calm)
    assert len(calls.asked) <= num + 1


def test_a_broken_server_pauses_the_job_and_never_scores_zero(
    worker: Worker, served: list[dict[str, Any]], calls: Calls, fast_retries: None
) -> None:
    calls.is_broken = True
    job = run(worker, add_job(worker, served))
    assert job.status == "paused"
    told = [text for text in messages(worker, job) if "The job pauses" in text]
    assert "Tools that failed" in told[-1]
    assert "c (" in told[-1]
    calls.is_broken = False
    worker.store.resume_job(job.id)
    job = run(worker, job)
    assert job.status == "succeeded", job.error


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    from rftkit.graders import posting

    monkeypatch.setattr(posting, "FIRST_PAUSE_SECONDS", 0.0, raising=False)
    monkeypatch.setattr(posting, "_FIRST_PAUSE_SECONDS", 0.0, raising=False)


def test_a_row_with_a_tool_that_the_job_has_not_is_refused_with_its_line(
    worker: Worker, served: list[dict[str, Any]]
) -> None:
    rows = [*ROWS, {**ROWS[0], "tools": [definition("browse", "url")]}]
    job = run(worker, add_job(worker, served, rows))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["param"] == "training_file"
    assert "line 9" in job.error["message"] or ":9" in job.error["message"]
    assert "browse" in job.error["message"]


def test_a_server_that_is_not_there_fails_the_job_before_it_runs(worker: Worker) -> None:
    entries = [{"name": "c", "server_url": "http://127.0.0.1:9/c", "headers": {}}]
    job = run(worker, add_job(worker, entries))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["param"] == "method.reinforcement.tools"
    assert "the tool c " in job.error["message"]
