"""The alarms of a job: what is watched, how each figure went, and which alarms were raised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rftkit.diagnosis import Alarm, story_of
from rftkit.diagnosis.alarms import threshold, written
from rftkit.views.listing import table
from rftkit.views.markup import Html, join, note

__all__ = ["alarms"]

COLUMNS = {
    "watched": "watched",
    "before": "first steps",
    "now": "last steps",
    "evidence": "evidence",
    "state": "alarm",
}


def alarms(events: Iterable[dict[str, Any]]) -> Html:
    """A row for each figure that is watched; a note for a job that reports none.

    Args:
        events: of one job.
    """
    story = story_of(events)
    statuses = story.alarms.statuses
    if not statuses:
        return note("This job reports no figures that alarms could watch.")
    most, rate = threshold(story.alarms.rate), story.alarms.rate
    said = (
        f"At most {100 * rate:.2g} % of healthy jobs raise any alarm. Evidence grows while a "
        f"figure rises more than the reward explains. An alarm needs evidence of {most:,.0f}, and "
        "a rise that is large enough to matter."
    )
    rows = [_record(each) for each in statuses]
    raised = [row for row in rows if row["state"] != "no"]
    words = [f"alarm: {row['watched']}, {row['state']}" for row in raised] or ["no alarm"]
    shown = table(rows, COLUMNS, noun="figure")
    return join([note(said), shown], plain="; ".join(words))


def _record(each: Alarm) -> dict[str, Any]:
    return {
        "watched": each.kind.title,
        "before": written(each.kind, each.before),
        "now": written(each.kind, each.now),
        "evidence": f"{each.evidence:,.1f}",
        "state": "no" if each.raised_at is None else f"! raised at step {each.raised_at}",
    }
