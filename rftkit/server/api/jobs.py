"""`/fine_tuning/jobs`: create, list, retrieve, cancel, pause, resume, events, checkpoints."""

from __future__ import annotations

from fastapi import Request

from rftkit.graders.misspelt import format_problems
from rftkit.lineage import origin_of
from rftkit.server.api import Here, Limit, Reply, Router, cut, metadata_filter, repeated
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
def create(here: Here, request: Request, body: JobBody) -> Reply:
    """Queue a job; a request that the SDK sends again gets the job of the first one."""
    job = job_from(body, here)
    job_id = here.store.once("jobs", digest_of(body), lambda: _add(here, job), **repeated(request))
    # read it before a worker takes it: the reply shows it as not yet validated
    made = here.store.job(job_id)
    here.worker.wake()
    return Reply(wire.job_object(made))


def _add(here: Platform, job: Job) -> str:
    link_state(here, job)
    job = here.store.add_job(job)
    if job.grading is not None and not job.is_probe:
        job = here.store.update_job(job.id, eval_id=make_job_eval(here.store, job).id)
    here.store.add_event(job.id, f"Created fine-tuning job: {job.id}", key="created")
    unknown = unknown_keys(job)
    if unknown:
        here.store.add_event(
            job.id,
            f"Ignored unknown parameters: {', '.join(unknown)}",
            level="warn",
            key="unknown_keys",
        )
    if problems := _format_problems(job):
        message = f"It may be that no answer can be scored: {'; '.join(problems)}"
        here.store.add_event(job.id, message, level="warn", key="format_problem")
    if origin := origin_of(job.metadata):
        here.store.add_event(job.id, f"Continues from {origin}, with its optimizer", key="branch")
    add_calibration_event(here, job)
    here.store.say_what_it_waits_for(job.id)
    if useless := useless_fields(job):
        here.store.add_event(job.id, "; ".join(useless), level="warn", key="useless_fields")
    if useless := useless_metadata(job):
        here.store.add_event(job.id, "; ".join(useless), level="warn", key="useless_metadata")
    return job.id


def _format_problems(job: Job) -> list[str]:
    """The dataset check's finding about a grader that reads a field that no answer has."""
    given = job.method.get("reinforcement")
    return format_problems(given["grader"], given.get("response_format")) if given else []


@router.get("")
def index(here: Here, request: Request, after: str | None = None, limit: Limit = 20) -> Reply:
    """List jobs, newest first."""
    metadata = metadata_filter(request.query_params)
    jobs, more = here.store.jobs(
        metadata=metadata, without_metadata=metadata == {}, after=after, limit=limit
    )
    return Reply(wire.page(map(wire.job_object, jobs), more))


@router.get("/{job_id}")
def retrieve(here: Here, job_id: str) -> Reply:
    """Return one job."""
    return Reply(wire.job_object(here.store.job(job_id)))


@router.post("/{job_id}/cancel")
def cancel(here: Here, job_id: str) -> Reply:
    """Cancel a job."""
    return _moved(here, here.store.cancel_job(job_id))


@router.post("/{job_id}/pause")
def pause(here: Here, job_id: str) -> Reply:
    """Pause a job after the step in progress."""
    return _moved(here, here.store.pause_job(job_id))


@router.post("/{job_id}/resume")
def resume(here: Here, job_id: str) -> Reply:
    """Resume a paused job."""
    return _moved(here, here.store.resume_job(job_id))


def _moved(here: Platform, job: Job) -> Reply:
    here.worker.wake()
    return Reply(wire.job_object(job))


@router.get("/{job_id}/events")
def events(here: Here, job_id: str, after: str | None = None, limit: Limit = 20) -> Reply:
    """List a job's events, newest first."""
    here.store.job(job_id)
    found, more = here.store.events(job_id, after=after, limit=limit)
    return Reply(wire.page(map(wire.event_object, found), more))


@router.get("/{job_id}/checkpoints")
def checkpoints(
    here: Here,
    job_id: str,
    after: str | None = None,
    limit: Limit = 10,
) -> Reply:
    """List a job's checkpoints, highest step first."""
    here.store.job(job_id)
    objects = [wire.checkpoint_object(each) for each in here.store.checkpoints(job_id)]
    return Reply(wire.page(*cut(objects, after, limit)))
