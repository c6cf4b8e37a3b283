"""Reinforcement fine-tuning in six steps, written as a user would write it: `rftkit demo`.

Read `run` from top to bottom. It uses rftkit's public names and the `openai` client that `connect`
returns, and no internals of the platform. It has no statistics: one seed shows that training works,
not how well.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit import compile_grader, connect, datasets, evals, jobs, reports
from rftkit.cli.console import table
from rftkit.datasets import Dataset, reference_answer
from rftkit.errors import InputError, JobFailedError
from rftkit.evals import Answer
from rftkit.graders import CompiledGrader, Sample

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["PLANS", "run"]

PLANS: dict[str, dict[str, Any]] = {
    "security_review": {
        "model": "smollm2-135m-instruct",
        "hyperparameters": {"eval_samples": 1},
        "metadata": {"max_completion_tokens": "64"},
        "temperature": 0,
    },
    "contract_facts": {
        "model": "smollm2-135m-instruct",
        "hyperparameters": {"eval_samples": 1},
        "metadata": {"max_completion_tokens": "96"},
        "temperature": 0,
    },
    "tiny_copy": {
        "model": "rftkit-tiny",
        "hyperparameters": {
            "batch_size": 16,
            "n_epochs": 1,
            "learning_rate_multiplier": 5.0,
            "compute_multiplier": 1.0,
            "eval_interval": 8,
            "eval_samples": 2,
        },
        "metadata": {"max_completion_tokens": "8"},
        "temperature": 1,  # its most likely letters are right from the start, with low confidence
    },
}
"""How each bundled dataset is trained, and the temperature for answers to its test rows.
`security_review` is the demo, `tiny_copy` is `--fast`."""

LABELS = {
    "constant": "best constant answer",
    "base": "base model",
    "best": "best checkpoint",
    "final": "final model",
}


def run(
    name: str = "security_review",
    *,
    seed: int = 1,
    out: Path | str = "reports",
    on_progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a model on a bundled dataset and compare it with the base model.

    Args:
        name: A key of `PLANS`.
        seed: Of the job.
        out: Folder for the report and the answers.
        on_progress: Called with each line of output.

    Returns:
        Ids, models, rewards, seconds and paths, for programs.

    Raises:
        InputError: The dataset or its grader cannot be used.
        JobFailedError: The job failed, was cancelled or is paused.
    """
    plan, seconds, out = PLANS[name], Seconds(), writable_folder(out)

    on_progress("1. Check the data and the grader")
    data = datasets.bundled(name)
    assert data.valid is not None  # bundled datasets have validation rows
    assert data.test is not None
    assert data.grader is not None
    with seconds("checking the data"):
        check = datasets.check(
            data.train, data.valid, grader=data.grader, response_format=data.response_format
        )
    on_progress(f"{check}\n")
    check.raise_for_errors()

    on_progress("2. Connect and upload")
    with seconds("starting the platform, uploading"):
        client = connect()
        training_file = datasets.upload(client, data.train)
        validation_file = datasets.upload(client, data.valid)
    on_progress(f"{client.base_url}  {training_file.id}  {validation_file.id}\n")

    on_progress("3. Create a job")
    job = jobs.create(
        client,
        model=plan["model"],
        training_file=training_file.id,
        validation_file=validation_file.id,
        grader=data.grader,
        response_format=data.response_format,
        hyperparameters=plan["hyperparameters"],
        metadata=plan["metadata"],
        suffix=name.replace("_", "-"),
        seed=seed,
    )
    on_progress(f"{job.id}  {job.model}  seed {job.seed}\n")

    on_progress("4. Follow it; Ctrl-C leaves it running")
    job = follow(client, job, on_progress)
    seconds.parts |= job_seconds(client, job)

    on_progress("\n5. Run the models on the test rows, before and after training")
    rows = datasets.read(data.test)
    models = models_of(client, job)
    with seconds("answering the test rows"):
        answers = {
            label: evals.ask(
                client,
                model,
                rows,
                response_format=data.response_format,
                max_completion_tokens=int(plan["metadata"]["max_completion_tokens"]),
                temperature=plan["temperature"],
            )
            for label, model in models.items()
        }
    grading = compile_grader(data.grader, purpose="eval")
    with seconds("grading the answers"), grading as grader:
        grades = {label: evals.grade(grader, answers[label], rows) for label in models}
        constant = constant_answer(grader, data)
        constants = [constant] * len(rows)
        test = {"constant": evals.score(evals.grade(grader, constants, rows), constants)}
    test |= {label: evals.score(grades[label], answers[label]) for label in models}
    on_progress(table([{f"{len(rows)} test rows": LABELS[label], **test[label]} for label in test]))
    for label, given in answers.items():
        if errors := [answer.error for answer in given if answer.error]:
            on_progress(f"{LABELS[label]}: {len(errors)} requests failed, the first: {errors[0]}")

    on_progress("\n6. Write the report")
    answers_path = out / f"{job.id}-answers.json"
    write_json(
        answers_path,
        {
            "dataset": name,
            "rows": evals.side_by_side(rows, answers, grades),
            "constant": {"answer": constant.text, "reward": test["constant"]["reward"]},
            "seconds": seconds.parts,
        },
    )
    with seconds("report"):
        report = reports.run(
            "report_job",
            out / f"{job.id}.html",
            job_id=job.id,
            answers=str(answers_path.resolve()),
        )
    on_progress(seconds.table())
    on_progress(f"\nThe report, one HTML file: {report.resolve()}")
    return {
        "job": job.id,
        "dataset": name,
        "seed": job.seed,
        "models": models,
        "validation": validation_rewards(client, job),
        "test": test,
        "seconds": seconds.parts,
        "answers": str(answers_path.resolve()),
        "report": str(report.resolve()),
    }


class Seconds:
    """Wall time per part of a run, in order."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Measure a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.parts[part] = time.perf_counter() - start

    def table(self) -> str:
        """Parts and their sum, for people."""
        total = {"sum": sum(self.parts.values())}
        return table(
            [
                {"where the time went": part, "seconds": f"{spent:7.1f}"}
                for part, spent in (self.parts | total).items()
            ]
        )


def follow(client: OpenAI, job: FineTuningJob, on_progress: Callable[[str], None]) -> FineTuningJob:
    """Show the job until it has succeeded; Ctrl-C prints how to return to it."""
    try:
        job = jobs.wait(client, job.id, jobs.Progress())
    except KeyboardInterrupt:
        on_progress(
            f"\n{job.id} continues on the server. To follow it:\n  rftkit job watch {job.id}\n"
            f"and when it is done:\n  rftkit report report_job -p job_id {job.id} -o {job.id}.html"
        )
        raise
    if str(job.status) == "paused":
        raise JobFailedError(f"{job.id} is paused; resume it with: rftkit job resume {job.id}")
    return job


def models_of(client: OpenAI, job: FineTuningJob) -> dict[str, str]:
    """Label -> model: base, best checkpoint unless that is the final model, and final model."""
    best = jobs.best(jobs.checkpoints(client, job.id))
    models = {"base": job.model, "final": str(job.fine_tuned_model)}
    if best and best.model != job.fine_tuned_model:
        models = {"base": job.model, "best": best.model, "final": models["final"]}
    return models


def job_seconds(client: OpenAI, job: FineTuningJob) -> dict[str, float]:
    """Seconds of the job by phase; the API's timestamps are whole seconds."""
    events = jobs.events(client, job.id)
    timing = jobs.timing_frame(events)
    parts = {part: float(timing[part].sum()) for part in ("sampling", "training", "eval")}
    baseline = next(event for event in events if (event.get("data") or {}).get("step") == 0)
    loading = baseline["created_at"] - job.created_at - float(timing["full_iteration"].iloc[0])
    total = (job.finished_at or events[-1]["created_at"]) - job.created_at
    return {
        "loading the model": max(0.0, loading),
        "sampling": parts["sampling"],
        "training": parts["training"],
        "validation": parts["eval"],
        "rest of the job": max(0.0, total - max(0.0, loading) - sum(parts.values())),
    }


def validation_rewards(client: OpenAI, job: FineTuningJob) -> dict[int, float]:
    """Step -> mean validation reward; step 0 is the base model."""
    frame = jobs.step_frame(jobs.events(client, job.id)).dropna(subset="valid_reward_mean")
    return dict(zip(frame["step"].tolist(), frame["valid_reward_mean"].tolist(), strict=True))


def constant_answer(grader: CompiledGrader, data: Dataset) -> Answer:
    """The best answer of a model that ignores the prompt, chosen on the training rows."""
    rows = datasets.read(data.train)
    references = (reference_answer(row.item, data.response_format) for row in rows)
    candidates = [each for each in references if each is not None]
    text = evals.best_constant(grader, rows, candidates, response_format=data.response_format)
    return Answer("constant", Sample.from_text(text or "", response_format=data.response_format))


def writable_folder(folder: Path | str) -> Path:
    """Create a folder, or fail now rather than after minutes of training."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; choose another folder with --out") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written; choose another folder with --out")
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write a file for programs."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
