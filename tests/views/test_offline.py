"""How supervised and dpo jobs look: curves of losses, a headline, a status, lines of progress."""

from __future__ import annotations

import io
from typing import Any

import pytest
import sample_job
from openai.types.fine_tuning import FineTuningJob

from rftkit import diagnosis, jobs, views
from rftkit.reports.job import JobRecord
from rftkit.reports.summary import summary

JOB = {
    **sample_job.job(status="succeeded"),
    "validation_file": None,
    "eval_id": None,
    "hyperparameters": {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 0.25},
}


def events(method: str, *, valid: bool = True) -> list[dict[str, Any]]:
    """Six steps of two epochs."""
    found = []
    for step in range(1, 7):
        data: dict[str, Any] = {
            "step": step, "total_steps": 6, "train_loss": 2.0 / step,
            "train_mean_token_accuracy": step / 6,
            "timing": {"step": {"sampling": 0.0, "training": 1.0, "eval": 0.5 * (step % 3 == 0),
                                "full_iteration": 1.5}},
            "learning": {"learning_rate": 1e-3, "grad_norm": 0.5, "tokens_per_second": 100.0},
        }  # fmt: skip
        if valid and step % 3 == 0:
            data |= {"full_valid_loss": 3.0 / step, "full_valid_mean_token_accuracy": 0.5}
        if method == "dpo":
            data["preferences"] = {"train_reward_accuracy": 0.75, "train_reward_margin": 0.1}
        found.append({"id": f"e{step}", "type": "metrics", "data": data, "created_at": step,
                      "level": "info", "message": f"Step {step}/6"})  # fmt: skip
    return found


def steps(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    frame: Any = jobs.step_frame(given)
    return list(frame.to_dict("records"))


@pytest.mark.parametrize("method", ["supervised", "dpo"])
@pytest.mark.parametrize("valid", [True, False])
def test_the_views_of_a_job_show_losses(method: str, valid: bool) -> None:
    given = events(method, valid=valid)
    curves = views.reward_chart(given)
    assert "Loss by step" in curves
    assert "Tokens right, %" in curves
    assert ("Pairs right, %" in curves) == (method == "dpo")
    assert "No rewards" not in curves
    assert f"{2 if valid else 0} whole validations" in curves
    assert "Gradient norm" in views.health_chart(given)
    assert "Total: " in views.time_chart(given)
    status = views.job_status(JOB, steps(given))
    assert "Loss, step 6" in status
    assert ("Validation loss, step 6" in status) == valid
    assert "learns from answers in its rows" in views.diagnosis(given)
    assert diagnosis.findings(diagnosis.story_of(given)) == []
    assert views.signal_chart(given)


def test_the_headline_is_about_the_loss() -> None:
    said = views.headline(summary(events("supervised"))).plain
    assert said == (
        "The loss on the validation rows was 1.00 at step 3 and 0.50 at step 6. A loss does not "
        "say what the answers are worth; an eval does."
    )
    alone = views.headline(summary(events("supervised", valid=False))).plain
    assert alone.startswith("The loss on training rows was 2.00 at step 1 and 0.33 at step 6")


def test_a_report_shows_the_settings_of_the_method() -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    kept = [jobs.Checkpoint(3, "m", None, None, "c", valid_loss=1.0)]
    record = JobRecord({**JOB, "method": method}, None, events("supervised"), kept, [], None)
    assert [line["hyperparameter"] for line in record.hyperparameters()] == ["n_epochs"]
    assert list(record.checkpoint_columns) == ["step", "model", "valid_loss"]
    assert "n_epochs" in views.spec(record.settings)
    assert record.sources()["grader"] is None
    assert jobs.best([*kept, jobs.Checkpoint(6, "n", None, None, "d", valid_loss=0.5)]) is not None


def test_progress_has_losses_in_place_of_rewards() -> None:
    stream = io.StringIO()
    progress = jobs.Progress(stream)
    job = FineTuningJob.construct(**{**JOB, "status": "running"})
    progress(jobs.Update(job, []))
    for event in events("dpo"):
        progress(jobs.Update(job, [event]))
    last = stream.getvalue().splitlines()[-1]
    assert last == (
        "step 6/6 · loss 0.333 · tokens right 100% · pairs right 75% · valid loss 0.500 · "
        "valid tokens right 50% · 100 tok/s"
    )
