"""Branches: a job that continues from a kept state of another one, optimizer included.

Grader, response format and seed are the other job's unless the request has its own. The state is
linked into the new job's folder before the job exists, so that the other job may continue and drop
it. Step numbers continue from that step. Not here: which states a job keeps (`training.journal`),
and how training continues (`training.loop`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from rftkit.errors import NotFoundError, RequestError
from rftkit.lineage import BRANCH_FROM, Origin, origin_of
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import Job
from rftkit.server.training.journal import Journal
from rftkit.server.training.knobs import Knobs
from rftkit.wholefile import SUMS, damage
from rftkit.wording import listed

__all__ = ["check_branch", "link_state", "parent_of"]

PARAM = f"metadata.{BRANCH_FROM}"
SHAPE = ("tuning", "lora_rank", "lora_alpha", "engine")
"""Settings of the plan that a state was made with, and that its branches share."""


def parent_of(platform: Platform, metadata: dict[str, str] | None) -> Job | None:
    """The job that a new job with this metadata continues; None for a job that is not a branch.

    Raises:
        RequestError: there is no such job, or it cannot be continued.
    """
    origin = origin_of(metadata)
    if origin is None:
        return None
    try:
        parent = platform.store.job(origin.job_id)
    except NotFoundError as error:
        raise RequestError(error.message, param=PARAM) from None
    if parent.origin is not None:
        raise RequestError(
            f"{parent.id} was imported, so its states are not here; train it again here with "
            f"rftkit job rerun {parent.id}, and branch from that job",
            param=PARAM,
        )
    if parent.method_type != "reinforcement":
        raise RequestError(
            f"{parent.id} is a {parent.method_type} job; only reinforcement jobs can be branched. "
            "A new job may start from any of its checkpoints, without the state of the optimizer: "
            "give the checkpoint as `model`",
            param=PARAM,
        )
    return parent


def check_branch(platform: Platform, parent: Job, job: Job) -> None:
    """Refuse a branch whose state is not kept, or does not fit the new job.

    Raises:
        RequestError: what was found, what was expected, and which steps can be branched from.
    """
    origin = origin_of(job.metadata)
    assert origin is not None
    if job.method_type != "reinforcement":
        raise RequestError(
            f"{parent.id} is a reinforcement job, and its branches are too; `method.type` is "
            f"{job.method_type!r}",
            param="method.type",
        )
    if job.model != parent.model:
        raise RequestError(
            f"a branch of {parent.id} continues its weights, so `model` must be {parent.model!r}, "
            f"found {job.model!r}",
            param="model",
        )
    _state(platform, origin)
    plan = Journal(_folder(platform, parent.id)).plan() or {}
    wanted = _shape(job, plan.get("engine", "torch"))
    for name in SHAPE:
        if name in plan and plan[name] != wanted[name]:
            raise RequestError(
                f"the state of {origin} was made with metadata `{name}` = {plan[name]}, and its "
                f"branches share that; found {wanted[name]}",
                param=f"metadata.{name}",
            )


def link_state(platform: Platform, job: Job) -> None:
    """Put the state that a branch continues from into its folder; nothing for other jobs.

    Raises:
        RequestError: the other job has dropped it a moment ago, or it is damaged.
    """
    origin = origin_of(job.metadata)
    if origin is None:
        return
    state = _state(platform, origin)

    def link(folder: Path) -> None:
        for each in state.iterdir():
            _link(each, folder / each.name)
        if (wrong := damage(folder)) is not None:
            _state(platform, origin)  # check again: it may have just been deleted
            raise RequestError(
                f"the state of {origin} is damaged ({wrong.replace(str(folder), str(state))}); "
                f"branch from another step of {origin.job_id}",
                param=PARAM,
            )
        (folder / SUMS).unlink(missing_ok=True)  # write new ones, and never through a link

    try:
        Journal(_folder(platform, job.id)).write_branch(link)
    except FileNotFoundError:
        _state(platform, origin)  # it names the steps that are kept
        raise


def _shape(job: Job, engine: str) -> dict[str, Any]:
    knobs = Knobs(job.metadata or {})
    return {
        "tuning": knobs.word("tuning"),
        "lora_rank": knobs.integer("lora_rank"),
        "lora_alpha": knobs.number("lora_alpha"),
        "engine": knobs.word("engine", engine),
    }


def _state(platform: Platform, origin: Origin) -> Path:
    """The folder of a kept state."""
    kept = dict(Journal(_folder(platform, origin.job_id)).states())
    if (found := kept.get(origin.step)) is not None:
        return found
    steps = sorted(kept)
    can = (
        f"it can be branched from {'step' if len(steps) == 1 else 'steps'} "
        f"{listed([str(step) for step in steps])}"
        if steps
        else "it has kept no state yet; a job keeps one after each validation, and when it pauses"
    )
    raise RequestError(
        f"{origin.job_id} has no kept state of step {origin.step}: {can}", param=PARAM
    )


def _folder(platform: Platform, job_id: str) -> Path:
    if platform.home is None:
        raise RequestError("a platform in memory keeps no states to branch from", param=PARAM)
    return platform.home / "jobs" / job_id


def _link(source: Path, target: Path) -> None:
    """A hard link, since states never change; a copy where the file system has none."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copy2)
        return
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
