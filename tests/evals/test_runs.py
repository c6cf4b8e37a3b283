"""Runs become samples: from the routes, from the home's cache, from a dump, from odd services."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from conftest import GRADER, Served
from sample_comparison import samples as made_up

from rftkit import Sample, compile_grader, evals
from rftkit.errors import InputError, NotFoundError
from rftkit.evals import saved_runs
from rftkit.evals.items import combine, read_items, settle
from rftkit.evals.samples import Run, row_key

SIMILAR = {
    "type": "text_similarity", "name": "alike-enough", "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.9,
}  # fmt: skip
MULTI = {
    "type": "multi", "name": "both", "graders": {"exact": GRADER, "close": SIMILAR},
    "calculate_output": "0.25 * exact + 0.75 * close",
}  # fmt: skip
UUID = "-0b1c2d3e-0000-4000-8000-000000000000"


def validate(served: Served, job: Any, step: int, answers: list[str]) -> Any:
    """What a job leaves at a validation: two rows, the answers dealt to them in turn."""
    from rftkit.server.training.eval_records import GradedSample, record_validation

    store = served.platform.store
    stored = store.job(job.id)
    graded = []
    with compile_grader(stored.method["reinforcement"]["grader"]) as grader:
        for at, text in enumerate(answers):
            item = {"messages": [{"role": "user", "content": f"say {at % 2}"}], "answer": "hi"}
            sample = Sample.from_text(text, truncated=text == "cut")
            reason = "length" if text == "cut" else "stop"
            graded.append(
                (GradedSample(row=at % 2, item=item, results=[], text=text, finish_reason=reason,
                              completion_tokens=len(text)), grader.grade(sample, item))
            )  # fmt: skip
    return record_validation(store, stored, step, f"{job.model}:ckpt-step-{step}", graded)


def item(row: int, scores: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An output item as hosted services send it."""
    return {
        "id": f"outputitem_{row}", "datasource_item_id": row, "status": "pass",
        "datasource_item": {"messages": [{"role": "user", "content": f"q{row}", "name": None}]},
        "results": [{"name": f"{name}{UUID}", "score": score} for name, score in scores.items()],
        "sample": {"output": [{"role": "assistant", "content": "said"}], "finish_reason": "stop",
                   "usage": {"completion_tokens": 4}, "error": None},
        **changes,
    }  # fmt: skip


def read(*items: dict[str, Any], grader: Any = None) -> evals.Samples:
    record = read_items(Run("r", "evalrun_r"), items)
    return saved_runs.samples_of([settle(record, combine(grader) if grader else None)])


def test_a_jobs_validations_are_fetched_once(served: Served) -> None:
    job = served.create_job(method={"type": "reinforcement", "reinforcement": {"grader": MULTI}})
    for step, answers in ((0, ["no", "ho", "cut", "ho"]), (4, ["hi", "ho", "hi", "hi"])):
        validate(served, job, step, answers)
    samples = evals.fetch(served.client, job.id)
    assert samples.labels == ["Step 0", "Step 4"]
    assert [run.step for run in samples.runs] == [0, 4]
    assert samples.runs[1].job_id == job.id
    assert samples.runs[1].model == "rftkit-tiny:ckpt-step-4"
    assert samples.graders == ["exact", "alike-enough"]
    first = samples.frame.iloc[:4]
    assert list(first["sample"]) == [0, 1, 0, 1]
    assert list(first["outcome"]) == ["graded", "unscorable", "graded", "graded"]
    assert list(first["truncated"]) == [False, True, False, False]
    assert first["reward"].iloc[3] == pytest.approx(0.75 * 0.5)
    assert len(samples.items) == 2

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked again")

    served.client.evals.runs.output_items.with_raw_response.list = refuse  # type: ignore[method-assign]
    again = evals.fetch(served.client, job.id)
    assert again.frame.equals(samples.frame)
    found = evals.compare(again)
    assert found.choice is not None
    assert found.choice.best == "Step 4"


def test_one_run_by_its_id_and_several_evals(served: Served) -> None:
    job = served.create_job()
    run = validate(served, job, 0, ["hi", "no"])
    assert evals.fetch(served.client, run.id).labels == ["Step 0"]
    assert evals.fetch(served.client, f"{run.eval_id}/{run.id}").labels == ["Step 0"]
    second = validate(served, served.create_job(), 0, ["hi", "hi"])
    both = evals.fetch(served.client, run.eval_id, second.eval_id)
    assert len(set(both.labels)) == 2
    assert all(label.startswith("Step 0 · ") for label in both.labels)
    with pytest.raises(InputError, match="names no runs"):
        evals.fetch(served.client, "file-1")
    with pytest.raises(NotFoundError, match="no eval"):
        evals.fetch(served.client, "evalrun_nowhere")
    with pytest.raises(openai.NotFoundError):
        evals.fetch(served.client, "ftjob-none")


def test_runs_are_found_by_the_first_characters_of_an_id(served: Served) -> None:
    job = served.create_job(suffix="tickets")
    run = validate(served, job, 0, ["hi", "no"])
    validate(served, served.create_job(), 0, ["hi", "hi"])
    assert run.eval_id
    for name in ("tickets", job.id[:14], run.eval_id[:14], run.id[:14]):
        assert [each.id for each in evals.fetch(served.client, name).runs] == [run.id], name
    for name in ("ftjob-", "eval_", "evalrun_"):
        with pytest.raises(InputError, match=f"2 (jobs|ids) begin with {name}"):
            evals.fetch(served.client, name)


def test_the_grader_of_a_run_is_known_by_what_it_does(served: Served) -> None:
    """A job, a run that was made here, and rewards that were given again."""
    job = served.create_job()
    validate(served, job, 0, ["hi", "no"])
    fetched = evals.fetch(served.client, job.id)
    renamed = GRADER | {"name": "other", "pass_threshold": 0.2}
    again = evals.grade_again(fetched, renamed)
    edited = evals.grade_again(fetched, GRADER | {"operation": "like"})
    digests = [each.runs[0].grader_digest for each in (fetched, again, edited)]
    assert digests[0] == digests[1] != digests[2]
    assert all(digests)
    assert [each.runs[0].grader for each in (fetched, again)] == ["exact", "other"]


def test_local_runs_are_found_by_the_first_characters_of_an_id(home: Path) -> None:
    sides = made_up(num_rows=6)
    for label, run_id in (("Step 0", "localrun_ab1"), ("Step 12", "localrun_cd2")):
        record = saved_runs.record_of(sides, label)
        saved_runs.save(replace(record, run=replace(record.run, id=run_id, source="home")))
    assert [run.id for run in evals.kept("localrun_c").runs] == ["localrun_cd2"]
    with pytest.raises(InputError, match="2 ids begin with localrun_"):
        evals.kept("localrun_")
    with pytest.raises(NotFoundError, match="holds no run localrun_x"):
        evals.kept("localrun_x")


def test_samples_come_by_row_from_a_service_that_lists_what_ended_first() -> None:
    ended = [read_items(Run(run, f"evalrun_{run}"), [item(row, {"g": row / 10}) for row in rows])
             for run, rows in (("a", [3, 0, 2, 1, 0]), ("b", [1, 3, 2, 0, 3]))]  # fmt: skip
    frame = saved_runs.samples_of(ended).frame
    assert list(frame["run"]) == ["a"] * 5 + ["b"] * 5
    assert list(frame["reward"]) == [0.0, 0.0, 0.1, 0.2, 0.3, 0.0, 0.1, 0.2, 0.3, 0.3]
    assert list(frame["sample"]) == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_an_unfinished_run_is_not_kept(served: Served) -> None:
    job = served.create_job()
    served.platform.store.add_run(job.eval_id, {"type": "jsonl", "source": {}}, name="Step 0",
                                  status="in_progress", key="step-0")  # fmt: skip
    samples = evals.fetch(served.client, job.id)
    assert saved_runs.load(samples.runs[0].id, samples.runs[0].source) is None
    assert "Step 0 have no samples" in evals.compare(samples).notes[-1]


def test_the_row_is_what_it_holds() -> None:
    plain = {"messages": [{"role": "user", "content": "q"}], "answer": 1}
    served = {"answer": 1, "messages": [{"role": "user", "content": "q", "name": None}],
              "trace": {"spans": [1]}}  # fmt: skip
    assert row_key(plain) == row_key(served)
    assert row_key(plain) != row_key({**plain, "answer": 2})


def test_scores_of_several_graders_make_the_jobs_reward() -> None:
    given = ((1.0, 0.5), (0.0, 0.4))
    items = [item(row, {"exact": a, "alike-enough": b}) for row, (a, b) in enumerate(given)]
    assert list(read(*items, grader=MULTI).frame["reward"]) == pytest.approx([0.625, 0.3])
    plain = read(*items)
    assert list(plain.frame["reward"]) == pytest.approx([0.75, 0.2])
    assert "their mean is taken" in plain.notes[0]
    alone = read(item(0, {"reward": 0.7}), grader=MULTI)
    assert list(alone.frame["reward"]) == [0.7]


def test_what_is_no_number_is_no_reward() -> None:
    samples = read(
        item(0, {"g": None}),
        item(1, {"g": math.nan}),
        item(2, {"g": "high"}),
        item(3, {}),
        item(4, {"g": 1.0}, sample={"error": {"code": "x", "message": "out of memory"}}),
        item(5, {"g": 0.5}, sample={"output": None, "error": {}}),
    )
    assert list(samples.frame["outcome"]) == ["failed"] * 5 + ["graded"]
    assert samples.frame["reward"].isna().sum() == 5
    assert samples.frame["passed"].isna().sum() == 5
    assert samples.frame["error"].iloc[4] == "out of memory"
    summary = evals.compare(samples).runs[0]
    assert (summary.num_failed, summary.reward.value, summary.reward.num_rows) == (5, 0.5, 1)


def test_a_failed_part_is_no_zero_beside_one_that_could_not_read_the_answer(served: Served) -> None:
    """The item has both errors; the reward of the multi grader, which is missing, decides."""
    grader = {
        "type": "multi", "name": "both", "calculate_output": "broken + reads",
        "graders": {"broken": {**GRADER, "name": "broken", "reference": "{{item.nosuch}}"},
                    "reads": {**GRADER, "name": "reads", "input": "{{sample.output_json.word}}"}},
    }  # fmt: skip
    job = served.create_job(method={"type": "reinforcement", "reinforcement": {"grader": grader}})
    validate(served, job, 0, ["hi", "cut"])
    samples = evals.fetch(served.client, job.id)
    assert samples.frame["outcome"].tolist() == ["failed", "unscorable"]
    assert samples.frame["reward"].fillna(-1).tolist() == [-1, 0]
    [run] = evals.compare(samples).runs
    assert run.graders["reads"].num_rows == 1, "that a failed grade was not read is no zero"


def test_repeats_share_a_row_whatever_their_number() -> None:
    items = [item(0, {"g": s}, datasource_item_id=at) for at, s in enumerate((1.0, 0.0, 1.0))]
    samples = read(*items)
    assert list(samples.frame["sample"]) == [0, 1, 2]
    assert samples.frame["row"].nunique() == 1


def test_rows_that_are_not_said_are_paired_by_number() -> None:
    samples = read(item(7, {"g": 1.0}, datasource_item={}))
    assert list(samples.frame["row"]) == ["#7"]
    assert "paired by its number" in samples.notes[0]


def test_a_judges_steps_are_kept() -> None:
    said = {"steps": [{"description": "reads", "conclusion": "fine"}], "result": 1}
    output = [{"role": "assistant", "content": json.dumps(said)}]
    result = {"name": "judge", "score": 1.0, "sample": {"output": output}}
    assert read(item(0, {}, results=[result])).frame["judge"].iloc[0] == "reads → fine"


def test_kept_runs_come_back_as_they_were(home: Path) -> None:
    samples = made_up(num_rows=6)
    record = saved_runs.record_of(samples, "Step 12")
    path = saved_runs.save(record)
    assert path.is_relative_to(home)
    again = saved_runs.load(record.run.id, record.run.source)
    assert again == record
    kept = saved_runs.samples_of([record])
    before = samples.select(["Step 12"])
    for name in samples.frame.columns:
        left, right = before.frame[name], kept.frame[name]
        assert [v for v in left.dropna()] == [v for v in right.dropna()], name  # noqa: C416
    path.write_text("{broken")
    assert saved_runs.load(record.run.id, record.run.source) is None


def test_together_joins_and_tells_apart() -> None:
    one, two = made_up(num_rows=6, steps=(0,)), made_up(num_rows=9, steps=(0, 12))
    both = evals.together(one, two)
    assert len(both.runs) == 3
    assert len(set(both.labels)) == 3
    assert len(both.items) == 9
    found = evals.compare(both)
    assert any("6 of 9 rows are in every run" in note for note in found.notes)


class Hosted:
    """A service of our own making: pages of 20, ids, nothing that we did not think of."""

    def __init__(self, count: int, limit: int = 20, listed: int | None = None) -> None:
        self.count, self.limit, self.listed, self.requests = count, limit, listed, 0

    def client(self) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(transport=httpx2.MockTransport(self.answer))
        return openai.OpenAI(base_url="http://h/v1", api_key="k", http_client=http, max_retries=0)

    def answer(self, request: Any) -> Any:
        path = request.url.path
        self.requests += 1
        if path.endswith("/output_items"):
            return self._items(request.url.params)
        run = {"id": "evalrun_1", "eval_id": "eval_1", "name": "gpt", "status": "completed",
               "result_counts": {"total": self.listed or self.count}, "created_at": 1}  # fmt: skip
        return httpx2.Response(200, json={"data": [run], "has_more": False})

    def _items(self, params: Any) -> Any:
        limit = int(params["limit"])
        if limit > self.limit:
            error = {"message": f"limit must be at most {self.limit}", "code": None}
            return httpx2.Response(400, json={"error": error})
        start = int(params["after"].rsplit("_", 1)[1]) + 1 if "after" in params else 0
        rows = range(start, min(start + limit, self.count))
        data = [item(row, {"g": row % 2}) for row in rows]
        return httpx2.Response(200, json={"data": data, "has_more": start + limit < self.count})


def test_pages_are_as_large_as_the_service_allows() -> None:
    hosted = Hosted(count=45)
    samples = evals.fetch(hosted.client(), "eval_1")
    assert len(samples.frame) == 45
    assert hosted.requests == 1 + 1 + 3
    hosted.requests = 0
    assert evals.fetch(hosted.client(), "eval_1", progress=True).frame.equals(samples.frame)
    assert hosted.requests == 1


def test_items_that_never_come_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rftkit.evals.runs.INDEX_SECONDS", 0.0)
    samples = evals.fetch(Hosted(count=5, listed=8).client(), "eval_1")
    assert "lists 5 of the 8 items of gpt" in samples.notes[0]
    assert saved_runs.load("evalrun_1", "http://h/v1") is None
