"""Check whether an imported job or grader runs here, what differs, and what to change.

A `Check` compares the object with what the platform has (`place`), part by part (`differences`).
Nothing is run and nothing is created. `rftkit.views.migration` shows a check, and `rerun` runs a
job again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rftkit.examples import READERS
from rftkit.importer.differences import (
    Difference,
    check_grader,
    hyperparameters_of,
    of_model,
    of_rows,
    of_settings,
)
from rftkit.importer.place import Place, place
from rftkit.importer.survey import graders_of_eval, graders_of_job
from rftkit.jsontext import digest_of

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Check", "check_all", "check_job"]

Verdict = Literal["runs", "differs", "stops"]
WORDS: dict[Verdict, str] = {
    "runs": "runs as it is",
    "differs": "runs, with differences",
    "stops": "does not run as it is",
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One job or grader, checked against this platform."""

    kind: Literal["job", "grader"]
    id: str
    """Id of the job; for a grader, the first twelve characters of its content's hash."""
    name: str
    """Name of the grader, or of the model that the job trained."""
    type: str
    """Type of the grader, or method of the job."""
    origin: str = ""
    """The account it was imported from; empty for a local object."""
    used_by: tuple[str, ...] = ()
    """Ids of the jobs and evals with this grader."""
    differences: tuple[Difference, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """`stops` if one difference stops it."""
        if any(each.stops for each in self.differences):
            return "stops"
        return "differs" if self.differences else "runs"

    @property
    def sentence(self) -> str:
        """The verdict as text."""
        return WORDS[self.verdict]

    def to_dict(self) -> Json:
        """Plain JSON, for programs."""
        return {**asdict(self), "verdict": self.verdict}


def check_all(client: OpenAI) -> list[Check]:
    """Every imported job, newest first, and every distinct grader of imported jobs and evals."""
    here, checks, graders = place(client), [], _Graders()
    for each in client.fine_tuning.jobs.list(limit=100):
        job = each.to_dict(warnings=False)
        if job.get("imported_from"):
            checks.append(check_job(job, here))
            graders.add(job, graders_of_job(job), "rft")
    for each_eval in client.evals.list(limit=100):
        record = each_eval.to_dict(warnings=False)
        if record.get("imported_from"):
            graders.add(record, graders_of_eval(record), "eval")
    return checks + graders.checks(here)


def check_job(job: Mapping[str, Any], here: Place, model: str | None = None) -> Check:
    """Check how a job would differ if it ran here.

    Args:
        job: As on the wire.
        here: From `place`.
        model: The local model to train; None leaves it open.

    Raises:
        NotFoundError: The local model does not exist.
    """
    method = job.get("method") or {}
    kind = method.get("type") or "supervised"
    given = method.get(kind) or {}
    found = list(of_model(job, here, model))
    if kind == "reinforcement":
        grader = given.get("grader")
        if isinstance(grader, dict) and grader:
            found += check_grader(grader, here)
            found += of_rows(job, kind, grader, here)
        else:
            found.append(
                Difference("grader", "the job has none", "give one with --grader", stops=True)
            )
    elif kind in READERS:
        found += of_rows(job, kind, {}, here)
    else:
        here_is = f"{kind} training is not available here, only {', '.join(READERS)}"
        change = "create a job of another method (rftkit job create)"
        found.append(Difference("method", here_is, change, stops=True))
    found += of_settings(kind, {**given, "hyperparameters": hyperparameters_of(job)})
    if job.get("integrations"):
        found.append(Difference("integrations", "left out: nothing is sent to other services"))
    return Check(
        "job", job["id"], str(job.get("model")), kind, str(job.get("imported_from") or ""),
        differences=tuple(found),
    )  # fmt: skip


class _Graders:
    """Distinct graders and who uses them."""

    def __init__(self) -> None:
        self._specs: dict[str, tuple[Json, str, Literal["rft", "eval"]]] = {}
        self._users: dict[str, list[str]] = {}

    def add(
        self, owner: Json, found: Iterator[tuple[str, Json]], purpose: Literal["rft", "eval"]
    ) -> None:
        for _, spec in found:
            key = f"{purpose}-{digest_of(spec)}"
            self._specs.setdefault(key, (spec, str(owner["imported_from"]), purpose))
            users = self._users.setdefault(key, [])
            users += [] if owner["id"] in users else [owner["id"]]

    def checks(self, here: Place) -> list[Check]:
        return [
            Check(
                "grader", key.partition("-")[2][:12], str(spec.get("name") or ""),
                str(spec.get("type")), origin, tuple(self._users[key]),
                tuple(check_grader(spec, here, purpose=purpose)),
            )
            for key, (spec, origin, purpose) in self._specs.items()
        ]  # fmt: skip
