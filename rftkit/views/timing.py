"""Where the time of a job went: the seconds of each step by phase, and tokens per second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rftkit.views.charts import line_of
from rftkit.views.listing import table
from rftkit.views.markup import Html, note, number
from rftkit.views.plot import Chart, Panel, drawn, picture
from rftkit.views.svg import Canvas, value_axis, whole_axis

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["time_chart"]

MAX_BARS = 200
"""Bars at most; in a longer job each bar is the mean of several steps."""


def time_chart(events: Iterable[dict[str, Any]]) -> Html:
    """The seconds of each step by phase, and the sampled tokens per second."""
    from rftkit.jobs.metrics import step_frame, timing_frame

    events = list(events)
    steps, timing = step_frame(events), timing_frame(events)
    parts = ["sampling", "training", "eval", "overhead"]
    totals = timing[parts].sum()
    if not totals.sum():
        return note("The job reports no times.")
    spent = ", ".join(f"{part} {number(round(float(totals[part]), 1), 1)} s" for part in parts)
    bars = _time_bars(timing, [part for part in parts if totals[part]], spent)
    speed = line_of("tokens", steps[steps["step"] > 0], "tokens_per_second", strong=True)
    panels = [Panel("Sampled tokens per second", (speed,))] if speed else []
    charts, zero = drawn(panels, is_wide=False)
    numbers = table(timing[["step", *parts]], {"step": "step", **{p: f"{p}, s" for p in parts}})
    return picture([bars, *charts], " ".join(filter(None, (f"Total: {spent}.", zero))), numbers)


def _time_bars(timing: pd.DataFrame, parts: list[str], spent: str) -> Chart:
    """The seconds of each step, one part on the other; of a long job means of several steps."""
    width = -(-len(timing) // MAX_BARS)
    shown = timing.groupby(timing.index // width).mean() if width > 1 else timing
    heights = shown[parts].astype(float).fillna(0)
    steps = [float(step) for step in shown["step"]]
    canvas = Canvas(
        whole_axis(int(min(steps)) - width, int(max(steps)) + width),
        value_axis([0.0, float(heights.sum(axis=1).max())]),
        is_wide=True,
    )
    for step, (_, seconds) in zip(steps, heights.iterrows(), strict=True):
        below = 0.0
        for at, part in enumerate(parts):
            above = below + float(seconds[part])
            words = f"step {step:g}, {part}: {number(above - below, 1)} s"
            if above > below:
                ends = (step - 0.4 * width, step + 0.4 * width)
                canvas.bar(ends, (below, above), words, f"rk-box rk-fill{at}")
            below = above
    title = "Seconds per step" + (f", means of {width} steps" if width > 1 else "")
    alt = f"Bars show the seconds of each step. Total: {spent}."
    legend = [(f"rk-box rk-fill{at}", part) for at, part in enumerate(parts)]
    return Chart(title, canvas, alt, legend)
