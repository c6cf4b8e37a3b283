"""The training story of one job: read `train` from top to bottom.

    load policy → baseline validation ("Step 0") → for each step: take B rows → sample G completions
    a row → grade → (refill, guide) → advantages → loss → optimizer step → event → every
    eval_interval steps: validate, save a checkpoint, keep the best three and the last

Simplifications against textbook PPO: one update per batch of rollouts unless more are asked for,
so the sampling log-probs are the old policy's; no value model, the baseline is the group's mean;
no entropy bonus. Not here:
how the engine samples and learns, what a grade is, and how a dead worker is brought back.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rftkit.server.engine.base import NotFiniteError, StepStats
from rftkit.server.store.store import now
from rftkit.server.training import advantages, credit, metrics, refill, rollout, sampling, signal
from rftkit.server.training.batches import batch_rows
from rftkit.server.training.budgets import (
    check_core_seconds,
    check_validation,
    pauses_for_training,
)
from rftkit.server.training.checkpoints import (
    keep_adapter,
    keep_checkpoint,
    list_checkpoint,
    name_model,
    sweep,
)
from rftkit.server.training.context import Run, Stopped
from rftkit.server.training.eval_records import GradedSample, record_validation
from rftkit.server.training.final_checks import run_checks
from rftkit.server.training.grader_check import warn_of_grader
from rftkit.server.training.guidance import guided
from rftkit.server.training.journal import damage
from rftkit.server.training.plan import PER_GRADER_NAMES
from rftkit.server.training.rollout import Group, Rollout
from rftkit.server.training.schedule import learning_rate

__all__ = [
    "Run",
    "Stopped",
    "load_policy",
    "report",
    "sample_and_grade",
    "train",
    "update",
    "validate",
]


def train(run: Run) -> None:
    """Train a job to its end, from wherever its journal says it was.

    Raises:
        Stopped: after a pause (saved) or a cancel.
        FloatingPointError: when an update is not a number; the last good state is kept.
    """
    done = load_policy(run)
    sampling.reopen(run, "valid", done)  # a grader may have been repaired since
    tell_weights(run)
    if done == 0:
        warn_of_grader(run)
        validate_baseline(run)
    elif run.plan.validates(done):
        conclude(run, done, validate(run, done)[0])
    for step in range(done + 1, run.plan.total_steps + 1):
        started = time.perf_counter()
        groups, sampling_seconds = sample_and_grade(run, step)
        if pauses_for_training(run, step, groups):
            stop_if_requested(run, step - 1)  # the update waits for the grades that are missing
        trained = time.perf_counter()
        stats = update(run, step, groups)
        training_seconds = time.perf_counter() - trained
        valid, eval_seconds = validate(run, step) if run.plan.validates(step) else (None, 0.0)
        elapsed, parts = time.perf_counter() - started, sampling_seconds + training_seconds
        timing = {
            "sampling": sampling_seconds,
            "training": training_seconds,
            "eval": eval_seconds,
            # What a killed worker did before is in the parts only; parts may overlap.
            "full_iteration": elapsed
            if run.plan.max_staleness
            else max(elapsed, parts + eval_seconds),
        }
        report(run, step, groups, valid, timing, stats)
        check_core_seconds(run, step)
        if valid is None:
            stop_if_requested(run, step)
        else:
            conclude(run, step, valid)
    finish(run)


def load_policy(run: Run) -> int:
    """Put the policy where the job left it; the last step that needs no doing again.

    A state that comes after a step which the database does not know waits (the database was put
    back to an older copy): the steps before it are told again from the journal.
    """
    told = run.store.event_keys(run.job.id)
    for step, folder in run.journal.states():
        if not told >= {f"step-{number}" for number in range(step + 1)}:
            continue
        wrong = damage(folder)
        if wrong is None:
            run.engine.load(folder)
            run.trained_tokens = json.loads((folder / "story.json").read_text())["trained_tokens"]
            return step
        run.store.add_event(
            run.job.id,
            f"A saved state is damaged and dropped: {wrong}. The job goes on from the one before "
            "it, with the journal.",
            level="warn",
        )
        run.journal.drop_state(step)
    run.engine.start_policy(run.plan.lora, run.plan.seed, run.start_adapter)
    return 0


def tell_weights(run: Run) -> None:
    """Say so where a formula is not a sum and its parts are weighed one by one all the same."""
    if run.plan.advantage not in PER_GRADER_NAMES or run.weighing.is_exact:
        return
    parts = ", ".join(f"{leaf.key}={leaf.weight:.3g}" for leaf in run.weighing.leaves)
    run.store.add_event(
        run.job.id,
        "calculate_output is not a sum of its graders. For advantages each grader is weighed by "
        f"what it changes when the others are half-way: {parts}. Rewards are as the formula says. "
        "Metadata `advantage` = mean or std uses the formula alone.",
        level="warn",
        key="weights",
    )


def validate_baseline(run: Run) -> None:
    """Step 0: the base model on the validation rows, before anything is learnt."""
    valid, seconds = validate(run, 0)
    timing = {"sampling": 0.0, "training": 0.0, "eval": seconds, "full_iteration": seconds}
    report(run, 0, None, valid, timing, None)
    check_core_seconds(run, 0)
    conclude(run, 0, valid)


def conclude(run: Run, step: int, valid: Sequence[Group]) -> None:
    """Keep what a validated step leaves; everything here may come twice, and is done once.

    The state comes last: a kill before it repeats the step, which makes whatever is missing.
    """
    revise(run, step, valid)
    show(run, step, valid)
    if step:
        if step < run.plan.total_steps:  # the last one has checks to pass
            keep_checkpoint(run, step, valid)
        run.journal.write_state(step, lambda folder: save_state(run, folder))
    check_validation(run, step, valid)
    stop_if_requested(run, step)


def sample_and_grade(run: Run, step: int) -> tuple[list[Group], float]:
    """The graded groups of a step, from the journal or made now; and the seconds it took.

    With `max_staleness` the next step's completions are sampled while graders work, by the policy
    before this step's update; always then, so that a killed job samples by the same policy again.
    """

    def plan(step: int) -> sampling.SamplingPlan:
        rows = batch_rows(run.rows, run.plan, step)
        return sampling.SamplingPlan(
            rows, step, run.plan.completions_per_prompt, run.plan.temperature
        )

    def ahead() -> None:
        following = step + 1
        if following > run.plan.total_steps or not run.plan.max_staleness:
            return
        if run.journal.record("steps", following) is None:
            sampling.ungraded_batch(run, "steps", following, plan(following))

    return sampling.graded(run, "steps", step, plan(step), ahead, lambda g: complete(run, step, g))


def complete(run: Run, step: int, groups: list[Group]) -> tuple[list[Group], float]:
    """What the plan adds to a step's groups: further prompts, reference answers; and seconds."""
    started = time.perf_counter()
    groups = refill.refilled(run, step, groups)
    if run.plan.guidance == "references":
        groups = guided(run, step, groups)
    return groups, time.perf_counter() - started


def update(run: Run, step: int, groups: Sequence[Group]) -> StepStats | None:
    """The optimizer updates of a step, most often one; None when no group has a signal."""
    plan = run.plan
    rank = functools.partial(
        advantages.advantages,
        plan.advantage,
        leaves=run.weighing.leaves,
        floor=plan.advantage_floor,
    )
    spread = credited(run) if plan.credit == "fields" else None
    kept = rollout.train_groups(groups, run.response_format, plan.thoughts, rank, spread)
    if not kept:
        return None
    settings = plan.train_settings(learning_rate(plan, step, groups))
    batch = [learnt for _, learnt in kept]
    try:
        all_stats = [
            run.engine.train_step(batch, settings, on_tick=run.on_tick)
            for _ in range(plan.updates_per_batch)
        ]
    except NotFiniteError as error:
        lines = [group.row.line for group, _ in kept]
        rows = ", ".join(str(lines[index]) for index in error.groups) or "no single one"
        raise FloatingPointError(f"{error}, at step {step}; caused by line {rows}") from error
    run.trained_tokens += sum(stats.num_tokens for stats in all_stats)
    return merged(all_stats)


def credited(run: Run) -> Callable[[Sequence[Rollout]], list[list[float]]] | None:
    """The advantage of each token of a group, by the fields that sub-graders read.

    None where all of them read all of the answer: each token has its completion's then.
    """
    leaves, plan = run.weighing.leaves, run.plan
    read = credit.fields_read(run.grader.spec, leaves)
    if not any(read):
        return None

    def spread(members: Sequence[Rollout]) -> list[list[float]]:
        grades_G = [member.grade for member in members]
        by_leaf = advantages.by_leaf(plan.advantage, grades_G, leaves, plan.advantage_floor)
        completions = [member.completion for member in members]
        return credit.token_advantages(run.engine, completions, grades_G, by_leaf, read)

    return spread


def merged(all_stats: Sequence[StepStats]) -> StepStats:
    """The stats of a step's updates: as the first found the policy, and what was clipped in all."""
    share = sum(stats.clip_fraction for stats in all_stats) / len(all_stats)
    tokens = sum(stats.num_tokens for stats in all_stats)
    return dataclasses.replace(all_stats[0], clip_fraction=share, num_tokens=tokens)


def validate(run: Run, step: int) -> tuple[list[Group], float]:
    """The graded answers of every validation row; and the seconds it took."""
    num, temperature = run.plan.eval_samples, run.plan.eval_temperature
    ask = sampling.SamplingPlan(run.valid_rows, sampling.VALIDATION, num, temperature)
    return sampling.graded(run, "valid", step, ask)


def show(run: Run, step: int, valid: Sequence[Group]) -> None:
    """The validation as the eval run "Step N", once."""
    model = run.job.model if step == 0 else run.model_name(step)
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
                finish_reason="tool_calls" if said[1] else each.completion.stop_reason,
                prompt_tokens=len(group.prompt_ids),
                completion_tokens=len(each.completion.tokens),
                reasoning_tokens=each.completion.reasoning_tokens,
                sampling={
                    "temperature": run.plan.eval_temperature,
                    "max_completion_tokens": run.plan.max_completion_tokens,
                    "seed": run.plan.seed,
                },
            ),
            each.grade,
        )
        for number, group in enumerate(valid)
        for each in group.rollouts
        for said in [rollout.said(each.completion, group.row)]
    ]
    record_validation(run.store, run.job, step, model, samples)


def report(
    run: Run,
    step: int,
    groups: Sequence[Group] | None,
    valid: Sequence[Group] | None,
    timing: dict[str, float],
    stats: StepStats | None,
) -> None:
    """The metric event of a step, once."""
    rate = learning_rate(run.plan, step, groups or ()) if step else None
    total = run.plan.total_steps
    said = signal.answers(
        run.answer_fields,
        run.response_format,
        {side: found for side, found in (("train", groups), ("valid", valid)) if found is not None},
        run.history.before(step).answers,
    )
    leaves = run.grader.leaves
    data = metrics.step_data(step, total, leaves, groups, valid, timing, stats, rate, said)
    if run.plan.max_staleness and step:
        data["staleness"] = min(step - 1, run.plan.max_staleness)
    message = metrics.step_message(step, total, data)
    with run.store.transaction():
        if not run.store.has_event(run.job.id, f"step-{step}"):  # else it is counted already
            run.store.add_event(run.job.id, message, type="metrics", data=data, key=f"step-{step}")
            used = run.store.job(run.job.id).usage_metrics
            used = metrics.usage_metrics(used, groups, valid, timing, stats)
            run.store.update_job(run.job.id, usage_metrics=used)
        run.history.add(step, run.history.known(step) or data)
    run.seconds_of_steps.append(timing["full_iteration"])
    recent = run.seconds_of_steps[-5:]
    left = (total - step) * sum(recent) / len(recent)
    run.store.update_job(
        run.job.id, estimated_finish=now() + int(left), trained_tokens=run.trained_tokens
    )


def revise(run: Run, step: int, valid: Sequence[Group]) -> None:
    """Correct the metric event of a step whose failed validation grades were given again."""
    known = run.store.event(run.job.id, f"step-{step}")
    failed, total, _ = metrics.failure(valid)
    if known is None or known.data is None:
        return
    before = known.data["learning"].get("valid_failed_grades", 0)
    if failed == before:
        return
    timing = known.data["timing"]["step"]
    fresh = metrics.step_data(step, run.plan.total_steps, run.grader.leaves, None, valid, timing)
    data = metrics.merged(known.data, fresh)
    with run.store.transaction():
        message = metrics.step_message(step, run.plan.total_steps, data)
        run.store.revise_event(known.id, message, data)
        run.store.add_event(
            run.job.id,
            f"Validation after step {step}: {before} of {total} grades had failed and were given "
            f"again; {failed} fail now. The metrics of step {step} are corrected.",
            data={"step": step, "failed": failed, "grades": total},
        )


def save_state(run: Run, folder: Path) -> None:
    """All that `load_policy` needs."""
    run.engine.save(folder)
    (folder / "story.json").write_text(json.dumps({"trained_tokens": run.trained_tokens}))


def stop_if_requested(run: Run, step: int) -> None:
    """Stop if the job was paused or cancelled meanwhile; a paused job is saved first."""
    status = run.store.job(run.job.id).status
    if status not in ("pausing", "cancelled"):
        return
    if status == "pausing":
        run.journal.write_state(step, lambda folder: save_state(run, folder))
        folder = keep_adapter(run, step) if step else None
        with run.store.transaction():
            if run.store.try_status(run.job.id, "paused"):  # it may be cancelled by now
                message = "Paused before the first step."
                if folder is not None:
                    name = name_model(run, step, folder)
                    message = f"Paused after step {step}; the model {name} can be used."
                run.store.add_event(run.job.id, message)
    raise Stopped


def finish(run: Run) -> None:
    """The final checks, then all that the job leaves at once: a cancel before it leaves nothing."""
    run_checks(run)
    last = run.plan.total_steps
    valid, folder, name = validate(run, last)[0], keep_adapter(run, last), run.model_name(None)
    data = [event.data for event in _all_events(run) if event.type == "metrics" and event.data]
    data.sort(key=lambda each: each["step"])
    with run.store.transaction():
        if run.store.job(run.job.id).is_terminal:
            raise Stopped  # cancelled a moment ago
        list_checkpoint(run, last, valid, folder)
        csv = metrics.result_csv(data)
        result = run.store.add_file(csv, "step_metrics.csv", "fine-tune-results")
        run.store.add_event(run.job.id, f"New fine-tuned model created: {name}", key="model")
        run.store.update_job(
            run.job.id, status="succeeded", fine_tuned_model=name, result_files=[result.id]
        )
        run.store.add_event(run.job.id, "The job has successfully completed", key="completed")
    sweep(run.store, run.journal.folder / "checkpoints")


def _all_events(run: Run) -> list[Any]:
    events, after, more = [], None, True
    while more:
        page, more = run.store.events(run.job.id, after=after, limit=1000)
        events += page
        after = page[-1].id if page else None
    return events
