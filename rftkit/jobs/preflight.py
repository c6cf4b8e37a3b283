"""Is this job worth starting? A checklist; each check is ok or a reason to stop.

    data            the dataset check: rows, template paths, reference answers
    grader          what cheap cheats earn compared with honest answers
    calibration     has anybody compared the grader's judges with people?
    tools           do the servers of the job's tools answer?
    learnability    do the answers of the base model differ in reward? from the steps of a probe

A check that is not ok stops the start until you override it by name. The checks themselves are in
`datasets.check` and `graders.audit`; `jobs.probe` runs the probe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rftkit.diagnosis import Story, findings, share_words, story_of
from rftkit.errors import InputError
from rftkit.jobs.jobs import Event, Method
from rftkit.jobs.metrics import step_metrics

if TYPE_CHECKING:
    from openai import OpenAI

    from rftkit.graders import Calibration

__all__ = [
    "CHECKS", "Check", "check_calibration", "check_data", "check_grader", "check_learnability",
    "check_tools", "require",
]  # fmt: skip

CHECKS = ("data", "tools", "grader", "calibration", "learnability")
AUDITED_ROWS = 50

State = Literal["ok", "warning", "error", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the checklist and its result."""

    name: str
    """The name to override it by."""
    state: State
    """`ok` is green; `error` means that the job would fail or learn nothing."""
    result: str
    """What it found, in one sentence."""
    details: tuple[str, ...] = ()
    """Everything found, worst first."""

    @property
    def is_green(self) -> bool:
        """Whether the check found no reason not to start."""
        return self.state == "ok"

    def __str__(self) -> str:
        return f"{self.name:<14}{self.state:<13}{self.result}"


def require(checks: Sequence[Check], overridden: Iterable[str] = ()) -> None:
    """Raise an error unless every check is ok or overridden by name.

    Raises:
        InputError: names every other check, and how to override it.
    """
    known = {check.name for check in checks}
    if unknown := sorted(set(overridden) - known):
        raise InputError(f"there is no check {unknown[0]!r}; the checks are {', '.join(known)}")
    blocking = [
        check for check in checks if not check.is_green and check.name not in set(overridden)
    ]
    if blocking:
        names = ", ".join(repr(check.name) for check in blocking)
        raise InputError(
            "the job was not started:\n"
            + "\n".join(map(str, blocking))
            + f"\nto start it anyway, override {names} by name"
        )


def check_data(
    train: str | Path,
    valid: str | Path | None = None,
    *,
    grader: Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    method: Method = "reinforcement",
) -> Check:
    """Run the dataset check on the files of a job of this method."""
    from rftkit.datasets import check

    found = check(
        train, valid, method=method, grader=grader, response_format=response_format, tools=tools
    )
    by_severity = {
        severity: [each for each in found.findings if each.severity == severity]
        for severity in ("error", "warning")
    }
    details = tuple(map(str, found.findings))
    for severity in ("error", "warning"):
        if several := by_severity[severity]:
            more = f" (and {len(several) - 1} more)" if len(several) > 1 else ""
            words = several[0].message + more
            return Check("data", "error" if severity == "error" else "warning", words, details)
    counts = [each.message for each in found.findings if each.code in ("rows", "references")]
    folders = {f"{Path(path).parent}/" for path in (train, valid) if path is not None}
    words = "; ".join(counts)
    for folder in folders:
        words = words.replace(folder, "")
    return Check("data", "ok", words or "nothing found", details)


def check_grader(
    grader: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    *,
    response_format: Mapping[str, Any] | None = None,
    **options: Any,
) -> Check:
    """Compare what cheats earn with the reference answers of rows.

    Args:
        grader: as on the wire.
        items: rows, as graders see them.
        response_format: of the job.
        options: of `compile_grader`, such as `complete` for model graders.
    """
    from rftkit.graders import audit, parts
    from rftkit.graders.relative import NO_GROUP, needs_group

    if any(map(needs_group, parts(grader).values())):
        return Check("grader", "not checked", NO_GROUP)
    found = audit(grader, items, response_format=response_format, max_rows=AUDITED_ROWS, **options)
    findings = tuple(found.findings())
    if found.verdict is not None:
        return Check("grader", "error", found.verdict.sentence, findings)
    if found.honest is None:
        return Check("grader", "not checked", findings[0], findings)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        return Check("grader", "warning", findings[0] + more, findings)
    return Check("grader", "ok", f"no cheat pays on {found.num_rows} rows")


def check_tools(tools: Sequence[Mapping[str, Any]]) -> Check:
    """Whether the servers of a job's tools answer, as seen from this machine; no tool is called.

    Servers that the platform starts itself are left out.
    """
    from rftkit.tools import ToolFailed, reach

    reached, failed = [], []
    for each in tools:
        name, url = str(each.get("server_label") or each.get("name")), each.get("server_url")
        if not isinstance(url, str) or not url.startswith("http"):
            continue
        try:
            reach(name, url)
            reached.append(name)
        except ToolFailed as error:
            failed.append(str(error))
    if failed:
        return Check("tools", "error", failed[0], tuple(failed))
    answer = f"{', '.join(reached)} {'answers' if len(reached) == 1 else 'answer'}"
    return Check("tools", "ok", answer if reached else "the platform starts their servers itself")


def check_calibration(client: OpenAI, grader: Mapping[str, Any], floor: float = 0.0) -> Check:
    """Whether each judge of a grader has a calibration on the service (`evals.calibrate`).

    Args:
        client: from `rftkit.connect()`, or any `openai.OpenAI`.
        grader: as on the wire.
        floor: the lower end of the agreement's interval must be above this.
    """
    from rftkit.graders import calibration_statuses, judges, validate

    spec = validate(grader)
    if not judges(spec):
        return Check("calibration", "ok", "the grader asks no model")
    found = calibration_statuses(spec, _calibrations(client), floor)
    details = tuple(each.message for each in found)
    if bad := [each.message for each in found if each.state != "calibrated"]:
        return Check("calibration", "warning", bad[0], details)
    return Check("calibration", "ok", " ".join(details), details)


def _calibrations(client: OpenAI) -> list[Calibration]:
    """The calibrations among the files of a service, the newest first."""
    from rftkit.graders import read_calibration
    from rftkit.graders.calibrations import PREFIX

    known = []
    for file in client.files.list(purpose="user_data"):
        if file.filename.startswith(PREFIX):
            with contextlib.suppress(InputError):
                known.append(read_calibration(client.files.content(file.id).content, file.filename))
    return known


def check_learnability(events: Iterable[Event]) -> Check:
    """Whether the base model's answers give a signal, from the steps of a probe or of a job.

    The rules are those that warn in a job (`rftkit.diagnosis`).
    """
    events = list(events)
    story = story_of(events)
    if not story.num_steps:
        return Check("learnability", "not checked", "no step has run yet: run the estimate first")
    steps = [step_metrics(dict(data)) for data in story.recent]
    if story.is_offline:
        losses = ", ".join(f"{s['train_loss']:.3f}" for s in steps if s["train_loss"] is not None)
        words = f"the job learns from the answers of its rows; its first losses are {losses}"
        return Check("learnability", "ok", words)
    mean, flat, failed = (
        _mean([step[name] for step in steps])
        for name in ("train_reward_mean", "no_signal_groups", "failed_grades")
    )
    if mean is None:
        return Check("learnability", "error", "none of the probe's answers could be graded")
    sentence = f"the base model earns {mean:.3f}"
    if flat is not None:
        sentence += f"; {flat:.0%} of its groups have no signal: all their rewards are equal"
    found = [str(each) for each in findings(story)]
    if failed:
        found.insert(0, "some grades failed: check the grader first")
    details = (*found, *_answer_shares(story))
    if flat == 1.0:
        sentence += ", so there is nothing to learn from"
        return Check("learnability", "error", sentence, details)
    if found:
        return Check("learnability", "warning", f"{sentence}; {found[0]}", details)
    return Check("learnability", "ok", sentence, details)


def _answer_shares(story: Story) -> list[str]:
    """Shares of the answer values in the newest training step."""
    return [
        f"`{name}`: {share_words(found)}"
        for (name, side), found in story.answers.items()
        if side == "train" and "never_sampled" in found
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
