"""Routes that only an rftkit platform has: plans, probes, and the rollouts of a training step.

The routes are outside `/v1`, so that the protocol is not changed. A service without these routes
answers 404; then `abilities` is empty, and the other functions return None or raise an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from rftkit.errors import InputError
from rftkit.jobs.jobs import Method, create

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

__all__ = [
    "PROBE",
    "abilities",
    "all_rollouts",
    "call_tool",
    "plan",
    "probe",
    "rollouts",
    "step_rollouts",
]

MOST_STEPS = 100
"""Steps whose rollouts a page has, by default."""
PROBE = {"probe": "true"}
"""The metadata that makes a job a probe, and that finds probes in a list of jobs."""

Json = dict[str, Any]


def abilities(client: OpenAI) -> frozenset[str]:
    """What this service can do beyond the protocol, such as plan, probe, rollouts, tools."""
    about = _ask(client, "get", "/rftkit")
    return frozenset((about or {}).get("abilities") or ())


def plan(
    client: OpenAI,
    num_rows: int,
    hyperparameters: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    method: Method = "reinforcement",
) -> Json | None:
    """What a job would do: `hyperparameters` resolved, `reasons` for each auto, what is `ignored`.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        num_rows: Training rows.
        hyperparameters: As for `create`.
        metadata: As for `create`.
        method: As for `create`.

    Returns:
        None when the service does not report it.

    Raises:
        openai.BadRequestError: A value cannot be used.
    """
    body = {
        "num_rows": num_rows,
        "hyperparameters": hyperparameters,
        "metadata": metadata,
        "method": None if method == "reinforcement" else method,
    }
    return _ask(client, "post", "/rftkit/plan", body={k: v for k, v in body.items() if v})


def probe(
    client: OpenAI, *, metadata: Mapping[str, str] | None = None, **job: Any
) -> FineTuningJob:
    """Start a job of two steps that measures the cost of the whole job and keeps no model.

    Args:
        client: From `rftkit.connect()`.
        metadata: As for the job itself.
        job: The other arguments of `create`.

    Raises:
        InputError: The service does not support probes; it would train, and bill, the whole job.
    """
    if "probe" not in abilities(client):
        raise InputError(
            f"{client.base_url} does not support probes and would run the whole job; only an "
            "rftkit platform can estimate a job in advance"
        )
    return create(client, metadata={**(metadata or {}), **PROBE}, **job)


def rollouts(client: OpenAI, job_id: str, step: int | None = None) -> Json | None:
    """The graded completions of one training step.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        job_id: `ftjob-…`.
        step: None for the newest.

    Returns:
        `step` (None before the first), `num_steps`, and `groups`: each `line` of the training
        file, `item` (None if the file is gone) and `rollouts` of `text`, `stop_reason`, `tokens`
        and `grade`. A rollout of several turns also has `turns`, `calls`, `failure` and all
        `messages` after its prompt. A supervised or dpo job has groups without rollouts: the rows
        that it learned from. None when the service or the job does not have them.
    """
    query = {} if step is None else {"step": step}
    return _ask(client, "get", f"/rftkit/jobs/{job_id}/rollouts", options={"params": query})


def call_tool(
    client: OpenAI,
    job_id: str,
    name: str,
    arguments: str,
    *,
    item: Mapping[str, Any] | None = None,
    call_id: str | None = None,
    trace_id: str | None = None,
) -> Json | None:
    """Call a tool of a job, as its rollouts do.

    Args:
        client: From `rftkit.connect()`.
        job_id: `ftjob-…`, of a job with `tools`.
        name: Of the function.
        arguments: JSON text, as a model writes it.
        item: The row, for servers that read it.
        call_id: `call_…`, as the model's answer has it.
        trace_id: The same for calls that belong together.

    Returns:
        `text`, `kind` (answer, error or failed) and `seconds`; None when the service or the job has
        no tools.
    """
    body = {"name": name, "arguments": arguments, "item": item}
    body |= {"call_id": call_id, "trace_id": trace_id}
    given = {key: value for key, value in body.items() if value is not None}
    return _ask(client, "post", f"/rftkit/jobs/{job_id}/tool", body=given)


def all_rollouts(client: OpenAI, job_id: str) -> Iterator[Json]:
    """The graded groups of every training step of a job, as `rollouts` has them.

    Raises:
        InputError: The service or the job has no rollouts.
    """
    last = rollouts(client, job_id)
    is_empty = True
    for step in range(1, (last["num_steps"] if last else 0) + 1):
        found = (rollouts(client, job_id, step) or {"groups": []})["groups"]
        groups = [group for group in found if group["rollouts"]]
        is_empty = is_empty and not groups
        yield from groups
    if is_empty:
        raise InputError(
            f"{job_id} has no rollouts; only reinforcement jobs on an rftkit platform keep them"
        )


def step_rollouts(client: OpenAI, job_id: str) -> list[Json]:
    """What `rollouts` has of the steps of a job, in order, for a page: of many steps `MOST_STEPS`,
    evenly spread, with the first and the last.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        job_id: `ftjob-…`.

    Returns:
        Empty when the service or the job has none.
    """
    newest = rollouts(client, job_id)
    last = (newest or {}).get("step") or 0
    if last <= MOST_STEPS:
        steps = list(range(1, last + 1))
    else:
        steps = sorted({1 + round(at * (last - 1) / (MOST_STEPS - 1)) for at in range(MOST_STEPS)})
    read = (newest if step == last else rollouts(client, job_id, step) for step in steps)
    return [each for each in read if each and each["groups"]]


def _ask(client: OpenAI, verb: str, path: str, **request: Any) -> Json | None:
    """Call a route outside `/v1` of the same service; None if it does not exist."""
    from openai import NotFoundError

    url = urljoin(str(client.base_url), path)
    try:
        answer: Json = getattr(client, verb)(url, cast_to=object, **request)
    except NotFoundError:
        return None
    return answer if isinstance(answer, dict) else None
