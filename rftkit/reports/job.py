"""Everything a report on one job shows, read once through the public routes.

Not here: showing it (`rftkit.views`). Files are downloaded to hash them, since the routes have no
hash. Facts that a service does not report are None.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.errors import NotFoundError, ReportError
from rftkit.graders.words import in_a_sentence
from rftkit.jobs.branches import Branch, family
from rftkit.jobs.checkpoints import COLUMNS, Checkpoint, checkpoints
from rftkit.jobs.follow import find
from rftkit.jobs.jobs import Event, error_of, events
from rftkit.jobs.local import step_rollouts
from rftkit.jsontext import parse_json
from rftkit.reports.summary import summary
from rftkit.views.facts import moment
from rftkit.views.jumps import StepJumps
from rftkit.wording import counted

if TYPE_CHECKING:
    from openai import OpenAI

    from rftkit.evals import Comparison

__all__ = ["JobRecord", "read_job"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job with its events, checkpoints, files and answers, as plain values."""

    job: Json
    """The job as on the wire."""
    error: str | None
    """Why the job failed."""
    events: list[Event]
    """Oldest first."""
    checkpoints: list[Checkpoint]
    files: list[Json]
    """Training and validation file: `use`, `name`, `id`, `bytes`, `rows`, `sha256`."""
    answers: Json | None
    """Before and after answers, in the shape of `rftkit.views.answers`."""
    validations: Comparison | None = None
    """The validations compared row by row; None where the service does not show their samples."""
    steps: list[Json] = field(default_factory=list)
    """What the training steps learned from, as `rftkit.jobs.step_rollouts` gives it."""

    family: Sequence[Branch] = ()
    """The job and its branches, as a tree; of a job without branches only itself."""

    @property
    def settings(self) -> Json:
        """The method of the request; for reinforcement with the grader."""
        method = self.job.get("method") or {}
        given: Json = method.get(method.get("type") or "supervised") or {}
        return given

    @property
    def training(self) -> StepJumps:
        """Where the training points of charts link to on the page."""
        return StepJumps(frozenset(each["step"] for each in self.steps))

    @property
    def reinforcement(self) -> Json:
        """Grader, hyperparameters and response format, as given; empty for other methods."""
        given: Json = (self.job.get("method") or {}).get("reinforcement") or {}
        return given

    @property
    def checkpoint_columns(self) -> dict[str, str]:
        """Columns of the table of checkpoints, with headings: what was measured."""
        columns = {**COLUMNS, "valid_loss": "validation loss"}
        optional = ("valid_reward_mean", "train_reward_mean", "valid_loss")
        is_rft = bool(self.reinforcement)
        return {
            name: heading
            for name, heading in columns.items()
            if name not in optional
            or (is_rft and name != "valid_loss")
            or any(getattr(each, name) is not None for each in self.checkpoints)
        }

    def about(self) -> list[str]:
        """What was trained, one sentence each: method, data, date, and the grader."""
        kind = (self.job.get("method") or {}).get("type") or "supervised"
        rows = [_file_words(each) for each in self.files]
        dataset = (self.answers or {}).get("dataset")
        data = f" on {dataset}" if dataset else ""
        held = f" ({', '.join(rows)})" if rows else ""
        started = moment(self.job["created_at"])[:10]
        sentences = [
            f"`{self.job['model']}`, {_METHODS.get(kind, kind)}{data}{held}. Started on {started}."
        ]
        if grader := self.reinforcement.get("grader"):
            sentences.append(in_a_sentence(grader))
        return sentences

    def summary(self) -> Json:
        """The main numbers of the job; see `rftkit.reports.summary`."""
        about = {"job": self.job["id"], "model": self.job["model"], "status": self.job["status"]}
        return about | summary(self.events, self.answers, self.validations)

    def hyperparameters(self) -> list[Json]:
        """Each one `as given` and `as used`; a job states the latter in its own events."""
        given = self.settings.get("hyperparameters") or self.job.get("hyperparameters") or {}
        used, ignored = _stated(self.events, "hyperparameters"), _stated(self.events, "ignored")
        used = used | _stated(self.events, "multipliers")
        set_by_hand = {name: value for name, value in given.items() if value != "auto"}
        used = set_by_hand | {name: value for name, value in used.items() if value is not None}
        return [
            {
                "hyperparameter": name,
                "as given": _short(given.get(name)),
                "as used": f"no effect: {ignored[name]}"
                if name in ignored
                else _short(used.get(name)),
            }
            for name in dict.fromkeys([*given, *used])
        ]

    def sources(self) -> Json:
        """The sources of the job, for `reports.made_from`."""
        files = {each["use"]: each for each in self.files}
        return {
            **files,
            "grader": self.reinforcement.get("grader"),
            "response format": self.reinforcement.get("response_format"),
            "job": self.job["id"],
            "seed of the job": self.job.get("seed"),
        }

    def facts(self) -> Json:
        """Ids, seed, times and the final status."""
        job, ended = self.job, self.job.get("finished_at")
        spent = (self.answers or {}).get("seconds") or {}
        return {
            "job": job["id"],
            "status": f"{job['status']}: {self.error}" if self.error else job["status"],
            "base model": job["model"],
            "final model": job.get("fine_tuned_model"),
            "seed": job.get("seed"),
            "created": moment(job["created_at"]),
            "finished": moment(ended),
            "minutes": round((ended - job["created_at"]) / 60, 1) if ended else None,
            "where the time went": ", ".join(f"{part} {s:.1f} s" for part, s in spent.items())
            or None,
            "tokens trained on": job.get("trained_tokens"),
            "suffix": job.get("user_provided_suffix"),
            "metadata": job.get("metadata"),
        }


def read_job(client: OpenAI, job_id: str, answers: str | Path = "") -> JobRecord:
    """Read a job, finished or not.

    Args:
        client: from `rftkit.connect()`, or any `openai.OpenAI`.
        job_id: `ftjob-…`.
        answers: a JSON file of before and after answers; empty for none.

    Raises:
        ReportError: the file of answers cannot be read.
    """
    job_id = find(client, job_id)
    job = client.fine_tuning.jobs.retrieve(job_id)
    story = events(client, job_id)
    used = {"training": job.training_file, "validation": job.validation_file}
    return JobRecord(
        job=job.to_dict(warnings=False),
        error=error_of(job),
        events=story,
        checkpoints=checkpoints(client, job_id, story),
        files=[_file(client, use, file_id) for use, file_id in used.items() if file_id],
        answers=_read_answers(Path(answers)) if answers else None,
        validations=_validations(client, job_id),
        steps=step_rollouts(client, job_id),
        family=_family(client, job_id),
    )


def _family(client: OpenAI, job_id: str) -> list[Branch]:
    """Empty where the service does not list its jobs."""
    from openai import APIError

    try:
        return family(client, job_id)
    except APIError:
        return []


def _validations(client: OpenAI, job_id: str) -> Comparison | None:
    """All validations compared with Step 0; None if the service does not show their samples."""
    from openai import APIError

    from rftkit import evals

    try:
        samples = evals.fetch(client, job_id)
    except (APIError, NotFoundError):
        return None
    return evals.compare(samples) if len(samples.frame) else None


_METHODS = {
    "reinforcement": "reinforcement fine-tuning",
    "supervised": "supervised fine-tuning",
    "dpo": "direct preference optimization (dpo)",
}


def _file_words(file: Json) -> str:
    rows = "" if file["rows"] is None else f"{counted(file['rows'], 'row')} of "
    return f"{rows}{file['name'] or file['id']} for {file['use']}"


def _short(value: Any) -> Any:
    """Numbers as they were typed: 1 and 0.0003, not 1.000 and 3.0e-04."""
    return f"{value:g}" if isinstance(value, float) else value if value is None else str(value)


def _read_answers(path: Path) -> Json:
    try:
        answers: Json = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"the file of answers cannot be read: {path}: {error}") from error
    if not isinstance(answers, dict) or not isinstance(answers.get("rows"), list):
        raise ReportError(f"{path} has no answers: expected an object with a list `rows`")
    return answers


def _file(client: OpenAI, use: str, file_id: str) -> Json:
    from openai import APIStatusError

    facts: Json = dict.fromkeys(("use", "name", "id", "bytes", "rows", "sha256"))
    facts |= {"use": use, "id": file_id}
    try:
        found = client.files.retrieve(file_id)
        facts |= {"name": found.filename, "bytes": found.bytes}
        content = client.files.content(file_id).content
    except APIStatusError:  # deleted or expired since
        return facts
    rows = sum(bool(line.strip()) for line in content.split(b"\n"))
    return facts | {"rows": rows, "sha256": hashlib.sha256(content).hexdigest()}


def _stated(events: list[Event], name: str) -> Json:
    """The settings of the job, from the first event that has them."""
    found = ((event.get("data") or {}).get(name) for event in events)
    return next((values for values in found if values and isinstance(values, dict)), {})
