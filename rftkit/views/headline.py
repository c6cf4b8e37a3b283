"""The headline of a job: whether the model improved, by how much, and on how many rows.

The figures come from `rftkit.reports.summary`.
"""

from __future__ import annotations

from typing import Any

from rftkit.evals.sentences import decimals
from rftkit.views.markup import Html, number, prose, signed, text, wrap
from rftkit.wording import counted

__all__ = ["headline", "tile", "verdict"]

Figures = dict[str, Any]


def headline(summary: Figures) -> Html:
    """One sentence, tiles with the figures, and the caveats."""
    said = " ".join(filter(None, (verdict(summary), summary.get("gain"))))
    tiles = "".join(_test_tiles(summary.get("test") or {}))
    tiles += "".join(_validation_tiles(summary.get("valid") or {}))
    points = "".join(f"<li>{prose(point)}</li>" for point in _points(summary))
    return wrap(
        f'<p class="rk-verdict">{prose(said)}</p><div class="rk-tiles">{tiles}</div>'
        f"<ul>{points}</ul>",
        plain=said,
    )


def verdict(summary: Figures) -> str:
    """The sentence: on test rows when both models answered them, else on the validation."""
    test, valid = summary.get("test"), summary.get("valid")
    if test and test["difference"] is not None:
        digits = decimals(test["difference"], *(test["interval"] or ()), least=2)
        change = (
            f"{number(test['base'], digits)} → {number(test['final'], digits)} on the same "
            f"{counted(test['pairs'], 'test row')} ({signed(test['difference'], digits)}"
        )
        if not test["interval"]:
            return f"Too few rows to tell: {change})."
        low, high = test["interval"]
        sure = low > 0 or high < 0
        said = _moved(test["difference"]) if sure else "No clear change"
        return f"{said}: {change}, 95 % interval {signed(low, digits)} to {signed(high, digits)})."
    if valid and valid["start"] is not None and valid["final"] is not None:
        change = valid["final"] - valid["start"]
        word = "rose" if change > 0 else "fell" if change < 0 else "went"
        return (
            f"The validation reward {word} from {number(valid['start'], 2)} before training to "
            f"{number(valid['final'], 2)} at step {valid['final_step']} ({signed(change, 2)})."
        )
    if loss := summary.get("loss"):
        if loss["final_step"] == loss["start_step"]:
            return f"The loss on {loss['rows']} is {number(loss['final'], 2)}."
        change = loss["final"] - loss["start"]
        word = "rose" if change > 0 else "fell" if change < 0 else "went"
        return (
            f"The loss on {loss['rows']} {word} from {number(loss['start'], 2)} at step "
            f"{loss['start_step']} to {number(loss['final'], 2)} at step {loss['final_step']}. "
            "What the answers are worth, an eval says."
        )
    return "No verdict yet: rewards from before and after training are missing."


def _moved(difference: float) -> str:
    return f"The final model is {'better' if difference > 0 else 'worse'} than the base model"


def _validation_tiles(valid: Figures) -> list[str]:
    if not valid:
        return []
    start, best, last = valid["start"], valid["best_step"], valid["final_step"]
    tiles = [tile("Validation, step 0", start, "before training")]
    if best != last:
        tiles.append(tile(f"Validation, step {best}", valid["best"], "best", start))
    words = "best and last" if best == last else "last"
    return [*tiles, tile(f"Validation, step {last}", valid["final"], words, start)]


def _test_tiles(test: Figures) -> list[str]:
    if not test:
        return []
    rows = f"mean of {counted(test['pairs'], 'row')}"
    return [
        tile("Test, base model", test["base"], rows),
        tile("Test, final model", test["final"], rows, test["base"]),
    ]


def tile(label: str, value: float | str | None, below: str, start: float | None = None) -> str:
    """A figure with its name above and a remark below; with `start`, also the change from it."""
    tone = ""
    if isinstance(value, int | float) and start is not None:
        tone = "rk-good" if value > start else "rk-bad" if value < start else ""
        below = f"{signed(value - start, 2)}, {below}"
    shown = text(value) if isinstance(value, str) else number(value, 2)
    return (
        f'<div class="rk-tile"><span>{text(label)}</span><b>{shown}</b>'
        f'<small class="{tone}">{text(below)}</small></div>'
    )


def _points(summary: Figures) -> list[str]:
    test, constant = summary.get("test"), summary.get("constant")
    points = []
    if summary.get("status") not in (None, "succeeded"):
        points.append(f"The job has not succeeded: its status is {summary['status']}.")
    if broken := summary.get("grader_verdict"):
        points.append(f"Do not rely on these rewards: {broken}.")
    if test and test["difference"] is not None:
        points.append(
            f"Row by row: {test['better']} better, {test['worse']} worse, {test['same']} the same."
        )
    if constant:
        above = ""
        if test and test["final"] is not None:
            distance = test["final"] - constant["reward"]
            side = "above" if distance >= 0 else "below"
            above = f"; the final model is {number(abs(distance), 2)} {side} that"
        points.append(
            "A constant answer, the same for every row, earns "
            f"{number(constant['reward'], 2)}{above}."
        )
    if test:
        points.append(_ungraded(test))
    training = summary["training"]
    if training["failed_grades"] is not None:
        failed = training["failed_grades"]
        points.append(
            f"{counted(failed, 'grade')} failed in training: left out, never counted as zero."
            if failed
            else "No grade failed in training."
        )
    return points


def _ungraded(test: Figures) -> str:
    answers = f"{test['answers']:,} test answers"
    parts = [
        f"{test[key]:,} {words}"
        for key, words in {
            "unanswered": "are missing (left out)",
            "failed": "have no reward because the grader failed (left out)",
            "unscorable": "are not scorable: cut off or not in the response format (counted)",
        }.items()
        if test[key]
    ]
    return f"Of {answers}: {'; '.join(parts)}." if parts else f"All {answers} could be graded."
