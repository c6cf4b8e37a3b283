"""What a job has reported so far, read once, and what that shows about why it does not learn.

A step that a restart repeats is judged by the event it reported first, so that a killed job warns
of the same things at the same steps. Not here: the rules (`rftkit.diagnosis`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rftkit.diagnosis import Finding, Story, findings
from rftkit.server.store.store import Store

__all__ = ["History", "metric_events"]


class History:
    """The metric events of one job, in the order of their steps."""

    def __init__(self, store: Store, job_id: str, story: Story) -> None:
        """`story` is empty; the events are added to it."""
        self._store, self._job_id = store, job_id
        self._story = story
        self._known = metric_events(store, job_id)

    def before(self, step: int) -> Story:
        """The story up to a step, without it."""
        for each in sorted(self._known):
            if each < step:
                self._story.add(self._known.pop(each))
        return self._story

    def known(self, step: int) -> dict[str, Any] | None:
        """What this step reported, if a restart repeats it."""
        return self._known.get(step)

    @property
    def alarms(self) -> list[Finding]:
        """The alarms that were raised so far."""
        return list(self._story.alarms.raised)

    def add(self, step: int, data: Mapping[str, Any]) -> None:
        """Take a step's figures, and warn once of each thing that they show to be wrong."""
        story = self.before(step)
        self._known.pop(step, None)
        story.add(data)
        for each in findings(story):
            self._store.add_event(
                self._job_id,
                str(each),
                level="warn",
                data={
                    "finding": {"code": each.code, "subject": each.subject, "at": step},
                    **({"alarm": dict(each.alarm)} if each.alarm else {}),
                },
                key=f"finding-{each.key}",
            )


def metric_events(store: Store, job_id: str) -> dict[int, dict[str, Any]]:
    """The data of a job's metric events, by step."""
    found: dict[int, dict[str, Any]] = {}
    after, more = None, True
    while more:
        page, more = store.events(job_id, after=after, limit=1000)
        metrics = (each.data for each in page if each.type == "metrics")
        found |= {data["step"]: data for data in metrics if data is not None}
        after = page[-1].id if page else None
    return found
