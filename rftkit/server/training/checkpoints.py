"""Which saved adapters a job keeps, and what others still use of them.

A reinforcement job keeps the best three and the last one, and reports each when it is saved. Other
jobs keep those of their last three epochs; as on the hosted service, the events of those that are
kept come behind the last step, and the last one has none but that of the model.

A dropped checkpoint is forgotten by name first and deleted from disk after; a kill in between
leaves a folder that the next drop finds. Not here: what a state holds (`loop.save_state`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rftkit.server.store.records import Checkpoint
from rftkit.server.store.store import Store
from rftkit.server.training.context import AnyRun

Json = dict[str, Any]

__all__ = [
    "KEPT_CHECKPOINTS",
    "keep_adapter",
    "keep_checkpoint",
    "list_checkpoint",
    "name_model",
    "sweep",
]

KEPT_CHECKPOINTS = 3
"""The best ones, in addition to the last one."""


def keep_checkpoint(run: AnyRun, step: int, measured: Json) -> None:
    """Save and list the checkpoint of a validated step, once; then only its metrics may change."""
    if _is_listed(run, step):
        run.store.replace_checkpoint_metrics(run.job.id, step, measured)
        return
    folder = keep_adapter(run, step)
    with run.store.transaction():
        list_checkpoint(run, step, measured, folder)
    sweep(run.store, run.journal.folder / "checkpoints")


def keep_adapter(run: AnyRun, step: int) -> Path:
    """Save the adapter of a step, before anything refers to it; its folder."""
    return run.journal.write_checkpoint(step, run.engine.save_adapter)


def name_model(run: AnyRun, step: int, folder: Path, *, is_final: bool = False) -> str:
    """Register a saved adapter as a model, and return its name."""
    name = run.model_name(None if is_final else step)
    run.store.add_model(
        name, run.model_base, run.job.id, str(folder), step, thinking=run.plan.thinking
    )
    return name


def list_checkpoint(run: AnyRun, step: int, measured: Json, folder: Path) -> None:
    """List a checkpoint and forget what is too many; the caller's transaction is around it."""
    is_last = step == run.plan.total_steps
    name = name_model(run, step, folder, is_final=is_last)
    run.store.add_checkpoint(run.job.id, step, name, measured, str(folder))
    is_reinforcement = run.job.method_type == "reinforcement"
    if is_reinforcement:
        _report(run, step, name)
    for each in _too_many(run):
        if (each.step != step or is_last) and not run.store.users_of_model(each.model_name):
            with run.store.transaction():
                run.store.drop_checkpoint(each.id)
                if run.store.model(each.model_name) is not None:  # a client may have deleted it
                    run.store.delete_model(each.model_name)
    if is_last and not is_reinforcement:
        for each in reversed(run.store.checkpoints(run.job.id)):
            if each.step != step:
                _report(run, each.step, each.model_name)


def _report(run: AnyRun, step: int, name: str) -> None:
    run.store.add_event(
        run.job.id,
        f"Checkpoint created at step {step} with Snapshot ID: {name}",
        key=f"checkpoint-{step}",
    )


def _is_listed(run: AnyRun, step: int) -> bool:
    """Whether a checkpoint is there, or was reported: then it may have been dropped since."""
    listed = {each.step for each in run.store.checkpoints(run.job.id)}
    return step in listed or run.store.has_event(run.job.id, f"checkpoint-{step}")


def sweep(store: Store, folder: Path) -> None:
    """Delete the checkpoints of a job's folder that no model and no checkpoint refers to.

    Only for the worker that trains the job: nobody else knows what is being written.
    """
    used = store.used_folders()
    for each in folder.iterdir() if folder.is_dir() else ():
        if str(each) not in used:
            shutil.rmtree(each, ignore_errors=True)


def _too_many(run: AnyRun) -> list[Checkpoint]:
    """The checkpoints to forget: of reinforcement the worst, else the oldest."""
    kept = run.store.checkpoints(run.job.id)
    if run.job.method_type != "reinforcement":
        newest = sorted(kept, key=lambda each: each.step, reverse=True)
        return newest[KEPT_CHECKPOINTS:]
    others = [each for each in kept if each.step != run.plan.total_steps]
    others.sort(key=lambda each: (_goodness(each.metrics), -each.step), reverse=True)
    return others[KEPT_CHECKPOINTS:]


def _goodness(metrics: Json) -> float:
    reward = metrics.get("full_valid_mean_reward")
    return float("-inf") if reward is None or metrics.get("over_error_budget") else float(reward)
