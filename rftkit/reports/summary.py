"""One job in a few numbers: what the headline says and what a report leaves for a program.

Not here: the words (`rftkit.views.headline`), and statistics over several jobs or many looks at one
validation set; the interval below is for one planned comparison, base against final.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from rftkit.diagnosis import Change, gain_sentence, story_of, validation_gains
from rftkit.views.answers import SAME, reward_of

__all__ = ["MIME", "publish", "summary"]

MIME = "application/vnd.rftkit.summary+json"
"""The output of a report notebook that is for programs; viewers pass over it."""

MIN_PAIRS = 10  # with fewer rows a normal interval says more than it knows


def summary(
    events: Iterable[dict[str, Any]], answers: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Rewards before, best and last; test rows before and after; what could not be graded.

    Args:
        events: of the job, as on the wire.
        answers: the file of before and after answers, in the shape of `rftkit.views.answers`.

    Returns:
        `valid` (None without a validation), `loss` (None for reinforcement), `test` and `constant`
        (None without answers), `gain` (which graders it came from, in words; empty with one
        grader),
        `grader_verdict` (None when the grader recognises right answers) and `training`; every
        number is None where nothing was measured.
    """
    from rftkit.jobs.metrics import step_frame

    events = list(events)
    steps = step_frame(events)
    failed, spent = steps["failed_grades"].dropna(), steps["step_seconds"].dropna()
    return {
        "valid": _validations(steps),
        "loss": _losses(steps),
        "test": _test(answers["rows"]) if answers and answers["rows"] else None,
        "gain": _gain(events, (answers or {}).get("rows") or []),
        "constant": (answers or {}).get("constant"),
        "grader_verdict": _grader_verdict(events),
        "training": {
            "steps": int(steps["step"].max()) if len(steps) else 0,
            "seconds": float(spent.sum()) if len(spent) else None,
            "failed_grades": int(failed.sum()) if len(failed) else None,
        },
    }


def publish(figures: dict[str, Any]) -> None:
    """Leave `figures` in the notebook for programs; `read_summary` finds them in the page."""
    from IPython.display import display

    display({MIME: figures, "text/plain": "(figures for programs)"}, raw=True)


def _grader_verdict(events: Iterable[dict[str, Any]]) -> str | None:
    """The sentence of the job's own warning about its grader."""
    found = ((event.get("data") or {}).get("grader_verdict") for event in events)
    return next((verdict["sentence"] for verdict in found if verdict), None)


def _validations(steps: Any) -> dict[str, Any] | None:
    measured = steps[["step", "valid_reward_mean"]].dropna()
    if not len(measured):
        return None
    by_step = {int(step): float(value) for step, value in measured.itertuples(index=False)}
    best, last = max(by_step, key=lambda step: (by_step[step], -step)), max(by_step)
    return {
        "start": by_step.get(0),
        "best": by_step[best],
        "best_step": best,
        "final": by_step[last],
        "final_step": last,
    }


def _losses(steps: Any) -> dict[str, Any] | None:
    """The first and last loss on all validation rows; on training rows where there are none."""
    for name, rows in (("full_valid_loss", "the validation rows"), ("train_loss", "training rows")):
        measured = steps[["step", name]].dropna()
        measured = measured[measured["step"] > 0]
        if len(measured):
            (first, start), (last, final) = (measured.iloc[place] for place in (0, -1))
            return {
                "rows": rows,
                "start": float(start),
                "start_step": int(first),
                "final": float(final),
                "final_step": int(last),
            }
    return None


def _test(rows: list[dict[str, Any]]) -> dict[str, Any]:
    given = [row["answers"] for row in rows]
    every = [answer for answers in given for answer in answers.values()]
    outcomes = [(answer.get("grade") or {}).get("outcome") for answer in every]
    both = [(reward_of(a.get("base")), reward_of(a.get("final"))) for a in given]
    pairs = [(b, f) for b, f in both if b is not None and f is not None]
    changes = [after - before for before, after in pairs]
    return {
        "rows": len(rows),
        "pairs": len(pairs),  # rows graded for both: the means below are over these
        "base": statistics.fmean(before for before, _ in pairs) if pairs else None,
        "final": statistics.fmean(after for _, after in pairs) if pairs else None,
        "difference": statistics.fmean(changes) if changes else None,
        "interval": _interval(changes),
        "better": sum(change >= SAME for change in changes),
        "worse": sum(change <= -SAME for change in changes),
        "same": sum(abs(change) < SAME for change in changes),
        "answers": len(every),
        "failed": outcomes.count("failed"),
        "unscorable": outcomes.count("unscorable"),
        "unanswered": sum(answer.get("text") is None for answer in every),
    }


def _gain(events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """Which graders the change came from: on test rows if there are enough, else on validations."""
    pairs = [(row["answers"].get("base") or {}, row["answers"].get("final") or {}) for row in rows]
    names = list(dict.fromkeys(name for _, final in pairs for name in _parts(final)))
    total = _mean_change([(reward_of(before), reward_of(after)) for before, after in pairs])
    parts = {
        name: change
        for name in names
        if (
            change := _mean_change(
                [(_parts(before).get(name), _parts(after).get(name)) for before, after in pairs]
            )
        )
    }
    if total is not None and total.half_width is not None:
        return gain_sentence(total, parts, "test reward")
    story = story_of(events)
    first, last = story.first_valid, story.last_valid
    if rows or first is None or last is None or first is last:
        return ""
    total, parts = validation_gains(first, last)
    return gain_sentence(total, parts, "validation reward") if total else ""


def _parts(answer: dict[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = (answer.get("grade") or {}).get("sub_rewards") or {}
    return found


def _mean_change(pairs: list[tuple[float | None, float | None]]) -> Change | None:
    changes = [
        after - before for before, after in pairs if before is not None and after is not None
    ]
    interval = _interval(changes)
    if not changes:
        return None
    half = None if interval is None else (interval[1] - interval[0]) / 2
    return Change(statistics.fmean(changes), half)


def _interval(changes: list[float]) -> list[float] | None:
    """The 95 % interval of the mean of paired differences, by Student's t."""
    if len(changes) < MIN_PAIRS:
        return None
    freedom = len(changes) - 1
    quantile = 1.96 + 2.372 / freedom + 2.822 / freedom**2  # of t at 97.5 %, within 0.005
    half = quantile * statistics.stdev(changes) / math.sqrt(len(changes))
    mean = statistics.fmean(changes)
    return [mean - half, mean + half]
