"""JobMonitor: watch a job from any kernel at any time, and pause, resume or cancel it.

The job runs on the service; the panel only polls it. You can close the browser or restart the
kernel without affecting the job; run the cell again to see the whole history. The panel polls every
two seconds, fetches only new events, and spends at most about a tenth of its time on drawing. The
curves are in `rftkit.views.charts`, the requests to the service in `jobs.follow`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import Enum, Float, Unicode, validate

from rftkit import views
from rftkit.diagnosis import Finding, findings, story_of
from rftkit.errors import InputError
from rftkit.jobs import (
    Follow,
    checkpoints,
    error_of,
    find,
    latest,
    rollouts,
    step_frame,
    step_metrics,
)
from rftkit.views.markup import Html, join, wrap
from rftkit.views.watch import job_status
from rftkit.widgets.panel import STORED_BYTES, Panel, live

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

__all__ = ["JobMonitor"]

STALE_POLLS = 3
"""Polls that must fail in a row before the panel says that it is out of date."""
DRAWING_SHARE = 10
"""The curves are drawn again after this many times the duration of the last drawing."""
ARMED_SECONDS = 5.0
"""Seconds for the second click that confirms a cancellation."""
LISTED = 50
"""Jobs in the menu, newest first."""
REST_SECONDS = 15.0
"""Seconds between polls of a paused job, and at most between drawings."""
MAX_GROUPS = 256
"""Groups shown at once: as many as a batch can have, because widgets cannot run scripts."""

SECTIONS = {
    "curves": "Curves",
    "health": "Health",
    "signal": "Signal",
    "time": "Time",
    "rollouts": "Rollouts",
    "checkpoints": "Checkpoints",
    "events": "Events",
}
MODEL_COLUMNS = {
    "step": "step",
    "valid_reward_mean": "validation reward",
    "train_reward_mean": "train reward",
    "model": "model",
}
LOSS_COLUMNS = {"step": "step", "valid_loss": "validation loss", "model": "model"}
"""Of a job without a grader."""


class JobMonitor(Panel):
    """Watch one job: curves, health, signal, time, newest rollouts, checkpoints, events.

    `JobMonitor("ftjob-…")` attaches to a running or finished job, `JobMonitor()` to the newest
    one. `pause()`, `resume()` and `cancel()` are the buttons; `watch()` waits for the end.

    Args:
        job_id: None or empty for the newest job.
        client: default `rftkit.connect()`; any `openai.OpenAI`.
        state: `section`, one of curves, health, signal, time, rollouts, checkpoints, events;
            `poll_seconds`.
    """

    section = Enum(list(SECTIONS), default_value="curves", help="What is shown below the header.")
    poll_seconds = Float(2.0, help="Seconds between two polls.")
    job_id = Unicode("", help="Id of the job.")

    def __init__(
        self, job_id: str | None = None, *, client: OpenAI | None = None, **state: Any
    ) -> None:
        """Poll once, so that a wrong id is an error here and not in the panel."""
        from rftkit.client import connect

        self._client = client or connect()
        if not job_id and not latest(self._client):
            raise InputError(
                "there is no job to watch yet; start one, for example with rftkit.jobs.create"
            )
        found = find(self._client, job_id or "")
        self._stop, self._wake = threading.Event(), threading.Event()
        self._follow, self._drawn = Follow(self._client, found), _Drawing()
        self._rows: dict[str, dict[str, Any] | None] = {}
        self._problems: tuple[int, list[Finding]] = (0, [])
        self._armed_at = 0.0
        self._names: dict[str, str] = {}
        super().__init__(job_id=found, **state)

    # what it shows

    def data(self) -> pd.DataFrame:
        """One row per step: the columns of `rftkit.jobs.step_frame` that the job reports."""
        return step_frame(self._follow.events).dropna(axis="columns", how="all")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events fetched so far, oldest first."""
        return self._follow.events

    @property
    def job(self) -> dict[str, Any]:
        """The job at the last poll, as on the wire."""
        return self._follow.job

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """All sections in order; for a small `max_bytes`, only the status of the job."""
        head = self._header(static=True)
        if max_bytes <= STORED_BYTES:
            return head
        parts = [head]
        for name, title in SECTIONS.items():
            body = self._section(name, max_bytes // len(SECTIONS))
            parts.append(wrap(f"<h3>{title}</h3>"))
            parts.append(body)
        return join(parts, plain=head.plain)

    def _header(self, *, static: bool = False) -> Html:
        follow = self._follow
        late = follow.failed_polls >= STALE_POLLS
        stale = (
            f"Stale: the last {follow.failed_polls} requests to the service failed "
            f"({follow.last_error}). The job continues without this view."
        )
        is_polling = not static and not self._has_settled()
        status = job_status(
            follow.job,
            self._steps(),
            error=_error(follow.job),
            polled_at=follow.polled_at,
            stale=stale if late else "",
            expires_after=max(10.0, 5 * self.poll_seconds) if is_polling else None,
            unread=not follow.has_all_events,
            findings=self._findings() if follow.has_all_events else (),
        )
        return join([views.note(self._facts()), status], status.plain)

    def _facts(self) -> str:
        """Which job it is: its id, model, data and suffix."""
        job = self._follow.job
        file_id = str(job.get("training_file") or "")
        if file_id and file_id not in self._names:
            self._names[file_id] = self._name_of(file_id)
        suffix = job.get("suffix") or (job.get("user_provided_suffix") or "")
        facts = (job["id"], job.get("model"), self._names.get(file_id), suffix)
        return " · ".join(str(each) for each in facts if each)

    def _name_of(self, file_id: str) -> str:
        from openai import OpenAIError

        try:
            return str(self._client.files.retrieve(file_id).filename)
        except OpenAIError:  # deleted, or the service does not answer: the id will do
            return file_id

    def _findings(self) -> list[Finding]:
        """The problems at the newest step, computed again when there are new events."""
        events = self._follow.events
        if self._problems[0] != len(events):
            self._problems = (len(events), findings(story_of(events)))
        return self._problems[1]

    def _steps(self) -> list[dict[str, Any]]:
        """The rows of `data()` as mappings; each event is parsed once."""
        for event in self._follow.events:
            if event["id"] not in self._rows:
                data = event.get("data") or {}
                is_step = data.get("step") is not None and event.get("type") == "metrics"
                self._rows[event["id"]] = (
                    {"step": int(data["step"]), "total_steps": data.get("total_steps")}
                    | step_metrics(data)
                    if is_step
                    else None
                )
        known = (self._rows[event["id"]] for event in self._follow.events)
        by_step = {row["step"]: row for row in known if row is not None}
        return [by_step[step] for step in sorted(by_step)]

    def _section(self, name: str, max_bytes: int = 300_000) -> Html:
        events = self._follow.events
        if name == "curves":
            return views.reward_chart(events)
        if name == "health":
            return views.health_chart(events)
        if name == "signal":
            return join([views.diagnosis(events), views.signal_chart(events)])
        if name == "time":
            return views.time_chart(events)
        if name == "rollouts":
            found = rollouts(self._client, self.job_id)
            return views.rollouts(found, page=MAX_GROUPS, max_bytes=max_bytes)
        if name == "checkpoints":
            kept = checkpoints(self._client, self.job_id, events)
            if not kept:
                return views.note("No checkpoint yet. Each validation after a step saves one.")
            is_graded = any(each.valid_reward_mean is not None for each in kept)
            has_loss = any(each.valid_loss is not None for each in kept)
            columns = MODEL_COLUMNS if is_graded or not has_loss else LOSS_COLUMNS
            return views.table(kept, columns, noun="checkpoint")
        return views.events(reversed(events))  # a live view has room for the newest events only

    # what it does

    def pause(self) -> None:
        """Stop the job after the current step; you can resume it later."""
        self._client.fine_tuning.jobs.pause(self.job_id)
        self.refresh()

    def resume(self) -> None:
        """Continue a paused job."""
        self._client.fine_tuning.jobs.resume(self.job_id)
        self.refresh()

    def cancel(self) -> None:
        """Stop the job permanently; its checkpoints are kept."""
        self._client.fine_tuning.jobs.cancel(self.job_id)
        self.refresh()

    def refresh(self) -> None:
        """Poll the service now."""
        self._follow.poll()
        self._drawn = _Drawing()
        self._wake.set()
        self._redraw(set())

    def watch(
        self,
        *,
        until: Callable[[JobMonitor], bool] | None = None,
        timeout_seconds: float = 600.0,
        block: bool | None = None,
    ) -> None:
        """Wait until the job has ended or is paused, and show its status.

        A live panel follows the job automatically, so this returns at once there. A headless run
        of the notebook waits here, so that the cells below have something to show.

        Args:
            until: wait only until this is true.
            timeout_seconds: stop waiting after this time; the job continues.
            block: wait even in a live notebook (True), or not at all (False).
        """
        from openai import OpenAIError

        if not (not live() if block is None else block):
            return
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OpenAIError):  # counted, and shown as stale
                while self._follow.fetch_older():
                    pass
                if self._has_settled() or (until is not None and until(self)):
                    break
                self._stop.wait(min(self.poll_seconds, 0.5))
                self._follow.poll()
        if not live():
            self._show_again()

    def close(self) -> None:
        """Stop polling. The job is not affected."""
        self._stop.set()
        self._wake.set()
        super().close()

    def _has_settled(self) -> bool:
        return self._follow.has_ended or self._follow.job["status"] == "paused"

    # live

    def _build(self) -> Sequence[ipywidgets.Widget]:
        self._head, self._body = self._html(), self._html()
        self._choice = ipywidgets.ToggleButtons(
            options=[(title, name) for name, title in SECTIONS.items()],
            style={"button_width": "auto"},
            tooltips=[f"Show {title.lower()}" for title in SECTIONS.values()],
        )
        self._bind("section", self._choice)
        self._pause = self._button("Pause", self.pause, "Stop after this step; nothing is lost")
        self._resume = self._button("Resume", self.resume, "Continue the paused job")
        self._cancel = self._button(
            "Cancel", self._press_cancel, "Stop the job; it cannot be resumed"
        )
        self._jobs = ipywidgets.Dropdown(
            description="Job", options=[self.job_id], layout=ipywidgets.Layout(max_width="100%")
        )
        self._list_jobs()
        self._jobs.observe(lambda change: self._guard(lambda: self._choose(change["new"])), "value")
        again = self._button("Refresh", self.refresh, "Fetch new events")
        buttons = [self._pause, self._resume, self._cancel, again]
        self._poller = threading.Thread(target=self._poll_until_closed, daemon=True)
        self._poller.start()
        return [
            self._jobs,
            self._head,
            ipywidgets.HBox(buttons, layout=ipywidgets.Layout(flex_flow="row wrap")),
            self._choice,
            self._body,
        ]

    def _list_jobs(self) -> None:
        """Fill the menu with the newest jobs, and with this one."""
        page = self._client.fine_tuning.jobs.list(limit=LISTED).data
        options = {job.id: _choice(job.to_dict(warnings=False)) for job in page}
        options.setdefault(self.job_id, _choice(self.job))
        self._jobs.options = [(words, job_id) for job_id, words in options.items()]
        self._jobs.value = self.job_id

    def _choose(self, job_id: str | None) -> None:
        if job_id and job_id != self.job_id:
            self._armed_at = 0.0
            self.set(job_id=job_id)
            self._wake.set()

    def _draw(self) -> None:
        """Draw header and buttons; wake the thread that draws the section."""
        status = self._follow.job["status"]
        self._head.value = self._header()
        self._pause.disabled = status != "running"
        self._resume.disabled = status != "paused"
        self._cancel.disabled = self._follow.has_ended
        self._cancel.description = "Really cancel?" if self._is_armed else "Cancel"
        if self.section != self._drawn.section:
            if self._drawn.section:  # a slow section is announced at once
                self._body.value = views.note(f"Drawing {SECTIONS[self.section]} …")
            self._wake.set()

    def _changed(self, names: Set[str]) -> None:
        if "job_id" in names and self.job_id != self._follow.job["id"]:
            self._follow, self._drawn = Follow(self._client, self.job_id), _Drawing()
            self._problems = (0, [])

    @property
    def _is_armed(self) -> bool:
        """Whether the next click on Cancel cancels; a few seconds after the first one it asks."""
        return time.monotonic() - self._armed_at < ARMED_SECONDS

    def _press_cancel(self) -> None:
        """The first click asks for confirmation, the second one cancels the job."""
        if self._is_armed:
            self._armed_at = 0.0
            self.cancel()
        else:
            self._armed_at = time.monotonic()
            self._redraw(set())
            self._wake.set()

    def _poll_until_closed(self) -> None:
        """Draw, then fetch new events, again and again until the panel is closed."""
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self._draw_section()
                is_new = self._fetch()
                with self._holding():
                    if self._root is not None:
                        self._draw()
            except Exception as error:  # shown in the panel; the next poll may succeed
                self._fail(error)
                is_new = False
            if not is_new:
                self._wake.wait(self._pause_seconds())

    def _fetch(self) -> bool:
        """Fetch older events first, then new ones. Returns whether to draw at once."""
        from openai import OpenAIError

        follow = self._follow
        try:
            if not follow.has_all_events:
                while follow.fetch_older() and not self._stop.is_set():
                    pass
                self._drawn = replace(self._drawn, again_at=0.0)
                return True
            if not follow.has_ended:
                follow.poll()
        except OpenAIError:
            pass  # counted by `follow`, and shown as stale
        return False

    def _pause_seconds(self) -> float | None:
        """Seconds until the next poll or drawing; None to wait until somebody wakes the thread."""
        waits = []
        if not self._follow.has_ended:
            resting = self._follow.job["status"] == "paused"
            waits.append(REST_SECONDS if resting else self.poll_seconds)
        if self._is_armed:
            waits.append(ARMED_SECONDS + 0.1)
        if self._drawn.news != self._news():
            waits.append(max(0.1, self._drawn.again_at - time.monotonic()))
        return min(waits, default=None)

    def _news(self) -> tuple[int, bool, str]:
        """A value that changes whenever a section could look different."""
        follow = self._follow
        return len(follow.events), follow.has_all_events, str(follow.job["status"])

    def _draw_section(self) -> None:
        """Draw the selected section if it or its events changed, but slow sections less often."""
        drawn, news = self._drawn, self._news()
        is_due = time.monotonic() >= drawn.again_at or self._has_settled()  # the end at once
        if self.section == drawn.section and (news == drawn.news or not is_due):
            return
        section, started = self.section, time.monotonic()
        markup = self._section(section)
        with self._lock:
            if self._root is not None:
                self._body.value = markup
        now = time.monotonic()
        rest = min(DRAWING_SHARE * (now - started), REST_SECONDS)
        self._drawn = _Drawing(section, news, now + rest)

    @validate("poll_seconds")
    def _at_least_a_fifth_of_a_second(self, proposal: Any) -> float:
        return max(0.2, float(proposal["value"]))


def _choice(job: dict[str, Any]) -> str:
    """A job in the menu: when, status, suffix or model, and its id."""
    created = time.strftime("%d %b %H:%M", time.localtime(job.get("created_at") or 0))
    what = job.get("suffix") or job.get("user_provided_suffix") or job.get("model")
    return f"{created} · {job['status']} · {what} · {job['id']}"


@dataclass(frozen=True)
class _Drawing:
    """What was last drawn below the header."""

    section: str = ""
    news: tuple[int, bool, str] = (0, False, "")
    again_at: float = 0.0
    """Monotonic seconds before which it is not drawn again, unless the section changes."""


def _error(job: dict[str, Any]) -> str | None:
    """Why a job failed; the service's `error` of `{}` is none."""
    from openai.types.fine_tuning import FineTuningJob

    return error_of(FineTuningJob.construct(**job)) if job.get("error") else None
