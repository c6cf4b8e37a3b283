"""`/fine_tuning/alpha/graders`: validate a grader, run it on one sample.

A fault of the grader is an answer, not an error: status 200, reward 0 and its flag set.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from rftkit import graders
from rftkit.server.api import Here, Reply
from rftkit.server.inference.body import Body

__all__ = ["router"]

router = APIRouter(prefix="/fine_tuning/alpha/graders")


class ValidateBody(Body):
    """`{grader}`."""

    grader: dict[str, Any]


class RunBody(Body):
    """`{grader, model_sample, item}`."""

    grader: dict[str, Any]
    model_sample: str
    item: Any = None
    trace_id: str | None = None


@router.post("/validate")
def validate(body: ValidateBody) -> Reply:
    """The grader as it will be used, with what was left out filled in."""
    return Reply({"grader": graders.validate(body.grader)})


@router.post("/run")
def run(here: Here, body: RunBody) -> Reply:
    """Grade one sample."""
    grader = here.grader_cache.get(body.grader)
    sample = graders.Sample.from_text(body.model_sample)
    grade = grader.grade(sample, {} if body.item is None else body.item)
    return Reply(grade.to_wire(grader.spec))
