"""Reinforcement: the answers of the policy itself are graded, and better ones made more likely.

    baseline validation ("Step 0") → for each step: take B rows → sample G completions a row →
    grade → (refill, guide) → advantages → loss → optimizer step → event → every eval_interval
    steps: validate, save a checkpoint, keep the best three and the last

The steps themselves are taken in `loop.train`; this module is its `Method`. Simplifications against
textbook PPO: each completion is learnt from once unless `updates_per_batch` asks for more, so the
sampling log-probs are the old policy's; no value model, the baseline is the group's mean; no
entropy bonus. Not here: how the engine samples and learns, what a grade is, and how a dead worker
is brought back.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from rftkit.server.engine.values import StepStats
from rftkit.server.training import (
    advantages,
    credit,
    metrics,
    refill,
    rollout,
    sampling,
    signal,
    watching,
)
from rftkit.server.training.batches import batch_rows
from rftkit.server.training.budgets import (
    check_alarms,
    check_core_seconds,
    check_unscorable,
    check_validation,
    failures_before,
    pauses_for_training,
)
from rftkit.server.training.checkpoints import keep_checkpoint
from rftkit.server.training.context import RftRun
from rftkit.server.training.grader_check import warn_of_grader
from rftkit.server.training.guidance import guided
from rftkit.server.training.held_out import with_held_out
from rftkit.server.training.loop import (
    Json,
    account_for_judges,
    naming_lines,
    publish,
    save_state,
    stop_if_requested,
)
from rftkit.server.training.plan import Plan
from rftkit.server.training.regrading import revise
from rftkit.server.training.rollout import Group, Rollout
from rftkit.server.training.schedule import guarded_rate
from rftkit.server.training.validation import graded_answers, reward_metrics, show

__all__ = [
    "baseline",
    "begin",
    "conclude",
    "gather",
    "last_metrics",
    "report",
    "result_csv",
    "step_message",
    "update",
    "validate",
]

T = TypeVar("T")

result_csv, step_message = metrics.result_csv, metrics.step_message


def begin(run: RftRun, done: int) -> None:
    """The baseline, or what a killed worker left of the step that was saved last."""
    sampling.reopen(run, "valid", done)  # a grader may have been repaired since
    run.failures = failures_before(run, done)
    report_weights(run)
    report_relative(run)
    base = run.plan.branch_step
    if done == base:
        warn_of_grader(run)
        valid = baseline(run)
        conclude(run, base, valid)
    elif run.plan.validates(done):
        conclude(run, done, validate(run, done))


def report_weights(run: RftRun) -> None:
    """Add an event if the formula is not a sum although its parts are weighted separately."""
    if run.plan.advantage not in advantages.PER_GRADER_NAMES or run.weighing.is_exact:
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


def report_relative(run: RftRun) -> None:
    """Add an event if a part of the reward only compares answers of a group."""
    if not run.grader.compares_group:
        return
    run.store.add_event(
        run.job.id,
        "The grader compares the answers of a group with each other. Training uses the differences "
        "within a group; the mean training reward of a step says nothing about other steps. "
        "Validations are compared with an anchor, the grader's own or the answers of step 0: 0.5 "
        "is as good as the anchor.",
        key="relative",
    )


def baseline(run: RftRun) -> list[Group]:
    """Step 0, or the step of a branch: the model on the validation rows, before any update."""
    run.clock.start()
    valid = graded_answers(run, run.plan.branch_step)
    report(run, run.plan.branch_step, None, None, valid)
    return valid


def conclude(run: RftRun, step: int, valid: Sequence[Group] | None) -> None:
    """Keep what a validated step leaves; everything here may come twice, and is done once.

    The state comes last: a kill before it repeats the step, which makes whatever is missing.
    """
    check_core_seconds(run, step)
    if valid is None:
        stop_if_requested(run, step)
        return
    revise(run, "valid", step, valid, metrics.step_message)
    account_for_judges(run)
    show(run, step, valid)
    if step > run.plan.branch_step:
        if step < run.plan.total_steps:  # the last one has checks to pass
            keep_checkpoint(run, step, reward_metrics(run, step, valid))
        save_state(run, step)
    check_validation(run, step, valid)
    stop_if_requested(run, step)


def gather(run: RftRun, step: int) -> list[Group]:
    """The graded groups of a step, from the journal or made now.

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

    run.clock.start()
    if (found := sampling.recorded(run, "steps", step)) is not None:
        groups, seconds = found
        ahead()
    else:
        groups, seconds = sampling.graded(run, "steps", step, plan(step), ahead)
        groups, more_seconds = complete(run, step, groups)
        seconds += more_seconds
        sampling.write_record(run, "steps", step, groups, seconds)
    run.clock.add("sampling", seconds)
    if pauses_for_training(run, step, groups):
        stop_if_requested(run, step - 1)  # the update waits for the grades that are missing
    return groups


def complete(run: RftRun, step: int, groups: list[Group]) -> tuple[list[Group], float]:
    """Add what the plan asks for to a step's groups: further prompts, reference answers. Return the
    seconds it took, too.
    """
    started = time.perf_counter()
    groups = refill.refilled(run, step, groups)
    if run.plan.guidance == "references":
        groups = guided(run, step, groups)
    groups = with_held_out(run, step, groups)
    return groups, time.perf_counter() - started


def update(run: RftRun, step: int, groups: Sequence[Group]) -> StepStats | None:
    """The optimizer updates of a step, most often one; None when no group has a signal."""
    plan = run.plan
    rank = functools.partial(
        advantages.advantages,
        plan.advantage,
        leaves=run.weighing.leaves,
        floor=plan.advantage_floor,
    )
    spread = credited(run) if plan.credit == "fields" else None
    kept = rollout.train_groups(groups, run.schema, plan.reasoning_after, rank, spread)
    if not kept:
        return None
    settings = plan.train_settings(guarded_rate(plan, step, groups))
    parts = minibatches(kept, updates_of(plan, len(groups)))
    all_stats = []
    with run.clock.part("training"):
        for part in parts * plan.updates_per_batch:
            batch = [learnt for _, learnt in part]
            with naming_lines(step, [group.row.line for group, _ in part]):
                all_stats.append(run.engine.train_step(batch, settings, on_tick=run.on_tick))
            settings = dataclasses.replace(settings, measures_kl=False)  # see `merged`
    run.trained_tokens += sum(stats.num_tokens for stats in all_stats)
    return merged(all_stats, len(parts))


def updates_of(plan: Plan, num_groups: int) -> int:
    """How many updates a pass over a step's groups makes."""
    return math.ceil(num_groups / plan.minibatch_size) if plan.minibatch_size else 1


def minibatches(batch: Sequence[T], num: int) -> list[Sequence[T]]:
    """At most `num` parts of a batch, in its order, whose sizes differ by at most one."""
    num = min(num, len(batch))
    bounds = [part * len(batch) // num for part in range(num + 1)]
    return [batch[start:stop] for start, stop in itertools.pairwise(bounds)]


def credited(run: RftRun) -> Callable[[Sequence[Rollout]], list[list[float]]] | None:
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


def merged(all_stats: Sequence[StepStats], num_parts: int) -> StepStats:
    """The stats of a step's updates, the first `num_parts` of which saw each completion once.

    Loss and entropy are those of the first pass, and what was clipped is of all updates. What else
    is measured is as the first update found the policy: later ones find it moved on purpose.
    """
    if len(all_stats) == 1:
        return all_stats[0]
    whole = all_stats[:num_parts]
    return dataclasses.replace(
        all_stats[0],
        loss=_mean([(stats.loss, stats.num_tokens) for stats in whole]),
        entropy=_mean([(stats.entropy, stats.num_tokens) for stats in whole]),
        clip_fraction=_mean([(stats.clip_fraction, 1) for stats in all_stats]),
        num_tokens=sum(stats.num_tokens for stats in all_stats),
    )


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    weight = sum(each for _, each in weighted)
    return sum(value * each for value, each in weighted) / weight if weight else 0.0


def validate(run: RftRun, step: int) -> list[Group] | None:
    """The graded answers of every validation row, at the steps that the plan validates."""
    return graded_answers(run, step) if run.plan.validates(step) else None


def report(
    run: RftRun,
    step: int,
    groups: Sequence[Group] | None,
    stats: StepStats | None,
    valid: Sequence[Group] | None,
) -> None:
    """The metric event of a step, once."""
    rate = None if groups is None else guarded_rate(run.plan, step, groups)
    total, timing = run.plan.total_steps, run.clock.timing(overlaps=run.plan.max_staleness > 0)
    said = signal.answers(
        run.answer_fields,
        run.response_format,
        {side: found for side, found in (("train", groups), ("valid", valid)) if found is not None},
        run.history.before(step).answers,
    )
    leaves = run.grader.leaves
    if run.tools is not None:
        timing["waiting"] = run.clock.waiting
    data = metrics.step_data(
        step, total, leaves, groups, valid, timing, stats, rate, said,
        has_tools=run.tools is not None,
    )  # fmt: skip
    if groups is not None:
        data["watch"] = watching.figures(groups, run.right_answers)
    if run.plan.max_staleness and groups is not None:
        data["staleness"] = min(step - 1 - run.plan.branch_step, run.plan.max_staleness)
    used = run.store.job(run.job.id).usage_metrics
    used = metrics.usage_metrics(used, groups, valid, timing, stats, run.judge_tokens)
    publish(run, step, metrics.step_message(step, total, data), data, used)
    if groups is not None and not run.job.is_probe:
        check_unscorable(run, step, groups, has_signal=stats is not None)
        check_alarms(run, step)


def last_metrics(run: RftRun) -> Json:
    """The metrics of the last checkpoint."""
    last = run.plan.total_steps
    return reward_metrics(run, last, graded_answers(run, last))
