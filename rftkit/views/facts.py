"""Short facts: pairs of name and value, and the events of a job.

This module only formats them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rftkit.views.listing import MAX_BYTES, disclosure, table
from rftkit.views.markup import Html, html, join, missing, note, wrap

__all__ = ["events", "keyvalues", "moment"]


def keyvalues(pairs: Mapping[str, Any], *, caption: str = "") -> Html:
    """Names and values in two columns: hyperparameters, versions, hashes."""
    title = html("<caption>{}</caption>", caption) if caption else Html()
    lines = join(
        html('<tr><th scope="row">{}</th><td>{}</td></tr>', name, _value(value))
        for name, value in pairs.items()
    )
    return wrap(
        html(
            '<div class="rk-scroll" tabindex="0"><table>{}<tbody>{}</tbody></table></div>',
            title,
            lines,
        ),
        plain="\n".join(f"{name}: {value}" for name, value in pairs.items()),
    )


def events(
    job_events: Iterable[Mapping[str, Any]], *, metrics: bool = False, max_bytes: int = MAX_BYTES
) -> Html:
    """The events of a job, oldest first.

    Args:
        job_events: as on the wire.
        metrics: also list the metrics event of each step, which the charts show better.
        max_bytes: of markup; a live view has room for fewer.
    """
    rows = [
        {
            "time": moment(event["created_at"]),
            "level": event["level"],
            "message": event["message"],
        }
        for event in job_events
        if metrics or event.get("type") != "metrics"
    ]
    if not rows:
        return note("The job has no events yet.")
    return table(rows, noun="event", page=30, max_bytes=max_bytes)


def moment(seconds: float | None) -> str:
    """A time of the API as `2026-11-21 14:03:05 UTC`; a dash for none."""
    if seconds is None:
        return "–"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _value(value: Any) -> str:
    if missing(value):
        return Html('<span class="rk-missing">–</span>')
    if isinstance(value, Html):
        return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, dict | list | tuple):
        return disclosure(json.dumps(value, ensure_ascii=False, default=str))
    return disclosure(str(value))
