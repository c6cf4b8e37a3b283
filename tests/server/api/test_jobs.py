"""Jobs, files, models and graders over the wire, driven by the official client."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import GRADER, ROW, Served

GOLDEN = Path(__file__).parents[2] / "golden" / "job.json"
HYPERPARAMETERS = (
    "batch_size", "n_epochs", "learning_rate_multiplier", "compute_multiplier", "eval_interval",
    "eval_samples",
)  # fmt: skip


def test_a_new_job_looks_as_the_reference_says(served: Served) -> None:
    job = served.create_job(suffix="mine", seed=7, metadata={"team": "blue"})
    body = job.to_dict(warnings=False, exclude_unset=True)
    for name in ("id", "created_at", "training_file", "validation_file", "eval_id"):
        assert body.pop(name)
    text = json.dumps(body, indent=1, sort_keys=True) + "\n"
    assert text == GOLDEN.read_text()
    assert "hyperparameters" not in body
    assert body["error"] is None


def test_every_hyperparameter_is_echoed(served: Served) -> None:
    given = {"batch_size": 4, "learning_rate_multiplier": 0.5, "reasoning_effort": "low"}
    job = served.create_job(method=method(hyperparameters=given))
    echoed = job.method.reinforcement.to_dict()["hyperparameters"]
    assert echoed == {**dict.fromkeys(HYPERPARAMETERS, "auto"), **given}


def test_a_job_is_queued_and_the_worker_woken(served: Served) -> None:
    job = served.create_job()
    assert served.link.wakes == 1
    claimed = served.platform.store.claim_job()
    assert claimed.id == job.id
    [event] = served.client.fine_tuning.jobs.list_events(job.id).data
    assert event.message == f"Created fine-tuning job: {job.id}"


def test_unknown_keys_are_echoed_and_named_in_one_event(served: Served) -> None:
    job = served.create_job(
        method=method(hyperparameters={"group_size": 8}, colour="red"),
        extra_body={"trainingType": "Standard"},
    )
    assert job.trainingType == "Standard"
    assert job.method.reinforcement.colour == "red"
    warning = served.client.fine_tuning.jobs.list_events(job.id).data[0]
    assert warning.level == "warn"
    for key in ("trainingType", "hyperparameters.group_size", "reinforcement.colour"):
        assert key in warning.message


def test_a_resent_create_makes_one_job(served: Served) -> None:
    file_id = served.upload()
    body = {
        "model": "rftkit-tiny",
        "training_file": file_id,
        "validation_file": file_id,
        "method": method(),
    }
    create = served.client.fine_tuning.jobs.create
    first = create(**body)
    resent = create(**body, extra_headers={"x-stainless-retry-count": "1"})
    another = create(**body)
    changed = create(**body, seed=3, extra_headers={"x-stainless-retry-count": "1"})
    assert resent.id == first.id
    assert len({first.id, another.id, changed.id}) == 3
    assert len(served.client.fine_tuning.jobs.list().data) == 3


def test_a_resent_upload_makes_one_file(served: Served) -> None:
    first = served.upload()
    again = {"x-stainless-retry-count": "2"}
    assert served.upload(extra_headers=again) == first
    assert served.upload(ROW * 2, extra_headers=again) != first
    assert served.upload() != first
    assert len(served.client.files.list().data) == 3


def test_the_life_of_a_job(served: Served) -> None:
    jobs, store = served.client.fine_tuning.jobs, served.platform.store
    job = served.create_job()
    store.update_job(job.id, status="queued")
    store.claim_job()
    assert jobs.pause(job.id).status == "pausing"
    with pytest.raises(openai.BadRequestError, match="is pausing"):
        jobs.pause(job.id)
    store.update_job(job.id, status="paused")
    assert jobs.resume(job.id).status == "queued"
    store.claim_job()
    ended = jobs.cancel(job.id)
    assert ended.status == "cancelled"
    assert ended.finished_at is not None
    for move in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="is cancelled") as caught:
            move(job.id)
        assert caught.value.code == "invalid_job_status"


def test_jobs_page_and_filter(served: Served) -> None:
    ids = [served.create_job(metadata={"n": str(n % 2)}).id for n in range(5)]
    bare = served.create_job().id
    jobs = served.client.fine_tuning.jobs
    page = jobs.list(limit=2)
    assert page.has_more
    assert page.last_id == page.data[-1].id
    assert [job.id for job in jobs.list(limit=2)] == [bare, *ids[::-1]]
    assert [job.id for job in jobs.list(metadata={"n": "1"})] == [ids[3], ids[1]]
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [bare]


def test_events_are_newest_first_and_page(served: Served) -> None:
    job = served.create_job()
    for number in range(45):
        data = {"step": number}
        served.platform.store.add_event(job.id, f"Step {number}", type="metrics", data=data)
    page = served.client.fine_tuning.jobs.list_events(job.id)
    assert len(page.data) == 20
    steps = [event.data["step"] for event in page if event.type == "metrics"]
    assert steps == list(range(44, -1, -1))


def test_checkpoints_carry_their_rewards(served: Served) -> None:
    job = served.create_job()
    store = served.platform.store
    for step in (5, 10):
        name = f"ft:rftkit-tiny:local::x:ckpt-step-{step}"
        store.add_checkpoint(job.id, step, name, {"full_valid_mean_reward": step / 10}, "/f")
    found = served.client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [c.step_number for c in found] == [10, 5]
    assert found.data[0].metrics.full_valid_mean_reward == 1.0
    assert found.data[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-10")
    newest = found.data[0].id
    rest = served.client.fine_tuning.jobs.checkpoints.list(job.id, after=newest, limit=1)
    assert [c.step_number for c in rest] == [5]


def test_files_come_back_byte_for_byte(served: Served) -> None:
    content = bytes(range(256)) * 1000
    files = served.client.files
    file = files.create(file=("rows ü.jsonl", content), purpose="fine-tune")
    assert (file.bytes, file.filename, file.status) == (256_000, "rows ü.jsonl", "processed")
    assert files.content(file.id).read() == content
    assert files.retrieve(file.id) == file
    assert files.wait_for_processing(file.id, poll_interval=0.01) == file
    other = files.create(file=("notes.txt", b"x"), purpose="user_data")
    assert [f.id for f in files.list(order="asc")] == [file.id, other.id]
    assert [f.id for f in files.list(purpose="user_data")] == [other.id]
    assert files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        files.content(file.id)


def test_a_file_expires(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = served.upload(expires_after={"anchor": "created_at", "seconds": 3600})
    later = int(time.time()) + 3601
    for module in ("api.files", "store.files"):
        monkeypatch.setattr(f"rftkit.server.{module}.now", lambda: later)
    with pytest.raises(openai.NotFoundError, match="expired at"):
        served.client.files.retrieve(file_id)
    assert served.client.files.list().data == []
    with pytest.raises(openai.BadRequestError, match="expired at") as caught:
        served.create_job(training_file=file_id)
    assert caught.value.param == "training_file"


def test_models_are_listed_and_deleted(served: Served) -> None:
    name = "ft:rftkit-tiny:local:mine:abc:ckpt-step-4"
    served.platform.store.add_model(name, "rftkit-tiny", None, "/f", 4)
    models = served.client.models
    ids = [model.id for model in models.list()]
    assert ids == ["smollm2-135m-instruct", "rftkit-tiny", name]
    assert models.retrieve(name).owned_by == "org-local"
    job = served.create_job(model=name)
    with pytest.raises(openai.BadRequestError, match=job.id):
        models.delete(name)
    served.client.fine_tuning.jobs.cancel(job.id)
    assert models.delete(name).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        models.retrieve(name)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="base model"):
        models.delete("rftkit-tiny")


def test_graders_run_and_validate(served: Served) -> None:
    graders = served.client.fine_tuning.alpha.graders
    run = graders.run(grader=GRADER, model_sample="hi", item={"answer": "hi"})
    assert (run.reward, run.metadata.errors.other_error) == (1.0, False)
    said: Any = {"output_text": "hi", "model": "m-1"}
    by_model: Any = {**GRADER, "input": "{{sample.model}}", "reference": "m-1"}
    assert graders.run(grader=by_model, model_sample=said, item={}).reward == 1.0
    errors = graders.run(grader=by_model, model_sample="hi", item={}).metadata.errors
    assert errors.invalid_variable_error
    with pytest.raises(openai.BadRequestError, match="output_text"):
        graders.run(grader=by_model, model_sample={"said": "hi"}, item={})  # type: ignore[arg-type]
    python = {"type": "python", "source": "def grade(sample, item):\n    raise ValueError('no')"}
    run = graders.run(grader=python, model_sample="hi", item={})
    assert run.reward == 0.0
    assert run.metadata.errors.python_grader_runtime_error
    assert "no" in (run.metadata.errors.python_grader_runtime_error_details or "")
    valid: Any = graders.validate(grader=python).grader
    assert valid.image_tag == "2025-05-08"
    with pytest.raises(openai.BadRequestError) as caught:
        graders.validate(grader={**GRADER, "operation": "neq"})
    assert caught.value.param == "operation"


def test_secret_headers_are_masked(served: Served) -> None:
    headers = {"Authorization": "s3cret"}
    endpoint = {"type": "endpoint", "name": "e", "url": "http://127.0.0.1:1/", "headers": headers}
    job = served.create_job(method=method(grader=endpoint))
    assert "s3cret" not in job.to_json(warnings=False)
    assert "********" in job.to_json(warnings=False)
    record = served.client.evals.retrieve(job.eval_id)
    assert "s3cret" not in record.to_json(warnings=False)
    kept = served.platform.store.job(job.id).method["reinforcement"]["grader"]
    assert kept["headers"] == headers


def method(**reinforcement: Any) -> Any:
    return {"type": "reinforcement", "reinforcement": {"grader": GRADER, **reinforcement}}


def test_rows_are_not_read_at_upload(served: Served) -> None:
    assert served.upload(b"not json\n" + ROW)


def test_a_judge_of_the_final_checks_that_cannot_be_asked_is_refused_at_creation(
    served: Served, tmp_path: Path
) -> None:
    judge = {
        "type": "score_model", "name": "polite", "model": "gpt-4o", "range": [0, 1],
        "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    }  # fmt: skip
    checks = {"refuses": {"grader": judge, "pass_threshold": 0.9}}
    (tmp_path / "checks.json").write_text(json.dumps(checks))
    served.platform.home = tmp_path
    with pytest.raises(openai.BadRequestError, match=r"refuses\.grader\.model.*gpt-4o"):
        served.create_job()
    (tmp_path / "checks.json").unlink()
    served.create_job()
