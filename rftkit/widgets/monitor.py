"""JobMonitor: watch a job, from any kernel, at any time of its life, and pause, resume or end it.

The job lives on the service; the panel only looks. Closing the browser or killing the kernel
changes nothing for the job, and the same cell run again shows its whole history. The panel looks
every two seconds, asks for new events only, and draws no more often than a tenth of its time.
Not here: the curves (`rftkit.views.charts`), and what is asked of the service (`jobs.follow`).
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
from rftkit.jobs import Follow, checkpoints, error_of, latest, rollouts, step_frame, step_metrics
from rftkit.views.markup import Html, join, wrap
from rftkit.views.watch import standing
from rftkit.widgets.panel import STORED_BYTES, Panel, live

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

__all__ = ["JobMonitor"]

STALE_LOOKS = 3
"""Looks that must fail in a row before the panel says that it is out of date."""
DRAWING_SHARE = 10
"""The curves are drawn again after this many times what the last drawing took."""
REST_SECONDS = 15.0
"""Between looks at a paused job, and at most between drawings: the first one loads matplotlib."""
MAX_GROUPS = 256
"""Groups shown at once: as many as a batch can have, since widgets run no script that pages."""

SECTIONS = {
    "curves": "Rewards",
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


class JobMonitor(Panel):
    """Watch one job: curves, health, signal, time, newest rollouts, checkpoints, events.

    `JobMonitor("ftjob-…")` attaches to a job, running or long finished; `JobMonitor()` to the
    newest one. `pause()`, `resume()` and `cancel()` are the buttons; `watch()` waits for the end.

    Args:
        job_id: None or empty for the newest job.
        client: default `rftkit.connect()`; any `openai.OpenAI`.
        state: `section`, one of curves, health, signal, time, rollouts, checkpoints, events;
            `poll_seconds`.
    """

    section = Enum(list(SECTIONS), default_value="curves", help="What is shown below the header.")
    poll_seconds = Float(2.0, help="Between two looks.")
    job_id = Unicode("", help="Which job.")

    def __init__(
        self, job_id: str | None = None, *, client: OpenAI | None = None, **state: Any
    ) -> None:
        """Take the first look, so that a wrong id is an error here and not in the panel."""
        from rftkit.client import connect

        self._client = client or connect()
        found = job_id or latest(self._client)
        if not found:
            raise InputError(
                "there is no job to watch yet; start one, for example with rftkit.jobs.create"
            )
        self._stop, self._wake = threading.Event(), threading.Event()
        self._follow, self._drawn = Follow(self._client, found), _Drawing()
        self._rows: dict[str, dict[str, Any] | None] = {}
        self._judged: tuple[int, list[Finding]] = (0, [])
        self._cancel_armed = False
        super().__init__(job_id=found, **state)

    # what it shows

    def data(self) -> pd.DataFrame:
        """One row per step: the columns of `rftkit.jobs.step_frame` that the job reports."""
        return step_frame(self._follow.events).dropna(axis="columns", how="all")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The job's events that are known here, oldest first."""
        return self._follow.events

    @property
    def job(self) -> dict[str, Any]:
        """The job as it was at the last look, as on the wire."""
        return self._follow.job

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """All sections one below the other; with little room only where the job stands."""
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
        late = follow.misses >= STALE_LOOKS
        stale = (
            f"Stale: the service has not answered {follow.misses} times in a row "
            f"({follow.trouble}). The job goes on without this view."
        )
        looking = not static and not self._has_settled()
        return standing(
            follow.job,
            self._steps(),
            error=_error(follow.job),
            looked_at=follow.looked_at,
            stale=stale if late else "",
            expires_after=max(10.0, 5 * self.poll_seconds) if looking else None,
            unread=not follow.is_whole,
            findings=self._findings() if follow.is_whole else (),
        )

    def _findings(self) -> list[Finding]:
        """What is wrong at the newest step; worked out when there are new events."""
        events = self._follow.events
        if self._judged[0] != len(events):
            self._judged = (len(events), findings(story_of(events)))
        return self._judged[1]

    def _steps(self) -> list[dict[str, Any]]:
        """The rows of `data()` as mappings; each event is taken apart once."""
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
            kept = checkpoints(self._client, self.job_id)
            if not kept:
                return views.note("No checkpoint yet: each validation after a step makes one.")
            return views.table(kept, MODEL_COLUMNS, noun="checkpoint")
        return views.events(reversed(events))  # the newest are what a live view has room for

    # what it does

    def pause(self) -> None:
        """Stop the job after its step; what it has learnt is kept."""
        self._client.fine_tuning.jobs.pause(self.job_id)
        self.refresh()

    def resume(self) -> None:
        """Let a paused job go on."""
        self._client.fine_tuning.jobs.resume(self.job_id)
        self.refresh()

    def cancel(self) -> None:
        """End the job for good; its checkpoints stay."""
        self._client.fine_tuning.jobs.cancel(self.job_id)
        self.refresh()

    def refresh(self) -> None:
        """Look now."""
        self._follow.look()
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
        """Wait until the job has ended or is paused, and show where it then stands.

        A live panel follows the job by itself, so there this returns at once; a headless run of
        the notebook waits here, so that the cells below have something to show.

        Args:
            until: wait only until this is true.
            timeout_seconds: give up waiting; the job goes on.
            block: wait even in a live notebook (True), or not at all (False).
        """
        from openai import OpenAIError

        if not (not live() if block is None else block):
            return
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OpenAIError):  # counted, and shown as stale
                while self._follow.fill():
                    pass
                if self._has_settled() or (until is not None and until(self)):
                    break
                self._stop.wait(min(self.poll_seconds, 0.5))
                self._follow.look()
        if not live():
            self._show_again()

    def close(self) -> None:
        """Stop looking. The job is not touched."""
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
        self._resume = self._button("Resume", self.resume, "Let the paused job go on")
        self._cancel = self._button("Cancel", self._press_cancel, "End the job for good")
        again = self._button("Look now", self.refresh, "Fetch what is new")
        buttons = [self._pause, self._resume, self._cancel, again]
        self._looker = threading.Thread(target=self._follow_on, daemon=True)
        self._looker.start()
        return [
            self._head,
            ipywidgets.HBox(buttons, layout=ipywidgets.Layout(flex_flow="row wrap")),
            self._choice,
            self._body,
        ]

    def _draw(self) -> None:
        """Header and buttons; the section is drawn by the thread, which is told here."""
        status = self._follow.job["status"]
        self._head.value = self._header()
        self._pause.disabled = status != "running"
        self._resume.disabled = status != "paused"
        self._cancel.disabled = self._follow.has_ended
        self._cancel.description = "Really cancel?" if self._cancel_armed else "Cancel"
        if self.section != self._drawn.section:
            self._wake.set()

    def _changed(self, names: Set[str]) -> None:
        if "job_id" in names and self.job_id != self._follow.job["id"]:
            self._follow, self._drawn = Follow(self._client, self.job_id), _Drawing()
            self._judged = (0, [])

    def _press_cancel(self) -> None:
        """The first press asks, the second one does it."""
        self._cancel_armed = not self._cancel_armed
        if self._cancel_armed:
            self._redraw(set())
        else:
            self.cancel()

    def _follow_on(self) -> None:
        """Draw what is known, fetch what is new, and so on until the panel is closed."""
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self._draw_section()
                is_new = self._fetch()
                with self._holding():
                    if self._root is not None:
                        self._draw()
            except Exception as error:  # shown in the panel; the next look may go well
                self._fail(error)
                is_new = False
            if not is_new:
                self._wake.wait(self._pause_seconds())

    def _fetch(self) -> bool:
        """Older events first, then news; whether to go on at once."""
        from openai import OpenAIError

        follow = self._follow
        try:
            if not follow.is_whole:
                while follow.fill() and not self._stop.is_set():
                    pass
                self._drawn = replace(self._drawn, again_at=0.0)
                return True
            if not follow.has_ended:
                follow.look()
        except OpenAIError:
            pass  # counted by `follow`, and shown as stale
        return False

    def _pause_seconds(self) -> float | None:
        """Until the next look, or the next drawing; None for as long as nobody wants anything."""
        waits = []
        if not self._follow.has_ended:
            resting = self._follow.job["status"] == "paused"
            waits.append(REST_SECONDS if resting else self.poll_seconds)
        if self._drawn.news != self._news():
            waits.append(max(0.1, self._drawn.again_at - time.monotonic()))
        return min(waits, default=None)

    def _news(self) -> tuple[int, bool, str]:
        """What changes whenever a section could look different."""
        follow = self._follow
        return len(follow.events), follow.is_whole, str(follow.job["status"])

    def _draw_section(self) -> None:
        """The chosen section, if it is another one or has news; dear ones not at every look."""
        drawn, news = self._drawn, self._news()
        if self.section == drawn.section and (
            news == drawn.news or time.monotonic() < drawn.again_at
        ):
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
    def _not_too_often(self, proposal: Any) -> float:
        return max(0.2, float(proposal["value"]))


@dataclass(frozen=True)
class _Drawing:
    """What is drawn below the header."""

    section: str = ""
    news: tuple[int, bool, str] = (0, False, "")
    again_at: float = 0.0
    """Monotonic seconds before which it is not drawn again, unless another section is wanted."""


def _error(job: dict[str, Any]) -> str | None:
    """Why a job failed; the service's `error` of `{}` is none."""
    from openai.types.fine_tuning import FineTuningJob

    return error_of(FineTuningJob.construct(**job)) if job.get("error") else None
