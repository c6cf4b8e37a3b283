"""What JobMonitor shows of one job: its header and its sections, as markup.

Not here: controls, and when to poll and to draw (`monitor`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rftkit import views
from rftkit.diagnosis import Finding, findings, story_of
from rftkit.errors import RftkitError
from rftkit.jobs import Follow, checkpoints, error_of, rollouts, step_metrics, waits_for
from rftkit.jobs.checkpoints import COLUMNS
from rftkit.jobs.metrics import start_step
from rftkit.jobs.runs import file_name
from rftkit.views.compare_rows import row_cards
from rftkit.views.jumps import StepJumps
from rftkit.views.markup import Html, join, wrap
from rftkit.views.watch import job_status
from rftkit.wording import counted

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["SECTIONS", "STALE_POLLS", "JobView"]

STALE_POLLS = 3
"""Polls that must fail in a row before the header says that it is out of date."""
MAX_GROUPS = 256
"""Groups shown at once: as many as a batch can have, because widgets cannot run scripts."""
SECTIONS = {
    "curves": "Curves",
    "health": "Health",
    "signal": "Signal",
    "criteria": "Criteria",
    "time": "Time",
    "rollouts": "Rollouts",
    "validations": "Validation rows",
    "checkpoints": "Checkpoints",
    "events": "Events",
}
LOSS_COLUMNS = {"step": "step", "valid_loss": "validation loss", "model": "model"}
"""The columns for a job without a grader."""


class JobView:
    """One job, followed; each event is read once however often the job is shown."""

    def __init__(self, client: OpenAI, job_id: str) -> None:
        self._client = client
        self.follow = Follow(client, job_id)
        self._rows: dict[str, dict[str, Any] | None] = {}
        self._problems: tuple[int, list[Finding]] = (0, [])
        self._dataset: str | None = None

    @property
    def has_settled(self) -> bool:
        """Whether nothing will change any more, unless somebody resumes the job."""
        return self.follow.has_ended or self.follow.job["status"] == "paused"

    @property
    def news(self) -> tuple[int, bool, str]:
        """A value that changes whenever a section could look different."""
        follow = self.follow
        return len(follow.events), follow.has_all_events, str(follow.job["status"])

    def header(self, poll_seconds: float | None) -> Html:
        """Which job it is and its status.

        Args:
            poll_seconds: seconds between two polls; None for a static copy.
        """
        follow = self.follow
        stale = (
            f"Stale: the last {follow.failed_polls} requests to the service failed "
            f"({follow.last_error}). The job continues without this view."
        )
        is_polling = poll_seconds is not None and not self.has_settled
        status = job_status(
            follow.job,
            self.steps(),
            error=_error(follow.job),
            polled_at=follow.polled_at,
            stale=stale if follow.failed_polls >= STALE_POLLS else "",
            expires_after=max(10.0, 5 * (poll_seconds or 0)) if is_polling else None,
            unread=not follow.has_all_events,
            findings=self.findings() if follow.has_all_events else (),
            waits=waits_for(follow.events),
        )
        return join([views.note(self._facts()), status], status.plain)

    def section(
        self, name: str, step: int | None = None, max_bytes: int = 300_000, *, live: bool = False
    ) -> Html:
        """The content of one of `SECTIONS`.

        Args:
            name: the section.
            step: of rollouts and validation rows; None for the newest.
            max_bytes: of its markup, about.
            live: in a panel, where the points of charts lead to these two sections.
        """
        events = self.follow.events
        trained, validated = (
            StepJumps(frozenset(self.shown_steps(each)), act=act) if live else None
            for each, act in (("rollouts", "step"), ("validations", "validation"))
        )
        if name == "curves":
            return views.reward_chart(events, training=trained, validated=validated)
        if name == "health":
            return views.health_chart(events, training=trained)
        if name == "signal":
            chart = views.signal_chart(events, training=trained)
            return join([views.diagnosis(events), chart, views.alarms(events)])
        if name == "criteria":
            return views.criteria(events, training=trained)
        if name == "time":
            return views.time_chart(events)
        if name == "rollouts":
            found = self._rollouts(step)
            return views.rollouts(found, page=MAX_GROUPS, max_bytes=max_bytes)
        if name == "validations":
            return self._validations(step, max_bytes)
        if name == "checkpoints":
            return self._checkpoints()
        return views.events(
            reversed(events), max_bytes=max_bytes
        )  # a live view has room for the newest events only

    def steps(self) -> list[dict[str, Any]]:
        """The metrics of each step, sorted; each event is parsed once."""
        events = self.follow.events
        for event in events:
            if event["id"] not in self._rows:
                data = event.get("data") or {}
                is_step = data.get("step") is not None and event.get("type") == "metrics"
                self._rows[event["id"]] = (
                    {"step": int(data["step"]), "total_steps": data.get("total_steps")}
                    | step_metrics(data)
                    if is_step
                    else None
                )
        known = (self._rows[event["id"]] for event in events)
        by_step = {row["step"]: row for row in known if row is not None}
        return [by_step[step] for step in sorted(by_step)]

    def shown_steps(self, section: str) -> list[int]:
        """The steps whose rows a section can show."""
        if section == "validations":
            measured = ("valid_reward_mean", "full_valid_loss")
            return [
                each["step"]
                for each in self.steps()
                if any((value := each.get(name)) is not None and value == value
                       for name in measured)
            ]  # fmt: skip
        start = start_step(self.follow.events)
        return [each["step"] for each in self.steps() if each["step"] > start]

    def _rollouts(self, step: int | None) -> dict[str, Any] | None:
        """The rollouts of one step; they may be missing for a job of an older version."""
        return rollouts(self._client, self.follow.job["id"], step)

    def _validations(self, step: int | None, max_bytes: int) -> Html:
        """The rows of a validation next to those of the first one, those that changed
        most first.
        """
        from openai import APIError

        from rftkit import evals

        try:
            samples = evals.fetch(self._client, self.follow.job["id"])
        except (APIError, RftkitError):
            return views.note("No validation answers to show. A job has them only with a grader.")
        steps = {run.step: run.label for run in samples.runs}
        if step is not None and step not in steps:
            return views.note(f"The validation at step {step} has no answers yet.")
        compared = evals.compare(samples, after=steps[step] if step else None)
        keys = list(views.jumps_for(compared, MAX_GROUPS).numbers)
        label = compared.focus or compared.baseline
        said = f"{counted(len(keys), 'row')} at {label}" + (
            f", compared with {compared.baseline}; those that changed most come first."
            if compared.focus
            else "."
        )
        cards = row_cards(compared, keys, max_bytes=max_bytes)
        return join([views.note(said), wrap(join(cards))], plain=said)

    def findings(self) -> list[Finding]:
        """The problems at the newest step, computed again when there are new events."""
        events = self.follow.events
        if self._problems[0] != len(events):
            self._problems = (len(events), findings(story_of(events)))
        return self._problems[1]

    def _facts(self) -> str:
        """Which job it is: its id, model, data and suffix."""
        job = self.follow.job
        if self._dataset is None:
            self._dataset = file_name(self._client, str(job.get("training_file") or ""))
        suffix = job.get("suffix") or job.get("user_provided_suffix")
        return " · ".join(str(e) for e in (job["id"], job.get("model"), self._dataset, suffix) if e)

    def _checkpoints(self) -> Html:
        kept = checkpoints(self._client, self.follow.job["id"], self.follow.events)
        if not kept:
            return views.note("No checkpoint yet. Each validation after a step saves one.")
        is_graded = any(each.valid_reward_mean is not None for each in kept)
        has_loss = any(each.valid_loss is not None for each in kept)
        columns = COLUMNS if is_graded or not has_loss else LOSS_COLUMNS
        return views.table(kept, columns, noun="checkpoint")


def _error(job: dict[str, Any]) -> str | None:
    """Why a job failed; the service's `error` of `{}` is none."""
    from openai.types.fine_tuning import FineTuningJob

    return error_of(FineTuningJob.construct(**job)) if job.get("error") else None
