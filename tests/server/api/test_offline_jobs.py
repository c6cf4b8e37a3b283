"""Creating supervised and dpo jobs: what is accepted, echoed, resolved and refused."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from conftest import GRADER, Served

AUTO = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}


def wire(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = job.to_dict(warnings=False)
    return found


def create(served: Served, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "rftkit-tiny", "training_file": served.upload(), **changes}
    return wire(served.client.fine_tuning.jobs.create(**body))


@pytest.mark.parametrize(
    ("body", "values"),
    [
        ({}, {}),
        ({"hyperparameters": {"n_epochs": 1}}, {"n_epochs": 1}),
        ({"hyperparameters": {"n_epochs": 1}, "method": {"type": "supervised"}}, {"n_epochs": 1}),
        ({"method": {"type": "supervised", "supervised": {}}}, {}),
        ({"method": {"type": "supervised",
                     "supervised": {"hyperparameters": {"batch_size": 4, "n_epochs": None}}}},
         {"batch_size": 4}),
        ({"hyperparameters": {"n_epochs": 2},
          "method": {"type": "supervised",
                     "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}}},
         {"n_epochs": 2, "batch_size": 8}),
    ],
)  # fmt: skip
def test_all_forms_of_a_supervised_body_are_echoed_alike(
    served: Served, body: dict[str, Any], values: dict[str, Any]
) -> None:
    job = create(served, **body)
    assert job["method"] == {
        "type": "supervised", "supervised": {"hyperparameters": {**AUTO, **values}},
    }  # fmt: skip
    assert job["hyperparameters"] == {**AUTO, **values}
    assert (job["validation_file"], job["eval_id"], job["error"]) == (None, None, None)
    assert job["status"] == "validating_files"
    again = wire(served.client.fine_tuning.jobs.retrieve(job["id"]))
    assert again == job


def test_a_dpo_job_has_beta_and_no_old_hyperparameters(served: Served) -> None:
    given: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.5}}}
    job = create(served, method=given, validation_file=served.upload())
    assert job["method"]["dpo"]["hyperparameters"] == {**AUTO, "beta": 0.5}
    assert job["hyperparameters"] is None
    assert job["validation_file"].startswith("file-")
    assert create(served, method={"type": "dpo"})["method"]["dpo"]["hyperparameters"] == {
        **AUTO, "beta": "auto",
    }  # fmt: skip


def test_a_grader_in_the_metadata_measures_the_job(served: Served) -> None:
    answer = {"type": "json_object"}
    file = served.client.files.create(
        file=("grader.json", json.dumps(GRADER).encode()), purpose="user_data"
    )
    for grader in (json.dumps(GRADER), file.id):
        job = create(
            served,
            validation_file=served.upload(),
            metadata={"grader": grader, "response_format": json.dumps(answer)},
        )
        assert job["measured_by"]["grader"]["type"] == GRADER["type"]
        assert job["measured_by"]["response_format"] == answer
        assert "measure" not in job["method"]
        assert job["eval_id"].startswith("eval_")
        record = served.client.evals.retrieve(job["eval_id"])
        assert record.name == f"Supervised fine-tuning validation runs for {job['id']}"


def test_what_a_method_does_not_know_is_ignored_by_name(served: Served) -> None:
    given: Any = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"beta": 0.1, "warmth": 1}, "more": 1},
        "dpo": None,
    }
    job = create(served, method=given)
    [said] = [
        event.message
        for event in served.client.fine_tuning.jobs.list_events(job["id"])
        if event.message.startswith("Ignored")
    ]
    for name in ("supervised.more", "hyperparameters.beta", "hyperparameters.warmth"):
        assert f"method.{name}" in said or f"method.supervised.{name}" in said


def test_a_plan_of_each_method_explains_its_autos(served: Served) -> None:
    from rftkit import jobs

    found = jobs.plan(served.client, 101, method="supervised")
    assert found is not None
    assert found["hyperparameters"]["total_steps"] == 303
    assert set(found["reasons"]) == {"batch_size", "n_epochs", "learning_rate_multiplier"}
    assert "eval_samples" not in found["hyperparameters"]  # nothing is sampled
    paired = jobs.plan(served.client, 101, {"beta": 0.3}, method="dpo")
    assert paired is not None
    assert paired["hyperparameters"]["beta"] == 0.3
    assert "beta" in paired["reasons"]


def test_dpo_is_refused_by_name_where_a_tinker_server_trains(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match=r"no Tinker server serves|Tinker protocol"):
        create(served, method={"type": "dpo"}, metadata={"engine": "tinker"})
