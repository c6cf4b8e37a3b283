"""From the body of a job create to a job: everything that can be checked without reading a file.

The rows are checked later, by the worker, which fails the job. Not here: HTTP and the queue.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from rftkit.errors import GraderSpecError, NotFoundError, RequestError
from rftkit.hyperparameters import (
    ENGINES,
    HELD_OUT,
    METHODS,
    Number,
    Words,
    misplaced,
    refuse_misspelt,
)
from rftkit.integrations import check_integrations
from rftkit.server.api.branches import check_branch, parent_of
from rftkit.server.api.calibrated import check_calibration
from rftkit.server.api.files import live_file
from rftkit.server.engine.tinker import remote
from rftkit.server.engine.values import is_whole
from rftkit.server.inference.body import Metadata, Open, check_response_format, kind_of
from rftkit.server.inference.judge import check_judges
from rftkit.server.inference.models import check_model
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import File, Job
from rftkit.server.store.store import new_id, now
from rftkit.server.training.final_checks import FILE, read_checks
from rftkit.strictjson import parse_strictly
from rftkit.tools import check_tools

Json = dict[str, Any]
MethodType = Literal["supervised", "dpo", "reinforcement"]

__all__ = [
    "JobBody", "check_steps", "checked_hyperparameters", "job_from", "unknown_keys",
    "useless_metadata",
]  # fmt: skip

KNOWN_IN_METHOD = {
    "reinforcement": (
        "grader",
        "hyperparameters",
        "response_format",
        "tools",
        "max_episode_steps",
    ),
    "supervised": ("hyperparameters",),
    "dpo": ("hyperparameters",),
}
INTEGRATIONS = "integrations"
"""Among the kept keys of a job; see `Job.integrations`."""
MOST_STEPS = 1000
"""Most turns of a rollout that a job can ask for."""
OURS = ("measure", "held_out")
"""Keys of a job's method that are not on the wire."""
MEASURES = ("grader", "response_format")
"""Metadata of a job that does not learn from them: what its checkpoints are measured with. Each is
JSON, or the id of a file that holds it."""


def _suffix(value: str) -> str:
    if ":" in value:  # colons separate the parts of fine-tuned model names
        raise ValueError("a suffix cannot contain a colon")
    if any(character < " " or character == "\x7f" for character in value):
        raise ValueError("a suffix cannot contain control characters")
    return value


Suffix = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_suffix)]


class Method(Open):
    """`method`."""

    type: MethodType
    reinforcement: dict[str, Any] | None = None
    supervised: dict[str, Any] | None = None
    dpo: dict[str, Any] | None = None


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
    integrations = check_integrations(body.integrations or [])
    kind = body.method.type if body.method else "supervised"
    home = f"method.{kind}.hyperparameters"
    refuse_misspelt(body.model_extra or {}, JobBody.model_fields, "", cutoff=0.85, home=home)
    parent = parent_of(platform, body.metadata)
    if parent is not None:
        body = _inherited(body, parent)
    method = _method(body, platform.private_tools)
    _check_model_and_files(body, platform, method["type"])
    _check_engine(body, platform, method["type"])
    method |= _measure(body, platform, method["type"])
    method |= _held_out(body, platform, method["type"])
    if method["type"] == "reinforcement":
        spec = method["reinforcement"]["grader"]
        check_judges(platform, spec, "method.reinforcement.grader")
    for check in read_checks(platform.home) if platform.home else ():
        check_judges(platform, check.grader, f"{FILE}: {check.category}.grader")
    grading = method.get("reinforcement") or method.get("measure") or {}
    metadata = check_calibration(platform, grading.get("grader"), body.metadata)
    job = Job(
        id=new_id("ftjob-"),
        created_at=now(),
        model=body.model,
        suffix=body.suffix,
        seed=random.randrange(2**31) if body.seed is None else body.seed,
        training_file=body.training_file,
        validation_file=body.validation_file or "",
        method=method,
        metadata=metadata,
        extra={**(body.model_extra or {}), **_given(integrations)},
    )
    if parent is not None:
        check_branch(platform, parent, job)
    return job


def _inherited(body: JobBody, parent: Job) -> JobBody:
    """A branch with the grader, response format, tools and seed of the job that it continues, where
    it gives none.
    """
    method = body.method or Method(type="reinforcement")
    given = method.reinforcement or {}
    if method.type == "reinforcement":
        theirs = parent.method["reinforcement"]
        kept = {n: theirs[n] for n in KNOWN_IN_METHOD["reinforcement"] if n in theirs}
        kept.pop("hyperparameters")
        method = method.model_copy(update={"reinforcement": {**kept, **given}})
    seed = parent.seed if body.seed is None else body.seed
    return body.model_copy(update={"method": method, "seed": seed})


def _given(integrations: list[dict[str, Any]]) -> dict[str, Any]:
    return {INTEGRATIONS: integrations} if integrations else {}


def unknown_keys(job: Job) -> list[str]:
    """Keys of the create body that have no meaning here."""
    kind, inner = job.method_type, job.method[job.method_type]
    known = METHODS[kind]
    where = f"method.{kind}"
    return [
        *(key for key in job.extra if key != INTEGRATIONS),
        *(f"method.{key}" for key in job.method if key not in ("type", kind, *OURS)),
        *(f"{where}.{key}" for key in inner if key not in KNOWN_IN_METHOD[kind]),
        *(f"{where}.hyperparameters.{k}" for k in inner["hyperparameters"] if k not in known),
    ]


def useless_fields(job: Job) -> list[str]:
    """Why fields of the method have no effect."""
    inner = job.method[job.method_type]
    if inner.get("max_episode_steps") is None or inner.get("tools"):
        return []
    field = f"method.{job.method_type}.max_episode_steps"
    return [f"Ignored {field}: the job has no `tools`, so every rollout is one turn"]


def useless_metadata(job: Job) -> list[str]:
    """Why keys of the metadata have no effect, although they were meant to have one."""
    known = METHODS[job.method["type"]]
    return [why for name in job.metadata or {} if (why := misplaced(name, known))]


def _check_engine(body: JobBody, platform: Platform, kind: str) -> None:
    """Refuse what the engine of the job cannot do, before the job exists."""
    metadata = body.metadata or {}
    tuned = platform.store.model(body.model)
    wanted = metadata.get("engine")
    if wanted not in (None, *ENGINES):
        raise RequestError(
            f"metadata `engine` must be one of {', '.join(ENGINES)}, found {wanted!r}",
            param="metadata.engine",
        )
    if wanted is None and tuned is not None:
        wanted = remote.kind_of_folder(Path(tuned.folder))
    base = tuned.base if tuned else body.model
    if remote.kind_of(base, platform.home, wanted) == "tinker":
        remote.refuse(metadata)
        given = (body.method and body.method.reinforcement) or {}
        if kind == "reinforcement" and given.get("tools"):
            raise RequestError(
                "`method.reinforcement.tools`: rollouts with tools are sampled on this machine "
                "only; train here with metadata `engine` = torch, or leave the tools out",
                param="method.reinforcement.tools",
            )
        if kind == "dpo":
            raise RequestError(
                "`method.type` is 'dpo', and the Tinker protocol has no loss for it; train on this "
                "machine (metadata `engine` = torch), or use method supervised",
                param="method.type",
            )
    elif tuned is not None and is_whole(Path(tuned.folder)) and metadata.get("tuning") != "full":
        raise RequestError(
            f"{body.model} was trained in full, and adapters need a base model: continue with "
            f"metadata `tuning` = full, or make it a base model: rftkit models export {body.model} "
            "--format merged --out FOLDER, then rftkit models add FOLDER",
            param="metadata.tuning",
        )


def _method(body: JobBody, private_tools: bool) -> dict[str, Any]:
    """The normalised method; a body without one is of a supervised job, as it always was."""
    kind: MethodType = "supervised" if body.method is None else body.method.type
    extra = dict(body.method.model_extra or {}) if body.method else {}
    for ours in OURS:
        extra.pop(ours, None)
    inner = getattr(body.method, kind) if body.method else None
    where = f"method.{kind}"
    _refuse_outside(body, extra, inner or {}, kind)
    if kind == "reinforcement":
        if inner is None:
            raise RequestError(f"Missing required parameter: `{where}`.", param=where)
        inner = _reinforcement(inner, private_tools)
    given = (inner or {}).get("hyperparameters")
    if body.hyperparameters and kind != "supervised":
        raise RequestError(
            f"{kind} jobs do not take `hyperparameters` at the top level; put them in "
            f"`{where}.hyperparameters`",
            param="hyperparameters",
        )
    if kind == "supervised":
        given = _merged(body.hyperparameters, given)
    checked = checked_hyperparameters(given, kind)
    return {"type": kind, **extra, kind: {**(inner or {}), "hyperparameters": checked}}


def _refuse_outside(body: JobBody, extra: Json, inner: Json, kind: MethodType) -> None:
    """Refuse settings that are not where the job reads them: it would train with others.

    Raises:
        RequestError: names the setting and its place.
    """
    where = f"method.{kind}"
    home = f"{where}.hyperparameters"
    refuse_misspelt(extra, Method.model_fields, "method", cutoff=0.85, home=home)
    refuse_misspelt(inner, KNOWN_IN_METHOD[kind], where, cutoff=0.85, home=home)
    for other in METHODS:
        if body.method and other != kind and getattr(body.method, other):
            raise RequestError(
                f"`method.type` is {kind!r}, so `method.{other}` would have no effect; put its "
                f"settings into `{where}`, or change the type",
                param=f"method.{other}",
            )


def _merged(old: dict[str, Any] | None, given: Any) -> Any:
    """Hyperparameters at the top level, where they once were, with those of the method.

    Raises:
        RequestError: a value that was given in both differs.
    """
    if not old or not isinstance(given, dict | None):
        return given
    merged = {**old}
    for name, value in (given or {}).items():
        if value in (None, "auto"):
            merged.setdefault(name, value)
        elif merged.get(name) in (None, "auto", value):
            merged[name] = value
        else:
            raise RequestError(
                f"`hyperparameters.{name}` is {merged[name]!r} and "
                f"`method.supervised.hyperparameters.{name}` is {value!r}; give one of them",
                param="hyperparameters",
            )
    return merged


def _reinforcement(given: dict[str, Any], private_tools: bool) -> dict[str, Any]:
    where = "method.reinforcement"
    rest = dict(given)
    for name in ("tools", "max_episode_steps"):
        if rest.get(name) is None:
            rest.pop(name, None)
    if "tools" in rest:
        rest["tools"] = check_tools(rest["tools"], f"{where}.tools", private=private_tools)
    if "max_episode_steps" in rest:
        check_steps(rest["max_episode_steps"], f"{where}.max_episode_steps")
    if "grader" not in given:
        raise RequestError(
            f"Missing required parameter: `{where}.grader`.", param=f"{where}.grader"
        )
    format_ = given.get("response_format")
    if format_ is not None:
        check_response_format(format_, f"{where}.response_format")
    return {
        **rest,
        "grader": _grader(given["grader"], f"{where}.grader"),
        "response_format": format_,
    }


def check_steps(steps: Any, where: str) -> None:
    """Refuse a number of turns that no episode can have.

    Raises:
        RequestError: naming the field `where` it is.
    """
    is_whole_number = isinstance(steps, int) and not isinstance(steps, bool)
    if not is_whole_number or not 1 <= steps <= MOST_STEPS:
        raise RequestError(
            f"`{where}` must be a whole number from 1 to {MOST_STEPS}, found {kind_of(steps)}",
            param=where,
        )


def _measure(body: JobBody, platform: Platform, kind: str) -> dict[str, Any]:
    """Grader and response format that a supervised or dpo job is measured with, if its metadata
    names them.

    Raises:
        RequestError: they cannot be read, or there are no rows to measure on.
        GraderSpecError: the grader is none.
    """
    metadata = body.metadata or {}
    if kind == "reinforcement" or "grader" not in metadata:
        return {}
    named = {key: _named(platform, key, metadata[key]) for key in MEASURES if key in metadata}
    rows = metadata.get("grader_rows")
    if rows is None and body.validation_file is None:
        raise RequestError(
            "metadata `grader` measures the job on its validation rows, and it has none; give a "
            "`validation_file`, or prompts in a file that metadata `grader_rows` names",
            param="metadata.grader",
        )
    if rows is not None:
        _check_file(platform, rows, "metadata.grader_rows")
    spec = _grader(named["grader"], "metadata.grader")
    check_judges(platform, spec, "metadata.grader")
    if (format_ := named.get("response_format")) is not None:
        check_response_format(format_, "metadata.response_format")
    return {"measure": {"grader": spec, "response_format": format_}}


def _held_out(body: JobBody, platform: Platform, kind: str) -> dict[str, Any]:
    """The grader that a reinforcement job is watched with, if its metadata names one.

    Raises:
        RequestError: it cannot be read, or the job learns from no grader that it could part from.
        GraderSpecError: the grader is none, or cannot grade single answers.
    """
    text = (body.metadata or {}).get(HELD_OUT)
    param = f"metadata.{HELD_OUT}"
    if text is None:
        return {}
    if kind != "reinforcement":
        raise RequestError(
            f"metadata `{HELD_OUT}` watches the answers of reinforcement jobs, and this is a "
            f"{kind} job; leave it out, or measure its checkpoints with metadata `grader`",
            param=param,
        )
    spec = _grader(_named(platform, HELD_OUT, text), param, groups=False)
    check_judges(platform, spec, param)
    return {"held_out": spec}


def _named(platform: Platform, key: str, text: str) -> Any:
    """The value of a metadata key: JSON, or the id of a file that holds it."""
    param = f"metadata.{key}"
    if not text.lstrip().startswith("{"):
        _check_file(platform, text, param)
        text = platform.store.whole_file(text).read_text(encoding="utf-8-sig", errors="replace")
    try:
        return parse_strictly(text)
    except ValueError as error:
        raise RequestError(
            f"metadata `{key}` is not valid JSON: {error}; give JSON, or the id of a file with it",
            param=param,
        ) from None


def _grader(spec: Any, param: str, *, groups: bool = True) -> dict[str, Any]:
    from rftkit import graders

    try:
        return graders.validate(spec, groups=groups)
    except GraderSpecError as error:
        where = param + (f".{error.param}" if error.param else "")
        raise GraderSpecError(error.message, param=where) from None


def checked_hyperparameters(given: Any, kind: str = "reinforcement") -> dict[str, Any]:
    """Every hyperparameter of a method, unset ones "auto".

    Raises:
        RequestError: naming the one that cannot be used.
    """
    where = f"method.{kind}.hyperparameters"
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise RequestError(f"`{where}` must be an object, found {kind_of(given)}", param=where)
    given = {name: value for name, value in given.items() if value is not None}
    known = METHODS[kind]
    refuse_misspelt(given, known, where)
    unset = {name: "auto" if isinstance(s, Number) else s.default for name, s in known.items()}
    checked = {**unset, **given}
    for name, setting in known.items():
        _check_value(f"{where}.{name}", checked[name], setting)
    return checked


def _check_value(where: str, value: Any, setting: Number | Words) -> None:
    if isinstance(setting, Words):
        if value in setting.words:
            return
        expected = f"one of {', '.join(setting.words)}"
    else:
        kinds = (int,) if setting.is_whole else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if value == "auto" or (is_number and setting.low <= value <= setting.high):
            return
        noun = "a whole number" if setting.is_whole else "a number"
        expected = f'"auto" or {noun} from {setting.low:g} to {setting.high:g}'
    raise RequestError(f"`{where}` must be {expected}, found {kind_of(value)}", param=where)


def _check_model_and_files(body: JobBody, platform: Platform, kind: str) -> None:
    try:
        check_model(platform, body.model)
    except NotFoundError as error:
        raise RequestError(error.message, param="model", code="model_not_found") from None
    if body.validation_file is None and kind == "reinforcement":
        raise RequestError(
            "`validation_file` is required for reinforcement jobs: checkpoints are chosen by it",
            param="validation_file",
        )
    for param in ("training_file", "validation_file"):
        file_id = getattr(body, param)
        if file_id is None:
            continue
        file = _check_file(platform, file_id, param)
        if file.purpose != "fine-tune":
            raise RequestError(
                f"`{param}` {file.id} has purpose {file.purpose!r}; upload it with purpose "
                "'fine-tune'",
                param=param,
            )


def _check_file(platform: Platform, file_id: str, param: str) -> File:
    try:
        return live_file(platform, file_id, param)
    except NotFoundError as error:
        raise RequestError(error.message, param=param, code=error.code) from None
