"""Failed grades are given again after a repair, at every step, and once more before a job ends.

This module is about earlier steps, whose updates were already made. These updates stay as they are,
so that a replay gives the same weights: the journal keeps the later grade beside the one that was
learnt from. What people see is corrected: the metric event, the eval run of a validation, the
metrics of its checkpoint. Not here: the present validation and a step before its update, whose
records become drafts again (`sampling.reopen`). Only there can an episode that a tool broke off be
sampled again, because the policy that began it still exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rftkit.server.training import metrics, refill, rollout, sampling, watching
from rftkit.server.training.context import AnyRun
from rftkit.server.training.history import metric_events
from rftkit.server.training.rollout import Group, Rollout
from rftkit.server.training.validation import reward_metrics, show

__all__ = ["regrade", "revise"]

MessageOf = Callable[[int, int, Mapping[str, Any]], str]
"""Makes the line of a metric event from step, total steps and data."""
COUNTS = {"steps": "failed_grades", "valid": "valid_failed_grades"}
"""The name of the number of failed grades in a metric event, by the kind of the journal's record.
"""


def regrade(run: AnyRun, last: int, message_of: MessageOf) -> None:
    """Grade again what failed at the training steps up to `last` and at the validations before it.

    A kill repeats it: the record is written first, and the metric event, which says that there is
    something to do, is corrected last.
    """
    if run.compiled_grader is None:
        return
    for step, data in sorted(metric_events(run.store, run.job.id).items()):
        for kind, count in COUNTS.items():
            is_passed = step < last or (step == last and kind == "steps")
            if not is_passed or not data.get("learning", {}).get(count):
                continue
            groups = _graded_again(run, kind, step)
            if groups is not None and kind == "valid":
                show(run, step, groups)
                _correct_checkpoint(run, step, groups)
            if groups is not None:
                revise(run, kind, step, groups, message_of)


def _graded_again(run: AnyRun, kind: str, step: int) -> list[Group] | None:
    """The groups of a record with all grades that could be given by now; None: it is not there."""
    found = sampling.recorded(run, kind, step)
    if found is None:
        return None
    before, seconds = found
    after = [
        group
        for name, part in _parts(run, kind, before)
        for group in (_part_again(run, name, step, part) if _lacks_grades(part) else part)
    ]
    if after != before:
        kept = after if kind == "steps" else [rollout.with_latest_grades(each) for each in after]
        sampling.write_record(run, kind, step, kept, seconds)
    return [rollout.with_latest_grades(each) for each in after]


def _parts(run: AnyRun, kind: str, groups: list[Group]) -> Iterator[tuple[str, list[Group]]]:
    """A step's own rows and the rows that were added to it, with the kinds of their drafts."""
    size = run.plan.batch_size if kind == "steps" else len(groups)
    yield kind, groups[:size]
    yield refill.KIND, groups[size:]


def _lacks_grades(groups: Sequence[Group]) -> bool:
    """Whether a grader failed; an episode that its tools broke off can never get a grade."""
    return any(
        each.latest.outcome == "failed" and each.completion.failure is None
        for group in groups
        for each in group.rollouts
    )


def _part_again(run: AnyRun, kind: str, step: int, groups: Sequence[Group]) -> list[Group]:
    """The groups, with a later grade where one had failed and is given now."""
    given = {
        (i, index): (each.completion.tokens, asdict(each.latest))
        for i, group in enumerate(groups)
        for index, each in enumerate(group.rollouts)
        if each.latest.outcome != "failed"
    }
    draft = sampling.UngradedBatch(
        [group.row for group in groups],
        [group.prompt_ids for group in groups],
        [[each.completion for each in group.rollouts] for group in groups],
        0.0,
    )
    found, _ = sampling.graded(run, kind, step, draft, known=given)
    return [
        replace(group, rollouts=list(map(_with_later, group.rollouts, fresh.rollouts)))
        for group, fresh in zip(groups, found, strict=True)
    ]


def _with_later(known: Rollout, fresh: Rollout) -> Rollout:
    is_new = known.latest.outcome == "failed" and fresh.grade.outcome != "failed"
    return replace(known, regraded=fresh.grade) if is_new else known


def _correct_checkpoint(run: AnyRun, step: int, valid: Sequence[Group]) -> None:
    """Give the checkpoint of a validation the reward that it has now, if it still exists."""
    for each in run.store.checkpoints(run.job.id):
        if each.step == step:
            kept = {k: v for k, v in each.metrics.items() if k != "over_error_budget"}
            found = kept | reward_metrics(run, step, valid)
            run.store.replace_checkpoint_metrics(run.job.id, step, found)


def revise(
    run: AnyRun, kind: str, step: int, groups: Sequence[Group], message_of: MessageOf
) -> None:
    """Correct the metric event of a step whose failed grades were given again.

    Args:
        run: the job.
        kind: "steps" or "valid".
        step: of the event.
        groups: graded anew.
        message_of: makes the line of the event.
    """
    known = run.store.event(run.job.id, f"step-{step}")
    failed, graded, _ = metrics.failure(groups)
    if known is None or known.data is None:
        return
    before = known.data["learning"].get(COUNTS[kind], 0)
    if failed == before:
        return
    data = metrics.merged(known.data, _figures(run, kind, step, groups, known.data))
    what, note = f"Validation after step {step}", ""
    if kind == "steps":
        what, note = f"Training answers of step {step}", "; its update stays as it was"
    with run.store.transaction():
        run.store.revise_event(known.id, message_of(step, run.plan.total_steps, data), data)
        run.store.add_event(
            run.job.id,
            f"{what}: {before} of {graded} grades had failed and were made again; {failed} still "
            f"fail. The metrics of step {step} are corrected{note}.",
            data={"step": step, "failed": failed, "grades": graded},
        )


def _figures(
    run: AnyRun, kind: str, step: int, groups: Sequence[Group], known: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of one side, computed again; figures of an update stay as they are."""
    train, valid = (groups, None) if kind == "steps" else (None, groups)
    data = metrics.step_data(
        step, run.plan.total_steps, run.grader.leaves, train, valid, known["timing"]["step"],
        has_tools=run.tools is not None,
    )  # fmt: skip
    if train is not None:
        for name in ("learning_rate", "flat_groups", "no_signal_groups"):
            del data["learning"][name]
        data["watch"] = watching.figures(train, run.right_answers)
    return data
