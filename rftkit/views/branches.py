"""The tree of a job and its branches, compared: what each changed, and how it ended.

The branches come from `rftkit.jobs.family`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rftkit.jobs.branches import Branch
from rftkit.views.listing import table
from rftkit.views.markup import Html, join, note, number
from rftkit.views.plot import Line, Panel, drawn, picture

__all__ = ["job_tree", "tree_text"]

COLUMNS = {
    "job": "job",
    "from": "from step",
    "changed": "changed",
    "status": "status",
    "first": "validation, first",
    "best": "best",
    "last": "last",
    "alarms": "alarms",
}


def job_tree(branches: Sequence[Branch]) -> Html:
    """A table in the order of the tree, and the validation rewards of all branches by step."""
    if not branches:
        return note("There is no job yet.")
    shown = table([_record(each) for each in branches], COLUMNS, noun="job")
    parts = [shown]
    measured = [each for each in branches if each.rewards]
    if measured:
        lines = tuple(map(_line, measured))
        charts, _ = drawn([Panel("Validation reward", lines)], is_wide=True)
        parts.append(picture(charts))
    return join(parts, plain=tree_text(branches))


def tree_text(branches: Sequence[Branch]) -> str:
    """The tree as text, a line for each job."""
    lines = []
    for each in branches:
        place = f"{'   ' * (each.depth - 1)}└─ @{_step(each)} " if each.depth else ""
        words = [f"{place}{each.id}", each.status]
        if each.rewards:
            first, last = each.rewards[0], each.rewards[-1]
            words.append(f"validation {first[1]:.3f} (step {first[0]})")
            if last != first:
                words[-1] += f" to {last[1]:.3f} (step {last[0]})"
        words += [", ".join(each.changes)] if each.changes else []
        words += [f"alarms: {', '.join(each.alarms)}"] if each.alarms else []
        lines.append("  ".join(words))
    return "\n".join(lines)


def _record(each: Branch) -> dict[str, object]:
    rewards = [reward for _, reward in each.rewards]
    return {
        "job": f"{'└ ' * bool(each.depth)}{each.name}".rjust(len(each.name) + 2 * each.depth),
        "from": _step(each) if each.depth else None,
        "changed": ", ".join(each.changes) or ("nothing" if each.depth else ""),
        "status": each.status,
        "first": number(rewards[0], 3) if rewards else None,
        "best": number(max(rewards), 3) if rewards else None,
        "last": number(rewards[-1], 3) if rewards else None,
        "alarms": ", ".join(each.alarms) or "none",
    }


def _step(each: Branch) -> int | None:
    return each.origin.step if each.origin else None


def _line(each: Branch) -> Line:
    """Its own validations: before it began there is nothing to measure."""
    steps, rewards = zip(*each.rewards, strict=True)
    return Line(each.name, steps, rewards, strong=not each.depth)
