"""Evals, runs and output items over the wire; what a job's validations leave there."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from typing import Any

import openai
import pytest
from conftest import GRADER, ROW, Served
from eval_calls import BROKEN, ITEM_SCHEMA, MODEL, SIMILAR, asking, content, finished, make_eval

from rftkit import evals as rftkit_evals
from rftkit.graders import Sample, compile_grader
from rftkit.server.training.eval_records import GradedSample, finish_reason, record_validation


def test_an_eval_is_kept_listed_changed_and_deleted(served: Served) -> None:
    evals = served.client.evals
    first, second = make_eval(served, metadata={"a": "b"}), make_eval(served)
    assert first.id.startswith("eval_")
    assert first.data_source_config.to_dict()["schema"]["properties"]["item"] == ITEM_SCHEMA
    names = [c.to_dict(warnings=False)["id"] for c in first.testing_criteria]
    assert [name[:-37] for name in names] == ["exact", "alike-enough"]
    assert evals.retrieve(first.id).to_dict() == first.to_dict()
    assert [e.id for e in evals.list()] == [first.id, second.id]
    assert [e.id for e in evals.list(order="desc", limit=1)] == [second.id, first.id]
    assert evals.update(first.id, name="renamed").name == "renamed"
    assert evals.retrieve(first.id).metadata == {"a": "b"}
    assert [e.id for e in evals.list(order_by="updated_at")][-1] in (first.id, second.id)
    assert evals.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError):
        evals.retrieve(first.id)


def test_a_resent_create_makes_one(served: Served) -> None:
    again = {"extra_headers": {"x-stainless-retry-count": "1"}}
    record = make_eval(served)
    assert make_eval(served, **again).id == record.id
    source: Any = {"type": "jsonl", "source": content("a")}
    run = served.client.evals.runs.create(record.id, data_source=source)
    resent = served.client.evals.runs.create(record.id, data_source=source, **again)  # type: ignore[arg-type]
    assert resent.id == run.id
    assert served.client.evals.runs.create(record.id, data_source=source).id != run.id


def test_given_samples_are_graded(served: Served) -> None:
    record = make_eval(served)
    source = {
        "type": "file_content",
        "content": [
            {"item": {"answer": "hello"}, "sample": {"output_text": "hello"}},
            {"item": {"answer": "hello"}, "sample": {"output_text": "hellp"}},
            {"item": {"answer": "hello"}, "sample": {"output_text": "xyz"}},
        ],
    }
    runs = served.client.evals.runs
    run = runs.create(record.id, name="r", data_source={"type": "jsonl", "source": source})  # type: ignore[typeddict-item]
    assert run.status == "queued"
    assert run.per_model_usage is None
    run = finished(served, run)
    assert run.status == "completed"
    counts = {"total": 3, "errored": 0, "failed": 2, "passed": 1}
    assert run.result_counts.to_dict() == counts
    by_name = {c.testing_criteria[:-37]: c.passed for c in run.per_testing_criteria_results}
    assert by_name == {"exact": 1, "alike-enough": 1}
    items = list(runs.output_items.list(run.id, eval_id=record.id))
    assert sorted(item.status for item in items) == ["fail", "fail", "pass"]
    first = min(items, key=lambda item: item.datasource_item_id)
    assert [(r.name[:-37], r.score, r.passed) for r in first.results] == [
        ("exact", 1.0, True),
        ("alike-enough", 1.0, True),
    ]
    assert first.sample.output[0].content == "hello"
    passed = runs.output_items.list(run.id, eval_id=record.id, status="pass")
    assert [item.id for item in passed] == [first.id]
    assert runs.output_items.retrieve(first.id, eval_id=record.id, run_id=run.id).id == first.id


def test_criteria_read_the_model_of_a_sample(served: Served) -> None:
    named = {**GRADER, "input": "{{sample.model}}", "reference": MODEL}
    record = make_eval(served, named)
    given = content("a", sample={"output_text": "a", "model": MODEL})
    unnamed = content("a", sample={"output_text": "a"})
    asked: Any = {
        "type": "completions", "model": MODEL, "source": content("a"),
        "input_messages": {
            "type": "template", "template": [{"role": "user", "content": "say {{item.answer}}"}],
        },
    }  # fmt: skip
    sources: list[Any] = [{"type": "jsonl", "source": given}, asked]
    for source in sources:
        run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
        assert run.result_counts.passed == 1
    source = {"type": "jsonl", "source": unnamed}
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))  # type: ignore[arg-type]
    assert run.result_counts.errored == 1  # no score: nobody says which model it was


@pytest.mark.parametrize("kind", ["completions", "responses"])
def test_a_model_is_asked_and_graded(served: Served, kind: str) -> None:
    served.link.say = lambda request: request["messages"][-1]["content"].removeprefix("say ")
    record = make_eval(served, GRADER)
    format_ = {"name": "x", "schema": {"type": "object"}, "strict": True}
    sampling: Any = {"temperature": 0.5, "seed": 3}
    if kind == "responses":
        sampling["text"] = {"format": {"type": "json_schema", **format_}}
    else:
        sampling["response_format"] = {"type": "json_schema", "json_schema": format_}
    source: Any = {
        "type": kind, "model": MODEL, "source": content('"a"', "b"), "sampling_params": sampling,
        "input_messages": {
            "type": "template", "template": [{"role": "user", "content": "say {{item.answer}}"}],
        },
    }  # fmt: skip
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    asked = served.link.requests[0]
    assert (asked["temperature"], asked["seed"]) == (0.5, 3)
    assert asked["response_format"] == {"type": "json_schema", "json_schema": format_}
    assert run.result_counts.passed == 1
    assert run.per_model_usage[0].to_dict()["invocation_count"] == 2
    items = {i.datasource_item_id: i for i in served.client.evals.runs.output_items.list(
        run.id, eval_id=record.id)}  # fmt: skip
    assert items[0].sample.input[0].content == 'say "a"'
    assert items[0].sample.temperature == 0.5
    assert items[1].results[0].passed is False  # not the JSON that was asked for


def test_messages_may_lie_in_the_item(served: Served) -> None:
    served.link.say = lambda request: "hi"
    file = served.client.files.create(file=("rows.jsonl", ROW * 3), purpose="evals")
    source: Any = {
        "type": "completions", "model": MODEL, "source": {"type": "file_id", "id": file.id},
        "input_messages": {"type": "item_reference", "item_reference": "item.messages"},
    }  # fmt: skip
    record = make_eval(served, GRADER)
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert run.result_counts.passed == 3
    assert served.link.requests[0]["messages"] == json.loads(ROW)["messages"]


def test_a_broken_grader_is_an_errored_item_not_a_zero(served: Served) -> None:
    record = make_eval(served, BROKEN)
    source: Any = {"type": "jsonl", "source": content("a", sample={"output_text": "a"})}
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert run.result_counts.to_dict() == {"total": 1, "errored": 1, "failed": 0, "passed": 0}
    [item] = served.client.evals.runs.output_items.list(run.id, eval_id=record.id)
    assert item.results[0].score is None
    assert item.results[0].errors["python_grader_runtime_error"] is True


def test_a_model_that_fails_is_an_errored_item(served: Served) -> None:
    from rftkit.server.inference.worker_process import ChatError

    served.link.say = lambda request: ChatError("out of memory")
    record = make_eval(served, GRADER)
    source: Any = {
        "type": "completions", "model": MODEL, "source": content("a"),
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "x"}]},
    }  # fmt: skip
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert run.result_counts.errored == 1
    [item] = served.client.evals.runs.output_items.list(run.id, eval_id=record.id)
    assert item.sample.error.message == "out of memory"


def test_a_run_and_its_judge_outlive_the_deaths_of_the_worker(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rftkit.server.inference.worker_process import DIED, UNAVAILABLE, ChatError

    monkeypatch.setattr("rftkit.server.inference.platform.RETRY_SECONDS", 0.01)
    asked: list[str] = []

    def say(request: dict[str, Any]) -> Any:
        text = request["messages"][-1]["content"]
        asked.append(text)
        if (count := asked.count(text)) < 4:  # the worker dies, and is away for a moment
            return ChatError("gone", code=DIED if count == 1 else UNAVAILABLE)
        return '{"steps": [], "result": 1.0}' if text.startswith("Rate") else text

    served.link.say = say
    judge = {
        "type": "score_model", "name": "judge", "model": MODEL,
        "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}],
    }  # fmt: skip
    record = make_eval(served, GRADER, judge)
    source: Any = {
        "type": "completions", "model": MODEL, "source": content("a", "b", "c"),
        "input_messages": {
            "type": "template", "template": [{"role": "user", "content": "{{item.answer}}"}],
        },
    }  # fmt: skip
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert run.result_counts.to_dict() == {"total": 3, "errored": 0, "failed": 0, "passed": 3}


def test_a_run_outlives_a_database_that_is_locked_for_long(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.server.inference.backlog.RETRY_SECONDS", 0.01)
    keep, faults = served.platform.store.add_items, [True, True]

    def locked(items: Any) -> None:
        if faults:
            faults.pop()
            raise sqlite3.OperationalError("database is locked")
        keep(items)

    monkeypatch.setattr(served.platform.store, "add_items", locked)
    record = make_eval(served, GRADER)
    rows = content(*"abcdef", sample={"output_text": "a"})
    source: Any = {"type": "jsonl", "source": rows}
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert run.result_counts.to_dict() == {"total": 6, "errored": 0, "failed": 5, "passed": 1}
    assert not faults


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "TMPDIR"),
        (OSError(24, "Too many open files"), "ulimit"),
    ],
)
def test_what_the_machine_lacks_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def fail(**_: Any) -> Any:
        raise error

    monkeypatch.setattr(served.platform.store, "evals", fail)
    with pytest.raises(openai.InternalServerError, match=words) as caught:
        served.client.evals.list()
    assert caught.value.status_code == 503


def test_health_tells_what_does_not_work(served: Served) -> None:
    assert served.http.get("/health").json()["status"] == "ok"
    served.platform.worker_trouble = lambda: "the model worker is not running"
    health = served.http.get("/health").json()
    assert health["status"] == "degraded"
    assert health["problems"] == ["the model worker is not running"]


def test_a_judge_is_a_model_served_here(served: Served) -> None:
    served.link.say = lambda request: '{"steps": [], "result": 0.75}'
    judge = {
        "type": "score_model", "name": "judge", "model": MODEL,
        "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}],
        "sampling_params": {"temperature": 0, "max_completions_tokens": 50},
    }  # fmt: skip
    run = served.client.fine_tuning.alpha.graders.run(
        grader=judge,
        model_sample="fine",
        item={},  # type: ignore[arg-type]
    )
    assert run.reward == 0.75
    usage: Any = run.api_model_grader_token_usage_per_model[MODEL]
    assert usage["prompt_tokens"] == 3
    asked = served.link.requests[0]
    assert asked["messages"][-1]["content"] == "Rate fine"
    assert (asked["temperature"], asked["max_tokens"]) == (0.0, 50)
    unknown = {**judge, "model": "gpt-9"}
    run = served.client.fine_tuning.alpha.graders.run(grader=unknown, model_sample="fine")  # type: ignore[arg-type]
    assert run.metadata.errors.api_model_grader_server_error
    details = run.metadata.errors.api_model_grader_server_error_details
    assert "RFTKIT_JUDGE_BASE_URL" in (details or "")


def test_a_run_goes_on_where_a_killed_server_left_it(served: Served) -> None:
    store, record = served.platform.store, make_eval(served, GRADER)
    source = {"type": "jsonl", "source": content("a", "b", "c", sample={"output_text": "b"})}
    run = store.add_run(record.id, source, status="in_progress")
    from rftkit.server.training.eval_records import item_from

    store.add_items([item_from(run, GradedSample(row=0, item={"answer": "a"}, results=[]))])
    served.platform.runner.wake()
    done = finished(served, served.client.evals.runs.retrieve(run.id, eval_id=record.id))
    assert done.result_counts.to_dict() == {"total": 3, "errored": 0, "failed": 2, "passed": 1}


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_items_are_listed_by_row_however_they_ended(served: Served, order: Any) -> None:
    from rftkit.server.training.eval_records import item_from

    store, record = served.platform.store, make_eval(served, GRADER)
    run = store.add_run(record.id, {"type": "jsonl"}, status="completed")
    ended = [(4, "a"), (0, "b"), (11, "c"), (2, "d"), (0, "e"), (4, "f"), (1, "g")]
    for row, answer in ended:
        passed = [{"passed": answer in "bcf", "score": 1.0, "name": "g"}]
        graded = GradedSample(row=row, item={"answer": answer}, results=passed)
        store.add_items([item_from(run, graded)])
    items = served.client.evals.runs.output_items
    expected = [*"begdafc"][:: 1 if order == "asc" else -1]
    for limit in (1, 2, 3, 100):
        pages = items.list(run.id, eval_id=record.id, limit=limit, order=order)
        assert [item.datasource_item["answer"] for item in pages] == expected
    passed = items.list(run.id, eval_id=record.id, limit=2, order=order, status="pass")
    assert [item.datasource_item["answer"] for item in passed] == [
        a for a in expected if a in "bcf"
    ]


def test_runs_are_canceled_listed_and_deleted(served: Served) -> None:
    served.platform.runner.wake = lambda: None  # type: ignore[method-assign]
    record = make_eval(served, GRADER)
    runs = served.client.evals.runs
    source: Any = {"type": "jsonl", "source": content("a")}
    first, second = (runs.create(record.id, data_source=source) for _ in range(2))
    assert runs.cancel(first.id, eval_id=record.id).status == "canceled"
    path = f"/evals/{record.id}/runs/{second.id}"
    assert served.client.post(path, cast_to=dict)["status"] == "canceled"  # type: ignore[type-var]
    with pytest.raises(openai.BadRequestError, match="is canceled"):
        runs.cancel(first.id, eval_id=record.id)
    assert [run.id for run in runs.list(record.id, status="canceled")] == [first.id, second.id]
    assert runs.delete(first.id, eval_id=record.id).deleted
    assert [run.id for run in runs.list(record.id)] == [second.id]
    with pytest.raises(openai.NotFoundError):
        runs.retrieve(second.id, eval_id=make_eval(served).id)


def test_a_jobs_validations_become_runs(served: Served) -> None:
    multi = {
        "type": "multi", "calculate_output": "0.5 * exact + 0.5 * close",
        "graders": {"exact": GRADER, "close": SIMILAR},
    }  # fmt: skip
    job = served.create_job(method={"type": "reinforcement", "reinforcement": {"grader": multi}})
    record = served.client.evals.retrieve(job.eval_id)
    assert job.id in record.name
    store = served.platform.store
    stored = store.job(job.id)
    with compile_grader(stored.method["reinforcement"]["grader"]) as grader:
        samples = [
            (GradedSample(row=row, item={"answer": "hi"}, results=[], text=text),
             grader.grade(Sample.from_text(text), {"answer": "hi"}))
            for row in range(2) for text in ("hi", "no")
        ]  # fmt: skip
    run = record_validation(store, stored, 0, MODEL, samples)
    assert record_validation(store, stored, 0, MODEL, samples).id == run.id
    [found] = served.client.evals.runs.list(record.id)
    assert (found.name, found.status, found.model) == ("Step 0", "completed", MODEL)
    assert found.result_counts.to_dict() == {"total": 4, "errored": 0, "failed": 2, "passed": 2}
    items = list(served.client.evals.runs.output_items.list(run.id, eval_id=record.id))
    assert [item.datasource_item_id for item in items] == [0, 0, 1, 1]
    assert [result.name[:-37] for result in items[0].results] == [
        "exact", "alike-enough", "reward",
    ]  # fmt: skip
    assert items[1].results[-1].score == pytest.approx(0.0)


def test_permissions_of_a_checkpoint(served: Served) -> None:
    name = "ft:rftkit-tiny:local::x:ckpt-step-4"
    served.platform.store.add_model(name, MODEL, None, "/f", 4)
    permissions = served.client.fine_tuning.checkpoints.permissions
    made = permissions.create(name, project_ids=["proj_1", "proj_2"])
    assert [p.project_id for p in made.data] == ["proj_1", "proj_2"]
    assert [p.project_id for p in permissions.list(name, order="ascending").data] == [
        "proj_1", "proj_2",
    ]  # fmt: skip
    assert permissions.delete(made.data[0].id, fine_tuned_model_checkpoint=name).deleted
    assert [p.project_id for p in permissions.list(name).data] == ["proj_2"]
    with pytest.raises(openai.NotFoundError):
        permissions.list("ft:none")


BAD_EVALS: Any = [
    ({"testing_criteria": []}, "testing_criteria"),
    ({"testing_criteria": [{"type": "multi", "graders": {}}]}, "testing_criteria[0]"),
    ({"testing_criteria": [{**SIMILAR, "pass_threshold": None}]},
     "testing_criteria[0].pass_threshold"),
    ({"testing_criteria": [{**GRADER, "operation": "neq"}]}, "testing_criteria[0].operation"),
    ({"data_source_config": {"type": "thoughts"}}, "data_source_config.type"),
    ({"data_source_config": {"type": "custom"}}, "data_source_config.item_schema"),
    ({"data_source_config": {"type": "custom", "item_schema": {"type": "thing"}}},
     "data_source_config.item_schema"),
    ({"data_source_config": {"type": "custom", "item_schema": {"enum": ["x" * 100] * 1_000}}},
     "data_source_config.item_schema"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param"), BAD_EVALS)
def test_an_eval_that_cannot_be(served: Served, changes: Any, param: str) -> None:
    config = {"type": "custom", "item_schema": ITEM_SCHEMA}
    body: Any = {"data_source_config": config, "testing_criteria": [GRADER], **changes}
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.evals.create(**body)
    assert caught.value.param == param


TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "x"}]}
ASK = {"type": "completions", "model": MODEL, "source": content("a"), "input_messages": TEMPLATE}
BAD_RUNS: Any = [
    ({"type": "jsonl", "source": {"type": "stored_completions"}}, "data_source.source.type"),
    ({"type": "jsonl", "source": {"type": "file_id", "id": "file-0"}}, "data_source.source.id"),
    ({"type": "jsonl", "source": {"type": "file_content", "content": []}},
     "data_source.source.content"),
    ({"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"answer": 3}}]}},
     "data_source.source.content[0].item"),
    ({"type": "completions", "source": {"type": "stored_completions", "created_after": 2**80}},
     "data_source.source.created_after"),
    ({"type": "responses", "source": {"type": "responses", "limit": 2**80}},
     "data_source.source.limit"),
    ({**ASK, "model": "gpt-9"}, "data_source.model"),
    ({**ASK, "sampling_params": {"min_p": 1}}, "data_source.sampling_params.min_p"),
    ({**ASK, "input_messages": {"type": "magic"}}, "data_source.input_messages"),
    ({**ASK, "input_messages": {"type": "item_reference", "item_reference": "row.messages"}},
     "data_source.input_messages.item_reference"),
    ({**ASK, "input_messages": {"type": "template", "template": [{"role": "user"}]}},
     "data_source.input_messages.template[0].content"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "param"), BAD_RUNS)
def test_a_run_that_cannot_be(served: Served, source: Any, param: str) -> None:
    record = make_eval(served, GRADER)
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.evals.runs.create(record.id, data_source=source)
    assert caught.value.param == param
    assert served.client.evals.runs.list(record.id).data == []


def test_a_file_that_is_no_data_fails_its_run(served: Served) -> None:
    file = served.client.files.create(file=("rows.jsonl", ROW + b"{broken\n"), purpose="evals")
    source: Any = {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
    record = make_eval(served, GRADER)
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert run.status == "failed"
    assert "rows.jsonl:2: not valid JSON" in run.error.message


def test_kept_answers_are_graded_as_they_are_or_asked_again(served: Served) -> None:
    client = served.client
    served.link.say = lambda request: request["messages"][-1]["content"][-1]
    for word, team in (("a", "red"), ("b", "blue"), ("c", "blue")):
        client.chat.completions.create(
            model=MODEL, store=True, metadata={"team": team},
            messages=[{"role": "user", "content": f"say {word}"}],
        )  # fmt: skip
    ends_in = {
        "type": "string_check", "name": "b", "input": "{{item.input[0].content}}",
        "operation": "like", "reference": "{{sample.output_text}}",
    }  # fmt: skip
    record = client.evals.create(
        data_source_config={"type": "stored_completions", "metadata": {"team": "blue"}},
        testing_criteria=[ends_in],  # type: ignore[list-item]
    )
    config = record.data_source_config.to_dict()
    assert config["metadata"] == {"team": "blue"}
    assert "input" in config["schema"]["properties"]["item"]["properties"]
    source: Any = {"type": "completions", "source": {"type": "stored_completions", "limit": 5}}
    before = len(served.link.requests)
    run = finished(served, client.evals.runs.create(record.id, data_source=source))
    assert run.result_counts.to_dict() == {"total": 2, "errored": 0, "failed": 0, "passed": 2}
    assert len(served.link.requests) == before  # nobody was asked
    items = list(client.evals.runs.output_items.list(run.id, eval_id=record.id))
    assert {item.sample.output[0].content for item in items} == {"b", "c"}
    assert items[0].sample.input[0].content in ("say b", "say c")
    assert run.per_model_usage[0].run_model_name == MODEL

    again = {
        **source, "model": MODEL,
        "input_messages": {"type": "item_reference", "item_reference": "item.input"},
    }  # fmt: skip
    run = finished(served, client.evals.runs.create(record.id, data_source=again))
    assert run.result_counts.passed == 2
    assert len(served.link.requests) == before + 2


def test_kept_responses_are_chosen_by_what_they_were(served: Served) -> None:
    client = served.client
    for temperature in (0.0, 1.0):
        client.responses.create(
            model=MODEL, input="hi", instructions="Be Kind", temperature=temperature
        )
    record = client.evals.create(
        data_source_config={"type": "logs"},
        testing_criteria=[{**GRADER, "reference": "hello"}],  # type: ignore[list-item]
    )

    def passed(**filters: Any) -> int:
        source: Any = {"type": "responses", "source": {"type": "responses", **filters}}
        run = finished(served, client.evals.runs.create(record.id, data_source=source))
        return int(run.result_counts.passed)

    assert passed() == 2
    assert passed(temperature=0.0, instructions_search="kind") == 1
    assert passed(created_before=5) == passed(users=["x"]) == passed(tools=["t"]) == 0
    bad: Any = {"type": "responses", "source": {"type": "responses", "colour": "red"}}
    with pytest.raises(openai.BadRequestError, match="colour"):
        client.evals.runs.create(record.id, data_source=bad)
    wrong: Any = {"type": "jsonl", "source": {"type": "responses"}}
    with pytest.raises(openai.BadRequestError, match="file_content, file_id, found"):
        client.evals.runs.create(record.id, data_source=wrong)


NOT_ANSWERS: list[dict[str, Any]] = [
    {},
    {"sample": None},
    {"sample": {}},
    {"sample": 3},
    {"sample": {"output_text": 5}},
    {"sample": {"output_text": None}},
]


def test_a_row_without_an_answer_is_errored_not_graded_as_empty(served: Served) -> None:
    record = make_eval(served, GRADER)
    rows = [{"item": {"answer": ""}, **given} for given in NOT_ANSWERS]
    rows += [{"item": {"answer": ""}, "sample": {"output_text": ""}}]
    rows += [{"item": {"answer": "hi"}, "sample": "hi"}]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert run.status == "completed"
    counts = {"total": len(rows), "errored": len(NOT_ANSWERS), "failed": 0, "passed": 2}
    assert run.result_counts.to_dict() == counts
    items = list(served.client.evals.runs.output_items.list(run.id, eval_id=record.id))
    errors = {item.datasource_item_id: item.sample.error for item in items}
    assert "has no `sample`" in errors[0].message
    assert all(errors[n].code == "invalid_sample" for n in range(len(NOT_ANSWERS)))


def test_a_model_is_not_asked_the_word_null(served: Served) -> None:
    record = served.client.evals.create(
        name="n",
        data_source_config={"type": "custom", "item_schema": {"type": "object"}},
        testing_criteria=[GRADER],  # type: ignore[list-item]
    )
    rows = [{"item": {"q": None, "answer": "x"}}, {"item": {"q": "say", "answer": "x"}}]
    template = [{"role": "user", "content": "About {{ item.q }}."}]
    source: Any = {
        "type": "completions", "model": MODEL,
        "source": {"type": "file_content", "content": rows},
        "input_messages": {"type": "template", "template": template},
    }  # fmt: skip
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert (run.result_counts.errored, run.result_counts.failed) == (1, 1)
    assert [asked["messages"][-1]["content"] for asked in served.link.requests] == ["About say."]


def test_a_number_that_is_none_is_named_with_its_line(served: Served) -> None:
    record = make_eval(served, GRADER)
    lines = b'\xef\xbb\xbf{"item": {"answer": "a"}, "sample": {"output_text": "a"}}\n'
    lines += b'{"item": {"answer": "b", "x": NaN}, "sample": {"output_text": "b"}}\n'
    file = served.client.files.create(file=("rows.jsonl", lines), purpose="evals")
    source: Any = {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert run.status == "failed"
    assert "rows.jsonl:2: " in run.error.message
    assert "NaN" in run.error.message


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_completions_tokens", "max_tokens"])
def test_every_spelling_of_the_limit_of_tokens_is_read(served: Served, name: str) -> None:
    run = finished(served, asking(served, sampling_params={name: 7, "temperature": 0.5}))
    assert run.status == "completed"
    assert served.link.requests[-1]["max_tokens"] == 7
    [item] = served.client.evals.runs.output_items.list(run.id, eval_id=run.eval_id).data
    assert item.sample.max_completion_tokens == 7


REFUSED: Any = [
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "pass one"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "no built-in tools"),
    ({"tools": "all"}, "tools", "a list of objects"),
    ({"temperature": 9}, "temperature", "found 9"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'"),
    ({"reasoning_effort": "huge"}, "reasoning_effort", "'huge'"),
    ({"best_of": 3}, "best_of", "known are"),
]


@pytest.mark.parametrize(("sampling", "param", "words"), REFUSED)
def test_a_run_that_cannot_sample_is_refused(
    served: Served, sampling: Any, param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        asking(served, sampling_params=sampling)
    assert caught.value.param == f"data_source.sampling_params.{param}"
    assert words in caught.value.message


def test_kept_responses_are_limited_after_they_are_chosen(served: Served) -> None:
    for number in range(4):
        served.client.responses.create(
            model=MODEL, input="x", instructions="odd" if number % 2 else "even"
        )
    made = served.client.evals.create(
        data_source_config={"type": "logs"}, testing_criteria=[
            {**GRADER, "reference": "hello"}  # type: ignore[list-item]
        ],
    )  # fmt: skip
    source: Any = {"type": "responses", "limit": 1, "instructions_search": "even"}
    run = served.client.evals.runs.create(
        made.id, data_source={"type": "responses", "source": source}
    )
    run = finished(served, run)
    assert (run.result_counts.total, run.result_counts.passed) == (1, 1)


def test_the_text_of_an_answer_that_was_cut_is_graded(served: Served) -> None:
    served.link.say = lambda request: {"text": "hello", "stop_reason": "length"}
    run = finished(served, asking(served))
    assert (run.result_counts.passed, run.result_counts.errored) == (1, 0)
    [item] = served.client.evals.runs.output_items.list(run.id, eval_id=run.eval_id).data
    assert item.sample.finish_reason == "length"
    cut = Sample.from_text("hello", truncated=True)
    with compile_grader({**GRADER, "reference": "hello"}) as grader:
        assert grader.grade(cut, {}).outcome == "unscorable"  # in training it gets the floor


JUDGE: Any = {
    "type": "score_model", "name": "judge", "model": "gpt-4o",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
}  # fmt: skip


def test_a_judge_that_cannot_be_asked_is_refused_at_creation(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    multi = {"type": "multi", "graders": {"a": GRADER, "b": JUDGE}, "calculate_output": "a + b"}
    for grader, param in ((JUDGE, "grader.model"), (multi, "grader.graders.b.model")):
        method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
        with pytest.raises(openai.BadRequestError, match="RFTKIT_JUDGE_BASE_URL") as caught:
            served.create_job(method=method)
        assert caught.value.param == f"method.reinforcement.{param}"
    with pytest.raises(openai.BadRequestError, match="RFTKIT_JUDGE_BASE_URL") as caught:
        make_eval(served, JUDGE)
    assert caught.value.param == "testing_criteria[0].model"
    with monkeypatch.context() as then:  # an eval made while a judge was set
        then.setenv("RFTKIT_JUDGE_BASE_URL", "http://127.0.0.1:9/v1")
        made = make_eval(served, JUDGE)
    source: Any = {"type": "jsonl", "source": content("a", sample={"output_text": "a"})}
    with pytest.raises(openai.BadRequestError, match="gpt-4o"):
        served.client.evals.runs.create(made.id, data_source=source)
    monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", "http://127.0.0.1:9/v1")
    assert served.create_job(method={"type": "reinforcement", "reinforcement": {"grader": JUDGE}})


def test_counts_move_while_a_run_goes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rftkit.server.evals.runner.CANCEL_SECONDS", 0.01)
    ends = threading.Event()

    def say(request: Any) -> str:
        if request["messages"][0]["content"] == "late":
            assert ends.wait(20)
        return "hello"

    async def chat(request: Any) -> Any:
        text = await asyncio.to_thread(say, request)
        done = {"index": 0, "text": text, "stop_reason": "stop", "tokens": 1}
        yield {"done": {"prompt_tokens": 1, "completions": [done]}}

    served.link.chat = chat  # type: ignore[method-assign]
    messages = {"type": "template", "template": [{"role": "user", "content": "{{item.answer}}"}]}
    run = asking(served, source=content("hello", "late"), input_messages=messages)
    deadline = time.monotonic() + 20
    while run.result_counts.passed == 0:
        assert time.monotonic() < deadline
        run = served.client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
    assert (run.status, run.result_counts.total) == ("in_progress", 1)
    ends.set()
    assert finished(served, run).result_counts.total == 2


def test_a_request_with_the_same_idempotency_key_is_made_once(served: Served) -> None:
    key = {"Idempotency-Key": "mine"}
    first = make_eval(served, extra_headers=key)
    assert make_eval(served, extra_headers=key).id == first.id
    assert make_eval(served).id != first.id
    with pytest.raises(openai.BadRequestError, match="'mine'"):
        make_eval(served, GRADER, extra_headers=key)
    source: Any = {"type": "jsonl", "source": content("a", sample="a")}
    runs = [
        served.client.evals.runs.create(first.id, data_source=source, extra_headers=key).id
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def completion(**message: Any) -> Any:
    """A chat completion as the client returns it, dumped as OpenAI's regression example does."""
    from openai.types.chat import ChatCompletion

    body: Any = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None,
                     "message": {"role": "assistant", "content": None, **message}}],
    }  # fmt: skip
    return ChatCompletion.model_validate(body).model_dump()


def test_dumped_chat_completions_are_graded_by_all_that_they_say(served: Served) -> None:
    served.link.say = lambda request: "hello"
    said = served.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "say hello"}]
    )
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    parts = [{"type": "text", "text": "hel"}, {"type": "refusal", "refusal": "lo"}]
    in_parts = completion()
    in_parts["choices"][0]["message"]["content"] = parts
    samples = [said.model_dump(), completion(refusal="hello"), in_parts, completion(content="no"),
               completion(tool_calls=[call]), completion()]  # fmt: skip
    name = {**GRADER, "name": "name", "input": "{{sample.output_tools[0].function.name}}",
            "reference": "find"}  # fmt: skip
    for criterion, passed in ((GRADER, [0, 1, 2]), (name, [4])):
        record = make_eval(served, criterion)
        rows = [{"item": {"answer": "hello"}, "sample": sample} for sample in samples]
        source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
        run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
        items = served.client.evals.runs.output_items.list(run.id, eval_id=record.id).data
        assert [n for n, item in enumerate(items) if item.status == "pass"] == passed
        assert items[4].sample.finish_reason == "tool_calls"
        assert items[5].sample.error.code == "invalid_sample"
        assert run.result_counts.errored == 1


def test_criteria_that_read_only_the_item_need_no_sample(served: Served) -> None:
    source: Any = {"type": "jsonl", "source": content("hi", "ho")}
    only_item = {**GRADER, "input": "{{item.answer}}", "reference": "hi"}
    code = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"}
    for criteria, counts in (
        ([only_item], (0, 1, 1)), ([only_item, GRADER], (2, 0, 0)), ([code], (2, 0, 0)),
    ):  # fmt: skip
        record = make_eval(served, *criteria)
        run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
        found = run.result_counts
        assert (found.errored, found.failed, found.passed) == counts


def test_a_line_without_item_keeps_its_sample(served: Served) -> None:
    lines = b'{"answer": "hi", "sample": {"output_text": "hi"}}\n{"answer": "hi"}\n'
    file_id = served.upload(lines)
    record = make_eval(served, GRADER)
    source: Any = {"type": "jsonl", "source": {"type": "file_id", "id": file_id}}
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    assert (run.result_counts.passed, run.result_counts.errored) == (1, 1)


def test_what_a_broken_criterion_did_not_grade_has_not_failed_it(served: Served) -> None:
    record = make_eval(served, GRADER, {**BROKEN, "name": "broken"})
    rows = [{"item": {"answer": "hi"}, "sample": {"output_text": text}} for text in ("hi", "ho")]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    counts = [(c.passed, c.failed) for c in run.per_testing_criteria_results]
    assert counts == [(1, 1), (0, 0)]
    assert run.result_counts.errored == 2


FINDS = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{"}}
ENDS = {
    "type": "python", "name": "ends",
    "source": "def grade(sample, item):\n"
    "    return float(sample['choices'][0]['finish_reason'] == 'length')\n",
}  # fmt: skip
CUT: dict[str, Any] = {
    "a chat completion": {"choices": [{"finish_reason": "length", "message": {"content": "hi"}}]},
    "a chat completion with a call": {
        "choices": [{"finish_reason": "length", "message": {"tool_calls": [FINDS]}}]
    },
    "a response": {
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}],
        "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"},
    },
    "output items": [{"type": "message", "status": "incomplete", "content": "hi"}],
    "flat": {"output_text": "hi", "finish_reason": "length"},
}  # fmt: skip


@pytest.mark.parametrize("sample", CUT.values(), ids=CUT)
def test_an_answer_that_was_cut_elsewhere_is_graded_and_counted_apart(
    served: Served, sample: Any
) -> None:
    record = make_eval(served, ENDS)
    rows = [{"item": {"answer": "hi"}, "sample": each} for each in (sample, "hi")]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    run = finished(served, served.client.evals.runs.create(record.id, data_source=source))
    items = served.client.evals.runs.output_items.list(run.id, eval_id=record.id).data
    assert [item.results[0].score for item in items] == [1.0, 0.0]
    assert [item.sample.finish_reason for item in items] == ["length", "stop"]
    page = served.http.get(run.report_url).text
    assert page.count("(cut off at the token limit)") == 1
    assert "1 of the answers" in page


def test_an_answer_that_was_cut_within_its_calls_counts_as_cut(served: Served) -> None:
    served.link.say = lambda request: {
        "text": "", "tool_calls": [FINDS], "stop_reason": "length", "tokens": 4,
    }  # fmt: skip
    tools = [{"type": "function", "function": {"name": "find"}}]
    run = finished(served, asking(served, sampling_params={"tools": tools}))
    [item] = served.client.evals.runs.output_items.list(run.id, eval_id=run.eval_id).data
    assert item.sample.finish_reason == "length"
    back = rftkit_evals.fetch(served.client, f"{run.eval_id}/{run.id}")
    assert back.frame["truncated"].tolist() == [True]


def test_a_stored_answer_that_was_cut_says_so_to_its_grader(served: Served) -> None:
    served.link.say = lambda request: {"text": "hi", "stop_reason": "length"}
    served.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}], store=True
    )
    made = served.client.evals.create(
        data_source_config={"type": "stored_completions"}, testing_criteria=[ENDS]  # type: ignore[list-item]
    )  # fmt: skip
    source: Any = {"type": "completions", "source": {"type": "stored_completions"}}
    run = finished(served, served.client.evals.runs.create(made.id, data_source=source))
    assert (run.result_counts.passed, run.result_counts.total) == (1, 1)


@pytest.mark.parametrize(
    ("stop_reason", "calls", "reason"),
    [
        ("stop", None, "stop"),
        ("stop", [FINDS], "tool_calls"),
        ("length", None, "length"),
        ("length", [FINDS], "length"),
    ],
)
def test_why_an_answer_ended(stop_reason: str, calls: Any, reason: str) -> None:
    assert finish_reason(stop_reason, calls) == reason
