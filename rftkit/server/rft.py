"""The training story of one job: read `train` from top to bottom.

    load policy → baseline validation ("Step 0") → for each step: take B rows → sample G completions
    a row → grade → advantages → loss → optimizer step → event → every eval_interval steps:
    validate, save a checkpoint, keep the best three and the last

Simplifications against textbook PPO: one update per batch of rollouts, so the sampling log-probs
are the old policy's; no value model, the baseline is the group's mean; no entropy bonus. Not here:
how the engine samples and learns, what a grade is, and how a dead worker is brought back.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rftkit.graders import CompiledGrader
from rftkit.rows import Row
from rftkit.server import measures, rollout
from rftkit.server.engine.base import Engine, SampleRequest, StepStats
from rftkit.server.evaluation import GradedSample, record_validation
from rftkit.server.journal import Journal
from rftkit.server.plan import KEPT_CHECKPOINTS, Plan
from rftkit.server.records import Job
from rftkit.server.rollout import Group
from rftkit.server.store import Store, now

__all__ = ["Run", "Stopped", "train"]

R = TypeVar("R")

VALIDATION = 2**31
"""Stands for the step in the seed of a validation answer: the same draw at every validation."""
BUDGET_STEPS = 3


class Stopped(Exception):
    """The job was paused or cancelled; what was asked for is in its status."""


@dataclass
class Run:
    """Everything one job needs while it trains."""

    job: Job
    plan: Plan
    store: Store
    engine: Engine
    grader: CompiledGrader
    journal: Journal
    rows: list[Row]
    valid_rows: list[Row]
    model_base: str
    """The base model's name, for the names of checkpoints."""
    start_adapter: Path | None = None
    """Adapter the policy starts from, when the job continues a fine-tuned model."""
    breathe: Callable[[], None] = lambda: None
    """Called between micro-steps: serves chats, notices a cancel."""
    failures: list[tuple[int, int]] = field(default_factory=list)
    """(failed, all) grades of the last steps."""
    trained_tokens: int = 0
    seconds_of_steps: list[float] = field(default_factory=list)

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The job's response format."""
        value: dict[str, Any] | None = self.job.method["reinforcement"].get("response_format")
        return value

    @property
    def schema(self) -> str | None:
        """The schema all answers follow, or None."""
        return rollout.schema_of(self.response_format)


def train(run: Run) -> None:
    """Train a job to its end, from wherever its journal says it was.

    Raises:
        Stopped: after a pause (saved) or a cancel.
        FloatingPointError: when an update is not a number; the last good state is kept.
    """
    done = load_policy(run)
    if done == 0:
        validate_baseline(run)
    for step in range(done + 1, run.plan.total_steps + 1):
        started = time.perf_counter()
        groups, sampling_seconds = sample_and_grade(run, step)
        trained = time.perf_counter()
        stats = update(run, step, groups)
        training_seconds = time.perf_counter() - trained
        valid, eval_seconds = validate(run, step) if run.plan.validates(step) else (None, 0.0)
        timing = {
            "sampling": sampling_seconds,
            "training": training_seconds,
            "eval": eval_seconds,
            "full_iteration": time.perf_counter() - started,
        }
        report(run, step, groups, valid, timing, stats)
        if valid is not None:
            show(run, step, valid)
            save(run, step, valid)
        check_budget(run, step, groups, valid)
        obey(run, step)
    finish(run)


def load_policy(run: Run) -> int:
    """Put the policy where the job left it; the last step that needs no doing again."""
    newest = run.journal.newest_state()
    if newest is not None:
        step, folder = newest
        run.engine.load(folder)
        run.trained_tokens = json.loads((folder / "story.json").read_text())["trained_tokens"]
        return step
    run.engine.start_policy(run.plan.lora, run.plan.seed, run.start_adapter)
    return 0


def validate_baseline(run: Run) -> None:
    """Step 0: the base model on the validation rows, before anything is learnt."""
    valid, seconds = validate(run, 0)
    show(run, 0, valid)
    timing = {"sampling": 0.0, "training": 0.0, "eval": seconds, "full_iteration": seconds}
    report(run, 0, None, valid, timing, None)
    check_budget(run, 0, None, valid)
    obey(run, 0)


def sample_and_grade(run: Run, step: int) -> tuple[list[Group], float]:
    """The graded groups of a step, from the journal or made now; and the seconds it took."""
    started = time.perf_counter()
    known = run.journal.record("steps", step)
    if known is not None:
        by_line = {row.line: row for row in run.rows}
        groups = [rollout.group_from_dict(each, by_line) for each in known["groups"]]
        return groups, known["seconds"]
    rows = batch_rows(run.rows, run.plan, step)
    groups = _answer(run, rows, step, run.plan.completions_per_prompt, run.plan.temperature)
    seconds = time.perf_counter() - started
    record = {"groups": [rollout.group_to_dict(group) for group in groups], "seconds": seconds}
    run.journal.write_record("steps", step, record)
    return groups, seconds


def update(run: Run, step: int, groups: Sequence[Group]) -> StepStats | None:
    """One optimizer update; None when no group has a signal."""
    batch = rollout.train_groups(groups, run.schema)
    if not batch:
        return None
    stats = run.engine.train_step(batch, run.plan.train_settings(), breathe=run.breathe)
    run.trained_tokens += stats.num_tokens
    return stats


def validate(run: Run, step: int) -> tuple[list[Group], float]:
    """The graded answers of every validation row; and the seconds it took."""
    started = time.perf_counter()
    known = run.journal.record("valid", step)
    if known is not None:
        by_line = {row.line: row for row in run.valid_rows}
        groups = [rollout.group_from_dict(each, by_line) for each in known["groups"]]
        return groups, known["seconds"]
    groups = _answer(
        run, run.valid_rows, VALIDATION, run.plan.eval_samples, run.plan.eval_temperature
    )
    seconds = time.perf_counter() - started
    record = {"groups": [rollout.group_to_dict(group) for group in groups], "seconds": seconds}
    run.journal.write_record("valid", step, record)
    return groups, seconds


def show(run: Run, step: int, valid: Sequence[Group]) -> None:
    """The validation as the eval run "Step N", once."""
    model = run.job.model if step == 0 else model_name(run, step)
    samples = [
        (
            GradedSample(
                row=number,
                item=group.row.item,
                results=[],
                text=each.completion.text,
                finish_reason=each.completion.stop_reason,
                prompt_tokens=len(group.prompt_ids),
                completion_tokens=len(each.completion.tokens),
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
    rate = run.plan.learning_rate if step else None
    total = run.plan.total_steps
    data = measures.step_data(step, total, run.grader.leaves, groups, valid, timing, stats, rate)
    message = measures.step_message(step, total, data)
    run.store.add_event(run.job.id, message, type="metrics", data=data, key=f"step-{step}")
    run.seconds_of_steps.append(timing["full_iteration"])
    recent = run.seconds_of_steps[-5:]
    left = (total - step) * sum(recent) / len(recent)
    run.store.update_job(
        run.job.id, estimated_finish=now() + int(left), trained_tokens=run.trained_tokens
    )


def save(run: Run, step: int, valid: Sequence[Group]) -> None:
    """Keep the state, list a checkpoint, drop the worst of too many."""
    run.journal.write_state(step, lambda folder: save_state(run, folder))
    folder = run.journal.write_checkpoint(step, run.engine.save_adapter)
    is_last = step == run.plan.total_steps
    name = model_name(run, None if is_last else step)
    metrics = {"step": step, "full_valid_mean_reward": measures.mean_reward(valid)}
    if is_over_budget(run, [measures.failure(valid)[:2]]):
        metrics["over_error_budget"] = True  # cannot be called best
    run.store.add_model(name, run.model_base, run.job.id, str(folder), step)
    checkpoint = run.store.add_checkpoint(run.job.id, step, name, metrics, str(folder))
    run.store.add_event(
        run.job.id,
        f"Checkpoint created at step {step} with snapshot ID: {checkpoint}",
        key=f"checkpoint-{step}",
    )
    kept = run.store.checkpoints(run.job.id)
    others = [each for each in kept if each.step != run.plan.total_steps]
    others.sort(key=lambda each: (_goodness(each.metrics), -each.step), reverse=True)
    for worse in others[KEPT_CHECKPOINTS:]:
        if worse.step != step or is_last:
            run.store.drop_checkpoint(worse.id)
            run.store.delete_model(worse.model_name)


def save_state(run: Run, folder: Path) -> None:
    """All that `load_policy` needs."""
    run.engine.save(folder)
    (folder / "story.json").write_text(json.dumps({"trained_tokens": run.trained_tokens}))


def check_budget(
    run: Run, step: int, groups: Sequence[Group] | None, valid: Sequence[Group] | None
) -> None:
    """Pause a job whose grader fails too often, and say which, how often, and one example."""
    if groups is not None:
        run.failures = [*run.failures, measures.failure(groups)[:2]][-BUDGET_STEPS:]
    for name, side, counts in (
        ("training", groups, run.failures),
        ("validation", valid, [] if valid is None else [measures.failure(valid)[:2]]),
    ):
        if side is None or not is_over_budget(run, counts):
            continue
        failed, graded = sum(c[0] for c in counts), sum(c[1] for c in counts)
        example = measures.failure(side)[2]
        run.store.add_event(
            run.job.id,
            f"The job pauses: {failed} of {graded} {name} grades failed, more than the error "
            f"budget of {run.plan.error_budget:.0%} (metadata `error_budget`). Mend the grader's "
            f"surroundings and resume. One failure: {example.errors if example else 'none kept'}",
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


def obey(run: Run, step: int) -> None:
    """Stop if the job was paused or cancelled meanwhile; a paused job is saved first."""
    status = run.store.job(run.job.id).status
    if status == "pausing":
        run.journal.write_state(step, lambda folder: save_state(run, folder))
        if step:
            folder = run.journal.write_checkpoint(step, run.engine.save_adapter)
            run.store.add_model(
                model_name(run, step), run.model_base, run.job.id, str(folder), step
            )
            message = f"Paused after step {step}; the model {model_name(run, step)} can be used."
        else:
            message = "Paused before the first step."
        run.store.add_event(run.job.id, message)
        run.store.update_job(run.job.id, status="paused")
        raise Stopped
    if status == "cancelled":
        raise Stopped


def finish(run: Run) -> None:
    """The result file and the last events."""
    name = model_name(run, None)
    data = [event.data for event in _all_events(run) if event.type == "metrics" and event.data]
    data.sort(key=lambda each: each["step"])
    result = run.store.add_file(measures.result_csv(data), "step_metrics.csv", "fine-tune-results")
    core = sum(each["timing"]["step"]["full_iteration"] for each in data)
    run.store.add_event(run.job.id, f"New fine-tuned model created: {name}", key="model")
    run.store.update_job(
        run.job.id,
        status="succeeded",
        fine_tuned_model=name,
        result_files=[result.id],
        usage_metrics={"core_seconds": core, "trained_tokens": run.trained_tokens},
    )
    run.store.add_event(run.job.id, "The job has successfully completed", key="completed")


def model_name(run: Run, step: int | None) -> str:
    """`ft:{base}:local:{suffix}:{id}`, with `:ckpt-step-{N}` unless it is the final model."""
    base = Path(run.model_base).name
    name = f"ft:{base}:local:{run.job.suffix or ''}:{run.job.id.removeprefix('ftjob-')[:8]}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def batch_rows(rows: Sequence[Row], plan: Plan, step: int) -> list[Row]:
    """The rows of a step: epochs are shuffled one by one and laid end to end."""
    result = []
    for position in range((step - 1) * plan.batch_size, step * plan.batch_size):
        epoch, place = divmod(position, len(rows))
        order = list(range(len(rows)))
        random.Random(f"{plan.seed}/{epoch}").shuffle(order)
        result.append(rows[order[place]])
    return result


def _answer(run: Run, rows: Sequence[Row], step: int, num: int, temperature: float) -> list[Group]:
    """Sample `num` completions of each row and grade them."""
    prompts = [run.engine.encode(row.messages, row.tools) for row in rows]
    requests = [
        SampleRequest(
            prompt_ids=prompt,
            seeds=[(run.plan.seed, step, row.line, index) for index in range(num)],
            max_tokens=run.plan.max_completion_tokens,
            temperature=temperature,
            schema=run.schema,
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    completions = run.engine.sample(requests, breathe=run.breathe)
    return _while_breathing(
        run,
        lambda: rollout.grade_groups(run.grader, rows, prompts, completions, run.response_format),
    )


def _while_breathing(run: Run, work: Callable[[], R]) -> R:
    """Grade in another thread, so that chats, and judges that ask this engine, are served."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        while not future.done():
            run.breathe()
            time.sleep(0.002)
        return future.result()


def _goodness(metrics: dict[str, Any]) -> float:
    reward = metrics.get("full_valid_mean_reward")
    return float("-inf") if reward is None or metrics.get("over_error_budget") else float(reward)


def _all_events(run: Run) -> list[Any]:
    events, after, more = [], None, True
    while more:
        page, more = run.store.events(run.job.id, after=after, limit=1000)
        events += page
        after = page[-1].id if page else None
    return events
