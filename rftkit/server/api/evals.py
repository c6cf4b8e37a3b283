"""`/evals`: testing criteria over a schema of items. Runs are in `eval_runs`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import Field

from rftkit import graders
from rftkit.errors import GraderSpecError, RequestError
from rftkit.server.api import Limit, PlatformDep, Reply, Router, cut, repeated
from rftkit.server.evals.stored_answers import ITEM_SCHEMA
from rftkit.server.inference.body import Body, Metadata, Open, digest_of
from rftkit.server.inference.judge import check_judges
from rftkit.server.store import wire
from rftkit.server.training.eval_records import criterion

__all__ = ["router"]

router = Router(prefix="/evals")

MAX_SCHEMA = 100_000
"""Characters of an item_schema as JSON."""
Name = Annotated[str, Field(max_length=512)]


class DataSourceConfig(Body):
    """`data_source_config`; `logs` and `stored_completions` are answers kept here."""

    type: Literal["custom", "logs", "stored_completions"]
    item_schema: dict[str, Any] | None = None
    include_sample_schema: bool = False
    metadata: Metadata | None = None


class EvalBody(Open):
    """The body of `POST /evals`."""

    data_source_config: DataSourceConfig
    testing_criteria: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=100)]
    name: Name | None = None
    metadata: Metadata | None = None


class UpdateBody(Body):
    """The body of `POST /evals/{id}`."""

    name: Name | None = None
    metadata: Metadata | None = None


@router.post("", status_code=201)
def create(platform: PlatformDep, request: Request, body: EvalBody) -> Reply:
    """Create an eval."""
    config = body.data_source_config
    if config.type != "custom":
        config = config.model_copy(
            update={"item_schema": ITEM_SCHEMA, "include_sample_schema": True}
        )
    if config.item_schema is None:
        raise RequestError(
            "Missing required parameter: `data_source_config.item_schema`.",
            param="data_source_config.item_schema",
        )
    _check_schema(config.item_schema)
    criteria = [_criterion(spec, index) for index, spec in enumerate(body.testing_criteria)]
    for index, spec in enumerate(criteria):  # its runs would be refused for the same reason
        check_judges(platform, spec, f"testing_criteria[{index}]")

    def make() -> str:
        record = platform.store.add_eval(
            criteria,
            config.model_dump(exclude_none=True),
            name=body.name,
            metadata=body.metadata,
            extra=body.model_extra,
        )
        return record.id

    eval_id = platform.store.once("evals", digest_of(body), make, **repeated(request))
    return Reply(wire.eval_object(platform.store.eval(eval_id)), status_code=201)


def _check_schema(schema: dict[str, Any]) -> None:
    import jsonschema

    if (size := len(json.dumps(schema))) > MAX_SCHEMA:  # checking it holds a processor for long
        raise RequestError(
            f"`data_source_config.item_schema` has {size:,} characters; at most {MAX_SCHEMA:,} are "
            "allowed",
            param="data_source_config.item_schema",
        )
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        message = getattr(error, "message", str(error))
        raise RequestError(
            f"`data_source_config.item_schema` is not a JSON schema: {message}",
            param="data_source_config.item_schema",
        ) from None


def _criterion(spec: dict[str, Any], index: int) -> dict[str, Any]:
    where = f"testing_criteria[{index}]"
    kind = spec.get("type")
    if kind == "multi":
        raise RequestError(
            f"`{where}` is a multi grader, which works in jobs only; list its graders instead",
            param=where,
        )
    if kind == "text_similarity" and spec.get("pass_threshold") is None:
        raise RequestError(
            f"`{where}.pass_threshold` is required for text_similarity",
            param=f"{where}.pass_threshold",
        )
    try:
        return criterion(graders.validate(spec, purpose="eval"))
    except GraderSpecError as error:
        param = f"{where}.{error.param}" if error.param else where
        raise GraderSpecError(error.message, param=param) from None


@router.get("")
def index(
    platform: PlatformDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "asc",
    order_by: Literal["created_at", "updated_at"] = "created_at",
) -> Reply:
    """List evals."""
    newest_first = order == "desc"
    if order_by == "updated_at":
        found = [wire.eval_object(record) for record in platform.store.evals_by_update()]
        return Reply(wire.page(*cut(found[::-1] if newest_first else found, after, limit)))
    records, more = platform.store.evals(after=after, limit=limit, newest_first=newest_first)
    return Reply(wire.page(map(wire.eval_object, records), more))


@router.get("/{eval_id}")
def retrieve(platform: PlatformDep, eval_id: str) -> Reply:
    """Return one eval."""
    return Reply(wire.eval_object(platform.store.eval(eval_id)))


@router.post("/{eval_id}")
def update(platform: PlatformDep, eval_id: str, body: UpdateBody) -> Reply:
    """Rename an eval, or replace its metadata."""
    changes = body.model_dump(exclude_unset=True)
    return Reply(wire.eval_object(platform.store.update_eval(eval_id, **changes)))


@router.delete("/{eval_id}")
def delete(platform: PlatformDep, eval_id: str) -> Reply:
    """Delete an eval with its runs."""
    platform.store.delete_eval(eval_id)
    return Reply({"object": "eval.deleted", "deleted": True, "eval_id": eval_id})
