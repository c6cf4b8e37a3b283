"""What a job requires of its judges: that somebody has compared them with people's labels.

A calibration is an uploaded file whose name holds the judge's digest, so a job finds it
automatically. Metadata `require_calibration` decides what happens to a job without one. With
`none`, its events say so; with `mark`, its metadata also says `uncalibrated`; with `refuse`, it is
not created. The judges of a held-out grader give no reward, so their calibration is only reported.
Not here: what a calibration is (`rftkit.graders.calibrations`), and measuring one (`rftkit.evals`).
"""

from __future__ import annotations

import contextlib
from typing import Any

from rftkit.errors import InputError, PlatformError, RequestError
from rftkit.graders import Calibration, CalibrationStatus, calibration_statuses, read_calibration
from rftkit.graders.calibrations import PREFIX, judges
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import File, Job
from rftkit.server.training.knobs import Knobs

__all__ = ["UNCALIBRATED", "add_calibration_event", "check_calibration"]

REQUIRE = "require_calibration"
FLOOR = "calibration_floor"
UNCALIBRATED = "uncalibrated"
"""Metadata that marks a job: its judges without a calibration."""
LONGEST_VALUE = 512
MOST_METADATA = 16


def check_calibration(
    platform: Platform, spec: dict[str, Any] | None, metadata: dict[str, str] | None
) -> dict[str, str] | None:
    """The metadata of a job, marked if that is wanted and a judge is not calibrated.

    Raises:
        RequestError: it is required, or the job has no room for the mark.
    """
    wanted = Knobs(metadata or {}).word(REQUIRE)
    if spec is None or wanted == "none":
        return metadata
    bad = [each for each in statuses(platform, spec, metadata) if each.state != "calibrated"]
    if not bad:
        return metadata
    if wanted == "refuse":
        said = " ".join(each.message for each in bad)
        raise RequestError(
            f"metadata `{REQUIRE}` is 'refuse': {said}",
            param=f"metadata.{REQUIRE}",
            code="judge_not_calibrated",
        )
    marked = {
        **(metadata or {}),
        UNCALIBRATED: ", ".join(f"{each.name} ({each.state})" for each in bad)[:LONGEST_VALUE],
    }
    if len(marked) > MOST_METADATA:
        raise RequestError(
            f"metadata `{REQUIRE}` is 'mark', and the mark needs one of the {MOST_METADATA} pairs "
            "of metadata, which are all taken; leave one out",
            param="metadata",
        )
    return marked


def statuses(
    platform: Platform, spec: dict[str, Any], metadata: dict[str, str] | None
) -> list[CalibrationStatus]:
    """Whether each judge of a grader is calibrated; none for a grader without judges."""
    if not judges(spec):
        return []
    floor = Knobs(metadata or {}).number(FLOOR)
    return calibration_statuses(spec, _known(platform), floor)


def add_calibration_event(platform: Platform, job: Job) -> None:
    """State in the job's events how its judges stand; nothing for a job without judges."""
    if job.grading is None or job.is_probe:
        return
    found = statuses(platform, job.grading["grader"], job.metadata)
    second = job.method.get("held_out")
    held_out = statuses(platform, second, job.metadata) if second else []
    if not (found or held_out):
        return
    is_fine = all(each.state == "calibrated" for each in (*found, *held_out))
    said = [each.message for each in found]
    said += [f"In the held-out grader: {each.message}" for each in held_out]
    platform.store.add_event(
        job.id,
        " ".join(said),
        level="info" if is_fine else "warn",
        data={
            "calibration": [each.to_dict() for each in found],
            **({"held_out": [each.to_dict() for each in held_out]} if held_out else {}),
        },
        key="calibration",
    )


def _known(platform: Platform) -> list[Calibration]:
    """The calibrations among the files, the newest first."""
    files, _ = platform.store.files(purpose="user_data")
    named = [each for each in files if each.filename.startswith(PREFIX)]
    return [found for each in named if (found := _read(platform, each)) is not None]


def _read(platform: Platform, file: File) -> Calibration | None:
    """The calibration in a file; None for another file with such a name, and for a damaged one."""
    with contextlib.suppress(InputError, PlatformError):
        return read_calibration(platform.store.whole_file(file.id).read_bytes(), file.filename)
    return None
