"""A worker without its process: real jobs on `rftkit-tiny`, one after the other, in this thread."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from rftkit.server.store.records import TERMINAL, Job
from rftkit.server.store.store import now
from rftkit.server.worker.worker import Worker

COPY = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
"""Right when the letters were repeated."""
ROWS = [
    {"messages": [{"role": "user", "content": f"copy: {a}{b}{a}"}], "answer": f"{a}{b}{a}"}
    for a, b in itertools.product("abcd", "ef")
]
NUMBERS = itertools.count(1)


def add_job(
    worker: Worker,
    *,
    grader: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
    response_format: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
    model: str = "rftkit-tiny",
    **hyperparameters: Any,
) -> Job:
    """A job of two steps of four prompts, unless said otherwise."""
    content = "\n".join(json.dumps(row) for row in rows or ROWS).encode()
    file = worker.store.add_file(content, "rows.jsonl", "fine-tune")
    given = {"batch_size": 4, "n_epochs": 1, "eval_interval": 1, "learning_rate_multiplier": 5}
    reinforcement = {
        "grader": grader or COPY,
        "hyperparameters": {**given, **hyperparameters},
        "response_format": response_format,
    }
    return worker.store.add_job(
        Job(
            id=f"ftjob-{next(NUMBERS):024x}",
            created_at=now(),
            model=model,
            seed=1,
            training_file=file.id,
            validation_file=file.id,
            method={"type": "reinforcement", "reinforcement": reinforcement},
            metadata={"max_completion_tokens": "6", **(metadata or {})},
        )
    )


ANSWERED = [
    {"messages": [*row["messages"], {"role": "assistant", "content": row["answer"]}]}
    for row in ROWS
]
PAIRED = [
    {
        "input": {"messages": row["messages"]},
        "preferred_output": [{"role": "assistant", "content": row["answer"]}],
        "non_preferred_output": [{"role": "assistant", "content": row["answer"][::-1] + "a"}],
    }
    for row in ROWS
]
MEASURE = {"grader": {**COPY, "reference": "{{item.reference_answer}}"}, "response_format": None}
"""Right when the letters were repeated, whatever the rows call them."""


def add_offline_job(
    worker: Worker,
    method: str = "supervised",
    *,
    rows: list[dict[str, Any]] | None = None,
    valid: bool = True,
    measure: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
    model: str = "rftkit-tiny",
    **hyperparameters: Any,
) -> Job:
    """A supervised or dpo job of four epochs of three steps, unless said otherwise."""
    content = "\n".join(
        json.dumps(row) for row in rows or (ANSWERED if method == "supervised" else PAIRED)
    ).encode()
    file = worker.store.add_file(content, "rows.jsonl", "fine-tune")
    given = {"batch_size": 3, "n_epochs": 4, "learning_rate_multiplier": 5, **hyperparameters}
    if method == "dpo":
        given = {"beta": "auto", **given}
    return worker.store.add_job(
        Job(
            id=f"ftjob-{next(NUMBERS):024x}",
            created_at=now(),
            model=model,
            seed=1,
            training_file=file.id,
            validation_file=file.id if valid else "",
            method={
                "type": method,
                method: {"hyperparameters": given},
                **({"measure": measure} if measure else {}),
            },
            metadata={"max_completion_tokens": "6", **(metadata or {})},
        )
    )


def run(worker: Worker, job: Job) -> Job:
    """Work on a job until it ends or pauses."""
    for _ in range(10):
        job = worker.store.job(job.id)
        if job.status in TERMINAL or job.status == "paused":
            return job
        claimed = worker.store.claim_job()
        assert claimed is not None
        worker.run_job(claimed)
    raise AssertionError(f"still {job.status}")


def messages(worker: Worker, job: Job) -> list[str]:
    """What its events say, oldest first."""
    return [event.message for event in worker.store.events(job.id, limit=1000)[0]][::-1]


def metrics(worker: Worker, job: Job) -> list[Any]:
    """The data of its metric events, oldest first."""
    events = worker.store.events(job.id, limit=1000)[0][::-1]
    return [event.data for event in events if event.type == "metrics"]


def adapters(home: Path, job: Job) -> dict[str, bytes]:
    """The weights of its checkpoints by the name of their folder."""
    found = (home / "jobs" / job.id / "checkpoints").glob("*/adapter_model.safetensors")
    return {path.parent.name: path.read_bytes() for path in sorted(found)}
