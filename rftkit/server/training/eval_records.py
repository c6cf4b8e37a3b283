"""From graded samples to the records of an eval run: results, pass or fail, counts, usage.

Both kinds of runs use it: those a client asks for (`rftkit.server.evals`) and those a job makes at
each validation (`make_job_eval`, then `record_validation` once a step). An eval gives *scores* that
pass or fail; a job's reward is the same number under another name. A grader that broke gives no
score: the item is errored, not zero.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rftkit import graders
from rftkit.graders import Grade
from rftkit.server.store.records import Eval, EvalRun, Job, OutputItem
from rftkit.server.store.store import Store, new_id, now

__all__ = [
    "GradedSample",
    "criterion",
    "finish_reason",
    "item_from",
    "make_job_eval",
    "outcome_of",
    "record_validation",
    "results_from",
    "tally",
]

Json = dict[str, Any]

SAMPLING = ("temperature", "top_p", "seed", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class GradedSample:
    """One answer to one row, as an eval keeps it."""

    row: int
    """Row of the data source, from 0; several samples of a row share it."""
    item: Json
    results: list[Json]
    """The results for each criterion, from `results_from`."""
    text: str = ""
    tool_calls: list[Json] | None = None
    finish_reason: str = "stop"
    """stop, length or tool_calls."""
    input: Sequence[Json] = ()
    """The prompt."""
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning: str = ""
    """The reasoning before the answer."""
    reasoning_tokens: int = 0
    """How many of the `completion_tokens` are reasoning."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """temperature, top_p, seed and max_completion_tokens, as far as they were set."""
    output: Sequence[Json] = ()
    """For an episode, all messages after the prompt; empty if the answer is the only one."""
    error: Json | None = None
    """`{code, message}` when there is no answer."""


def finish_reason(stop_reason: str, calls: Sequence[Json] | None) -> str:
    """Why an answer ended, on the wire: one that was cut within its calls was still cut."""
    return "tool_calls" if calls and stop_reason != "length" else stop_reason


def criterion(spec: Json) -> Json:
    """A normalised grader as a testing criterion, with the id that its results carry."""
    return {**spec, "id": f"{spec['name']}-{uuid.uuid4()}"}


def results_from(criteria: Sequence[Json], grade: Grade, keys: Sequence[str] = ()) -> list[Json]:
    """The result for each criterion, from one grade.

    Args:
        criteria: one, or for a multi grader one per sub-grader.
        grade: of the grader itself, or of the multi grader.
        keys: the formula's variables, in the order of `criteria`, for a multi grader.

    Returns:
        One result per criterion; for a multi grader also the combined one, called `reward-…`.
    """
    if not keys:
        return [_result(criteria[0], grade.reward, grade.errors)]
    parts = [
        _result(spec, grade.sub_rewards.get(key), grade.sub_errors.get(key, {}))
        for key, spec in zip(keys, criteria, strict=True)
    ]
    name = f"reward-{uuid.uuid5(uuid.NAMESPACE_OID, criteria[0]['id'])}"
    combined = _result({"id": name, "type": "multi"}, grade.reward, grade.errors)
    combined["passed"] = all(part["passed"] for part in parts)
    return [*parts, combined]


def _result(spec: Json, score: float | None, errors: Mapping[str, Any]) -> Json:
    result = {
        "name": spec["id"],
        "type": spec["type"],
        "score": score,
        "passed": score is not None and score >= graders.pass_threshold(spec),
    }
    return {**result, "errors": dict(errors)} if errors else result


def item_from(run: EvalRun, sample: GradedSample) -> OutputItem:
    """The output item of a graded sample."""
    output: Json = {"role": "assistant", "content": sample.text}
    if sample.reasoning:
        output["reasoning_content"] = sample.reasoning
    if sample.tool_calls:
        output["tool_calls"] = sample.tool_calls
    return OutputItem(
        id=new_id("outputitem_"),
        run_id=run.id,
        eval_id=run.eval_id,
        created_at=now(),
        status="pass" if all(r["passed"] for r in sample.results) and sample.results else "fail",
        datasource_item_id=sample.row,
        datasource_item=sample.item,
        results=sample.results,
        sample={
            "input": [dict(message) for message in sample.input],
            "output": [] if sample.error else list(sample.output) or [output],
            "finish_reason": sample.finish_reason,
            "model": sample.model,
            "usage": {
                "prompt_tokens": sample.prompt_tokens,
                "completion_tokens": sample.completion_tokens,
                "total_tokens": sample.prompt_tokens + sample.completion_tokens,
                "cached_tokens": 0,
                "reasoning_tokens": sample.reasoning_tokens,
            },
            "error": sample.error,
            **{name: sample.sampling.get(name) for name in SAMPLING},
        },
    )


def outcome_of(item: OutputItem) -> str:
    """Where an item counts: errored, passed or failed."""
    if item.sample["error"] or any(result["score"] is None for result in item.results):
        return "errored"
    return "passed" if item.status == "pass" else "failed"


def tally(criteria: Sequence[Json], items: Sequence[OutputItem]) -> Json:
    """The fields of a run that add its items up; a criterion without a score counts nowhere."""
    counts = {"total": len(items), "errored": 0, "failed": 0, "passed": 0}
    usage: dict[str, Json] = {}
    for item in items:
        counts[outcome_of(item)] += 1
        if item.sample["model"] is not None:
            _add_usage(usage, item.sample)
    return {
        "result_counts": counts,
        "per_model_usage": list(usage.values()),
        "per_testing_criteria_results": [
            {
                "testing_criteria": spec["id"],
                "passed": sum(passed),
                "failed": len(passed) - sum(passed),
            }
            for spec in criteria
            for passed in [
                [
                    result["passed"]
                    for item in items
                    for result in item.results
                    if result["name"] == spec["id"] and result["score"] is not None
                ]
            ]
        ],
    }


def _add_usage(usage: dict[str, Json], sample: Json) -> None:
    model = sample["model"]
    total = usage.setdefault(model, {"model_name": model, "invocation_count": 0})
    total["invocation_count"] += 1
    for name, count in sample["usage"].items():
        total[name] = total.get(name, 0) + count


def make_job_eval(store: Store, job: Job) -> Eval:
    """The eval of a job: one criterion per grader, or per sub-grader of a multi."""
    assert job.grading is not None
    grader = job.grading["grader"]
    return store.add_eval(
        [criterion(part) for part in graders.parts(grader).values()],
        {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
        name=f"{job.method_type.capitalize()} fine-tuning validation runs for {job.id}",
        metadata={"fine_tuning_job_id": job.id},
    )


def record_validation(
    store: Store, job: Job, step: int, model: str, samples: Sequence[tuple[GradedSample, Grade]]
) -> EvalRun:
    """Store one validation of a job as the finished run "Step N", once for each step.

    When grades that had failed were given again, the run gets new items.

    Args:
        store: of the platform.
        job: with its `eval_id`.
        step: 0 is the baseline.
        model: the name of what was sampled.
        samples: each with its grade; `results` and `model` are filled in here.
    """
    assert job.eval_id is not None
    assert job.grading is not None
    criteria = store.eval(job.eval_id).testing_criteria
    keys = list(job.grading["grader"].get("graders", {}))
    source = {"type": "jsonl", "source": {"type": "file_id", "id": job.validation_file}}
    with store.transaction():
        run = store.add_run(
            job.eval_id, source, name=f"Step {step}", model=model, key=f"step-{step}",
            status="in_progress",
        )  # fmt: skip
        if run.status == "completed":
            failed = sum(grade.outcome == "failed" for _, grade in samples)
            if run.result_counts["errored"] == failed:
                return run
            store.drop_items(run.id)
        items = [
            item_from(
                run,
                dataclasses.replace(
                    sample, results=results_from(criteria, grade, keys), model=model
                ),
            )
            for sample, grade in samples
        ]
        store.add_items(items)
        return store.update_run(run.id, status="completed", **tally(criteria, items))
