"""How the parts of an imported job or grader differ on this platform, and what to change.

One function for each part: the model, the settings, the data, the grader. `migration` puts them
together into a `Check`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rftkit.errors import InputError, NotFoundError
from rftkit.graders.types import asks_judge, parts
from rftkit.hyperparameters import BASE_LEARNING_RATES, COMPLETIONS, DPO_SHARE
from rftkit.importer.place import Place, message_of
from rftkit.tools import check_tools

__all__ = [
    "Difference", "check_grader", "hyperparameters_of", "of_model", "of_rows", "of_settings",
]  # fmt: skip

NOT_TEXT = ("input_image", "input_audio", "image_url", "image", "audio")
MASK = "****"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs here."""

    about: str
    """Which part of the object: `model`, `grader.quality`, `training_file`."""
    here: str
    """What will happen here, as text."""
    change: str = ""
    """What to change or to type; empty when there is nothing to do."""
    stops: bool = False
    """The object does not run until this is changed."""


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


def hyperparameters_of(job: Mapping[str, Any]) -> Json:
    """The hyperparameters of a job as `auto` or numbers, wherever its service shows them.

    Unset ones are left out; -1, which one service shows for `auto`, is `auto`.
    """
    method = job.get("method") or {}
    inner = (method.get(method.get("type") or "supervised") or {}).get("hyperparameters")
    given = inner or job.get("hyperparameters") or {}
    return {k: "auto" if v == -1 else v for k, v in given.items() if v is not None}


def of_model(job: Mapping[str, Any], here: Place, model: str | None) -> Iterator[Difference]:
    """Another model than the job had, or none that can be trained here.

    Raises:
        NotFoundError: `model` does not exist.
    """
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
            raise NotFoundError(message_of(error)) from None
    if model is not None and model != was:
        yield Difference("model", f"{model} in place of {was}")


def of_settings(kind: str, given: Mapping[str, Any]) -> Iterator[Difference]:
    """Hyperparameters and settings that mean something else here, or nothing."""
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
        yield from _of_tools(given["tools"])
    elif given.get("max_episode_steps"):
        yield Difference("max_episode_steps", "left out: it belongs to tool servers")


def of_rows(job: Mapping[str, Any], kind: str, grader: Json, here: Place) -> Iterator[Difference]:
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


def _parts(spec: Mapping[str, Any], about: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A grader, or each grader of a multi one, with its name in the table."""
    for key, part in parts(spec).items():
        if isinstance(part, Mapping):
            yield f"{about}.{key}" if key else about, part


def _of_part(spec: Mapping[str, Any], here: Place, about: str) -> Iterator[Difference]:
    kind = spec.get("type")
    if asks_judge(spec):
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


def _of_tools(tools: Any) -> Iterator[Difference]:
    """Where the calls of rollouts go, and what of it the service did not show."""
    for index, each in enumerate(tools if isinstance(tools, list) else [tools]):
        entry = each if isinstance(each, Mapping) else {}
        about = f"tools.{entry.get('server_label') or entry.get('name') or index}"
        headers = entry.get("headers")
        secrets = [*(headers.values() if isinstance(headers, Mapping) else ())]
        secrets.append(entry.get("authorization"))
        if any(MASK in str(value) for value in [*secrets, entry.get("server_url")]):
            change = "give the tools with their headers: --tools FILE"
            yield Difference(about, "the service masked its secrets", change, stops=True)
            continue
        try:
            check_tools([each], "tools")
        except InputError as error:
            change = "give the tools with their servers: --tools FILE"
            yield Difference(about, error.message, change, stops=True)
            continue
        url = str(entry.get("server_url") or "")
        if url.startswith("http"):
            yield Difference(about, f"calls {url}, which must be reachable from here")


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


def _remedy(fault: str) -> str:
    """What to do about a refused grader, unless its message states it."""
    return "" if "type:" in fault or "use " in fault else "give a corrected one with --grader"


def _set_judge(what: str) -> str:
    return (
        f"set RFTKIT_JUDGE_BASE_URL (and RFTKIT_JUDGE_API_KEY) to {what}, then run rftkit serve "
        "--stop; or name a local model in the grader"
    )
