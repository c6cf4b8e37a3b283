"""One job in a few numbers: what the headline says and what a report leaves for a program.

Not here: the words (`rftkit.views.headline`) and the statistics (`rftkit.evals`): a difference has
the interval and the verdict that `rftkit eval compare` gives it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rftkit.diagnosis import gain_sentence, story_of, validation_gains
from rftkit.reports.answered import NAMES, before_and_after
from rftkit.views.answers import SAME

if TYPE_CHECKING:
    from rftkit.evals import Comparison, Estimate, PairSummary

__all__ = ["MIME", "publish", "summary"]

MIME = "application/vnd.rftkit.summary+json"
"""The output of a report notebook that is for programs; viewers pass over it."""


def summary(
    events: Iterable[dict[str, Any]],
    answers: dict[str, Any] | None = None,
    validations: Comparison | None = None,
) -> dict[str, Any]:
    """Rewards before, best and last; test rows before and after; what could not be graded.

    Args:
        events: of the job, as on the wire.
        answers: the file of before and after answers, in the shape of `rftkit.views.answers`.
        validations: all validations of the job compared with the first, by `evals.compare`; without
            them the change of the validation reward has a rougher interval, or none.

    Returns:
        `valid` (None without a validation), `loss` (None for reinforcement), `test` and `constant`
        (None without answers), `gain` (which graders it came from, in words; empty with one
        grader),
        `grader_verdict` (None when the grader recognises right answers), `uncalibrated` (None when
        each judge is calibrated), `alarms` (sentences) and `training`; every
        number is None where nothing was measured.
    """
    from rftkit.jobs.metrics import step_frame

    events = list(events)
    steps = step_frame(events)
    failed, spent = steps["failed_grades"].dropna(), steps["step_seconds"].dropna()
    rows = (answers or {}).get("rows") or []
    tested = before_and_after(rows) if rows else None
    return {
        "valid": _validations(steps, events, validations),
        "loss": _losses(steps),
        "test": _test(rows, tested) if tested else None,
        "gain": _gain(events, tested, validations),
        "constant": (answers or {}).get("constant"),
        "grader_verdict": _grader_verdict(events),
        "uncalibrated": _uncalibrated(events),
        "alarms": [each.message for each in story_of(events).alarms.raised],
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


def _uncalibrated(events: Iterable[dict[str, Any]]) -> str | None:
    """The job's own warnings about judges that were never compared with people's labels."""
    found = ((event.get("data") or {}).get("calibration") for event in events)
    statuses: list[dict[str, Any]] = next((each for each in found if each), [])
    bad = [each["message"] for each in statuses if each["state"] != "calibrated"]
    return " ".join(bad) or None


def _validations(
    steps: Any, events: list[dict[str, Any]], compared: Comparison | None
) -> dict[str, Any] | None:
    measured = steps[["step", "valid_reward_mean"]].dropna()
    if not len(measured):
        return None
    by_step = {int(step): float(value) for step, value in measured.itertuples(index=False)}
    best, last = max(by_step, key=lambda step: (by_step[step], -step)), max(by_step)
    start = story_of(events).start
    return {
        "start": by_step.get(start),
        "start_step": start,
        "best": by_step[best],
        "best_step": best,
        "final": by_step[last],
        "final_step": last,
        "is_relative": bool(steps["is_relative"].eq(1).any()),
        **_change_of_validation(events, compared, last),
    }


def _change_of_validation(
    events: list[dict[str, Any]], compared: Comparison | None, last: int
) -> dict[str, Any]:
    """`difference`, `interval` and `verdict` from the first step to the last one; None if unknown.

    `means` are those of the rows that both have graded: other rows can have another difference. The
    first step is 0, or the one that a branch continues from.
    """
    story = story_of(events)
    if compared is not None and (pair := _validation_pair(compared, last, story.start)):
        names = [f"reward/{label}" for label in (pair.before, pair.after)]
        means = compared.rows[names].dropna().mean().tolist()
        return _change(pair) | {"rows": pair.num_rows, "means": means}
    first, final = story.first_valid, story.last_valid
    unknown = dict.fromkeys(("difference", "interval", "verdict", "rows", "means"))
    if first is None or final is None or first is final or first["step"] != story.start:
        return unknown
    total, _ = validation_gains(first, final)
    if total is None:
        return unknown
    verdict = {1: "better", -1: "worse", 0: "unclear"}[total.direction] if total.is_known else None
    interval = [total.low, total.high] if total.is_known else None
    return unknown | {"difference": total.value, "interval": interval, "verdict": verdict}


def _validation_pair(compared: Comparison | None, step: int, start: int) -> PairSummary | None:
    """The validation of a step against that of the first one, if both could be read."""
    if compared is None or not compared.pairs:
        return None
    if compared.summary(compared.baseline or "").step != start:
        return None
    labels = {run.label for run in compared.runs if run.step == step}
    found = (pair for pair in compared.pairs if pair.after in labels)
    return next((pair for pair in found if pair.difference.value is not None), None)


def _change(pair: PairSummary) -> dict[str, Any]:
    """The comparison of a pair, for programs and for the headline."""
    return {
        "difference": pair.difference.value,
        "interval": _ends(pair.difference),
        "verdict": pair.verdict,
    }


def _ends(estimate: Estimate) -> list[float] | None:
    low, high = estimate.low, estimate.high
    return None if low is None or high is None else [low, high]


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


def _test(rows: list[dict[str, Any]], tested: Comparison) -> dict[str, Any]:
    every = [answer for row in rows for answer in row["answers"].values()]
    outcomes = [(answer.get("grade") or {}).get("outcome") for answer in every]
    pair = tested.pair(NAMES["final"])
    both = tested.rows.dropna(subset="change")  # rows graded for both: the means are over these
    base, final = (both[f"reward/{label}"] for label in NAMES.values())
    changes = both["change"]
    return {
        "rows": len(rows),
        "pairs": pair.num_rows,
        "base": float(base.mean()) if len(both) else None,
        "final": float(final.mean()) if len(both) else None,
        **_change(pair),
        "detectable": pair.detectable,
        "better": int((changes >= SAME).sum()),
        "worse": int((changes <= -SAME).sum()),
        "same": int((changes.abs() < SAME).sum()),
        "answers": len(every),
        "failed": outcomes.count("failed"),
        "unscorable": outcomes.count("unscorable"),
        "unanswered": sum(answer.get("text") is None for answer in every),
    }


def _gain(
    events: list[dict[str, Any]], tested: Comparison | None, validations: Comparison | None
) -> str:
    """Which graders the change came from: on test rows if there are any, else on validations."""
    if tested is not None:
        return _parts_of(tested.pair(NAMES["final"]))
    story = story_of(events)
    first, last = story.first_valid, story.last_valid
    if first is None or last is None or first is last:
        return ""
    if pair := _validation_pair(validations, int(last["step"]), story.start):
        return _parts_of(pair)
    total, parts = validation_gains(first, last)
    return gain_sentence(total, parts, "validation reward") if total else ""


def _parts_of(pair: PairSummary) -> str:
    """Which graders a gain came from; the headline states before it what the reward did."""
    from rftkit.evals.signal_notes import gain_of

    return gain_of(pair, "")
