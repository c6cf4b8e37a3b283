"""The learning signal of a job: flat groups by grader, shares of answer values, and problems.

The rules are in `rftkit.diagnosis`, drawing is in `plot`. If a service reports none of it, the
views say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rftkit.diagnosis import Finding, findings, story_of
from rftkit.views.jumps import StepJumps
from rftkit.views.listing import table
from rftkit.views.markup import Html, html, join, note, prose, wrap
from rftkit.views.plot import Line, Panel, drawn, leading, picture

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["diagnosis", "finding_list", "signal_chart"]

SHOWN = 5
"""Values of one answer that a chart has lines for; the table has all."""
COLUMNS = {
    "answer": "answer",
    "value": "value",
    "references": "share of references",
    "first": "first step",
    "last": "last step",
    "valid": "last validation",
    "sampled": "sampled in training",
}


def diagnosis(events: Iterable[dict[str, Any]]) -> Html:
    """The problems at the newest step with advice, or a sentence that there are none."""
    story = story_of(events)
    if story.is_offline:
        return note("These rules need graded answers; this job learns from answers in its rows.")
    found = findings(story)
    if found:
        return finding_list(found)
    return note(
        f"No problems found at step {story.step}."
        if story.num_steps
        else "No training step is complete yet."
    )


def finding_list(found: Sequence[Finding]) -> Html:
    """Each finding with its advice."""
    lines = join(
        html(
            '<li><span class="rk-warn">!</span> {} <span class="rk-note">→ {}</span></li>',
            prose(each.message),
            prose(each.advice),
        )
        for each in found
    )
    plain = "\n".join(f"! {each}" for each in found)
    return wrap(html('<ul class="rk-diagnosis">{}</ul>', lines) if lines else Html(), plain=plain)


def signal_chart(events: Iterable[dict[str, Any]], *, training: StepJumps | None = None) -> Html:
    """Flat groups of each grader, and the shares of each closed answer's values, by step.

    Args:
        events: Of the job, as on the wire.
        training: Where the rows of training steps are, so that a point leads to them.
    """
    from rftkit.jobs.metrics import answer_frame, grader_frame, step_frame

    events = list(events)
    steps, graders, answers = step_frame(events), grader_frame(events), answer_frame(events)
    panels = [*_flat_panels(steps, graders), *_answer_panels(answers)]
    if not panels:
        return note(
            "This service does not report flat groups by grader or shares of answer values."
        )
    numbers = table(_lines(answers), COLUMNS, noun="value") if len(answers) else Html()
    to_rows = training.attributes if training else lambda _: ""
    charts, zero = drawn(leading(panels, lambda _, step: to_rows(step)))
    said = " ".join(filter(None, ("Shares of the completions of each training step.", zero)))
    return picture(charts, said, numbers)


def _flat_panels(steps: pd.DataFrame, graders: pd.DataFrame) -> list[Panel]:
    """One line for the whole reward and one for each grader."""
    trained = steps[steps["step"] > 0].dropna(subset=["flat_groups"])
    known = graders.dropna(subset=["train_flat_groups"])
    names = list(dict.fromkeys(known["grader"]))
    if not len(trained) or not names:
        return []
    lines = [_line("whole reward", trained, "flat_groups", strong=True)]
    if len(names) > 1:
        lines += [_line(n, known[known["grader"] == n], "train_flat_groups") for n in names]
    return [
        Panel("Groups whose completions earned the same, by grader, %", tuple(lines), is_share=True)
    ]


def _answer_panels(answers: pd.DataFrame) -> list[Panel]:
    panels = []
    trained = answers[(answers["split"] == "train")].dropna(subset=["samples"])
    for name in dict.fromkeys(trained["answer"]):
        one = trained[trained["answer"] == name]
        values = list(one.groupby("value", sort=False)["samples"].max().nlargest(SHOWN).index)
        ordered = [value for value in dict.fromkeys(one["value"]) if value in values]
        lines = tuple(
            _line(value, one[one["value"] == value], "samples", strong=not at)
            for at, value in enumerate(ordered)
        )
        panels.append(Panel(f"{name}: values sampled, %", lines, is_share=True))
    return panels


def _line(label: str, frame: pd.DataFrame, column: str, *, strong: bool = False) -> Line:
    values = [float(value) for value in frame[column]]
    return Line(label, [int(step) for step in frame["step"]], values, strong)


def _lines(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """One line for each value: its share of the references and of the first and last answers."""
    lines = []
    for (answer, value), one in answers.groupby(["answer", "value"], sort=False):
        trained, valid = one[one["split"] == "train"], one[one["split"] == "valid"]
        lines.append(
            {
                "answer": answer,
                "value": value,
                "references": _share(one["references"].mean()),
                "first": _share(trained["samples"].iloc[0] if len(trained) else None),
                "last": _share(trained["samples"].iloc[-1] if len(trained) else None),
                "valid": _share(valid["samples"].iloc[-1] if len(valid) else None),
                "sampled": _since(trained),
            }
        )
    return lines


def _since(trained: pd.DataFrame) -> str:
    found = trained[trained["samples"] > 0]["step"]
    return f"since step {int(found.iloc[0])}" if len(found) else "never"


def _share(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.0%}"
