"""`/fine_tuning/jobs`: create, list, retrieve, cancel, pause, resume, events, checkpoints."""

from __future__ import annotations

from fastapi import Request

from rftkit.graders.misspelt import format_problems
from rftkit.lineage import origin_of
from rftkit.server.api import Limit, PlatformDep, Reply, Router, cut, metadata_filter, repeated
from rftkit.server.api.branches import link_state
from rftkit.server.api.calibrated import add_calibration_event
from rftkit.server.api.job_body import (
    JobBody,
    job_from,
    unknown_keys,
    useless_fields,
    useless_metadata,
)
from rftkit.server.inference.body import digest_of
from rftkit.server.inference.platform import Platform
from rftkit.server.store import wire
from rftkit.server.store.records import Job
from rftkit.server.training.eval_records import make_job_eval

__all__ = ["router"]

router = Router(prefix="/fine_tuning/jobs")


@router.post("")
def create(platform: PlatformDep, request: Request, body: JobBody) -> Reply:
    """Queue a job; a request that the SDK sends again gets the job of the first one."""
    job = job_from(body, platform)
    job_id = platform.store.once(
        "jobs", digest_of(body), lambda: _add(platform, job), **repeated(request)
    )
    # read it before a worker takes it: the reply shows it as not yet validated
    made = platform.store.job(job_id)
    platform.worker.wake()
    return Reply(wire.job_object(made))


def _add(platform: Platform, job: Job) -> str:
    link_state(platform, job)
    job = platform.store.add_job(job)
    if job.grading is not None and not job.is_probe:
        job = platform.store.update_job(job.id, eval_id=make_job_eval(platform.store, job).id)
    platform.store.add_event(job.id, f"Created fine-tuning job: {job.id}", key="created")
    unknown = unknown_keys(job)
    if unknown:
        platform.store.add_event(
            job.id,
            f"Ignored unknown parameters: {', '.join(unknown)}",
            level="warn",
            key="unknown_keys",
        )
    if problems := _format_problems(job):
        message = f"It may be that no answer can be scored: {'; '.join(problems)}"
        platform.store.add_event(job.id, message, level="warn", key="format_problem")
    if origin := origin_of(job.metadata):
        platform.store.add_event(
            job.id, f"Continues from {origin}, with its optimizer", key="branch"
        )
    add_calibration_event(platform, job)
    platform.store.add_waiting_event(job.id)
    if useless := useless_fields(job):
        platform.store.add_event(job.id, "; ".join(useless), level="warn", key="useless_fields")
    if useless := useless_metadata(job):
        platform.store.add_event(job.id, "; ".join(useless), level="warn", key="useless_metadata")
    return job.id


def _format_problems(job: Job) -> list[str]:
    """The dataset check's finding about a grader that reads a field that no answer has."""
    given = job.method.get("reinforcement")
    return format_problems(given["grader"], given.get("response_format")) if given else []


@router.get("")
def index(
    platform: PlatformDep, request: Request, after: str | None = None, limit: Limit = 20
) -> Reply:
    """List jobs, newest first."""
    metadata = metadata_filter(request.query_params)
    jobs, more = platform.store.jobs(
        metadata=metadata, without_metadata=metadata == {}, after=after, limit=limit
    )
    return Reply(wire.page(map(wire.job_object, jobs), more))


@router.get("/{job_id}")
def retrieve(platform: PlatformDep, job_id: str) -> Reply:
    """Return one job."""
    return Reply(wire.job_object(platform.store.job(job_id)))


@router.post("/{job_id}/cancel")
def cancel(platform: PlatformDep, job_id: str) -> Reply:
    """Cancel a job."""
    return _moved(platform, platform.store.cancel_job(job_id))


@router.post("/{job_id}/pause")
def pause(platform: PlatformDep, job_id: str) -> Reply:
    """Pause a job after the step in progress."""
    return _moved(platform, platform.store.pause_job(job_id))


@router.post("/{job_id}/resume")
def resume(platform: PlatformDep, job_id: str) -> Reply:
    """Resume a paused job."""
    return _moved(platform, platform.store.resume_job(job_id))


def _moved(platform: Platform, job: Job) -> Reply:
    platform.worker.wake()
    return Reply(wire.job_object(job))


@router.get("/{job_id}/events")
def events(
    platform: PlatformDep, job_id: str, after: str | None = None, limit: Limit = 20
) -> Reply:
    """List a job's events, newest first."""
    platform.store.job(job_id)
    found, more = platform.store.events(job_id, after=after, limit=limit)
    return Reply(wire.page(map(wire.event_object, found), more))


@router.get("/{job_id}/checkpoints")
def checkpoints(
    platform: PlatformDep,
    job_id: str,
    after: str | None = None,
    limit: Limit = 10,
) -> Reply:
    """List a job's checkpoints, highest step first."""
    platform.store.job(job_id)
    objects = [wire.checkpoint_object(each) for each in platform.store.checkpoints(job_id)]
    return Reply(wire.page(*cut(objects, after, limit)))
