"""What the judges of a job decided, by step: each criterion of a rubric, and relative judges.

A criterion that was not decided counts in no share but that of undecided ones. Not here: the
verdicts on single answers (`answers`), nor the figures themselves (`rftkit.jobs.judge_frame`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rftkit.views.jumps import StepJumps
from rftkit.views.listing import table
from rftkit.views.markup import Html, join, note
from rftkit.views.plot import Line, Panel, drawn, leading, picture
from rftkit.wording import cut

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["criteria"]

MOST_PANELS = 12
"""Criteria with a chart of their own; the table has all."""
LONGEST = 60
"""Characters of a criterion above its chart."""
SIDES = {"train": "train", "valid": "validation"}
SHARES = {
    "correctness_met_mean": "correctness",
    "presence_met_mean": "presence",
    "required_met_mean": "required",
    "undecided_share": "undecided",
}
"""Figures of a rubric, with their labels."""
STEADY = {"position_bias": "position bias", "order_disagreement": "orders disagree"}
"""Figures of a relative grader."""
COLUMNS = {
    "criterion": "criterion",
    "grader": "grader",
    "check": "check",
    "required": "required",
    "train_first": "training, first step",
    "train_last": "training, last step",
    "valid_first": "validation, first",
    "valid_last": "validation, last",
}


def criteria(events: Iterable[dict[str, Any]], *, training: StepJumps | None = None) -> Html:
    """The share of each criterion that was met: a table, and charts by step.

    Args:
        events: of one job.
        training: Where the rows of training steps are, so that a point leads to them.
    """
    from rftkit.jobs.metrics import judge_frame

    frame = judge_frame(events)
    if not len(frame):
        return note("No judge of this job reports criteria or comparisons.")
    met = frame[frame["figure"] == "met"]
    panels = [*_figures(frame), *_of_criteria(met)]
    charts, zero = drawn(leading(panels, _link(training)))
    left = met.groupby(["grader", "criterion"]).ngroups - MOST_PANELS
    more = f"{left} more criteria are in the table only." if left > 0 else ""
    said = " ".join(filter(None, ("Shares of the verdicts that the judge gave.", zero, more)))
    lines = _lines(met)
    caption = "How often each criterion was met"
    shown = table(lines, COLUMNS, caption=caption, noun="line") if lines else Html()
    plain = "\n".join(f"{each['criterion']}: {each['train_last']} met" for each in lines)
    return join([shown, picture(charts, said)], plain=plain or said)


def _link(training: StepJumps | None) -> Any:
    def link(line: Line, step: int) -> str:
        return training.attributes(step) if training and line.label != "validation" else ""

    return link


def _figures(frame: pd.DataFrame) -> list[Panel]:
    """For each grader: the shares of criteria met in training, and how consistent its comparisons
    are.
    """
    trained = frame[frame["split"] == "train"]
    panels = []
    for title, names, is_share in (
        ("criteria met, %", SHARES, True),
        ("two orders of the answers", STEADY, False),
    ):
        for grader in dict.fromkeys(trained["grader"]):
            one = trained[trained["grader"] == grader]
            lines = [
                _line(label, one[one["figure"] == name], strong=not at)
                for at, (name, label) in enumerate(names.items())
            ]
            known = tuple(line for line in lines if line.steps)
            if known:
                panels.append(Panel(f"{grader}: {title}", known, is_share=is_share))
    return panels


def _of_criteria(met: pd.DataFrame) -> list[Panel]:
    panels = []
    for (_, criterion), one in met.groupby(["grader", "criterion"], sort=False):
        lines = [
            _line(label, one[one["split"] == split], strong=split == "valid")
            for split, label in SIDES.items()
        ]
        name = str(criterion)
        short = cut(name, LONGEST)
        panels.append(Panel(short, tuple(line for line in lines if line.steps), is_share=True))
    return panels[:MOST_PANELS]


def _line(label: str, frame: pd.DataFrame, *, strong: bool = False) -> Line:
    steps = [int(step) for step in frame["step"]]
    return Line(label, steps, [float(value) for value in frame["number"]], strong)


def _lines(met: pd.DataFrame) -> list[dict[str, Any]]:
    """One line for each criterion."""
    return [
        {
            "criterion": criterion,
            "grader": grader,
            "check": one["check"].iloc[0],
            "required": bool(one["required"].iloc[0]),
            **{
                f"{split}_{when}": _share(one[one["split"] == split]["number"], at)
                for split in SIDES
                for when, at in (("first", 0), ("last", -1))
            },
        }
        for (grader, criterion), one in met.groupby(["grader", "criterion"], sort=False)
    ]


def _share(numbers: pd.Series[float], at: int) -> str:
    return f"{numbers.iloc[at]:.0%}" if len(numbers) else "–"
