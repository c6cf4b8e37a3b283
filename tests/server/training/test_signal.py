"""Real jobs that learn badly, and what their metric events and warnings say about it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import in_process
import pytest

from rftkit import jobs
from rftkit.diagnosis import findings, story_of
from rftkit.server.store.records import Job
from rftkit.server.store.wire import event_object
from rftkit.server.training import metrics
from rftkit.server.worker.worker import Worker

LABELS = ["yes", "no", "needs review"]
ROWS = [
    {"messages": [{"role": "user", "content": f"copy: {a}{b}"}], "label": LABELS[n % 3]}
    for n, (a, b) in enumerate((a, b) for a in "abcd" for b in "efghab")
]
FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "review",
        "schema": {
            "type": "object",
            "properties": {"label": {"type": "string", "enum": LABELS}},
            "required": ["label"],
            "additionalProperties": False,
        },
    },
}
LABEL = {
    "type": "string_check",
    "name": "label",
    "operation": "eq",
    "input": "{{sample.output_json.label}}",
    "reference": "{{item.label}}",
}
LIKES_NO = LABEL | {"name": "likes_no", "reference": "no"}
SAME = {
    "type": "text_similarity",
    "name": "same",
    "evaluation_metric": "fuzzy_match",
    "input": "{{item.label}}",
    "reference": "{{item.label}}",
}
GRADER = {
    "type": "multi",
    "name": "review",
    "graders": {"label": LABEL, "likes_no": LIKES_NO, "same": SAME},
    "calculate_output": "0.2 * label + likes_no + 0.1 * same",
}

DRIFTS = {
    "advantage": "mean", "guidance": "none", "stratify": "none", "schedule": "constant",
    "warmup_steps": "0",
}  # fmt: skip
"""Nothing that holds a policy back from one answer."""


@pytest.fixture
def worker(home: Any) -> Iterator[Worker]:
    worker = Worker(home, lambda message: None)
    yield worker
    worker.store.close()


def events_of(worker: Worker, job: Job) -> list[dict[str, Any]]:
    """Its events as a client gets them, oldest first."""
    found = worker.store.events(job.id, limit=1000)[0][::-1]
    return [event_object(each) for each in found]


def warnings(worker: Worker, job: Job) -> dict[str, str]:
    """What a finished job warned of, by rule and subject."""
    events = worker.store.events(job.id, limit=1000)[0][::-1]
    found = [
        (event.data["finding"], event.message)
        for event in events
        if event.level == "warn" and "finding" in (event.data or {})
    ]
    keys = [f"{each['code']}:{each['subject']}" for each, _ in found]
    assert len(keys) == len(set(keys)), "each once"
    return dict(zip(keys, (message for _, message in found), strict=True))


def test_a_job_that_settles_on_one_label_says_so_and_where_its_gain_came_from(
    worker: Worker,
) -> None:
    job = in_process.run(
        worker,
        in_process.add_job(
            worker, grader=GRADER, rows=ROWS, response_format=FORMAT, batch_size=6, n_epochs=4,
            eval_interval=4, learning_rate_multiplier=10,
            metadata={"max_completion_tokens": "40", **DRIFTS},
        ),
    )  # fmt: skip
    last = in_process.metrics(worker, job)[-1]
    lines = {line["name"]: line for line in last["scores"]["graders"]}
    assert lines["label"]["train_flat_groups"] == 1
    assert lines["label"]["train_reward_spread"] == 0
    assert "valid_flat_groups" not in lines["label"], "one answer a row is no group"
    [answer] = last["answers"]
    assert answer["values"] == LABELS
    assert answer["grader"] == "label"
    assert answer["train"]["samples"]["no"] == 1
    assert sum(answer["train"]["references"].values()) == pytest.approx(1)
    assert answer["train"]["num_samples_so_far"] == 16 * 6 * 8
    assert answer["valid"]["num_samples"] == len(ROWS)
    said = warnings(worker, job)
    assert "`label` is `no` in " in said["collapsed:label"]
    assert "learning_rate_multiplier" in said["collapsed:label"]
    assert "It came from `likes_no`" in said["still:label"]
    assert "`label` and `same` show no clear change" in said["still:label"]
    assert said["same_pay:same"].startswith("The grader `same` gave 1 to each of ")


def test_a_job_whose_answers_are_all_cut_off_names_the_limit(worker: Worker) -> None:
    limits = {"max_completion_tokens": "1"}
    job = in_process.run(worker, in_process.add_job(worker, metadata=limits))
    said = warnings(worker, job)
    assert said["cut_off:"].startswith("100% of the validation answers were cut off at 1 token")
    assert "`max_completion_tokens`" in said["cut_off:"]
    assert "same_pay:" not in said, "most answers get the floor reward, which is constant"


def test_a_job_that_never_earns_anything_says_that_no_weight_changed(worker: Worker) -> None:
    never = in_process.COPY | {"reference": "zzzzzz"}
    job = in_process.run(worker, in_process.add_job(worker, grader=never))
    said = warnings(worker, job)
    assert "no weight changed" in said["flat:"]
    assert "`compute_multiplier`" in said["flat:"]
    assert said["nothing_learned:"].startswith("Nothing was learned: the grader gave 0 to each of ")


def test_flat_groups_that_references_guide_are_not_said_to_teach_nothing(worker: Worker) -> None:
    """The tiny model never says these words, so all that it learns is from the references."""
    rows = [
        {"messages": [{"role": "user", "content": f"copy: {n}"}], "answer": f"zebra {n} xylophone"}
        for n in range(24)
    ]
    exact = LABEL | {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    given: dict[str, Any] = {"n_epochs": 2, "metadata": {"max_completion_tokens": "32"}}
    job = in_process.run(worker, in_process.add_job(worker, rows=rows, grader=exact, **given))
    steps = [each["data"] for each in events_of(worker, job) if each["type"] == "metrics"]
    trained = [step["learning"] for step in steps if step["step"]]
    assert all(each["guided"] and each["loss"] is not None for each in trained)
    assert {each["flat_groups"] for each in trained} == {1.0}
    assert {each["no_signal_groups"] for each in trained} == {0.0}
    [line] = steps[-1]["scores"]["graders"]
    assert line["train_guided_reward_mean"] == 1.0
    assert not {"flat:", "mostly_flat:", "same_pay:", "nothing_learned:"} & set(
        warnings(worker, job)
    )


def test_a_job_without_a_scorable_answer_is_warned_of_pauses_once_and_says_so(
    worker: Worker,
) -> None:
    reads_json = LABEL | {"reference": "yes"}
    job = in_process.run(worker, in_process.add_job(worker, grader=reads_json, n_epochs=3))
    assert job.status == "paused"
    [said] = [m for m in in_process.messages(worker, job) if "job pauses" in m]
    assert said.startswith("The job pauses: 32 of 32 training answers could not be scored")
    assert "The grader reads sample.output_json, which a job fills only under a resp" in said
    [first, *_] = findings(story_of(events_of(worker, job)))
    assert first.message.startswith("Nothing was learned: 100% of the answers could not be scored")
    assert "`response_format`" in first.advice

    worker.store.resume_job(job.id)
    assert in_process.run(worker, job).status == "succeeded", "resuming lifts the limit"
    assert "Nothing was learned: " in warnings(worker, job)["nothing_learned:"]


def test_references_that_no_answer_is_scored_for_do_not_keep_a_job_going(worker: Worker) -> None:
    """They teach a form, which the grader cannot read without a response format."""
    job = in_process.run(worker, in_process.add_job(worker, rows=ROWS, grader=LABEL, n_epochs=3))
    assert job.status == "paused"


def test_a_limit_for_unscorable_answers_can_be_lifted_and_is_not_reached_while_some_teach(
    worker: Worker,
) -> None:
    limits = {"max_completion_tokens": "1", "unscorable_budget": "1"}
    job = in_process.run(worker, in_process.add_job(worker, metadata=limits))
    assert job.status == "succeeded"
    strict = {"unscorable_budget": "0"}  # references teach, and random answers are cut off
    job = in_process.run(worker, in_process.add_job(worker, metadata=strict))
    assert job.status == "succeeded"


def test_the_result_file_has_the_figures_of_each_grader() -> None:
    leaf = {"name": "a", "type": "python", "train_reward_mean": 0.5, "train_flat_groups": 0.25}
    data = {
        "step": 1, "timing": {"step": {}}, "scores": {"graders": [leaf]},
        "errors": {"graders": []},
    }  # fmt: skip
    head, line = metrics.result_csv([data]).decode().splitlines()
    columns = dict(zip(head.split(","), line.split(","), strict=True))
    assert columns["scores/graders/python/a/train_flat_groups"] == "0.25"


def test_no_cell_of_the_result_file_is_a_formula_and_negative_numbers_stay_numbers() -> None:
    """Names come from the job; a spreadsheet runs what begins with `=`, `+`, `-` or `@`."""
    leaf = {"name": '=HYPERLINK("x")', "type": "python", "train_reward_mean": -0.5}
    errors = {"name": leaf["name"], "type": "python", "train_other_error_count": 0}
    learning = {"=1+1": -2.5, "note": "@SUM(A1)", "kl": -1e-9}
    data = {
        "step": 1, "timing": {"step": {}}, "scores": {"graders": [leaf]},
        "errors": {"graders": [errors]}, "learning": learning,
    }  # fmt: skip
    text = metrics.result_csv([data]).decode()
    columns, values = list(csv.reader(io.StringIO(text)))
    for each in (*columns, *values):
        assert each[:1] not in ("=", "+", "@", "\t"), each
        assert each[:1] != "-" or float(each) < 0
    found = dict(zip(columns, values, strict=True))
    name = 'scores/graders/python/=HYPERLINK("x")/train_reward_mean'
    assert (found[name], found["learning/kl"]) == ("-0.5", "-1e-09")
    [event] = jobs.events_from_csv(text.replace("'@SUM(A1)", ""))
    [score] = event["data"]["scores"]["graders"]
    assert (score["name"], score["train_reward_mean"]) == (leaf["name"], -0.5)
