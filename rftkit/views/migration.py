"""Whether imported jobs and graders run here: their verdicts, then the differences.

The checks come from `rftkit.importer.check_all`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rftkit.views.listing import table
from rftkit.views.markup import Html, html, join, note
from rftkit.wording import counted

if TYPE_CHECKING:
    from rftkit.importer import Check

__all__ = ["migration"]

SIGNS = {"runs": "✓", "differs": "≈", "stops": "✗"}
"""A sign beside the words, to scan the table."""


def migration(checks: Sequence[Check], *, page: int = 20) -> Html:
    """Every job and grader with its verdict, and each difference with what to change.

    Args:
        checks: From `rftkit.importer.check_all`, or that of one `plan_rerun`.
        page: Lines on one page of a table.
    """
    if not checks:
        return note("Nothing has been imported yet. Run: rftkit import DIR")
    lines = [
        {
            "here": f"{SIGNS[each.verdict]} {each.sentence}",
            "kind": each.kind,
            "id": each.id,
            "name": each.name,
            "type": each.type,
            "differences": len(each.differences),
            "used by": ", ".join(each.used_by) or None,
            "from": each.origin or None,
        }
        for each in checks
    ]
    differences = [
        {
            "verdict": "stops" if difference.stops else "differs",
            "where": each.id,
            "what": difference.about,
            "here": difference.here,
            "what to change": difference.change or None,
        }
        for each in sorted(checks, key=lambda each: each.verdict != "stops")
        for difference in sorted(each.differences, key=lambda each: not each.stops)
    ]
    verdicts = [each.verdict for each in checks]
    said = ", ".join(
        f"{verdicts.count(verdict)} {words}"
        for verdict, words in (
            ("runs", "run here unchanged"),
            ("differs", "run with differences"),
            ("stops", "do not run until something is changed"),
        )
        if verdict in verdicts
    )
    jobs = sum(each.kind == "job" for each in checks)
    graders = counted(len(checks) - jobs, "grader")
    summary = f"{counted(jobs, 'job')} and {graders}: {said}."
    parts = [html('<p class="rk">{}</p>', summary), table(lines, noun="object", page=page)]
    if differences:
        parts.append(table(differences, caption="Differences", noun="difference", page=page))
    return join(parts, plain=summary)
