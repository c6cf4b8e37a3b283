"""What pauses a job by itself: a grader that fails too often, and a cap on its core seconds.

Each says so in an event and lets the job finish the step it is in. Not here: pauses that a client
asks for, and how a paused job is saved (`rft.obey`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rftkit.server.training import metrics
from rftkit.server.training.context import Run
from rftkit.server.training.rollout import Group

__all__ = ["check_budget", "check_core_seconds", "is_over_budget"]

BUDGET_STEPS = 3


def check_budget(
    run: Run, step: int, groups: Sequence[Group] | None, valid: Sequence[Group] | None
) -> None:
    """Pause a job whose grader fails too often, and say which, how often, and one example."""
    if groups is not None:
        run.failures = [*run.failures, metrics.failure(groups)[:2]][-BUDGET_STEPS:]
    for name, side, counts in (
        ("training", groups, run.failures),
        ("validation", valid, [] if valid is None else [metrics.failure(valid)[:2]]),
    ):
        if side is None or not is_over_budget(run, counts):
            continue
        failed, graded = sum(c[0] for c in counts), sum(c[1] for c in counts)
        example = metrics.failure(side)[2]
        broken = metrics.broken_graders(run.grader.leaves, side)
        run.store.add_event(
            run.job.id,
            f"The job pauses: {failed} of {graded} {name} grades failed, more than the error "
            f"budget of {run.plan.error_budget:.0%} (metadata `error_budget`). Graders that "
            f"failed: {broken}. Mend what they need and resume. One failure: "
            f"{example.errors if example else 'none kept'}",
            level="error",
            data={"failed": failed, "grades": graded, "step": step},
        )
        run.failures = []
        run.store.update_job(run.job.id, status="pausing")
        return


def is_over_budget(run: Run, counts: Sequence[tuple[int, int]]) -> bool:
    """Whether too large a share of these grades failed."""
    graded = sum(count for _, count in counts)
    return graded > 0 and sum(failed for failed, _ in counts) / graded > run.plan.error_budget


def check_core_seconds(run: Run, step: int) -> None:
    """Pause a job that has used the seconds it was given; resuming lifts the cap."""
    cap, key = run.plan.max_core_seconds, "max_core_seconds"
    used = (run.store.job(run.job.id).usage_metrics or {}).get("core_seconds", 0.0)
    if cap is None or used < cap or step == run.plan.total_steps:
        return
    with run.store.transaction():
        if run.store.has_event(run.job.id, key):
            return
        run.store.add_event(
            run.job.id,
            f"The job pauses: it has used {used:.1f} core-loop seconds, and metadata "
            f"`max_core_seconds` allows {cap:g}. Resume it to go on without a cap.",
            level="warn",
            data={"core_seconds": used, "max_core_seconds": cap, "step": step},
            key=key,
        )
        run.store.update_job(run.job.id, status="pausing")
