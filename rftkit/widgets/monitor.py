"""JobMonitor: choose a job, watch it from any kernel at any time, and pause, resume or cancel it.

The job runs on the service; the panel only polls it. You can close the browser or restart the
kernel without affecting the job; run the cell again to see the whole history. One thread polls
every two seconds and fetches only new events. Another draws the section below, and spends at most
about a tenth of its time on that: so neither a slow service nor a slow chart delays a click. What
is drawn is in `jobview`, the list of jobs in `runlist`, the requests to the service in
`jobs.follow`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import Enum, Float, Int, Unicode, validate

from rftkit import views
from rftkit.errors import InputError
from rftkit.jobs import Follow, find, latest, step_frame
from rftkit.views.markup import Html, html, join, wrap
from rftkit.widgets.jobview import SECTIONS, JobView
from rftkit.widgets.panel import STORED_BYTES, Panel, live
from rftkit.widgets.runlist import RunList

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

__all__ = ["JobMonitor"]

DRAWING_SHARE = 10
"""A section is drawn again after this many times the duration of its last drawing."""
ARMED_SECONDS = 5.0
"""Seconds for the second click that confirms a cancellation."""
WITH_STEPS = ("rollouts", "validations")
"""Sections that show the rows of one step."""
REST_SECONDS = 15.0
"""Seconds between polls of a paused job, and at most between drawings."""


_What = tuple[str, int | None]
"""A section and its step."""


class JobMonitor(Panel):
    """Watch one job: rewards, health, signal, criteria, time, rows, checkpoints and events.

    `JobMonitor("ftjob-…")` attaches to a running or finished job, `JobMonitor()` to the newest
    one; the list of jobs on top switches to another, as `set(job_id=…)` does. `pause()`,
    `resume()` and `cancel()` are the buttons; `watch()` waits for the end.

    Args:
        job_id: None or empty for the newest job.
        client: default `rftkit.connect()`; any `openai.OpenAI`.
        state: `section`, one of curves, health, signal, criteria, time, rollouts, validations,
            checkpoints, events; `step`, whose rows are shown; `poll_seconds`.
    """

    section = Enum(list(SECTIONS), default_value="curves", help="What is shown below the header.")
    step = Int(
        None,
        allow_none=True,
        help="Step whose rollouts or validation rows are shown; None: newest.",
    )
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
        self._stop, self._wake_poller = threading.Event(), threading.Event()
        self._wake_drawer = threading.Event()
        self._view, self._drawn = JobView(self._client, found), _Drawing()
        self._seen: dict[_What, Html] = {}
        self._in_body: _What | None = None
        self._armed_at = 0.0
        self._list = RunList(self._client, self._choose, watched=found)
        super().__init__(job_id=found, **state)

    # what it shows

    def data(self) -> pd.DataFrame:
        """One row per step: the columns of `rftkit.jobs.step_frame` that the job reports."""
        return step_frame(self.events).dropna(axis="columns", how="all")

    def jobs(self) -> pd.DataFrame:
        """The newest jobs, one row each: status, reward, when, model and data."""
        return self._list.data()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events fetched so far, oldest first."""
        return self._follow.events

    @property
    def job(self) -> dict[str, Any]:
        """The job at the last poll, as on the wire."""
        return self._follow.job

    @property
    def _follow(self) -> Follow:
        return self._view.follow

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """All sections in order; for a small `max_bytes`, only the status of the job."""
        head = self._view.header(None)
        if max_bytes <= STORED_BYTES:
            return head
        parts = [head]
        for name, title in SECTIONS.items():
            parts.append(wrap(html("<h3>{}</h3>", title)))
            parts.append(self._view.section(name, self.step, max_bytes // len(SECTIONS)))
        return join(parts, plain=head.plain)

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
        """Poll the service now, and ask it for its jobs again."""
        self._follow.poll()
        self._drawn = _Drawing()
        self._wake_poller.set()
        self._wake_drawer.set()
        self._list.refresh()
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
                if self._view.has_settled or (until is not None and until(self)):
                    break
                self._stop.wait(min(self.poll_seconds, 0.5))
                self._follow.poll()
        if not live():
            self._show_again()

    def close(self) -> None:
        """Stop polling. The job is not affected."""
        self._stop.set()
        self._wake_poller.set()
        self._wake_drawer.set()
        self._list.close()
        super().close()

    # live

    def _build(self) -> Sequence[ipywidgets.Widget]:
        self._head, self._body = self._html(), self._html()
        self._choice = ipywidgets.ToggleButtons(
            options=[(title, name) for name, title in SECTIONS.items()],
            style={"button_width": "auto"},
            tooltips=[f"Show {title.lower()}" for title in SECTIONS.values()],
        )
        self._bind("section", self._choice)
        self._step_choice = ipywidgets.Dropdown(description="Step", options=[("newest", None)])
        self._bind("step", self._step_choice)
        self._pause = self._button("Pause", self.pause, "Stop after this step; nothing is lost")
        self._resume = self._button("Resume", self.resume, "Continue the paused job")
        self._cancel = self._button(
            "Cancel", self._press_cancel, "Stop the job; it cannot be resumed"
        )
        again = self._button("Refresh", self.refresh, "Fetch new events and new jobs")
        buttons = [self._pause, self._resume, self._cancel, again]
        self._fold = ipywidgets.Accordion([ipywidgets.VBox()], titles=("Choose another job",))
        self._fold.observe(lambda _: self._guard(self._unfold), names="selected_index")
        self._poller = threading.Thread(target=self._poll_until_closed, daemon=True)
        self._drawer = threading.Thread(target=self._draw_until_closed, daemon=True)
        self._poller.start()
        self._drawer.start()
        return [
            self._fold,
            self._head,
            ipywidgets.HBox(buttons, layout=ipywidgets.Layout(flex_flow="row wrap")),
            self._choice,
            self._step_choice,
            self._body,
        ]

    def _unfold(self) -> None:
        """Show the list of jobs; it is fetched when somebody opens it."""
        if self._fold.selected_index is not None:
            self._fold.children[0].children = [self._list.widget()]
            self._list.refresh()

    def _choose(self, job_id: str) -> None:
        """Watch another job, and fold the list away."""
        self.set(job_id=job_id)
        self._fold.selected_index = None

    def _changed(self, names: Set[str]) -> None:
        if "job_id" in names and self.job_id != self._follow.job["id"]:
            self._view, self._drawn = JobView(self._client, self.job_id), _Drawing()
            self._seen, self._in_body, self._armed_at = {}, None, 0.0
            self.step = None
            self._list.set(watched=self.job_id)
            self._wake_poller.set()

    def _draw(self) -> None:
        """Draw header and buttons, and of the section what is known; its thread does the rest."""
        status = self._follow.job["status"]
        self._head.value = self._view.header(self.poll_seconds)
        self._pause.disabled = status != "running"
        self._resume.disabled = status != "paused"
        self._cancel.disabled = self._follow.has_ended
        self._cancel.description = "Really cancel?" if self._is_armed else "Cancel"
        self._draw_steps()
        if self._what != self._in_body:
            self._in_body = self._what
            drawing = views.note(f"Drawing {SECTIONS[self.section].lower()} …")
            self._body.value = self._seen.get(self._what, drawing)
        self._wake_drawer.set()

    def _draw_steps(self) -> None:
        """The steps to choose from, where the section has rows of steps."""
        self._step_choice.layout.display = "" if self.section in WITH_STEPS else "none"
        if self.section in WITH_STEPS:
            steps = self._view.shown_steps(self.section)
            if self.step is not None and self.step not in steps:
                steps = sorted([*steps, self.step])
            options = [("newest", None), *((str(step), step) for step in steps)]
            if list(self._step_choice.options) != options:
                chosen = self.step
                self._step_choice.options = options
                self._step_choice.value = chosen

    @property
    def _what(self) -> _What:
        """The section, and the step that it shows."""
        return self.section, self.step if self.section in WITH_STEPS else None

    def _act_step(self, step: str) -> None:
        """A point of a training step was clicked."""
        self.set(section="rollouts", step=int(step))

    def _act_validation(self, step: str) -> None:
        """A point of a validation was clicked."""
        self.set(section="validations", step=int(step))

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
            self._wake_poller.set()

    # its two threads

    def _poll_until_closed(self) -> None:
        """Fetch new events and draw the header, again and again until the panel is closed."""
        while not self._stop.is_set():
            self._wake_poller.clear()
            try:
                before = self._follow.job["status"]
                self._fetch()
                if self._follow.job["status"] != before:
                    self._list.refresh()
                with self._holding():
                    if self._root is not None:
                        self._draw()
            except Exception as error:  # shown in the panel; the next poll may succeed
                self._fail(error)
            self._wake_poller.wait(self._seconds_to_poll())

    def _fetch(self) -> None:
        """Fetch older events first, then new ones."""
        from openai import OpenAIError

        follow = self._follow
        with contextlib.suppress(OpenAIError):  # counted by `follow`, and shown as stale
            if not follow.has_all_events:
                while follow.fetch_older() and not self._stop.is_set():
                    pass
            elif not follow.has_ended:
                follow.poll()

    def _seconds_to_poll(self) -> float | None:
        """Seconds until the next poll; None to wait until somebody wakes the thread."""
        waits = [ARMED_SECONDS + 0.1] if self._is_armed else []
        if not self._follow.has_ended:
            resting = self._follow.job["status"] == "paused"
            waits.append(REST_SECONDS if resting else self.poll_seconds)
        return min(waits, default=None)

    def _draw_until_closed(self) -> None:
        """Draw the section whenever it or its events changed, until the panel is closed."""
        while not self._stop.is_set():
            self._wake_drawer.clear()
            try:
                self._draw_section()
            except Exception as error:  # shown in the panel; the next drawing may succeed
                self._fail(error)
                self._drawn = _Drawing(self._what, self._view.news)
            self._wake_drawer.wait(self._seconds_to_draw())

    def _seconds_to_draw(self) -> float | None:
        """Seconds until the next drawing; None when nothing has changed."""
        if (self._drawn.what, self._drawn.news) == (self._what, self._view.news):
            return None
        return max(0.0, self._due_at() - time.monotonic())

    def _due_at(self) -> float:
        """Monotonic seconds: at once for another section, and for the end of a job."""
        is_due = self._what != self._drawn.what or self._view.has_settled
        return 0.0 if is_due else self._drawn.again_at

    def _draw_section(self) -> None:
        """Draw the selected section if that is due."""
        view, what, news = self._view, self._what, self._view.news
        if (what, news) == (self._drawn.what, self._drawn.news):
            return
        started = time.monotonic()
        if started < self._due_at():
            return
        markup = view.section(*what, live=True)
        now = time.monotonic()
        with self._lock:
            if self._root is None or view is not self._view:
                return
            self._seen[what] = markup
            if what == self._what:
                self._body.value = markup
                rest = min(DRAWING_SHARE * (now - started), REST_SECONDS)
                self._drawn = _Drawing(what, news, now + rest)

    @validate("poll_seconds")
    def _at_least_a_fifth_of_a_second(self, proposal: Any) -> float:
        return max(0.2, float(proposal["value"]))


@dataclass(frozen=True)
class _Drawing:
    """What was drawn last, below the header."""

    what: _What | None = None
    news: tuple[int, bool, str] = (0, False, "")
    again_at: float = 0.0
    """Monotonic seconds before which it is not drawn again, unless the section changes."""
