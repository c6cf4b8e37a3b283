"""What supervised and dpo jobs share: epochs, validation losses, checkpoints, metric events.

They learn from answers that their rows hold, so nothing is sampled to learn. When the job's
metadata names a grader, answers to the validation rows are sampled and graded as in a reinforcement
job, before the first step and after each epoch, so that their rewards compare. Not here: the
losses (`supervised`, `dpo`) and the steps (`loop`). Source: metrics event, checkpoint and result
file of the hosted service's supervised jobs.
"""

from __future__ import annotations

import csv
import io
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.server.engine.values import TrainSettings
from rftkit.server.training import metrics, sampling
from rftkit.server.training.budgets import check_core_seconds, check_validation
from rftkit.server.training.checkpoints import keep_checkpoint
from rftkit.server.training.context import OfflineRun
from rftkit.server.training.encoding import Encoded
from rftkit.server.training.loop import (
    account_for_judges,
    naming_lines,
    publish,
    save_state,
    stop_if_requested,
)
from rftkit.server.training.regrading import revise
from rftkit.server.training.rollout import Group
from rftkit.server.training.schedule import learning_rate
from rftkit.server.training.validation import graded_answers, reward_metrics, show

__all__ = [
    "Measured",
    "Valid",
    "baseline",
    "begin",
    "conclude",
    "csv_of",
    "last_metrics",
    "report",
    "step_message",
    "updated",
    "validated",
]

Json = dict[str, Any]

STATE_SECONDS = 120.0
"""Seconds after which the state is saved within an epoch, so that a kill repeats no more than that.
When a state is saved changes no number."""
CHECKPOINT_KEYS = tuple(
    f"{side}_{name}"
    for name in ("loss", "mean_token_accuracy")
    for side in ("train", "valid", "full_valid")
)
MESSAGE_PARTS = {
    "training loss": "train_loss",
    "validation loss": "valid_loss",
    "full validation loss": "full_valid_loss",
    "full validation mean reward": "full_valid_mean_reward",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one pass over some rows, each without the side it was measured on."""

    figures: Json
    """loss and mean_token_accuracy; what could not be measured is left out."""
    preferences: Json
    """For dpo: the rewards that the policy gives its pairs."""
    grad_norm: float | None
    num_tokens: int
    """Trained ones."""


@dataclass(frozen=True, slots=True)
class Valid:
    """What was measured on validation rows."""

    batch: Measured | None = None
    """The measurement on the same few rows each time."""
    full: Measured | None = None
    """The measurement on all rows, at the end of an epoch."""
    groups: list[Group] | None = None
    """Graded answers, if the job has a grader."""


def begin(run: OfflineRun, done: int) -> None:
    """Grade the baseline, or restore the epoch that a killed worker saved last."""
    if run.is_graded:
        sampling.reopen(run, "valid", done)  # a grader may have been repaired since
    if done == 0 and run.is_graded:
        run.clock.start()
        valid = Valid(groups=graded_answers(run, 0))
        report(run, 0, None, None, valid)
        conclude(run, 0, valid)
    elif done and run.plan.validates(done):
        conclude(run, done, Valid(groups=graded_answers(run, done) if run.is_graded else None))


def baseline(run: OfflineRun, measure: Callable[[Sequence[Encoded]], Measured]) -> None:
    """Measure and report the model that the job starts from, as step 0: for a probe."""
    run.clock.start()
    groups = graded_answers(run, 0) if run.is_graded else None
    full = None
    if run.valid_examples:
        with run.clock.part("eval"):
            full = measure(run.valid_examples)
    report(run, 0, None, None, Valid(full=full, groups=groups))


def validated(
    run: OfflineRun, step: int, measure: Callable[[Sequence[Encoded]], Measured]
) -> Valid | None:
    """The measurements that the plan asks for after a step; None if it asks for none."""
    is_whole = run.plan.validates(step)
    if not is_whole and step % run.plan.valid_interval:
        return None
    batch = full = None
    if run.valid_examples:
        with run.clock.part("eval"):
            if step % run.plan.valid_interval == 0:
                batch = measure(_valid_batch(run))
            if is_whole:
                full = measure(run.valid_examples)
    groups = graded_answers(run, step) if is_whole and run.is_graded else None
    return Valid(batch, full, groups)


def updated(
    run: OfflineRun,
    step: int,
    batch: Sequence[Encoded],
    lines: Sequence[int],
    measure: Callable[[TrainSettings], Measured],
) -> Measured:
    """Make one optimizer update; return what was measured before it. `lines` has the row of each
    text that the engine sees.
    """
    settings = run.plan.train_settings(learning_rate(run.plan, step))
    with naming_lines(step, lines), run.clock.part("training"):
        measured = measure(settings)
    run.trained_tokens += sum(each.num_tokens for each in batch)
    return measured


def _valid_batch(run: OfflineRun) -> list[Encoded]:
    """As many validation rows as a step has, the same at every step, so that only the model changes
    the curve.
    """
    rows = list(run.valid_examples)
    random.Random(f"{run.plan.seed}/valid").shuffle(rows)
    return rows[: run.plan.batch_size]


def report(
    run: OfflineRun,
    step: int,
    batch: Sequence[Encoded] | None,
    train: Measured | None,
    valid: Valid | None,
) -> None:
    """The metric event of a step, once."""
    valid, total, timing = valid or Valid(), run.plan.total_steps, run.clock.timing()
    data: Json = {"step": step, "total_steps": total}
    if valid.groups is not None:
        leaves = run.grader.leaves
        data = metrics.step_data(step, total, leaves, None, valid.groups, timing)
    sides = {"train": train, "valid": valid.batch, "full_valid": valid.full}
    data = metrics.merged(data, _figures(sides))
    learning: Json = {}
    if train is not None:
        seconds = timing["training"]
        learning = {
            "learning_rate": learning_rate(run.plan, step),
            "grad_norm": train.grad_norm,
            "tokens_per_second": train.num_tokens / seconds if seconds else None,
        }
    data = metrics.merged(data, {"timing": {"step": timing}, "learning": learning})
    usage = metrics.usage_metrics(
        run.store.job(run.job.id).usage_metrics, None, valid.groups, timing, None, run.judge_tokens
    )
    usage["trained_tokens"] = usage["tokens"]["training"] = run.trained_tokens
    publish(run, step, step_message(step, total, data), data, usage)


def _figures(sides: Mapping[str, Measured | None]) -> Json:
    """All figures, with the name of their side in front."""
    data: Json = {}
    for side, measured in sides.items():
        if measured is not None:
            data |= {f"{side}_{name}": value for name, value in measured.figures.items()}
            named = {f"{side}_{name}": value for name, value in measured.preferences.items()}
            if named:
                data["preferences"] = {**data.get("preferences", {}), **named}
    return data


def step_message(step: int, total_steps: int, data: Mapping[str, Any]) -> str:
    """The line of a step, worded as the service words it."""
    parts = [
        f"{words}={data[key]:.2f}"
        for words, key in MESSAGE_PARTS.items()
        if data.get(key) is not None
    ]
    return f"Step {step}/{total_steps}: {', '.join(parts)}"


def conclude(run: OfflineRun, step: int, valid: Valid | None) -> None:
    """Keep what a step leaves; everything here may come twice, and is done once.

    The state comes last: a kill before it repeats the step, which makes whatever is missing.
    """
    check_core_seconds(run, step)
    if valid is None or not run.plan.validates(step):
        if time.monotonic() - run.saved_at > STATE_SECONDS:
            _save(run, step)
        stop_if_requested(run, step)
        return
    if valid.groups is not None:
        revise(run, "valid", step, valid.groups, step_message)
        account_for_judges(run)
        show(run, step, valid.groups)
    if step:
        if step < run.plan.total_steps:  # the last one has checks to pass
            keep_checkpoint(run, step, _checkpoint_metrics(run, step, valid.groups))
        _save(run, step)
    if valid.groups is not None:
        check_validation(run, step, valid.groups)
    stop_if_requested(run, step)


def _save(run: OfflineRun, step: int) -> None:
    save_state(run, step)
    run.saved_at = time.monotonic()


def last_metrics(run: OfflineRun) -> Json:
    """The metrics of the last checkpoint."""
    last = run.plan.total_steps
    return _checkpoint_metrics(run, last, graded_answers(run, last) if run.is_graded else None)


def _checkpoint_metrics(run: OfflineRun, step: int, groups: Sequence[Group] | None) -> Json:
    """The metric event of the step, which another worker may have taken."""
    known = run.store.event(run.job.id, f"step-{step}")
    data = (known.data if known else None) or {}
    found = {key: data[key] for key in CHECKPOINT_KEYS if key in data}
    rewards = {} if groups is None else reward_metrics(run, step, groups)
    return {"step": step, **found, **rewards}


def csv_of(steps: Sequence[Json], columns: Mapping[str, str]) -> bytes:
    """The result file: one line a step, from 1; cells of what was not measured are empty.

    Args:
        steps: data of the metric events, in order.
        columns: name of each column, and where in the data its value is.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for data in steps:
        if data["step"]:
            writer.writerow(_cell(data, path) for path in columns.values())
    return text.getvalue().encode()


def _cell(data: Json, path: str) -> Any:
    value: Any = data
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return ""
    return round(value, 5) if isinstance(value, float) else value
