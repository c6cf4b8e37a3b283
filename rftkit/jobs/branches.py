"""Branches of jobs: continue from a kept step of another job, and compare what came of it.

`branch` creates a job that takes over everything it is not given; `family` reads the tree that a
job belongs to. Not here: showing it (`rftkit.views.branches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError, RequestError
from rftkit.jobs.follow import find
from rftkit.jobs.jobs import Event, create, events
from rftkit.jobs.metrics import step_metrics
from rftkit.lineage import BRANCH_FROM, OF_ONE_JOB, Origin, origin_of

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["Branch", "branch", "family"]

Json = dict[str, Any]
LONGEST = 60
"""Characters of a changed value that is shown."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One job of a tree."""

    id: str
    name: str
    """The suffix of its model, or else the end of its id."""
    depth: int
    """0 for the job that the tree starts from."""
    origin: Origin | None
    """The job and step that it was branched from."""
    changes: tuple[str, ...]
    """What differs from the job it was branched from, such as `grader` or `kl_coef: 0 → 0.1`."""
    status: str
    rewards: tuple[tuple[int, float], ...]
    """(step, validation reward) of its own validations, by step."""
    alarms: tuple[str, ...]
    """The alarms that were raised, as `length at step 31`."""

    @property
    def last(self) -> float | None:
        """The last validation reward."""
        return self.rewards[-1][1] if self.rewards else None


def branch(
    client: OpenAI,
    source: str,
    *,
    grader: Mapping[str, Any] | None = None,
    held_out: Mapping[str, Any] | None = None,
    training_file: str | None = None,
    validation_file: str | None = None,
    response_format: Mapping[str, Any] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    max_episode_steps: int | None = None,
) -> FineTuningJob:
    """Create a job that continues from a kept step of another one, optimizer included.

    Args:
        client: From `rftkit.connect()`: an rftkit platform.
        source: `JOB@STEP`; the job may be given by the first characters of its id.
        grader: Replaces the job's grader.
        held_out: Replaces the second grader that watches the job.
        training_file: File id that replaces the job's.
        validation_file: File id that replaces the job's.
        response_format: Replaces the job's, if a grader is given too.
        hyperparameters: Replace those of the same names.
        metadata: Replaces the job's pairs of the same names.
        suffix: Part of the name of the fine-tuned model.
        seed: Default the job's.
        tools: Replace the job's; see `create`.
        max_episode_steps: Replaces the job's.

    Raises:
        InputError: `source` is not JOB@STEP, or the service keeps no states; nothing was sent.
    """
    name, at, step = source.rpartition("@")
    if not name or not at or not (step.isascii() and step.isdigit()):
        raise InputError(
            f"a branch starts from JOB@STEP, such as ftjob-abc123@12, found {source!r}"
        )
    _refuse_hosted(client)
    parent: Json = client.fine_tuning.jobs.retrieve(find(client, name)).to_dict(warnings=False)
    inner = (parent.get("method") or {}).get("reinforcement") or {}
    given = {n: v for n, v in (inner.get("hyperparameters") or {}).items() if v != "auto"}
    kept = {n: v for n, v in (parent.get("metadata") or {}).items() if n not in OF_ONE_JOB}
    if grader is not None and response_format is None:
        response_format = inner.get("response_format")
    return create(
        client,
        model=parent["model"],
        training_file=training_file or parent["training_file"],
        validation_file=validation_file or parent["validation_file"],
        grader=grader,
        held_out=held_out,
        response_format=response_format,
        hyperparameters={**given, **(hyperparameters or {})} or None,
        metadata={**kept, **(metadata or {}), BRANCH_FROM: f"{parent['id']}@{step}"},
        suffix=suffix,
        seed=seed,
        tools=tools,
        max_episode_steps=max_episode_steps,
    )


def _refuse_hosted(client: OpenAI) -> None:
    """A hosted service would take the metadata for a note, and train (and bill) from the start."""
    host = getattr(getattr(client, "base_url", None), "host", "")
    if host.endswith((".openai.com", ".azure.com")):
        raise InputError(
            f"only rftkit platforms keep the states that branches continue from, and this client "
            f"is of {client.base_url}; save its jobs and train them again here: rftkit import "
            "--help, rftkit job rerun --help"
        )


def family(client: OpenAI, job_id: str = "") -> list[Branch]:
    """The tree of a job: the job that it started from, and all branches, each below its own.

    Args:
        client: From `rftkit.connect()`.
        job_id: Any job of the tree, or its first characters; empty for the newest job.
    """
    found = find(client, job_id)
    known: dict[str, Json] = {
        job.id: job.to_dict(warnings=False) for job in client.fine_tuning.jobs.list(limit=100)
    }
    if found not in known:
        known[found] = client.fine_tuning.jobs.retrieve(found).to_dict(warnings=False)
    return list(_below(client, known, _root(known, found), 0))


def _root(known: Mapping[str, Json], job_id: str) -> str:
    seen = {job_id}
    while (origin := _origin(known[job_id])) is not None:
        if origin.job_id not in known or origin.job_id in seen:
            break
        job_id = origin.job_id
        seen.add(job_id)
    return job_id


def _below(client: OpenAI, known: Mapping[str, Json], job_id: str, depth: int) -> Iterator[Branch]:
    job, origin = known[job_id], _origin(known[job_id])
    parent = known.get(origin.job_id) if origin else None
    changes = tuple(_changes(parent, job)) if parent and depth else ()
    yield _made(job, origin, changes, depth, events(client, job_id))
    children = [(o.step, j["created_at"], j["id"]) for j in known.values()
                if (o := _origin(j)) is not None and o.job_id == job_id]  # fmt: skip
    for _, _, child in sorted(children):
        yield from _below(client, known, child, depth + 1)


def _made(
    job: Json, origin: Origin | None, changes: tuple[str, ...], depth: int, job_events: list[Event]
) -> Branch:
    rewards: dict[int, float] = {}
    alarms = []
    for event in job_events:
        data = event.get("data") or {}
        if event.get("type") == "metrics" and data.get("step") is not None:
            reward = step_metrics(data)["valid_reward_mean"]
            if reward is not None:
                rewards[int(data["step"])] = reward
        elif "finding" in data and data.get("alarm"):
            alarms.append(f"{data['alarm']['name']} at step {data['alarm']['step']}")
    name = job.get("user_provided_suffix") or str(job["id"]).removeprefix("ftjob-")[-8:]
    return Branch(
        id=job["id"],
        name=name,
        depth=depth,
        origin=origin,
        changes=changes,
        status=str(job["status"]),
        rewards=tuple(sorted(rewards.items())),
        alarms=tuple(alarms),
    )


def _origin(job: Json) -> Origin | None:
    try:
        return origin_of(job.get("metadata"))
    except RequestError:  # another user's API key, or another service
        return None


def _changes(parent: Json, job: Json) -> Iterator[str]:
    """The changes in the request of a branch."""
    before, after = (
        ((each.get("method") or {}).get("reinforcement") or {}) for each in (parent, job)
    )
    for name in ("grader", "response_format", "tools"):
        if before.get(name) != after.get(name):
            yield name.replace("_", " ")
    for name in ("training_file", "validation_file"):
        if parent.get(name) != job.get(name):
            yield name.replace("_", " ")
    turns = ({n: v for n, v in m.items() if n == "max_episode_steps"} for m in (before, after))
    yield from _changed(*turns)
    old, new = (each.get("hyperparameters") or {} for each in (before, after))
    yield from _changed(old, new)
    old, new = (each.get("metadata") or {} for each in (parent, job))
    yield from _changed(*({n: v for n, v in m.items() if n not in OF_ONE_JOB} for m in (old, new)))
    if parent.get("seed") != job.get("seed"):
        yield f"seed: {parent.get('seed')} → {job.get('seed')}"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            shown = (_shown(each.get(name, "default")) for each in (old, new))
            yield f"{name}: {' → '.join(shown)}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:LONGEST]
