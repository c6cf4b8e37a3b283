"""`/fine_tuning/alpha/graders`: validate a grader, run it on one sample.

A fault of the grader is an answer, not an error: status 200, reward 0 and its flag set. Both run in
threads of their own, because a grader may take minutes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request

from rftkit import graders
from rftkit.errors import InputError, RequestError
from rftkit.server.api import PlatformDep, Reply, Router
from rftkit.server.api.chat import until_disconnected
from rftkit.server.inference.body import Body
from rftkit.server.inference.platform import Platform

__all__ = ["router"]

router = Router(prefix="/fine_tuning/alpha/graders")


class ValidateBody(Body):
    """`{grader}`."""

    grader: dict[str, Any]


class RunBody(Body):
    """`{grader, model_sample, item}`; a sample is text, or an object that names its model too."""

    grader: dict[str, Any]
    model_sample: str | dict[str, Any]
    item: Any = None
    trace_id: str | None = None


@router.post("/validate")
async def validate(platform: PlatformDep, request: Request, body: ValidateBody) -> Reply:
    """The grader as it will be used, with what was left out filled in."""
    work = platform.grading.run(partial(graders.validate, body.grader))
    return Reply({"grader": await until_disconnected(request, work)})


@router.post("/run")
async def run(platform: PlatformDep, request: Request, body: RunBody) -> Reply:
    """Grade one sample; a client that hangs up ends the calls of its grader."""
    return Reply(
        await until_disconnected(request, platform.grading.run(partial(_grade, platform, body)))
    )


def _grade(platform: Platform, body: RunBody) -> dict[str, Any]:
    grader = platform.grader_cache.get(body.grader)
    try:
        sample = replace(graders.given_sample(body.model_sample), trace_id=body.trace_id)
    except InputError as error:
        raise RequestError(error.message, param="model_sample") from None
    grade = grader.grade(sample, {} if body.item is None else body.item)
    return grade.to_wire(grader.spec)
