"""Answers to the validation rows, graded: the same for every method that has a grader.

Each validation is an eval run "Step N" of the job's eval. Not here: losses on validation rows,
which need no answers (`offline`), and when to validate (the plan).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.server.training import budgets, metrics, sampling, transcripts
from rftkit.server.training.context import AnyRun
from rftkit.server.training.eval_records import GradedSample, finish_reason, record_validation
from rftkit.server.training.rollout import Group
from rftkit.wording import counted

__all__ = ["graded_answers", "reward_metrics", "show"]

Json = dict[str, Any]


def graded_answers(run: AnyRun, step: int) -> list[Group]:
    """The graded answers of every validation row, from the journal or made now."""
    if step == run.first_step:  # where a processor is slow, nothing else is said for minutes
        rows = counted(len(run.valid_rows), "row")
        message = f"Validating {run.start_name()} on {rows} before training"
        run.store.add_event(run.job.id, message, key="baseline")
    found = sampling.recorded(run, "valid", step)
    if found is None:
        num, temperature = run.plan.eval_samples, run.plan.eval_temperature
        plan = sampling.SamplingPlan(run.valid_rows, sampling.VALIDATION, num, temperature)
        found = sampling.graded(run, "valid", step, plan)
        sampling.write_record(run, "valid", step, *found)
    groups, seconds = found
    run.clock.add("eval", seconds)
    return groups


def reward_metrics(run: AnyRun, step: int, valid: Sequence[Group]) -> Json:
    """The metrics of a validation, as its checkpoint has them."""
    measured = {"step": step, "full_valid_mean_reward": metrics.mean_reward(valid)}
    if budgets.is_over_budget(run, [metrics.failure(valid)[:2]]):
        measured["over_error_budget"] = True  # so that it cannot make the best checkpoint
    return measured


def show(run: AnyRun, step: int, valid: Sequence[Group]) -> None:
    """The validation as the eval run "Step N", once."""
    model = run.start_name() if step == run.first_step else run.model_name(step)
    samples = [
        (
            GradedSample(
                row=number,
                item=group.row.item,
                results=[],
                input=group.row.messages,
                text=said[0],
                tool_calls=said[1],
                reasoning=each.completion.reasoning,
                finish_reason=finish_reason(each.completion.stop_reason, said[1]),
                prompt_tokens=len(group.prompt_ids),
                completion_tokens=each.completion.num_sampled,
                reasoning_tokens=each.completion.reasoning_tokens,
                output=(
                    transcripts.messages(each.completion, group.row)
                    if each.completion.turns
                    else ()
                ),
                sampling={
                    "temperature": run.plan.eval_temperature,
                    "max_completion_tokens": run.plan.most_tokens(len(group.prompt_ids)),
                    "seed": run.plan.seed,
                },
            ),
            each.grade,
        )
        for number, group in enumerate(valid)
        for each in group.rollouts
        for said in [transcripts.said(each.completion, group.row)]
    ]
    record_validation(run.store, run.job, step, model, samples)
