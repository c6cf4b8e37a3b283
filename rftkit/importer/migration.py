"""Check whether an imported job or grader runs here, what differs, and what to change.

A `Check` compares the object with what the platform has (`Place`): models, a judge, the packages of
the sandbox. Nothing is run and nothing is created. `rftkit.views.migration` shows a check, and
`rerun` runs a job again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin

from rftkit.errors import GraderSpecError, InputError, NotFoundError
from rftkit.examples import read_examples, read_preferences
from rftkit.graders.types import parts
from rftkit.hyperparameters import BASE_LEARNING_RATES, COMPLETIONS, DPO_SHARE
from rftkit.importer.dump import digest_of
from rftkit.importer.survey import graders_of_eval, graders_of_job
from rftkit.rows import read_rows

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

__all__ = [
    "Check", "Difference", "Place", "check_all", "check_grader", "check_job", "hyperparameters_of",
    "place",
]  # fmt: skip

Verdict = Literal["runs", "differs", "stops"]
WORDS: dict[Verdict, str] = {
    "runs": "runs as it is",
    "differs": "runs, with differences",
    "stops": "does not run as it is",
}
READERS: dict[str, Callable[..., Iterator[Any]]] = {
    "reinforcement": read_rows,
    "supervised": read_examples,
    "dpo": read_preferences,
}
"""Of the rows of each method."""
JUDGES = ("score_model", "label_model")
NOT_TEXT = ("input_image", "input_audio", "image_url", "image", "audio")
MASK = "****"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs here."""

    about: str
    """Which part of the object: `model`, `grader.quality`, `training_file`."""
    here: str
    """What it means here, as text."""
    change: str = ""
    """What to change or to type; empty when there is nothing to do."""
    stops: bool = False
    """The object does not run until this is changed."""


@dataclass(frozen=True, slots=True)
class Check:
    """One job or grader, checked against this platform."""

    kind: Literal["job", "grader"]
    id: str
    """Id of the job; for a grader, the first twelve characters of its content's hash."""
    name: str
    """Name of the grader, or of the model that the job trained."""
    type: str
    """Type of the grader, or method of the job."""
    origin: str = ""
    """Where it was imported from; empty for a local object."""
    used_by: tuple[str, ...] = ()
    """Ids of the jobs and evals with this grader."""
    differences: tuple[Difference, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """`stops` if one difference stops it."""
        if any(each.stops for each in self.differences):
            return "stops"
        return "differs" if self.differences else "runs"

    @property
    def sentence(self) -> str:
        """The verdict as text."""
        return WORDS[self.verdict]

    def to_dict(self) -> Json:
        """Plain JSON, for programs."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(slots=True)
class Place:
    """What one platform has."""

    client: OpenAI
    models: frozenset[str]
    """Names of the models that the platform serves."""
    judge_base_url: str | None
    """The service that runs its judges; None for the local models."""
    _faults: dict[str, str | None] = field(default_factory=dict)
    _files: dict[str, Json | None] = field(default_factory=dict)
    _rows: dict[str, str | None] = field(default_factory=dict)

    def fault_of(self, spec: Mapping[str, Any], purpose: Literal["rft", "eval"]) -> str | None:
        """Why the platform refuses a grader, such as a missing package; None if it accepts it.

        The route knows graders of jobs only, so those of evals are checked in this process.
        """
        from openai import BadRequestError

        from rftkit.graders import validate

        key = purpose + digest_of(spec)
        if key not in self._faults:
            self._faults[key] = None
            try:
                if purpose == "eval":
                    validate(spec, purpose="eval")
                else:
                    self.client.fine_tuning.alpha.graders.validate(grader=spec)  # type: ignore[arg-type]
            except BadRequestError as error:
                self._faults[key] = _message(error)
            except GraderSpecError as error:
                self._faults[key] = error.message
        return self._faults[key]

    def file(self, file_id: str) -> Json | None:
        """A file's object; None when it is not here."""
        from openai import NotFoundError as Missing

        if file_id not in self._files:
            try:
                found = self.client.files.retrieve(file_id)
                self._files[file_id] = found.to_dict(warnings=False)
            except Missing:
                self._files[file_id] = None
        return self._files[file_id]

    def row_fault(self, file_id: str, filename: str, method: str, grader: Json) -> str | None:
        """The first row that is unreadable or lacks a field of the grader, or None."""
        key = file_id + method + digest_of(grader)
        if key not in self._rows:
            lines = self.client.files.content(file_id).iter_lines()
            self._rows[key] = _row_fault(lines, filename, method, grader)
        return self._rows[key]


def place(client: OpenAI) -> Place:
    """Read what the local platform has.

    Raises:
        InputError: The service is not an rftkit platform.
    """
    from openai import NotFoundError as Missing

    url = urljoin(str(client.base_url), "/rftkit/imports")
    try:
        about: Any = client.get(url, cast_to=object)
    except Missing:
        raise InputError(f"{client.base_url} is not an rftkit platform") from None
    models = [each.to_dict(warnings=False) for each in client.models.list()]
    own = frozenset(str(each["id"]) for each in models if not each.get("imported_from"))
    return Place(client, own, about["judge_base_url"])


def check_all(client: OpenAI) -> list[Check]:
    """Every imported job, newest first, and every distinct grader of imported jobs and evals."""
    here, checks, graders = place(client), [], _Graders()
    for each in client.fine_tuning.jobs.list(limit=100):
        job = each.to_dict(warnings=False)
        if job.get("imported_from"):
            checks.append(check_job(job, here))
            graders.add(job, graders_of_job(job), "rft")
    for each_eval in client.evals.list(limit=100):
        record = each_eval.to_dict(warnings=False)
        if record.get("imported_from"):
            graders.add(record, graders_of_eval(record), "eval")
    return checks + graders.checks(here)


def check_grader(
    spec: Mapping[str, Any],
    here: Place,
    *,
    purpose: Literal["rft", "eval"] = "rft",
    about: str = "grader",
) -> list[Difference]:
    """List how one grader differs here; for a multi grader, how each of its parts differs.

    Args:
        spec: As on the wire.
        here: From `place`.
        purpose: `eval` for a testing criterion.
        about: The name of the grader in its differences.
    """
    fault = here.fault_of(spec, purpose)
    found = [Difference(about, fault, _remedy(fault), stops=True)] if fault else []
    for name, part in _parts(spec, about):
        found += _of_part(part, here, name)
    return found


def check_job(job: Mapping[str, Any], here: Place, model: str | None = None) -> Check:
    """Check how a job would differ if it ran here.

    Args:
        job: As on the wire.
        here: From `place`.
        model: The local model to train; None leaves it open.

    Raises:
        NotFoundError: The local model does not exist.
    """
    method = job.get("method") or {}
    kind = method.get("type") or "supervised"
    given = method.get(kind) or {}
    found = list(_of_model(job, here, model))
    if kind == "reinforcement":
        grader = given.get("grader")
        if isinstance(grader, dict) and grader:
            found += check_grader(grader, here)
            found += _of_rows(job, kind, grader, here)
        else:
            found.append(
                Difference("grader", "the job has none", "give one with --grader", stops=True)
            )
    elif kind in READERS:
        found += _of_rows(job, kind, {}, here)
    else:
        here_is = f"{kind} training is not available here, only {', '.join(READERS)}"
        change = "create a job of another method (rftkit job create)"
        found.append(Difference("method", here_is, change, stops=True))
    found += _of_settings(kind, {**given, "hyperparameters": hyperparameters_of(job)})
    if job.get("integrations"):
        found.append(Difference("integrations", "left out: nothing is sent to other services"))
    return Check(
        "job", job["id"], str(job.get("model")), kind, str(job.get("imported_from") or ""),
        differences=tuple(found),
    )  # fmt: skip


def _of_model(job: Mapping[str, Any], here: Place, model: str | None) -> Iterator[Difference]:
    was = job.get("model")
    if model is None and was not in here.models:
        yield Difference(
            "model", f"{was} cannot be trained here", "name a local model with --model"
        )
    elif model is not None and model not in here.models:
        from openai import NotFoundError as Missing

        try:
            here.client.models.retrieve(model)  # a local folder, or a name in the hub cache
        except Missing as error:
            raise NotFoundError(_message(error)) from None
    if model is not None and model != was:
        yield Difference("model", f"{model} in place of {was}")


def hyperparameters_of(job: Mapping[str, Any]) -> Json:
    """The hyperparameters of a job as `auto` or numbers, wherever its service shows them.

    Unset ones are left out; -1, which one service shows for `auto`, is `auto`.
    """
    method = job.get("method") or {}
    inner = (method.get(method.get("type") or "supervised") or {}).get("hyperparameters")
    given = inner or job.get("hyperparameters") or {}
    return {k: "auto" if v == -1 else v for k, v in given.items() if v is not None}


def _of_settings(kind: str, given: Mapping[str, Any]) -> Iterator[Difference]:
    values = given.get("hyperparameters") or {}
    if autos := [name for name, value in values.items() if value == "auto"]:
        yield Difference(
            "hyperparameters", f"the platform chooses {', '.join(autos)}, which are auto"
        )
    share = DPO_SHARE if kind == "dpo" else 1.0
    rates = {name: f"{rate * share:.5f}".rstrip("0") for name, rate in BASE_LEARNING_RATES.items()}
    if values.get("learning_rate_multiplier") not in (None, "auto"):
        yield Difference(
            "hyperparameters.learning_rate_multiplier",
            f"is multiplied by {rates['lora']} here, or by {rates['full']} if every weight is "
            "trained",
        )
    if values.get("compute_multiplier") not in (None, "auto"):
        yield Difference(
            "hyperparameters.compute_multiplier",
            f"is multiplied by {COMPLETIONS} completions per prompt here",
        )
    if values.get("reasoning_effort") not in (None, "default"):
        yield Difference(
            "hyperparameters.reasoning_effort",
            "has no effect unless the model is a reasoning model",
        )
    if given.get("tools"):
        change = "rewrite the rows so that the answer needs no tool"
        yield Difference("tools", "tool servers are not called here", change, stops=True)
    elif given.get("max_episode_steps"):
        yield Difference("max_episode_steps", "left out: it belongs to tool servers")


def _of_rows(job: Mapping[str, Any], kind: str, grader: Json, here: Place) -> Iterator[Difference]:
    """Check the data: is it here, is it readable, and does it have the grader's fields?"""
    for name in ("training_file", "validation_file"):
        file_id = job.get(name)
        if not file_id and name == "validation_file" and kind != "reinforcement":
            continue
        if not file_id:
            yield Difference(name, "the job has none", f"a {kind} job needs it", stops=True)
        elif (file := here.file(file_id)) is None:
            change = "import its content, or create a job with your own copy (rftkit job create)"
            yield Difference(name, f"{file_id} is not on this platform", change, stops=True)
        elif fault := here.row_fault(file_id, str(file.get("filename")), kind, grader):
            yield Difference(name, fault, "correct the rows and create a job with them", stops=True)
        elif file.get("purpose") != "fine-tune":
            yield Difference(
                name, f"its purpose is {file.get('purpose')}", "upload it as fine-tune", stops=True
            )


def _row_fault(lines: Iterable[str], filename: str, method: str, grader: Json) -> str | None:
    from rftkit.graders import check_item_paths

    try:
        encoded = (line.encode("utf-8", "surrogatepass") for line in lines)
        for row in READERS[method](encoded, path=filename):
            if not grader:
                continue
            try:
                check_item_paths(grader, row.item)
            except GraderSpecError:
                continue  # a fault of the grader itself, reported there
            except InputError as error:
                return f"{filename}:{row.line}: {error.message}"
    except InputError as error:
        return error.message
    return None


def _parts(spec: Mapping[str, Any], about: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A grader, or each grader of a multi one, with its name in the table."""
    for key, part in parts(spec).items():
        if isinstance(part, Mapping):
            yield f"{about}.{key}" if key else about, part


def _of_part(spec: Mapping[str, Any], here: Place, about: str) -> Iterator[Difference]:
    kind = spec.get("type")
    if kind in JUDGES:
        yield from _of_judge(spec, here, about)
    if kind == "text_similarity" and spec.get("evaluation_metric") == "cosine":
        if here.judge_base_url is None:
            yield Difference(about, "cosine needs embeddings, and no model here makes them",
                             _set_judge("an endpoint with /embeddings"), stops=True)  # fmt: skip
        else:
            yield Difference(about, f"embeddings come from {here.judge_base_url}")
    if kind == "python" and spec.get("image_tag"):
        yield Difference(about, f"image_tag {spec['image_tag']} is ignored: the installed versions "
                         "of packages are used")  # fmt: skip
    if kind == "endpoint":
        yield from _of_endpoint(spec, about)


def _of_judge(spec: Mapping[str, Any], here: Place, about: str) -> Iterator[Difference]:
    model = spec.get("model")
    if here.judge_base_url is not None:
        yield Difference(about, f"the judge {model} runs at {here.judge_base_url}")
        return
    if model not in here.models:
        yield Difference(about, f"the judge {model} is not available here",
                         _set_judge(f"a service that has {model}"), stops=True)  # fmt: skip
    text = json.dumps(spec.get("input"), default=str)
    if any(f'"{word}"' in text for word in NOT_TEXT):
        yield Difference(about, "its prompt has images or audio; the local models read only text",
                         _set_judge("a service that reads them"), stops=True)  # fmt: skip


def _of_endpoint(spec: Mapping[str, Any], about: str) -> Iterator[Difference]:
    yield Difference(about, f"calls {spec.get('url')}, which must be reachable from here")
    headers = spec.get("headers")
    if isinstance(headers, Mapping) and any(MASK in str(value) for value in headers.values()):
        yield Difference(about, "the service masked its secret headers",
                         "give the grader with its headers: --grader FILE", stops=True)  # fmt: skip


def _message(error: APIStatusError) -> str:
    """The platform's message, without the client's prefix."""
    body = error.body
    return str(body.get("message")) if isinstance(body, dict) else error.message


def _remedy(fault: str) -> str:
    """What to do about a refused grader, unless its message states it."""
    return "" if "type:" in fault or "use " in fault else "give a corrected one with --grader"


def _set_judge(what: str) -> str:
    return (
        f"set RFTKIT_JUDGE_BASE_URL (and RFTKIT_JUDGE_API_KEY) to {what}, then run rftkit serve "
        "--stop; or name a local model in the grader"
    )


class _Graders:
    """Distinct graders and who uses them."""

    def __init__(self) -> None:
        self._specs: dict[str, tuple[Json, str, Literal["rft", "eval"]]] = {}
        self._users: dict[str, list[str]] = {}

    def add(
        self, owner: Json, found: Iterator[tuple[str, Json]], purpose: Literal["rft", "eval"]
    ) -> None:
        for _, spec in found:
            key = f"{purpose}-{digest_of(spec)}"
            self._specs.setdefault(key, (spec, str(owner["imported_from"]), purpose))
            users = self._users.setdefault(key, [])
            users += [] if owner["id"] in users else [owner["id"]]

    def checks(self, here: Place) -> list[Check]:
        return [
            Check(
                "grader", key.partition("-")[2][:12], str(spec.get("name") or ""),
                str(spec.get("type")), origin, tuple(self._users[key]),
                tuple(check_grader(spec, here, purpose=purpose)),
            )
            for key, (spec, origin, purpose) in self._specs.items()
        ]  # fmt: skip
