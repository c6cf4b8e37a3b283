"""The loop that all methods share: read `train` from top to bottom.

    load the policy → begin → grade again → for each step: gather what it learns from → update →
    validate → report → conclude → finish

A method is a module with the functions of `Method`: `rft`, `supervised`, `dpo`. From `train` to a
grade read `rft.gather`, `sampling.graded` and `rollout.grade_all`, which calls the grader. This
module has what is the same for each method: where a killed job continues, how a job is paused or
cancelled, and how it ends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rftkit.errors import PlatformError
from rftkit.server.engine.values import NotFiniteError
from rftkit.server.store.store import now
from rftkit.server.training.checkpoints import keep_adapter, list_checkpoint, name_model, sweep
from rftkit.server.training.context import AnyRun, Stopped
from rftkit.server.training.final_checks import run_checks
from rftkit.server.training.history import metric_events
from rftkit.server.training.journal import damage
from rftkit.server.training.regrading import regrade
from rftkit.wholefile import SUMS

__all__ = [
    "Json",
    "Method",
    "account_for_judges",
    "finish",
    "load_policy",
    "naming_lines",
    "publish",
    "save_state",
    "stop_if_requested",
    "train",
]

Json = dict[str, Any]


class Method(Protocol):
    """A training method; `Any` is what its own functions pass to each other."""

    def begin(self, run: Any, done: int) -> None:
        """What comes before the first step that this worker takes."""
        ...

    def baseline(self, run: Any) -> Any:
        """Measure and report the model before it learns anything, as step 0."""
        ...

    def gather(self, run: Any, step: int) -> Any:
        """What a step learns from, durable in the journal before it is returned."""
        ...

    def update(self, run: Any, step: int, batch: Any) -> Any:
        """Let the policy learn from it; what was measured."""
        ...

    def validate(self, run: Any, step: int) -> Any:
        """What is measured on validation rows after a step; None when nothing is."""
        ...

    def report(self, run: Any, step: int, batch: Any, stats: Any, valid: Any) -> None:
        """The metric event of a step, once."""
        ...

    def conclude(self, run: Any, step: int, valid: Any) -> None:
        """Keep what a step leaves, and stop if that was requested."""
        ...

    def last_metrics(self, run: Any) -> Json:
        """The metrics of the last checkpoint."""
        ...

    def step_message(self, step: int, total_steps: int, data: Mapping[str, Any]) -> str:
        """The line of a metric event."""
        ...

    def result_csv(self, steps: Sequence[Json]) -> bytes:
        """The result file, from the data of all metric events."""
        ...


def train(run: AnyRun, method: Method) -> None:
    """Train a job to its end, from wherever its journal says it was.

    Raises:
        Stopped: after a pause (saved) or a cancel.
        FloatingPointError: when an update is not a number; the last good state is kept.
    """
    done = load_policy(run)
    method.begin(run, done)
    regrade(run, done, method.step_message)  # a grader may have been repaired since
    for step in range(done + 1, run.plan.total_steps + 1):
        batch = method.gather(run, step)
        stats = method.update(run, step, batch)
        valid = method.validate(run, step)
        method.report(run, step, batch, stats, valid)
        method.conclude(run, step, valid)
    finish(run, method)


def load_policy(run: AnyRun) -> int:
    """Load the policy as the job left it; return the last step that need not be repeated. A state
    is skipped for now if the database does not know a step before it (because an older copy of the
    database was restored): those steps are reported again from the journal first. A state is also
    skipped if its next step must be sampled again by an earlier policy (`needs_earlier_policy`).
    """
    reported = run.store.event_keys(run.job.id)
    base = run.first_step
    first = base if run.is_graded else base + 1
    for step, folder in run.journal.states():
        if not reported >= {f"step-{number}" for number in range(first, step + 1)}:
            continue
        if needs_earlier_policy(run, step + 1):
            continue
        wrong = damage(folder) if (folder / SUMS).is_file() else f"{folder} is not whole"
        if wrong is None:
            run.engine.load(folder)
            run.trained_tokens = json.loads((folder / "story.json").read_text())["trained_tokens"]
            return step
        run.store.add_event(
            run.job.id,
            f"A saved state is damaged and was deleted: {wrong}. The job continues from the state "
            "before it, with the journal.",
            level="warn",
        )
        run.journal.drop_state(step)
    if (branch := run.journal.branch) is None:
        run.engine.start_policy(run.plan.lora, run.plan.seed, run.start_adapter)
        return 0
    if (wrong := damage(branch)) is not None:
        raise PlatformError(f"the state that the job continues from is damaged: {wrong}")
    run.engine.load(branch)
    return base


def needs_earlier_policy(run: AnyRun, step: int) -> bool:
    """Whether the completions of a step are lost, and the policy after the last one is too late.

    With `max_staleness` a step is sampled before the update of the step before it. When its record
    or draft is damaged, only a replay from an earlier state gives the same completions again.
    """
    first = run.first_step + 1
    if not getattr(run.plan, "max_staleness", 0) or not first < step <= run.plan.total_steps:
        return False
    journal = run.journal
    return journal.record("steps", step) is None and journal.draft("steps", step) is None


def account_for_judges(run: AnyRun) -> None:
    """Update the job's account if judges were called since the last step's event."""
    used, found = run.store.job(run.job.id).usage_metrics, run.judge_tokens
    if used is not None and run.judges is not None and used.get("model_graders") != found:
        run.store.update_job(run.job.id, usage_metrics={**used, "model_graders": found})


def publish(run: AnyRun, step: int, message: str, data: Json, usage: Json) -> None:
    """Add the metric event of a step, once, and estimate how long the rest will take.

    Args:
        run: the job.
        step: of the event.
        message: its line.
        data: its metrics, `timing.step` among them.
        usage: the job's account with this step; a step that is reported again is counted already.
    """
    with run.store.transaction():
        if not run.store.has_event(run.job.id, f"step-{step}"):
            run.store.add_event(run.job.id, message, type="metrics", data=data, key=f"step-{step}")
            run.store.update_job(run.job.id, usage_metrics=usage)
        run.history.add(step, run.history.known(step) or data)
    run.seconds_of_steps.append(data["timing"]["step"]["full_iteration"])
    recent = run.seconds_of_steps[-5:]
    left = (run.plan.total_steps - step) * sum(recent) / len(recent)
    # Only reinforcement jobs show their tokens before the end.
    is_shown = run.job.method_type == "reinforcement"
    reported = {"trained_tokens": run.trained_tokens} if is_shown else {}
    run.store.update_job(run.job.id, estimated_finish=now() + int(left), **reported)


@contextlib.contextmanager
def naming_lines(step: int, lines: Sequence[int]) -> Iterator[None]:
    """In an update of rows with these lines, let an error name the lines that caused it.

    Raises:
        FloatingPointError: in place of the engine's NotFiniteError.
    """
    try:
        yield
    except NotFiniteError as error:
        rows = ", ".join(str(lines[index]) for index in error.groups) or "unknown"
        raise FloatingPointError(f"{error}, at step {step}; caused by line {rows}") from error


def save_state(run: AnyRun, step: int) -> None:
    """Keep all that `load_policy` needs, once."""

    def save(folder: Path) -> None:
        run.engine.save(folder)
        (folder / "story.json").write_text(json.dumps({"trained_tokens": run.trained_tokens}))

    run.journal.write_state(step, save, keep=_branchable(run))


def _branchable(run: AnyRun) -> set[int]:
    """Steps whose states are kept for branches: those of listed checkpoints, where a state is small
    since only adapters learn.
    """
    is_small = run.plan.lora is not None and run.plan.engine == "torch"
    if run.job.method_type != "reinforcement" or not is_small:
        return set()
    return {each.step for each in run.store.checkpoints(run.job.id)}


def stop_if_requested(run: AnyRun, step: int) -> None:
    """Stop if the job was paused or cancelled meanwhile; a paused job is saved first."""
    status = run.store.job(run.job.id).status
    if status not in ("pausing", "cancelled"):
        return
    account_for_judges(run)
    if status == "pausing":
        save_state(run, step)
        folder = keep_adapter(run, step) if step else None
        with run.store.transaction():
            # it may have been cancelled in the meantime
            if run.store.try_status(run.job.id, "paused"):
                message = "Paused before the first step."
                if folder is not None:
                    name = name_model(run, step, folder)
                    message = f"Paused after step {step}; the model {name} can be used."
                run.store.add_event(run.job.id, message)
    raise Stopped


def finish(run: AnyRun, method: Method) -> None:
    """The final checks, then all that the job leaves at once: a cancel before it leaves nothing."""
    last = run.plan.total_steps
    regrade(run, last, method.step_message)
    run_checks(run)
    account_for_judges(run)
    measured = method.last_metrics(run)
    folder, name = keep_adapter(run, last), run.model_name(None)
    data = [found for _, found in sorted(metric_events(run.store, run.job.id).items())]
    with run.store.transaction():
        if run.store.job(run.job.id).is_terminal:
            raise Stopped  # cancelled a moment ago
        list_checkpoint(run, last, measured, folder)
        csv = method.result_csv(data)
        result = run.store.add_file(csv, "step_metrics.csv", "fine-tune-results")
        run.store.add_event(run.job.id, f"New fine-tuned model created: {name}", key="model")
        run.store.update_job(
            run.job.id,
            status="succeeded",
            fine_tuned_model=name,
            result_files=[result.id],
            trained_tokens=run.trained_tokens,
        )
        run.store.add_event(run.job.id, "The job has successfully completed", key="completed")
    sweep(run.store, run.journal.folder / "checkpoints")
