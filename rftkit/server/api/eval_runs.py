"""`/evals/{id}/runs` and their output items. `rftkit.server.evals.runner` does the work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.responses import HTMLResponse
from pydantic import Field, ValidationError

from rftkit.errors import GraderSpecError, NotFoundError, RequestError
from rftkit.graders.template import paths
from rftkit.server.api import Limit, PlatformDep, Reply, Router, repeated
from rftkit.server.api.files import live_file
from rftkit.server.api.run_page import HEADERS, run_page
from rftkit.server.api.run_tools import checked_tools
from rftkit.server.evals.asking import chat_options
from rftkit.server.evals.item_schema import check_items
from rftkit.server.inference.body import Body, Metadata, Open, digest_of, kind_of, refusal
from rftkit.server.inference.chat_request import ChatBody, chat_request
from rftkit.server.inference.judge import check_judges
from rftkit.server.inference.models import check_model
from rftkit.server.inference.platform import Platform
from rftkit.server.store import wire
from rftkit.server.store.records import Eval, EvalRun

__all__ = ["router"]

router = Router(prefix="/evals/{eval_id}/runs")

Json = dict[str, Any]
Order = Literal["asc", "desc"]
SAMPLING = {
    "completions": {"max_completion_tokens", "max_episode_steps", "reasoning_effort",
                    "response_format", "seed", "temperature", "tools", "top_p"},
    "responses": {"max_completion_tokens", "max_episode_steps", "reasoning_effort", "seed",
                  "temperature", "text", "tools", "top_p"},
}  # fmt: skip


REPORT = "eval_run_report"
"""Name of the route of a run's page."""
ITEMS_SHOWN = 100
"""Output items on one page."""
LIMITS = ("max_completion_tokens", "max_completions_tokens", "max_output_tokens", "max_tokens")
"""Spellings of the limit of an answer's tokens; the first one is kept."""


class DataSource(Body):
    """`data_source`: what to grade, and for the two sampling kinds whom to ask how."""

    type: Literal["jsonl", "completions", "responses"]
    source: Json
    model: str | None = None
    input_messages: Json | None = None
    sampling_params: Json | None = None


MAX_INTEGER = 2**53
"""Beyond it neither the database nor other readers of JSON keep an integer."""
Seconds = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
"""A time in seconds since 1970."""


class KeptChats(Body):
    """The source `stored_completions`: chats that were kept, chosen by what they were."""

    type: Literal["stored_completions"]
    created_after: Seconds | None = None
    created_before: Seconds | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = None
    metadata: Metadata | None = None
    model: str | None = None


class KeptResponses(Body):
    """The source `responses`: responses that the platform has stored."""

    type: Literal["responses"]
    created_after: Seconds | None = None
    created_before: Seconds | None = None
    has_tool_calls: bool | None = None
    instructions_search: str | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = None
    metadata: Metadata | None = None
    model: str | None = None
    reasoning_effort: str | None = None
    temperature: float | None = None
    tools: list[str] | None = None
    top_p: float | None = None
    users: list[str] | None = None


KEPT = {"completions": "stored_completions", "responses": "responses"}
"""Kind of data source → its source of answers that were kept."""
FILTERS: dict[str, type[Body]] = {"stored_completions": KeptChats, "responses": KeptResponses}


class RunBody(Open):
    """The body of `POST /evals/{id}/runs`."""

    data_source: DataSource
    name: Annotated[str, Field(max_length=512)] | None = None
    metadata: Metadata | None = None


@router.post("", status_code=201)
def create(platform: PlatformDep, request: Request, eval_id: str, body: RunBody) -> Reply:
    """Queue a run."""
    record = platform.store.editable_eval(eval_id)
    source = body.data_source
    _check_source(platform, record, source)
    if source.type != "jsonl" and not _grades_what_is_kept(source):
        sampling = _spelled(source.sampling_params)
        content = source.source.get("content") or []
        sampling = checked_tools(platform, source.model, sampling, content)
        source = source.model_copy(update={"sampling_params": sampling})
        _check_sampling(platform, source, body.metadata)
    for index, spec in enumerate(record.testing_criteria):
        check_judges(platform, spec, f"the eval's testing_criteria[{index}]", param="eval_id")

    def make() -> str:
        run = platform.store.add_run(
            eval_id,
            source.model_dump(exclude_none=True),
            name=body.name,
            model=source.model,
            metadata=body.metadata,
            extra=body.model_extra or {},
        )
        return run.id

    route = f"evals/{eval_id}/runs"
    run_id = platform.store.once(route, digest_of(body), make, **repeated(request))
    run = platform.store.run(
        run_id
    )  # read it before a worker takes it: the reply shows it as queued
    if platform.runner is not None:
        platform.runner.wake()
    return Reply(_shown(run, request), status_code=201)


def _grades_what_is_kept(source: DataSource) -> bool:
    """Whether stored answers are graded, and no model is called."""
    is_kept = source.source.get("type") in KEPT.values()
    return is_kept and source.model is None and source.input_messages is None


def _check_source(platform: Platform, record: Eval, data_source: DataSource) -> None:
    where = "data_source.source"
    source = data_source.source
    kind, kept = source.get("type"), KEPT.get(data_source.type)
    if kind == "file_id":
        file_id = source.get("id")
        if not isinstance(file_id, str):
            raise RequestError(f"`{where}.id` must be a file id", param=f"{where}.id")
        try:
            live_file(platform, file_id, f"{where}.id")
        except NotFoundError as error:
            raise RequestError(error.message, param=error.param, code=error.code) from None
    elif kind == "file_content":
        _check_content(record, source.get("content"), f"{where}.content")
    elif kind is not None and kind == kept:
        try:
            FILTERS[kind].model_validate(source)
        except ValidationError as error:
            found = refusal(error.errors())
            raise RequestError(found.message, param=f"{where}.{found.param}") from None
    else:
        allowed = ", ".join(filter(None, ("file_content", "file_id", kept)))
        raise RequestError(
            f"`{where}.type` must be one of {allowed}, found {kind_of(kind)}",
            param=f"{where}.type",
        )


def _check_content(record: Eval, content: Any, where: str) -> None:
    if not isinstance(content, list) or not content:
        raise RequestError(f"`{where}` must be a list with at least one item", param=where)
    for index, entry in enumerate(content):
        platform = f"{where}[{index}].item"
        if not isinstance(entry, dict) or not isinstance(entry.get("item"), dict):
            raise RequestError(f"`{platform}` must be an object", param=platform)
    # Evals over stored chats have no schema of items.
    schema = record.data_source_config.get("item_schema", {})
    match check_items(schema, [entry["item"] for entry in content]):
        case None, problem:
            raise RequestError(f"The eval's item_schema cannot be used: {problem}", param=where)
        case index, problem:
            platform = f"{where}[{index}].item"
            raise RequestError(
                f"`{platform}` does not follow the eval's item_schema: {problem}", param=platform
            )


def _check_sampling(platform: Platform, source: DataSource, metadata: Json | None) -> None:
    if source.model is None:
        raise RequestError("Missing required parameter: `data_source.model`.", param="model")
    try:
        check_model(platform, source.model)
    except NotFoundError as error:
        raise RequestError(
            error.message, param="data_source.model", code="model_not_found"
        ) from None
    _check_input(source.input_messages)
    where, known = "data_source.sampling_params", SAMPLING[source.type]
    if unknown := set(source.sampling_params or {}) - known:
        name = f"{where}.{min(unknown)}"
        raise RequestError(
            f"Unrecognized request argument supplied: {name}; known are {', '.join(sorted(known))}",
            param=name,
        )
    try:
        body = {
            **chat_options(source.sampling_params or {}),
            "model": source.model,
            "messages": [{"role": "user", "content": "an item"}],
            "metadata": metadata,
        }
        chat_request(platform, ChatBody.model_validate(body))
    except ValidationError as error:
        found = refusal(error.errors())
        raise RequestError(found.message, param=f"{where}.{found.param}") from None
    except RequestError as error:
        raise RequestError(error.message, param=f"{where}.{error.param}") from None


def _spelled(sampling: Json | None) -> Json | None:
    """Sampling parameters with the limit of tokens under its one name.

    The service's specification has `max_completions_tokens`, its SDK `max_completion_tokens`.
    """
    if sampling is None:
        return None
    given = {name: sampling[name] for name in LIMITS if sampling.get(name) is not None}
    if len(set(map(str, given.values()))) > 1:
        found = " and ".join(f"`{name}` {kind_of(value)}" for name, value in given.items())
        name = f"data_source.sampling_params.{min(given)}"
        raise RequestError(
            f"the token limit is given more than once, as {found}; pass one of them", param=name
        )
    rest = {key: value for key, value in sampling.items() if key not in LIMITS}
    return {LIMITS[0]: next(iter(given.values())), **rest} if given else rest


def _check_input(given: Json | None) -> None:
    where = "data_source.input_messages"
    if given is None:
        raise RequestError(f"Missing required parameter: `{where}`.", param=where)
    try:
        if given.get("type") == "item_reference" and isinstance(given.get("item_reference"), str):
            paths("{{" + given["item_reference"] + "}}", param=f"{where}.item_reference")
            return
        if given.get("type") == "template" and isinstance(given.get("template"), list):
            for index, message in enumerate(given["template"]):
                _check_template(message, f"{where}.template[{index}]")
            return
    except GraderSpecError as error:
        raise RequestError(error.message, param=error.param) from None
    raise RequestError(
        f"`{where}` must be {{type: 'template', template: […]}} or {{type: 'item_reference', "
        "item_reference: 'item.messages'}",
        param=where,
    )


def _check_template(message: Any, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"`{where}` must be a message with a role", param=where)
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise RequestError(
                f"`{where}.content` must be text; the models here read text only",
                param=f"{where}.content",
            )
        paths(text, param=f"{where}.content")


@router.get("")
def index(
    platform: PlatformDep,
    request: Request,
    eval_id: str,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Literal["queued", "in_progress", "completed", "canceled", "failed"] | None = None,
) -> Reply:
    """List an eval's runs."""
    platform.store.eval(eval_id)
    runs, more = platform.store.runs(
        eval_id, status=status, after=after, limit=limit, newest_first=order == "desc"
    )
    return Reply(wire.page([_shown(run, request) for run in runs], more))


@router.get("/{run_id}")
def retrieve(platform: PlatformDep, request: Request, eval_id: str, run_id: str) -> Reply:
    """Return one run."""
    return Reply(_shown(platform.store.run(run_id, eval_id), request))


@router.get("/{run_id}/report", name=REPORT, response_class=HTMLResponse)
def report(
    platform: PlatformDep, eval_id: str, run_id: str, after: str | None = None
) -> HTMLResponse:
    """The run as a page for a browser, which `report_url` opens."""
    run = platform.store.run(run_id, eval_id)
    found, more = platform.store.items(run_id, after=after, limit=ITEMS_SHOWN)
    page = run_page(
        wire.run_object(run),
        wire.eval_object(platform.store.eval(eval_id)),
        platform.store.criteria_counts(run_id),
        map(wire.item_object, found),
        num_cut=platform.store.num_cut(run_id),
        more=found[-1].id if more else None,
        is_first=after is None,
    )
    content = page.encode("utf-8", "replace")  # lone surrogates of a model's text
    return HTMLResponse(content, headers=HEADERS)


def _shown(run: EvalRun, request: Request) -> Json:
    """The run with the address at which this client can open its page."""
    shown = wire.run_object(run)
    if run.wire is not None:  # imported: the page is on the hosted service
        return shown
    url = request.url_for(REPORT, eval_id=run.eval_id, run_id=run.id)
    return {**shown, "report_url": str(url)}


@router.post("/{run_id}/cancel")
@router.post("/{run_id}")
def cancel(platform: PlatformDep, request: Request, eval_id: str, run_id: str) -> Reply:
    """Cancel a run that has not ended."""
    run = platform.store.run(run_id, eval_id)
    if run.status not in ("queued", "in_progress"):
        raise RequestError(
            f"run {run_id} is {run.status}; only a run that is queued or in_progress can be "
            "canceled",
            param="run_id",
        )
    return Reply(_shown(platform.store.update_run(run_id, status="canceled"), request))


@router.delete("/{run_id}")
def delete(platform: PlatformDep, eval_id: str, run_id: str) -> Reply:
    """Delete a run with its items."""
    platform.store.run(run_id, eval_id)
    platform.store.delete_run(run_id)
    return Reply({"object": "eval.run.deleted", "deleted": True, "run_id": run_id})


@router.get("/{run_id}/output_items")
def items(
    platform: PlatformDep,
    eval_id: str,
    run_id: str,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Literal["fail", "pass"] | None = None,
) -> Reply:
    """List a run's graded samples by the row of the dataset, whichever ended first."""
    platform.store.run(run_id, eval_id)
    found, more = platform.store.items(
        run_id, status=status, after=after, limit=limit, newest_first=order == "desc"
    )
    return Reply(wire.page(map(wire.item_object, found), more))


@router.get("/{run_id}/output_items/{item_id}")
def item(platform: PlatformDep, eval_id: str, run_id: str, item_id: str) -> Reply:
    """Return one graded sample."""
    platform.store.run(run_id, eval_id)
    return Reply(wire.item_object(platform.store.item(item_id, run_id)))
