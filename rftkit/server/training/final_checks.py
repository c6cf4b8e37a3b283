"""The last step before `succeeded`: categories that the operator checks, each with its own grader.
By default there are none, and the job's event says that none ran. The operator, not a request,
writes them into the file `checks.json` of the home folder:

    {"refuses": {"grader": {…}, "pass_threshold": 0.9, "rows": "refusals.jsonl"}}

`rows` is a file next to it; without `rows` the model answers the validation rows, or the training
rows of a job that has none. The model passes a category when the mean reward of its most likely
answers reaches the threshold. A model that does not pass is not made known, and its job fails
naming the categories; a grader that breaks pauses the job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rftkit import graders
from rftkit.errors import PlatformError, RftkitError
from rftkit.graders.engine import param_of
from rftkit.graders.relative import refuse_single
from rftkit.rows import read_rows
from rftkit.server.training import metrics, sampling
from rftkit.server.training.context import AnyRun, Check, Stopped
from rftkit.strictjson import parse_strictly

__all__ = ["read_checks", "run_checks"]

FILE = "checks.json"
KEYS = {"grader", "pass_threshold", "rows"}
KEY = "final-checks"


def read_checks(home: Path) -> list[Check]:
    """The checks of a home folder.

    Raises:
        PlatformError: the file cannot be used; the error says where.
    """
    path = home / FILE
    if not path.is_file():
        return []
    try:
        given = parse_strictly(path.read_text(encoding="utf-8-sig"))
        return [_check(home, category, spec) for category, spec in given.items()]
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RftkitError) as error:
        raise PlatformError(
            f"{path} cannot be used: {error!r}; it must hold "
            '{"category": {"grader": {…}, "pass_threshold": 0.9, "rows": "file.jsonl"}, …}'
        ) from error


def _check(home: Path, category: str, given: dict[str, Any]) -> Check:
    if unknown := set(given) - KEYS:
        raise ValueError(f"{category}: unknown key {min(unknown)}")
    rows = None
    if given.get("rows") is not None:
        path = home / given["rows"]
        with path.open("rb") as lines:
            rows = list(read_rows(lines, path=path))
    spec = graders.validate(given["grader"])
    for key, part in graders.parts(spec).items():
        refuse_single(part, param_of(key))
    return Check(category, spec, float(given["pass_threshold"]), rows)


def run_checks(run: AnyRun) -> None:
    """Sample from the final model, and grade its answers.

    Raises:
        Stopped: the model did not pass, or a grader broke; the job's status says which.
    """
    if run.store.has_event(run.job.id, KEY):
        return
    found = {check.category: _result(run, check) for check in run.checks}
    broken = [category for category, result in found.items() if result["score"] is None]
    missed = [category for category, result in found.items() if result["passed"] is False]
    if broken:
        _pause(run, found, broken)
    elif missed:
        _fail(run, found, missed)
    names = ", ".join(found) or f"none ran, because the operator has configured none ({FILE})"
    text = f"Final checks passed: {names}" if found else f"Final checks: {names}"
    run.store.add_event(run.job.id, text, type="moderation_checks", data={"checks": found}, key=KEY)


def _result(run: AnyRun, check: Check) -> dict[str, Any]:
    assert run.compile is not None
    rows = check.rows if check.rows is not None else run.valid_rows or run.rows
    kind = f"{sampling.CHECKS_KIND} {check.category}"  # each check has trace ids of its own
    ask = sampling.SamplingPlan(rows, sampling.CHECKS, 1, 0.0)
    with run.compile(check.grader) as grader:
        groups, _ = sampling.graded(run, kind, 0, ask, grader=grader)
    failed, total, example = metrics.failure(groups)
    score = None if failed else metrics.mean_reward(groups)
    return {
        "passed": None if score is None else score >= check.pass_threshold,
        "score": score,
        "pass_threshold": check.pass_threshold,
        "samples": total,
        "failed_grades": failed,
        "example": example.errors if example else None,
    }


def _pause(run: AnyRun, found: dict[str, Any], broken: list[str]) -> None:
    """The job waits for the operator; resumed, it checks again."""
    with run.store.transaction():
        if not run.store.try_status(run.job.id, "paused"):
            raise Stopped
        run.store.add_event(
            run.job.id,
            f"The job pauses: graders of the final checks failed ({', '.join(broken)}). Fix "
            f"them in {FILE} and resume. One failure: {found[broken[0]]['example']}",
            level="error",
            type="moderation_checks",
            data={"checks": found},
        )
    raise Stopped


def _fail(run: AnyRun, found: dict[str, Any], missed: list[str]) -> None:
    """The final model gets no name; the checkpoints before it, which were not checked, stay."""
    message = f"The final model did not pass the checks: {', '.join(missed)}; it is withheld."
    error = {"code": "final_checks_failed", "message": message, "param": None}
    with run.store.transaction():
        if not run.store.try_status(run.job.id, "failed", error=error):
            raise Stopped
        run.store.add_event(
            run.job.id,
            message,
            level="error",
            type="moderation_checks",
            data={"checks": found},
            key=KEY,
        )
    raise Stopped
