"""Run a job of any method again on a local model, with its data, grader and hyperparameters.

`plan_rerun` lists every difference before anything starts, and `start_rerun` creates the job. Both
work for imported jobs and for jobs that ran here. `rftkit.evals.step_pairs` compares the two jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError
from rftkit.importer.differences import Difference, hyperparameters_of
from rftkit.importer.migration import Check, check_job
from rftkit.importer.place import place
from rftkit.lineage import OF_ONE_JOB

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["Rerun", "plan_rerun", "start_rerun"]

MOST_METADATA = 16

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rerun:
    """A planned rerun of a job."""

    job: Json
    """The original job, as on the wire."""
    request: Json
    """The arguments for `rftkit.jobs.create`."""
    check: Check
    """The differences here."""
    resolved: Json
    """Hyperparameters as they will be used here; empty when the job cannot run here."""

    def to_dict(self) -> Json:
        """Plain JSON, for programs."""
        return {
            "rerun_of": self.job["id"],
            "request": self.request,
            "check": self.check.to_dict(),
            "resolved": self.resolved,
        }


def plan_rerun(
    client: OpenAI,
    job_id: str,
    *,
    model: str,
    grader: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    suffix: str | None = None,
) -> Rerun:
    """Plan the same job on a local model, with every difference.

    Args:
        client: From `rftkit.connect()`: an rftkit platform.
        job_id: A job that was imported or that ran here.
        model: A local model: bundled, added or fine-tuned.
        grader: Replaces the job's grader, if that one does not run here. A supervised or dpo job
            is measured with it.
        tools: Replaces the job's tools, whose headers no service shows.
        suffix: Replaces the job's suffix.

    Raises:
        NotFoundError: The local model does not exist.
        InputError: the service is not an rftkit platform.
    """
    job: Json = client.fine_tuning.jobs.retrieve(job_id).to_dict(warnings=False)
    method = (job.get("method") or {}).get("type") or "supervised"
    if method == "reinforcement":
        job = _with(job, grader=grader and dict(grader), tools=tools and [*map(dict, tools)])
    elif tools is not None:
        raise InputError(f"only rollouts call tools, and {job_id} is a {method} job")
    check = check_job(job, place(client), model)
    if grader is not None:
        how = "replaces the job's own" if method == "reinforcement" else "measures every checkpoint"
        given = Difference("grader", f"the one you gave {how}")
        check = replace(check, differences=(given, *check.differences))
    if tools is not None:
        given = Difference("tools", "those you gave replace the job's own")
        check = replace(check, differences=(given, *check.differences))
    inner = (job.get("method") or {}).get(method) or {}
    kept = MOST_METADATA - 1 - (grader is not None)
    request = {
        "model": model,
        "training_file": job.get("training_file"),
        "validation_file": job.get("validation_file"),
        "method": method,
        "grader": inner.get("grader") or (None if grader is None else dict(grader)),
        "response_format": inner.get("response_format"),
        "tools": inner.get("tools") or None,
        "max_episode_steps": inner.get("max_episode_steps") if inner.get("tools") else None,
        "hyperparameters": hyperparameters_of(job) or None,
        "suffix": suffix or job.get("user_provided_suffix"),
        "seed": job.get("seed"),
        "metadata": {**dict(_pairs(job)[:kept]), "rerun_of": job_id},
    }
    resolved = {} if check.verdict == "stops" else _resolved(client, request)
    return Rerun(job, request, check, resolved)


def start_rerun(client: OpenAI, rerun: Rerun) -> FineTuningJob:
    """Create the job.

    Raises:
        InputError: The job does not run here as it is; the message says what to change.
    """
    from rftkit import jobs

    if rerun.check.verdict == "stops":
        why = [each for each in rerun.check.differences if each.stops]
        reasons = "; ".join(
            f"{e.about}: {e.here}" + (f" ({e.change})" if e.change else "") for e in why
        )
        raise InputError(f"{rerun.job['id']} does not run here as it is: {reasons}")
    return jobs.create(client, **{k: v for k, v in rerun.request.items() if v is not None})


def _pairs(job: Json) -> list[tuple[str, str]]:
    """The metadata of a job, without what is true of it alone: a rerun starts from its model."""
    given = job.get("metadata") or {}
    return [(name, value) for name, value in given.items() if name not in OF_ONE_JOB]


def _with(job: Json, **own: Any) -> Json:
    """The job with other parts of its method, where they are given."""
    given = (job.get("method") or {}).get("reinforcement") or {}
    parts = {name: value for name, value in own.items() if value is not None}
    return {**job, "method": {"type": "reinforcement", "reinforcement": {**given, **parts}}}


def _resolved(client: OpenAI, request: Json) -> Json:
    from rftkit import jobs

    content = client.files.content(request["training_file"]).content
    num_rows = sum(bool(line.strip()) for line in content.split(b"\n"))
    plan = jobs.plan(
        client, num_rows, request["hyperparameters"], request["metadata"], method=request["method"]
    )
    resolved: Json = (plan or {}).get("hyperparameters") or {}
    return resolved
