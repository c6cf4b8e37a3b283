"""What pauses a job automatically: failed grades, unscorable answers, alarms, a cap on its core
seconds. An event says why. Where the training grades of a step failed, the job pauses before the
update, otherwise at the end of the step. Failed grades are repeated after the pause, and count in
no reward until then. Not here: pauses that a client asks for, and how a paused job is saved
(`loop.stop_if_requested`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.diagnosis import CUT_SHARE
from rftkit.graders.misspelt import format_problems
from rftkit.server.training import metrics, sampling
from rftkit.server.training.context import AnyRun, RftRun
from rftkit.server.training.rollout import Group
from rftkit.server.training.tool_metrics import broken_tools
from rftkit.wording import counted

__all__ = [
    "check_alarms",
    "check_core_seconds",
    "check_unscorable",
    "check_validation",
    "failures_before",
    "is_over_budget",
    "pauses_for_training",
]

BUDGET_STEPS = 3
LEAST_ANSWERS = 32
"""With fewer unscorable answers than this, or fewer steps than `BUDGET_STEPS`, it may be chance."""
SIDES = {"steps": "training", "valid": "validation"}
"""Kinds of the journal's records, in words."""


def pauses_for_training(run: AnyRun, step: int, groups: Sequence[Group]) -> bool:
    """Whether too many grades of the last steps failed; then the job pauses before the update.

    The step's failed answers are graded again when the job is resumed.
    """
    window = [*run.failures, metrics.failure(groups)[:2]][-BUDGET_STEPS:]
    run.failures = [] if (is_over := is_over_budget(run, window)) else window
    if is_over:
        _pause(run, step, "steps", groups, window)
    return is_over


def failures_before(run: RftRun, done: int) -> list[tuple[int, int]]:
    """The counts of the last steps up to `done`, from their events: a restart forgets none, so that
    a step that is replayed pauses only where it paused. Events of older programs have failures
    only.
    """
    num = run.plan.batch_size * run.plan.completions_per_prompt
    found = []
    for step in range(done + 2 - BUDGET_STEPS, done + 1):
        event = run.store.event(run.job.id, f"step-{step}")
        learning = ((event.data if event else None) or {}).get("learning", {})
        if "failed_grades" in learning:
            failed = learning["failed_grades"]
            found.append((failed, failed + learning.get("num_graded", num - failed)))
    return found


def check_validation(run: AnyRun, step: int, valid: Sequence[Group]) -> None:
    """Pause a job whose validation has too many failed grades, or at the end no reward at all."""
    counts = [metrics.failure(valid)[:2]]
    is_without = step == run.plan.total_steps and metrics.mean_reward(valid) is None
    if is_without or is_over_budget(run, counts):
        _pause(run, step, "valid", valid, counts)


def check_unscorable(run: RftRun, step: int, groups: Sequence[Group], *, has_signal: bool) -> None:
    """Pause a job that learns nothing because its answers cannot be scored; resuming lifts this.

    A step with a signal starts the count again, whatever its share: what can be scored in it
    teaches the model to give answers of that form. Where the response format lacks what the grader
    reads, no answer ever will have it, whatever references teach.
    """
    counts = metrics.unscorable(groups)
    teaches = has_signal and not (
        counts[0] == counts[1] and format_problems(run.grader.spec, run.response_format)
    )
    run.unscorable = [] if teaches else [*run.unscorable, counts][-BUDGET_STEPS:]
    lost, graded = (sum(each) for each in zip(*run.unscorable or [(0, 0)], strict=True))
    is_enough = lost >= LEAST_ANSWERS or len(run.unscorable) == BUDGET_STEPS
    if not is_enough or step == run.plan.total_steps:
        return
    if lost / graded <= run.plan.unscorable_budget:
        return
    key = "unscorable_budget"
    _pause_once(
        run,
        key,
        f"The job pauses: {lost} of {graded} training answers could not be scored, and "
        f"metadata `{key}` allows {run.plan.unscorable_budget:.0%}. "
        f"{_why_unscorable(run, groups)} Resume the job to continue without this limit.",
        {"unscorable": lost, "grades": graded, "step": step},
    )


def check_alarms(run: RftRun, step: int) -> None:
    """Pause a job with `on_alarm` = pause at the step that raised an alarm, once for each alarm."""
    if run.plan.on_alarm != "pause" or step == run.plan.total_steps:
        return
    for alarm in run.history.alarms:
        _pause_once(
            run,
            f"pause-{alarm.key}",
            f"The job pauses, as metadata `on_alarm` asks: {alarm} Resume the job to continue in "
            f"spite of this alarm, or branch from a step before it: rftkit job create --from "
            f"{run.job.id}@STEP",
            {"alarm": dict(alarm.alarm or {}), "step": step},
        )


def _pause_once(
    run: AnyRun,
    key: str,
    message: str,
    data: dict[str, Any],
    level: str = "error",
) -> None:
    """Pause the job with an event that says why, unless it has this event already: the job was
    resumed in spite of it.
    """
    with run.store.transaction():
        if run.store.has_event(run.job.id, key) or not run.store.try_status(run.job.id, "pausing"):
            return
        run.store.add_event(run.job.id, message, level=level, data=data, key=key)


def _why_unscorable(run: RftRun, groups: Sequence[Group]) -> str:
    """The reason for it: the finding of the dataset check, or that answers were cut off, or one
    example.
    """
    if problems := format_problems(run.grader.spec, run.response_format):
        said = "; ".join(problems)
        return f"{said[:1].upper()}{said[1:]}: create another job in which the two agree."
    if metrics.truncated_share(groups) > CUT_SHARE:
        limit = counted(run.plan.max_completion_tokens, "token")
        return (
            f"Answers are cut off at {limit}: create another job with a higher "
            "`max_completion_tokens` (metadata), or ask for shorter answers in the prompt."
        )
    return f"One answer: {metrics.unscorable_example(groups)}"


def _pause(
    run: AnyRun, step: int, kind: str, groups: Sequence[Group], counts: Sequence[tuple[int, int]]
) -> None:
    """Name the graders that failed, how often, and one example."""
    failed, graded = sum(c[0] for c in counts), sum(c[1] for c in counts)
    example = metrics.failure(groups)[2]
    sampling.reopen(run, kind, step)
    with run.store.transaction():
        if not run.store.try_status(run.job.id, "pausing"):
            return
        run.store.add_event(
            run.job.id,
            f"The job pauses: {failed} of {graded} {SIDES[kind]} grades failed, and the error "
            f"budget is {run.plan.error_budget:.0%} (metadata `error_budget`). "
            f"{_who_failed(run, groups)} One failure: {example.errors if example else 'none kept'}",
            level="error",
            data={"failed": failed, "grades": graded, "step": step},
        )


def _who_failed(run: AnyRun, groups: Sequence[Group]) -> str:
    """Which graders failed, and which tools broke rollouts off; and what to do."""
    graders, tools = metrics.broken_graders(run.grader.leaves, groups), broken_tools(groups)
    found = []
    if graders or not tools:
        found.append(f"Graders that failed: {graders}.")
    if tools:
        found.append(f"Tools that failed, so that their rollouts have no grade: {tools}.")
    again = "the answers whose grades failed are then graded again"
    if tools:
        again = f"the rollouts that failed are then sampled again{', and' if graders else ''}"
        again += " the answers whose grades failed are graded again" if graders else ""
    return f"{' '.join(found)} Fix what they need and resume the job: {again}."


def is_over_budget(run: AnyRun, counts: Sequence[tuple[int, int]]) -> bool:
    """Whether too large a share of these grades failed."""
    graded = sum(count for _, count in counts)
    return graded > 0 and sum(failed for failed, _ in counts) / graded > run.plan.error_budget


def check_core_seconds(run: AnyRun, step: int) -> None:
    """Pause a job that has used the seconds it was given; resuming lifts the cap."""
    cap, key = run.plan.max_core_seconds, "max_core_seconds"
    used = (run.store.job(run.job.id).usage_metrics or {}).get("core_seconds", 0.0)
    if cap is None or used < cap or step == run.plan.total_steps:
        return
    _pause_once(
        run,
        key,
        f"The job pauses: it has used {used:.1f} core-loop seconds, and metadata "
        f"`max_core_seconds` allows {cap:g}. Resume it to continue without a cap.",
        {"core_seconds": used, "max_core_seconds": cap, "step": step},
        level="warn",
    )
