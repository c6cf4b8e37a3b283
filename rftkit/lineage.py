"""Branches of jobs: `JOB@STEP` names the kept state of another job that a job continues from.

The name is metadata of the branch, so that any client can create one and any reader of the job
object sees where it comes from. Not here: states (`server.training`), the tree (`rftkit.jobs`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from rftkit.errors import RequestError

__all__ = ["BRANCH_FROM", "OF_ONE_JOB", "Origin", "origin_of"]

BRANCH_FROM = "branch_from"
"""The metadata with `JOB@STEP`."""
OF_ONE_JOB = (BRANCH_FROM, "uncalibrated", "rerun_of")
"""Metadata that a branch or a rerun of a job does not take over."""


class Origin(NamedTuple):
    """Where a branch begins."""

    job_id: str
    step: int

    def __str__(self) -> str:
        return f"{self.job_id}@{self.step}"


def origin_of(metadata: Mapping[str, str] | None) -> Origin | None:
    """Where a job with this metadata was branched from; None for a job that was not.

    Raises:
        RequestError: it is not JOB@STEP.
    """
    given = (metadata or {}).get(BRANCH_FROM)
    if given is None:
        return None
    if not (found := re.fullmatch(r"(ftjob-[\w-]+)@(\d{1,9})", str(given).strip())):
        raise RequestError(
            f"metadata `{BRANCH_FROM}` must be JOB@STEP, such as ftjob-abc123@12, found {given!r}",
            param=f"metadata.{BRANCH_FROM}",
        )
    return Origin(found[1], int(found[2]))
