"""The headline of a job: whether the model improved, by how much, and on how many rows.

The figures come from `rftkit.reports.summary`.
"""

from __future__ import annotations

from typing import Any

from rftkit.evals.sentences import decimals
from rftkit.views.markup import Html, html, html_each, join, number, prose, signed, wrap
from rftkit.wording import counted

__all__ = ["headline", "tile", "verdict"]

Figures = dict[str, Any]
FEW = 20
"""With fewer rows than this, a sentence explains what they can show."""


def headline(summary: Figures) -> Html:
    """One sentence, tiles with the figures, and the caveats."""
    said = " ".join(filter(None, (verdict(summary), summary.get("gain"))))
    tiles = join(_test_tiles(summary.get("test") or {}))
    tiles += join(_validation_tiles(summary.get("valid") or {}))
    points = html_each("<li>{}</li>", map(prose, _points(summary)))
    return wrap(
        html(
            '<p class="rk-verdict">{}</p><div class="rk-tiles">{}</div><ul>{}</ul>',
            prose(said),
            tiles,
            points,
        ),
        plain=said,
    )


def verdict(summary: Figures) -> str:
    """The sentence: on test rows when both models answered them, else on the validation.

    It says that a reward rose or fell only where the comparison of the rows says so.
    """
    test, valid = summary.get("test"), summary.get("valid")
    if test and test["difference"] is not None:
        return _test_verdict(test)
    if valid and valid["start"] is not None and valid["final_step"] != _start(valid):
        return _validation_verdict(valid)
    if loss := summary.get("loss"):
        return _loss_verdict(loss)
    return "No verdict yet: rewards from before and after training are missing."


def _test_verdict(test: Figures) -> str:
    digits = decimals(test["difference"], *(test["interval"] or ()), least=2)
    change = (
        f"{number(test['base'], digits)} → {number(test['final'], digits)} on the same "
        f"{counted(test['pairs'], 'test row')} ({signed(test['difference'], digits)}"
    )
    if not test["interval"]:
        few = "Too few rows to tell" if test["pairs"] < FEW else "No clear change"
        return f"{few}: {change})."
    words = {
        "better": "The final model is better than the base model",
        "worse": "The final model is worse than the base model",
    }
    said = words.get(test["verdict"], "No clear change")
    sentence = f"{said}: {change}, 95 % interval {_ends(test['interval'], digits)})."
    if test["verdict"] == "unclear" and test["pairs"] < FEW and test.get("detectable"):
        sentence += f" So few rows can show a difference of about {test['detectable']:.2f} or more."
    return sentence


def _validation_verdict(valid: Figures) -> str:
    said = _validation_change(valid)
    if valid.get("is_relative"):
        said += " It is relative: a judge compared the answers with an anchor, and 0.5 is as good."
    return said


def _validation_change(valid: Figures) -> str:
    start, final = valid.get("means") or (valid["start"], valid["final"])
    change = final - start if valid["difference"] is None else valid["difference"]
    digits = decimals(change, *(valid["interval"] or ()), least=2)
    ends = f"{number(start, digits)} {_beginning(valid)}"
    last = f"{number(final, digits)} at step {valid['final_step']}"
    size = signed(change, digits)
    if valid["interval"]:
        size += f", 95 % interval {_ends(valid['interval'], digits)}"
    word = {"better": "rose", "worse": "fell"}.get(valid["verdict"] or "")
    if word:
        return f"The validation reward {word} from {ends} to {last} ({size})."
    if valid["interval"]:
        return f"No clear change of the validation reward: {ends}, {last} ({size})."
    if valid["difference"] == 0:
        return f"The validation reward did not change: {ends}, {last}."
    return (
        f"The validation reward was {ends} and {last} ({size}). Its uncertainty is not known, so "
        "this is no verdict."
    )


def _start(valid: Figures) -> int:
    """The step that was validated first: 0, or the one that a branch continues from."""
    return int(valid.get("start_step") or 0)


def _beginning(valid: Figures) -> str:
    step = _start(valid)
    return f"at step {step}, where the branch starts" if step else "before training"


def _loss_verdict(loss: Figures) -> str:
    if loss["final_step"] == loss["start_step"]:
        return f"The loss on {loss['rows']} is {number(loss['final'], 2)}."
    return (
        f"The loss on {loss['rows']} was {number(loss['start'], 2)} at step {loss['start_step']} "
        f"and {number(loss['final'], 2)} at step {loss['final_step']}. A loss does not say what "
        "the answers are worth; an eval does."
    )


def _ends(interval: list[float], digits: int) -> str:
    low, high = interval
    return f"{signed(low, digits)} to {signed(high, digits)}"


def _validation_tiles(valid: Figures) -> list[Html]:
    if not valid:
        return []
    start, best, last, first = (
        valid["start"], valid["best_step"], valid["final_step"], _start(valid),
    )  # fmt: skip
    words = "before training" if not first else "where the branch starts"
    tiles = [tile(f"Validation, step {first}", start, f"{words}{', best' * (best == first)}")]
    if best not in (first, last):
        tiles.append(tile(f"Validation, step {best}", valid["best"], "best", start))
    words = "best and last" if best == last else "last"
    final = tile(f"Validation, step {last}", valid["final"], words, start, valid["verdict"])
    return [*tiles, final]


def _test_tiles(test: Figures) -> list[Html]:
    if not test:
        return []
    rows = f"mean of {counted(test['pairs'], 'row')}"
    return [
        tile("Test, base model", test["base"], rows),
        tile("Test, final model", test["final"], rows, test["base"], test["verdict"]),
    ]


def tile(
    label: str,
    value: float | str | None,
    below: str,
    start: float | None = None,
    verdict: str | None = None,
) -> Html:
    """A figure with its name above and a remark below; with `start`, also the change from it.

    The change has the colour of a gain or a loss only where `verdict` shows it.
    """
    tone = {"better": "rk-good", "worse": "rk-bad"}.get(verdict or "", "")
    if isinstance(value, int | float) and start is not None:
        below = f"{signed(value - start, 2)}, {below}"
    shown = value if isinstance(value, str) else number(value, 2)
    return html(
        '<div class="rk-tile"><span>{}</span><b>{}</b><small class="{}">{}</small></div>',
        label,
        shown,
        tone,
        below,
    )


def _points(summary: Figures) -> list[str]:
    test, constant = summary.get("test"), summary.get("constant")
    points = []
    if summary.get("status") not in (None, "succeeded"):
        points.append(f"The job has not succeeded: its status is {summary['status']}.")
    if broken := summary.get("grader_verdict"):
        points.append(f"Do not rely on these rewards: {broken}.")
    points += [f"Alarm: {each}" for each in summary.get("alarms") or []]
    if uncalibrated := summary.get("uncalibrated"):
        points.append(uncalibrated)
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
