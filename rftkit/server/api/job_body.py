"""From the body of a job create to a job: everything that can be checked without reading a file.

The rows are checked later, by the worker, which fails the job. Not here: HTTP and the queue.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from rftkit.errors import GraderSpecError, NotFoundError, RequestError
from rftkit.server.api.files import live_file
from rftkit.server.engine.base import is_whole
from rftkit.server.engine.tinker import remote
from rftkit.server.inference.body import Metadata, Open, check_response_format, kind_of
from rftkit.server.inference.judge import check_judges
from rftkit.server.inference.models import check_model
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import Job
from rftkit.server.store.store import new_id, now

__all__ = ["JobBody", "checked_hyperparameters", "job_from", "unknown_keys"]

HYPERPARAMETERS: dict[str, tuple[type, float, float]] = {
    "batch_size": (int, 1, 256),
    "n_epochs": (int, 1, 50),
    "learning_rate_multiplier": (float, 1e-9, 1e9),
    "compute_multiplier": (float, 0.00001, 10),
    "eval_interval": (int, 1, 1_000_000),
    "eval_samples": (int, 1, 1_000),
}
"""Name → kind, least, most; each may also be "auto"."""
EFFORTS = ("default", "low", "medium", "high")
METHOD = "method.reinforcement"
KNOWN_IN_METHOD = ("grader", "hyperparameters", "response_format")


def _suffix(value: str) -> str:
    if ":" in value:  # they part the names of fine-tuned models
        raise ValueError("a suffix has no colons")
    if any(character < " " or character == "\x7f" for character in value):
        raise ValueError("a suffix has no control characters")
    return value


Suffix = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_suffix)]


class Method(Open):
    """`method`."""

    type: Literal["supervised", "dpo", "reinforcement"]
    reinforcement: dict[str, Any] | None = None


class JobBody(Open):
    """The body of `POST /fine_tuning/jobs`; unknown keys are echoed by the job."""

    model: str
    training_file: str
    validation_file: str | None = None
    method: Method | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    metadata: Metadata | None = None
    integrations: list[Any] | None = None
    hyperparameters: dict[str, Any] | None = None


def job_from(body: JobBody, platform: Platform) -> Job:
    """A new job, its method normalised: every hyperparameter there, unset ones "auto".

    Raises:
        RequestError: naming the parameter.
        GraderSpecError: naming the field of the grader.
    """
    if body.integrations:
        raise RequestError(
            "`integrations` are not supported by the local platform; leave them out and read the "
            "job's events",
            param="integrations",
        )
    given = _reinforcement(body)
    _check_model_and_files(body, platform)
    _check_engine(body, platform)
    assert body.validation_file is not None
    method = _method(given)
    check_judges(platform, method["reinforcement"]["grader"], f"{METHOD}.grader")
    return Job(
        id=new_id("ftjob-"),
        created_at=now(),
        model=body.model,
        suffix=body.suffix,
        seed=random.randrange(2**31) if body.seed is None else body.seed,
        training_file=body.training_file,
        validation_file=body.validation_file,
        method=method,
        metadata=body.metadata,
        extra=body.model_extra or {},
    )


def unknown_keys(job: Job) -> list[str]:
    """Keys of the create body that have no meaning here."""
    given = job.method["reinforcement"]
    known = {*HYPERPARAMETERS, "reasoning_effort"}
    return [
        *job.extra,
        *(f"method.{key}" for key in job.method if key not in ("type", "reinforcement")),
        *(f"{METHOD}.{key}" for key in given if key not in KNOWN_IN_METHOD),
        *(f"{METHOD}.hyperparameters.{k}" for k in given["hyperparameters"] if k not in known),
    ]


def _check_engine(body: JobBody, platform: Platform) -> None:
    """Refuse what the engine of the job cannot do, before the job exists."""
    metadata = body.metadata or {}
    tuned = platform.store.model(body.model)
    wanted = metadata.get("engine")
    if wanted not in (None, *remote.KINDS):
        raise RequestError(
            f"metadata `engine` must be one of {', '.join(remote.KINDS)}, found {wanted!r}",
            param="metadata.engine",
        )
    if wanted is None and tuned is not None:
        wanted = remote.kind_of_folder(Path(tuned.folder))
    base = tuned.base if tuned else body.model
    if remote.kind_of(base, platform.home, wanted) == "tinker":
        remote.refuse(metadata)
    elif tuned is not None and is_whole(Path(tuned.folder)) and metadata.get("tuning") != "full":
        raise RequestError(
            f"{body.model} was trained in full, and adapters learn on a base model: go on with "
            f"metadata `tuning` = full, or make it one: rftkit models export {body.model} --merged "
            "--out FOLDER, then rftkit models add FOLDER",
            param="metadata.tuning",
        )


def _reinforcement(body: JobBody) -> dict[str, Any]:
    if body.method is None or body.method.type != "reinforcement":
        found = "nothing" if body.method is None else repr(body.method.type)
        raise RequestError(
            f"`method.type` must be 'reinforcement', found {found}; the local platform trains by "
            "reinforcement only",
            param="method.type" if body.method else "method",
        )
    if body.method.reinforcement is None:
        raise RequestError("Missing required parameter: `method.reinforcement`.", param=METHOD)
    if body.hyperparameters:
        raise RequestError(
            f"`hyperparameters` at the top level are not for reinforcement jobs; put them into "
            f"`{METHOD}.hyperparameters`",
            param="hyperparameters",
        )
    extra = body.method.model_extra or {}
    return {"extra": extra, "reinforcement": body.method.reinforcement}


def _method(given: dict[str, Any]) -> dict[str, Any]:
    reinforcement = given["reinforcement"]
    for key in ("tools", "max_episode_steps"):
        if reinforcement.get(key) is not None:
            raise RequestError(
                f"`{METHOD}.{key}` (tool servers, a private preview) is not supported here",
                param=f"{METHOD}.{key}",
            )
    if "grader" not in reinforcement:
        raise RequestError(
            f"Missing required parameter: `{METHOD}.grader`.", param=f"{METHOD}.grader"
        )
    format_ = reinforcement.get("response_format")
    if format_ is not None:
        check_response_format(format_, f"{METHOD}.response_format")
    return {
        "type": "reinforcement",
        **given["extra"],
        "reinforcement": {
            **reinforcement,
            "grader": _grader(reinforcement["grader"]),
            "hyperparameters": checked_hyperparameters(reinforcement.get("hyperparameters")),
            "response_format": format_,
        },
    }


def _grader(spec: Any) -> dict[str, Any]:
    from rftkit import graders

    try:
        return graders.validate(spec)
    except GraderSpecError as error:
        where = f"{METHOD}.grader" + (f".{error.param}" if error.param else "")
        raise GraderSpecError(error.message, param=where) from None


def checked_hyperparameters(given: Any) -> dict[str, Any]:
    """Every hyperparameter, unset ones "auto".

    Raises:
        RequestError: naming the one that cannot be used.
    """
    where = f"{METHOD}.hyperparameters"
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise RequestError(f"`{where}` must be an object, found {kind_of(given)}", param=where)
    for name, (kind, low, high) in HYPERPARAMETERS.items():
        value = given.get(name, "auto")
        kinds = (int,) if kind is int else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if value != "auto" and not (is_number and low <= value <= high):
            noun = "a whole number" if kind is int else "a number"
            raise RequestError(
                f'`{where}.{name}` must be "auto" or {noun} from {low:g} to {high:g}, found '
                f"{kind_of(value)}",
                param=f"{where}.{name}",
            )
    effort = given.get("reasoning_effort", "default")
    if effort not in EFFORTS:
        raise RequestError(
            f"`{where}.reasoning_effort` must be one of {', '.join(EFFORTS)}, found "
            f"{kind_of(effort)}",
            param=f"{where}.reasoning_effort",
        )
    return {**dict.fromkeys(HYPERPARAMETERS, "auto"), **given, "reasoning_effort": effort}


def _check_model_and_files(body: JobBody, platform: Platform) -> None:
    try:
        check_model(platform, body.model)
    except NotFoundError as error:
        raise RequestError(error.message, param="model", code="model_not_found") from None
    if body.validation_file is None:
        raise RequestError(
            "`validation_file` is required for reinforcement jobs: checkpoints are chosen by it",
            param="validation_file",
        )
    for param in ("training_file", "validation_file"):
        try:
            file = live_file(platform, getattr(body, param), param)
        except NotFoundError as error:
            raise RequestError(error.message, param=param, code=error.code) from None
        if file.purpose != "fine-tune":
            raise RequestError(
                f"`{param}` {file.id} has purpose {file.purpose!r}; upload it with purpose "
                "'fine-tune'",
                param=param,
            )
