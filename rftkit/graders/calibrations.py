"""Calibrations: how well a judge agrees with people, bound to exactly this judge.

A judge is a sub-grader that asks a model. Its `digest` is that of its model, prompt and settings:
the name and the pass threshold do not count, since they change no reward. A calibration is a small
JSON file that holds the digest, so it expires when any of these changes. Not here: measuring the
agreement (`rftkit.evals.calibration`), and what a job does without one (`server.api.calibrated`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rftkit.errors import InputError
from rftkit.graders.relative import needs_group
from rftkit.graders.types import parts, spec_type
from rftkit.strictjson import parse_strictly
from rftkit.wording import counted, first_problem

__all__ = [
    "Calibration", "CalibrationStatus", "calibration_statuses", "digest", "file_name", "judges",
    "read_calibration",
]  # fmt: skip

OF_NO_REWARD = ("name", "pass_threshold")
"""Keys of a grader that do not change its rewards."""
VERSION = 1
MOST_EXACT = 2**53
"""Whole numbers up to this one are exact as floats."""
PREFIX = "calibration-"
NOT_CALIBRATED = (
    "The judge `{name}` compares the answers of a group with each other, so no grade of a single "
    "answer can be compared with people's labels: relative judges cannot be calibrated. Give it "
    "an `anchor`, the template of an answer to compare with"
)
"""Why a relative grader without an anchor cannot be calibrated."""
State = Literal["calibrated", "poor", "expired", "none"]


def digest(part: Mapping[str, Any]) -> str:
    """Sixteen letters that are the same for the same model, prompt and settings."""
    kept = {k: v for k, v in part.items() if k not in OF_NO_REWARD and v is not None}
    text = json.dumps(_plain(kept), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def judges(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Key -> judge, for each part of a grader that asks a model; the key is "" without a multi."""
    return {
        key: part
        for key, part in parts(spec).items()
        if spec_type(part).calls_out and isinstance(part.get("model"), str)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a job needs to know of a judge's agreement with people."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    digest: str
    """The digest of the judge."""
    name: str
    """The judge's name."""
    model: str
    """The model that judges."""
    statistic: Literal["kappa", "rank correlation"]
    """Kappa for verdicts, Spearman's rank correlation for numbers."""
    value: float | None
    """How well it agrees with people; None when that is not defined."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    """Upper end."""
    num_labels: int
    """Labelled answers that the judge graded."""
    threshold: float | None = None
    """The pass threshold of the comparison; None: the judge's own."""
    sentence: str = ""
    """The agreement in words."""
    created_at: int = 0
    """Unix seconds."""

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {"object": "rftkit.calibration", "version": VERSION, **asdict(self)}


_CALIBRATION = TypeAdapter(Calibration)


@dataclass(frozen=True, slots=True)
class CalibrationStatus:
    """Whether a judge of a job is calibrated."""

    key: str
    """The judge's key in its multi grader; empty without one."""
    name: str
    digest: str
    state: State
    """`poor`: it is not shown to agree with people better than the job asks for. `expired`: the
    only calibrations are of a judge of this name with another model, prompt or settings."""
    calibration: Calibration | None
    """The one that counts, or the one that expired."""
    message: str
    """A sentence, with what to do unless it is calibrated."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        found = None if self.calibration is None else self.calibration.to_dict()
        return {**asdict(self), "calibration": found}


def file_name(judge_digest: str) -> str:
    """The name of the file with the calibration of this judge."""
    return f"{PREFIX}{judge_digest}.json"


def read_calibration(content: str | bytes, where: str) -> Calibration:
    """Read the content of a calibration file.

    Raises:
        InputError: it is none, or a newer rftkit wrote it.
    """

    def fail(why: object) -> InputError:
        return InputError(
            f"{where} is not a calibration: {why}; make one with rftkit grader calibrate"
        )

    try:
        found = parse_strictly(content if isinstance(content, str) else content.decode())
    except ValueError as error:
        raise fail(error) from None
    if not isinstance(found, dict) or found.pop("object", None) != "rftkit.calibration":
        raise fail("it has no `object` rftkit.calibration")
    version = found.pop("version", 1)
    if not isinstance(version, int):
        raise fail(f"`version` must be a whole number, found {version!r:.80}")
    if version > VERSION:
        raise fail(f"a newer rftkit wrote it (version {version})")
    try:
        return _CALIBRATION.validate_json(json.dumps(found))
    except ValidationError as error:
        raise fail(first_problem(error)) from None


def calibration_statuses(
    spec: Mapping[str, Any], known: Iterable[Calibration], floor: float = 0.0
) -> list[CalibrationStatus]:
    """Whether each judge of a grader is calibrated.

    Args:
        spec: the grader, normalised.
        known: calibrations, the newest first.
        floor: the lower end of the interval must be above this.
    """
    given = list(known)
    return [_standing(key, part, given, floor) for key, part in judges(spec).items()]


def _standing(
    key: str, part: Mapping[str, Any], known: Sequence[Calibration], floor: float
) -> CalibrationStatus:
    name, mine = str(part.get("name") or key or part["type"]), digest(part)
    found = next((each for each in known if each.digest == mine), None)
    if found is None:
        old = next((each for each in known if each.name == name), None)
        state: State = "none" if old is None else "expired"
        if needs_group(part):
            why = f"{NOT_CALIBRATED.format(name=name)}, or require no calibration of the job."
            return CalibrationStatus(key, name, mine, "none", None, why)
        return CalibrationStatus(key, name, mine, state, old, _missing(name, old))
    if found.low is None or found.low <= floor:
        return CalibrationStatus(key, name, mine, "poor", found, _poor(name, found, floor))
    return CalibrationStatus(
        key, name, mine, "calibrated", found, f"`{name}` is calibrated: {_of(found)}."
    )


def _missing(name: str, old: Calibration | None) -> str:
    todo = "rftkit grader calibrate GRADER LABELS"
    if old is None:
        return (
            f"The judge `{name}` has no calibration: nobody has compared it with people. Label "
            f"some answers (`Labeller`), then: {todo}"
        )
    return (
        f"The calibration of the judge `{name}` has expired: its model, prompt or settings have "
        f"changed since ({_of(old)}). Compare it with the same labels again: {todo}"
    )


def _poor(name: str, found: Calibration, floor: float) -> str:
    if found.value is None:
        return (
            f"The judge `{name}` is not shown to agree with people: {_of(found)}, because all "
            "labels or all of its verdicts are alike. Label answers that people accept and answers "
            "that they reject, and calibrate it again."
        )
    return (
        f"The judge `{name}` is not shown to agree with people well enough: "
        f"{_of(found, floor)}, and the lower end of the interval must be above {floor:g}. "
        "Change its prompt or model, or add labels, and calibrate it again."
    )


def _of(found: Calibration, floor: float | None = None) -> str:
    """The agreement; a lower end below `floor` is not rounded to it."""
    labels = counted(found.num_labels, "label")
    if found.value is None:
        return f"its {found.statistic} is not defined on {labels}"
    if found.low is None or found.high is None:
        return f"{found.statistic} {found.value:.2f} on {labels}"
    is_apart = (n for n in range(2, 7) if found.low == floor or round(found.low, n) != floor)
    digits = next(is_apart, 7)
    value, low, high = (f"{each:.{digits}f}" for each in (found.value, found.low, found.high))
    return f"{found.statistic} {value} ({low} to {high}) on {labels}"


def _plain(value: Any) -> Any:
    """Numbers that are equal are written alike."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and abs(value) <= MOST_EXACT else value
