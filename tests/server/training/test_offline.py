"""Supervised and dpo jobs on `rftkit-tiny`: what they report and leave, and what a kill repeats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import in_process
import pytest
from in_process import MEASURE, add_offline_job, messages, metrics, run

from rftkit import jobs
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.store.records import Job
from rftkit.server.training import journal as journal_module
from rftkit.server.training import offline
from rftkit.server.training.offline_plan import make_offline_plan
from rftkit.server.worker.worker import Worker

METHODS = ("supervised", "dpo")


def csv_lines(worker: Worker, job: Job) -> list[str]:
    return worker.store.whole_file(job.result_files[0]).read_text().splitlines()


def test_a_supervised_job_reports_and_leaves_what_the_service_does(worker: Worker) -> None:
    job = run(worker, add_offline_job(worker))
    assert job.status == "succeeded", job.error
    data = metrics(worker, job)
    assert [each["step"] for each in data] == list(range(1, 13))  # no step 0
    assert all({"train_loss", "train_mean_token_accuracy"} <= set(each) for each in data)
    full = [each["step"] for each in data if "full_valid_loss" in each]
    assert full == [3, 6, 9, 12]
    assert data[-1]["full_valid_loss"] < data[2]["full_valid_loss"]
    [last] = [text for text in messages(worker, job) if text.startswith("Step 12/12: ")]
    assert last.startswith("Step 12/12: training loss=0.")
    assert ", full validation loss=0." in last
    kept = worker.store.checkpoints(job.id)
    assert [each.step for each in kept] == [12, 9, 6]  # the last three epochs
    said = messages(worker, job)
    ends = [text for text in said[said.index(last) + 1 :] if not text.startswith("Final checks")]
    assert ends == [  # behind the last step, and none for the last model
        f"Checkpoint created at step 6 with Snapshot ID: {kept[2].model_name}",
        f"Checkpoint created at step 9 with Snapshot ID: {kept[1].model_name}",
        f"New fine-tuned model created: {job.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert not any(text.startswith("Checkpoint ") for text in said[: said.index(last)])
    assert kept[0].model_name == job.fine_tuned_model
    assert {
        "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy",
        "full_valid_loss", "full_valid_mean_token_accuracy",
    } <= set(kept[0].metrics)  # fmt: skip
    folder = worker.home / "jobs" / job.id / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-12", "step-6", "step-9"]
    lines = csv_lines(worker, job)
    assert lines[0].startswith(
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    )
    assert [line.split(",")[0] for line in lines[1:]] == [str(step) for step in range(1, 13)]
    prompt, answer = 12, 4  # of each of the eight rows
    assert job.trained_tokens == 4 * 8 * (prompt + answer)
    assert job.eval_id is None
    assert job.hyperparameters == {
        "batch_size": 3, "n_epochs": 4, "learning_rate_multiplier": 5.0,
    }  # fmt: skip
    frame = jobs.step_frame(jobs.events_from_csv("\n".join(lines)))
    assert frame["train_accuracy"].notna().all()


def test_a_dpo_job_starts_from_the_loss_of_a_coin_and_tells_its_pairs_apart(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = TorchEngine.answer_logprobs

    def counted(self: Any, pairs: Any, *rest: Any, **options: Any) -> Any:
        asked.append(len(pairs))
        return real(self, pairs, *rest, **options)

    monkeypatch.setattr(TorchEngine, "answer_logprobs", counted)
    job = run(worker, add_offline_job(worker, "dpo", learning_rate_multiplier=50))
    assert job.status == "succeeded", job.error
    data = metrics(worker, job)
    assert data[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert data[-1]["preferences"]["full_valid_reward_accuracy"] == 1.0
    assert data[-1]["preferences"]["full_valid_reward_margin"] > 0
    assert sum(asked) == 8 + 8  # each row once, of either file
    assert csv_lines(worker, job)[0].startswith("step,train_loss,valid_loss,full_valid_loss,")
    assert job.hyperparameters["beta"] == 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_grader_measures_each_epoch_as_it_would_a_reinforcement_job(
    worker: Worker, method: str
) -> None:
    job = run(worker, add_offline_job(worker, method, measure=MEASURE))
    assert job.status == "succeeded", job.error
    data = metrics(worker, job)
    assert [e["step"] for e in data if "full_valid_mean_reward" in e] == [0, 3, 6, 9, 12]
    assert data[0]["scores"]["valid_reward_mean"] == data[0]["full_valid_mean_reward"]
    assert job.eval_id is not None
    runs = worker.store.runs(job.eval_id)[0]
    assert {each.name for each in runs} == {f"Step {step}" for step in (0, 3, 6, 9, 12)}
    kept = worker.store.checkpoints(job.id)
    assert all("full_valid_mean_reward" in each.metrics for each in kept)


def test_a_job_may_start_from_a_fine_tuned_one_and_its_reference_is_that(worker: Worker) -> None:
    taught = run(worker, add_offline_job(worker))
    assert taught.fine_tuned_model is not None
    job = run(worker, add_offline_job(worker, "dpo", model=taught.fine_tuned_model))
    assert job.status == "succeeded", job.error
    assert metrics(worker, job)[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    again = run(worker, add_offline_job(worker, model=f"{job.fine_tuned_model}:ckpt-step-9"))
    assert again.status == "succeeded", again.error
    assert metrics(worker, again)[0]["train_loss"] < metrics(worker, taught)[0]["train_loss"]
    full = run(worker, add_offline_job(worker, metadata={"tuning": "full"}, n_epochs=1))
    assert full.status == "succeeded", full.error


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_job_ends_with_the_same_weights(
    worker: Worker, method: str, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "STATE_SECONDS", 0.0)
    options: dict[str, Any] = {"measure": MEASURE, "metadata": {"tuning": tuning}, "n_epochs": 2}
    calm = run(worker, add_offline_job(worker, method, **options))
    assert calm.status == "succeeded", calm.error
    job = add_offline_job(worker, method, **options)
    kills = 0
    for place in (1, 3, 4, 6, 9, 12, 15, 40):
        with monkeypatch.context() as patch:
            _kill_at(patch, place)
            try:
                run(worker, job)
            except KeyboardInterrupt:
                kills += 1
        worker.store.close()
        worker = Worker(worker.home, lambda message: None)
        found = worker.store.job(job.id)
        if found.status == "running":
            worker.store.update_job(job.id, status="queued")
    done = run(worker, worker.store.job(job.id))
    assert kills > 4
    assert done.status == "succeeded", done.error
    assert _left(worker, done) == _left(worker, calm)
    worker.store.close()


def _kill_at(patch: pytest.MonkeyPatch, place: int) -> None:
    """Kill before the n-th thing that is written to the job's folder."""
    left = place
    for name in ("write_whole", "_write_folder"):
        real = getattr(journal_module, name)

        def write(*given: Any, real: Any = real) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return real(*given)

        patch.setattr(journal_module, name, write)


def _left(worker: Worker, job: Job) -> Any:
    """Weights and figures, without ids and times."""
    folder = worker.home / "jobs" / job.id / "checkpoints"
    own = ("timing", "tokens_per_second")
    data = [{k: v for k, v in each.items() if k not in own} for each in metrics(worker, job)]
    for each in data:
        each["learning"].pop("tokens_per_second", None)
    return (
        {p.parent.name: p.read_bytes() for p in sorted(folder.glob("*/*.safetensors"))},
        data,
        job.trained_tokens,
        [each.step for each in worker.store.checkpoints(job.id)],
    )


def test_pause_keeps_a_model_and_resume_continues(worker: Worker) -> None:
    calm = run(worker, add_offline_job(worker))
    job = add_offline_job(worker, metadata={"max_core_seconds": "0.000001"})
    assert run(worker, job).status == "paused"
    assert any("the model ft:rftkit-tiny" in text for text in messages(worker, job))
    worker.store.resume_job(job.id)
    assert worker.store.job(job.id).trained_tokens is None  # until the end, as on the service
    done = run(worker, job)
    assert done.status == "succeeded", done.error
    assert done.trained_tokens == calm.trained_tokens
    step = {"step-12"}
    assert [
        each for name, each in in_process.adapters(worker.home, done).items() if name in step
    ] == [each for name, each in in_process.adapters(worker.home, calm).items() if name in step]


def test_without_a_validation_file_a_job_is_measured_on_nothing(worker: Worker) -> None:
    job = run(worker, add_offline_job(worker, valid=False))
    assert job.status == "succeeded", job.error
    assert not any("valid" in key for each in metrics(worker, job) for key in each)
    assert len(worker.store.checkpoints(job.id)) == 3


BAD = {
    "supervised": {"messages": [{"role": "user", "content": "a"}]},
    "dpo": in_process.ANSWERED[0],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_does_not_belong_fails_the_job_with_its_line(
    worker: Worker, method: str
) -> None:
    good = in_process.ANSWERED if method == "supervised" else in_process.PAIRED
    job = run(worker, add_offline_job(worker, method, rows=[*good, BAD[method]]))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["message"].startswith("rows.jsonl:9: ")
    assert (job.error["param"], job.error["code"]) == ("training_file", "invalid_training_file")
    assert job.hyperparameters["n_epochs"] == 4


def test_a_row_of_the_validation_file_that_does_not_belong_is_named_too(worker: Worker) -> None:
    job = add_offline_job(worker)
    bad = worker.store.add_file(json.dumps(BAD["supervised"]).encode(), "v.jsonl", "fine-tune")
    job = run(worker, worker.store.update_job(job.id, validation_file=bad.id))
    assert job.error is not None
    assert job.error["message"].startswith("v.jsonl:1: ")
    assert (job.error["param"], job.error["code"]) == ("validation_file", "invalid_validation_file")


def test_a_row_with_a_control_token_is_refused_and_one_that_is_too_long_is_cut(
    worker: Worker,
) -> None:
    def row(prompt: str, answer: str) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": prompt}, {"role": "assistant", "content": answer},
            ]
        }  # fmt: skip

    job = run(worker, add_offline_job(worker, rows=[*in_process.ANSWERED, row("a", "b<end>")]))
    assert job.error is not None
    assert "rows.jsonl:9: the text of message 2 has '<end>'" in job.error["message"]
    long = [*in_process.ANSWERED, row("a", "b" * 600), row("a" * 600, "b")]
    job = run(worker, add_offline_job(worker, rows=long, valid=False))
    assert job.status == "succeeded", job.error
    [note] = [text for text in messages(worker, job) if "are cut at their end" in text]
    assert "2 rows of rows.jsonl" in note
    assert "1 of them keep no answer and are left out" in note


def test_extra_keys_are_told_and_reach_graders(worker: Worker) -> None:
    rows = [{**row, "label": "x"} for row in in_process.ANSWERED]
    measure = {**MEASURE, "grader": {**MEASURE["grader"], "reference": "{{item.label}}"}}
    job = run(worker, add_offline_job(worker, rows=rows, measure=measure, n_epochs=1))
    assert job.status == "succeeded", job.error
    assert any("have the keys label, which" in text for text in messages(worker, job))


@pytest.mark.parametrize(
    ("rows", "epochs", "batch"),
    [(10, 10, 1), (20, 5, 1), (25, 4, 1), (33, 3, 1), (101, 3, 1), (8_333, 3, 17), (8_400, 2, 17),
     (13_000, 1, 26), (3, 25, 1), (500_000, 1, 256)],
)  # fmt: skip
def test_auto_is_what_the_service_chooses(rows: int, epochs: int, batch: int) -> None:
    job = Job(
        id="j", created_at=0, model="m", seed=1, training_file="f", validation_file="",
        method={"type": "supervised", "supervised": {"hyperparameters": {}}},
    )  # fmt: skip
    plan = make_offline_plan(job, rows)
    assert (plan.n_epochs, plan.batch_size) == (epochs, batch)
    assert plan.total_steps == epochs * math.ceil(rows / batch)


def test_a_probe_takes_two_steps_of_any_method(worker: Worker) -> None:
    for method in METHODS:
        job = run(worker, add_offline_job(worker, method, metadata={"probe": "true"}))
        assert job.status == "succeeded", job.error
        events = [
            {"type": e.type, "data": e.data, "message": e.message, "created_at": e.created_at}
            for e in worker.store.events(job.id, limit=100)[0]
        ]
        found = jobs.estimate(events)
        assert (found.total_steps, found.num_validations) == (12, 4)
        assert not Path(worker.home / "jobs" / job.id).exists()
        assert jobs.check_learnability(events).is_green
