"""Routes of this platform alone, outside `/v1`: who it is, plans of jobs, rollouts of steps.

A client asks `GET /rftkit` before it relies on anything the protocol does not have; a hosted
service answers 404. Anything that the protocol can express is in the other modules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import uuid
from collections.abc import Collection
from functools import partial
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import Field

from rftkit.errors import MissingExtraError, NotFoundError, RequestError, RftkitError
from rftkit.rows import Row
from rftkit.server.api import PlatformDep, Reply, Router
from rftkit.server.api.chat import until_disconnected
from rftkit.server.api.job_body import MethodType
from rftkit.server.api.job_body import checked_hyperparameters as checked
from rftkit.server.engine.values import Completion
from rftkit.server.inference.body import Body, Metadata
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import Job
from rftkit.server.training.journal import Journal
from rftkit.server.training.offline_plan import make_offline_plan, offline_reasons
from rftkit.server.training.plan import CommonPlan
from rftkit.server.training.rft_plan import make_plan, reasons
from rftkit.server.training.transcripts import messages
from rftkit.tools import ToolCall, ToolFailed, open_tools

__all__ = ["router"]

router = Router(prefix="/rftkit")

ABILITIES = ("imports", "plan", "probe", "rollouts", "tools", "weights")
NOT_PLANNED = ("seed", "memory_bytes", "width", "context_tokens")
"""Settings of a plan that only a job has: drawn, measured, or those of its model."""

Json = dict[str, Any]


@router.get("")
def about() -> Reply:
    """Describe the platform and what it can do beyond the protocol."""
    version = importlib.metadata.version("rftkit")
    return Reply({"object": "rftkit.platform", "version": version, "abilities": ABILITIES})


class PlanBody(Body):
    """The body of `POST /rftkit/plan`: what of a job decides its plan."""

    hyperparameters: dict[str, Any] | None = None
    metadata: Metadata | None = None
    method: MethodType = "reinforcement"
    num_rows: Annotated[int, Field(ge=1)]
    """Training rows."""


@router.post("/plan")
def plan(body: PlanBody) -> Reply:
    """Return a job's plan, with every `auto` resolved and explained; nothing is created."""
    given = {"hyperparameters": checked(body.hyperparameters, body.method)}
    method: Json = {"type": body.method, body.method: given}
    job = Job(
        id="", created_at=0, model="", seed=0, training_file="", validation_file="",
        method=method, metadata=body.metadata,
    )  # fmt: skip
    made, why = _planned(job, body.num_rows)
    measured = body.method == "reinforcement" or "grader" in (body.metadata or {})
    resolved = made.shown(is_graded=measured)
    ignored = resolved.pop("ignored")
    for name in NOT_PLANNED:
        resolved.pop(name)
    return Reply(
        {
            "object": "rftkit.plan",
            "hyperparameters": resolved,
            "reasons": why,
            "ignored": ignored,
        }
    )


def _planned(job: Job, num_rows: int) -> tuple[CommonPlan, dict[str, str]]:
    """The plan, and what `auto` means in it."""
    if job.method_type == "reinforcement":
        plan = make_plan(job, num_rows)
        return plan, reasons(plan)
    offline = make_offline_plan(job, num_rows)
    return offline, offline_reasons(offline)


@router.get("/jobs/{job_id}/rollouts")
def rollouts(
    platform: PlatformDep, job_id: str, step: Annotated[int | None, Query(ge=1)] = None
) -> Reply:
    """The graded groups of one step, the newest unless one is named; `groups` may be empty.

    Groups of a job that learns from the answers of its rows have no rollouts.
    """
    job = platform.store.job(job_id)
    folder = platform.home / "jobs" / job.id if platform.home else None
    steps = Journal(folder).steps() if folder and folder.is_dir() else []
    chosen = step if step is not None else max(steps, default=None)
    groups: list[Json] = []
    if folder and chosen in steps:
        record = Journal(folder).record("steps", chosen) or {}
        # A supervised or dpo job samples nothing: its journal has the lines of its rows.
        learnt = [{"line": line, "rollouts": []} for line in record.get("lines", [])]
        kept = record.get("groups", learnt)
        items = _items(platform, job.training_file, {group["line"] for group in kept})
        groups = [_group(group, items) for group in kept]
    elif step is not None:
        raise NotFoundError(f"there are no rollouts of step {step} of {job_id}", param="step")
    return Reply(
        {
            "object": "rftkit.rollouts",
            "job_id": job_id,
            "step": chosen,
            "num_steps": len(steps),
            "groups": groups,
        }
    )


class CallBody(Body):
    """One call of a model: a function, and its arguments as it wrote them."""

    name: str
    arguments: str = "{}"
    item: dict[str, Any] = Field(default_factory=dict)
    """The row; without `tools` every function of the job can be called."""
    call_id: str | None = None
    trace_id: str | None = None


@router.post("/jobs/{job_id}/tool")
async def call_tool(platform: PlatformDep, request: Request, job_id: str, body: CallBody) -> Reply:
    """Call a tool of a job, with the headers that the job has: `{text, kind, seconds}`.

    The kind is answer, error (which a model reads too) or failed (which ends a rollout).
    """
    job = platform.store.job(job_id)
    entries = job.method.get("reinforcement", {}).get("tools")
    if not entries:
        raise NotFoundError(f"{job_id} has no tools", param="job_id")
    shown = body.item.get("tools")
    if shown is not None and not (
        isinstance(shown, list) and all(isinstance(each, dict) for each in shown)
    ):
        raise RequestError("`item.tools` must be a list of functions", param="item.tools")
    work = platform.grading.run(partial(_called_now, entries, body, platform.private_tools))
    return Reply(await until_disconnected(request, work))


def _called_now(entries: list[Json], body: CallBody, private: bool) -> Json:
    call = ToolCall(body.call_id or f"call_{uuid.uuid4().hex[:24]}", body.name, body.arguments)
    trace = body.trace_id or f"trace_{uuid.uuid4().hex}"
    try:
        with contextlib.closing(open_tools(entries, private=private)) as tools:
            functions = [{"function": {"name": name}} for name in tools.names]
            reply = tools.call(call, trace_id=trace, item={"tools": functions, **body.item})
    except ToolFailed as error:
        return {"text": str(error), "kind": "failed", "seconds": None}
    except MissingExtraError as error:
        raise RequestError(str(error), param="job_id") from None
    return dataclasses.asdict(reply)


def _items(platform: Platform, file_id: str, lines: Collection[int]) -> dict[int, Json]:
    """The rows at these lines of a file; none when the file was deleted since."""
    try:
        path = platform.store.file_path(file_id)
    except RftkitError:
        return {}
    with path.open("rb") as file:
        # Other lines are passed over unread: a file may have a million. Rows of all three methods
        # are here, which were checked when their job was created.
        return {n: json.loads(line) for n, line in enumerate(file, 1) if n in lines}


def _group(group: Json, items: dict[int, Json]) -> Json:
    row = Row(items.get(group["line"]) or {"messages": []}, group["line"])
    # tools of an MCP server are not in the row; the file may be deleted
    if "tools" not in row.item:
        row = Row({**row.item, "tools": _called(group)}, row.line)
    return {
        "line": group["line"],
        "item": items.get(group["line"]),
        "rollouts": [_rollout(each, row) for each in group["rollouts"]],
        "guided": [_rollout(each, row) for each in group.get("guided", ())],
    }


def _called(group: Json) -> list[Json]:
    """The functions that were called, as far as is known."""
    turns = [turn for each in group["rollouts"] for turn in each["completion"].get("turns", ())]
    names = dict.fromkeys(call["name"] for turn in turns for call in turn["calls"] if call["name"])
    return [{"type": "function", "function": {"name": name}} for name in names]


def _rollout(kept: Json, row: Row) -> Json:
    completion = Completion.from_dict(kept["completion"])
    shown = {
        "text": completion.text,
        "stop_reason": completion.stop_reason,
        "tokens": completion.num_sampled,
        "grade": kept.get("regraded") or kept["grade"],
    }
    if kept.get("regraded"):  # it had failed before the update of that step
        shown["regraded"] = True
    if completion.turns:
        calls = [call for turn in completion.turns for call in turn.calls]
        shown |= {"messages": messages(completion, row), "calls": calls}
        shown |= {"turns": len(completion.turns) + 1, "failure": completion.failure}
    return shown
