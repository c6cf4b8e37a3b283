"""Jobs: create one, follow it to its end, and report how it ended.

A job is the client's own `FineTuningJob`, and listing, pausing, resuming and cancelling are the
client's own calls (`client.fine_tuning.jobs.pause(job_id)`); nothing wraps them here. Metric
frames are in `metrics`, the terminal display is in `progress`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rftkit.errors import InputError, JobFailedError
from rftkit.hyperparameters import HELD_OUT, check_names
from rftkit.lineage import BRANCH_FROM

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

__all__ = [
    "TERMINAL",
    "Event",
    "Method",
    "Update",
    "compact",
    "create",
    "error_of",
    "events",
    "wait",
    "waits_for",
    "watch",
]

Event = dict[str, Any]
"""One `fine_tuning.job.event` as it is on the wire."""

Method = Literal["reinforcement", "supervised", "dpo"]
"""How a job learns, as `method.type` has it."""
LONGEST_VALUE = 512
"""Characters of a value of metadata."""
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
PATIENT_RETRIES = 8  # with the SDK's back-off about half a minute: a platform that restarts


@dataclass(frozen=True, slots=True)
class Update:
    """The result of one poll of a job."""

    job: FineTuningJob
    events: list[Event]
    """Events not seen before, oldest first."""


def create(
    client: OpenAI,
    *,
    model: str,
    training_file: str,
    validation_file: str | None = None,
    method: Method = "reinforcement",
    grader: Mapping[str, Any] | None = None,
    held_out: Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    metadata: Mapping[str, str] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    max_episode_steps: int | None = None,
) -> FineTuningJob:
    """Create a job of any method.

    The grader is a plain dict on purpose: the SDK's `MultiGrader` cannot hold the map of
    graders that the routes ask for, and its type hints lack `response_format`.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        model: A base model, or a fine-tuned one to train further.
        training_file: File id, of rows in the form of the method.
        validation_file: File id; a reinforcement job needs one.
        method: `reinforcement` learns from graded answers, `supervised` from the answers of the
            rows, `dpo` from pairs of answers.
        grader: Grader spec, as on the wire. A supervised or dpo job does not learn from it: an
            rftkit platform measures every checkpoint with it, and finds it in the metadata.
        held_out: Spec of a second grader. An rftkit platform grades some answers of each step of a
            reinforcement job with it, and raises an alarm when it no longer follows the reward.
        response_format: `{"type": "json_schema", …}` to constrain every completion.
        hyperparameters: batch_size, n_epochs, learning_rate_multiplier; for dpo also beta; for
            reinforcement also compute_multiplier, eval_interval, eval_samples, reasoning_effort.
            Unset ones are `"auto"`.
        suffix: Part of the name of the fine-tuned model, at most 64 characters.
        seed: Makes a run repeatable; a random one is chosen when unset.
        metadata: At most 16 pairs of text.
        tools: Of a reinforcement job: where the calls of the rows' functions go, each
            `{name, server_url, headers}`; see `rftkit.tools`.
        max_episode_steps: Most turns of a rollout that calls tools.

    Raises:
        InputError: a reinforcement job without a grader, or a setting that is misspelt or is
            where it has no effect; nothing was sent.
    """
    check_names(hyperparameters, metadata, method)
    if held_out is not None:
        if method != "reinforcement":
            raise InputError(f"a held-out grader watches reinforcement jobs, not {method} jobs")
        metadata = {**(metadata or {}), HELD_OUT: _as_metadata(client, HELD_OUT, held_out)}
    inner = _given(hyperparameters=hyperparameters)
    if method == "reinforcement":
        if grader is None and BRANCH_FROM not in (metadata or {}):
            raise InputError("a reinforcement job needs a grader, which scores its answers")
        given = _given(grader=grader, response_format=response_format)
        inner = given | _given(tools=tools, max_episode_steps=max_episode_steps) | inner
    else:
        measured = _given(grader=grader, response_format=response_format)
        metadata = {
            **(metadata or {}),
            **{name: _as_metadata(client, name, value) for name, value in measured.items()},
        }
    body: dict[str, Any] = _given(
        model=model,
        training_file=training_file,
        validation_file=validation_file,
        method={"type": method, method: inner},
        suffix=suffix,
        seed=seed,
        metadata=metadata or None,
    )
    return client.fine_tuning.jobs.create(**body)


def compact(value: Mapping[str, Any]) -> str:
    """JSON without spaces, as metadata has it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _as_metadata(client: OpenAI, name: str, value: Mapping[str, Any]) -> str:
    """JSON, or the id of a file with it where it is longer than a value of metadata may be."""
    text = compact(value)
    if len(text) <= LONGEST_VALUE:
        return text
    file = (f"{name}.json", text.encode())
    return client.files.create(file=file, purpose="user_data").id


def events(client: OpenAI, job_id: str) -> list[Event]:
    """Every event of a job, oldest first, each once."""
    return _events_since(client, job_id, set())


def watch(client: OpenAI, job_id: str, *, poll_seconds: float = 1.0) -> Iterator[Update]:
    """Poll a job until it has ended or is paused; an imported job is polled once.

    The first update brings all events so far, so watching can begin at any time. Statuses this
    version does not know count as "still running".
    """
    patient = client.with_options(max_retries=PATIENT_RETRIES)
    seen: set[str] = set()
    while True:
        job = patient.fine_tuning.jobs.retrieve(job_id)
        new = _events_since(patient, job_id, seen)
        seen.update(event["id"] for event in new)
        yield Update(job, new)
        is_still = str(job.status) == "paused" or getattr(job, "imported_from", None)
        if job.status in TERMINAL or is_still:
            return
        time.sleep(poll_seconds)


def wait(
    client: OpenAI,
    job_id: str,
    on_update: Callable[[Update], None] | None = None,
    *,
    poll_seconds: float = 1.0,
) -> FineTuningJob:
    """Follow a job; return it when it has succeeded, is paused, or was imported.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        job_id: `ftjob-…`.
        on_update: Called with every update; `rftkit.jobs.Progress()` shows them in a terminal.
        poll_seconds: Seconds between two polls.

    Raises:
        JobFailedError: The job ended in `failed` or `cancelled`.
    """
    update = None
    for update in watch(client, job_id, poll_seconds=poll_seconds):
        if on_update:
            on_update(update)
    assert update is not None  # watch yields at least once
    job = update.job
    if job.status == "failed":
        raise JobFailedError(
            f"{job.id} failed: {error_of(job) or 'no reason given'}\n"
            f"See its events: rftkit job show {job.id}"
        )
    if job.status == "cancelled":
        raise JobFailedError(f"{job.id} was cancelled")
    return job


def error_of(job: FineTuningJob) -> str | None:
    """The error message of a job, or None. The hosted API sends `{}` for no error."""
    error = job.error
    if error is None or not (error.code or error.message):
        return None
    where = f" ({error.param})" if error.param else ""
    return f"{error.message or error.code}{where}"


def waits_for(job_events: Sequence[Event]) -> str:
    """What a job in the queue waits for, as its newest event says; empty when for no other job.

    `job_events` are its events, oldest first.
    """
    info = (each for each in reversed(job_events) if each.get("level", "info") == "info")
    newest = next(info, None)
    if newest is None or not (newest.get("data") or {}).get("waits_for"):
        return ""
    message: str = newest["message"]
    return f"{message[:1].lower()}{message[1:]}"


def _events_since(client: OpenAI, job_id: str, seen: set[str]) -> list[Event]:
    """Events that are not in `seen`, oldest first; the API lists the newest first."""
    new: dict[str, Event] = {}
    for event in client.fine_tuning.jobs.list_events(job_id, limit=100):
        if event.id in seen:
            break
        new.setdefault(event.id, event.to_dict(warnings=False))
    return list(reversed(new.values()))


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
