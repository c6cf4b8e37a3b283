"""Curves of one job as small multiples: reward, health of the training, time.

Not here: the numbers themselves (`rftkit.jobs`), comparisons of several jobs, pyplot (a figure
made through it from a callback can be corrupted by another one). A chart is one PNG in an `<img>`
with a text that says what it shows. A value that is missing is a gap, never a zero and never
joined over; the line under the chart counts what is missing. Lines differ in weight and marker, so
that a print in grey is read the same way.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rftkit.views.listing import table
from rftkit.views.markup import Html, counted, missing, note, number, text, wrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Line", "Panel", "draw", "health_chart", "picture", "reward_chart", "time_chart"]

INK, GREY, GRID = "#1c2127", "#67717c", "#dde2e7"
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 3, 3.52, 2.15  # inches
DPI = 160


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel."""

    label: str
    steps: Sequence[int]
    values: Sequence[float | None]
    """As many as `steps`; None and NaN are drawn as a gap."""
    strong: bool = False
    """Drawn heavier and with markers: the series to look at."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One small chart."""

    title: str
    """With the unit, when it has one."""
    lines: tuple[Line, ...]
    bounds: tuple[float, float] | None = None
    """Ends of the vertical axis, where they have a meaning."""
    is_share: bool = False
    """Shares of one are shown in per cent, from zero up."""


def reward_chart(events: Iterable[dict[str, Any]]) -> Html:
    """Reward of training and validation by step, over all graders and for each."""
    from rftkit.jobs.metrics import grader_frame, step_frame

    events = list(events)
    steps, graders = step_frame(events), grader_frame(events)
    names = list(dict.fromkeys(graders["grader"]))
    panels = [_reward_panel("Reward", steps)]
    if len(names) > 1:
        panels += [_reward_panel(name, graders[graders["grader"] == name]) for name in names]
    panels = _with_shared_bounds([panel for panel in panels if panel.lines])
    if not panels:
        return note("No rewards yet: the job has not reported a step.")
    shown = steps[["step", "train_reward_mean", "valid_reward_mean"]].copy()
    for name in names if len(names) > 1 else []:
        one = graders[graders["grader"] == name].set_index("step")["valid_reward_mean"]
        shown[f"validation: {name}"] = shown["step"].map(one)
    headings = {"step": "step", "train_reward_mean": "train", "valid_reward_mean": "validation"}
    headings |= {column: column for column in shown.columns if column not in headings}
    return picture(draw(panels), _described(panels), _coverage(steps), table(shown, headings))


def health_chart(events: Iterable[dict[str, Any]]) -> Html:
    """Tokens, errors and what the optimiser sees, by step; only what the job reports."""
    from rftkit.jobs.metrics import error_frame, step_frame

    events = list(events)
    steps, errors = step_frame(events), error_frame(events)
    rate = errors[errors["split"] == "train"].groupby("step")["rate"].max()
    steps["grader_error_rate"] = steps["step"].map(rate)
    panels = [_health_panel(title, columns, steps) for title, columns in _HEALTH.items()]
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return note("The job reports no tokens, errors or learning figures.")
    return picture(draw(panels), _described(panels))


_HEALTH = {
    "Tokens per completion": {"completion_tokens_mean": "tokens"},
    "Reasoning tokens": {"train_reasoning_tokens_mean": "tokens"},
    "Samples that went wrong, %": {
        "truncated_share": "cut off",
        "unresponsive_share": "not scorable",
        "grader_error_rate": "grader error",
    },
    "Groups without signal, %": {"flat_groups": "flat"},
    "Entropy, nats per token": {"entropy": "entropy"},
    "KL to the base, nats per token": {"kl": "KL"},
    "Tokens clipped, %": {"clip_fraction": "clipped"},
    "Gradient norm": {"grad_norm": "norm"},
}


def _health_panel(title: str, columns: dict[str, str], steps: pd.DataFrame) -> Panel:
    trained = steps[steps["step"] > 0]
    found = [_line(label, trained, column) for column, label in columns.items()]
    lines = [line for line in found if line]
    if lines:
        lines[0] = replace(lines[0], strong=True)
    return Panel(title, tuple(lines), is_share=title.endswith("%"))


def time_chart(events: Iterable[dict[str, Any]]) -> Html:
    """Where the seconds of each step went, and how many tokens a second were sampled."""
    from rftkit.jobs.metrics import step_frame, timing_frame

    events = list(events)
    steps, timing = step_frame(events), timing_frame(events)
    parts = ["sampling", "training", "eval", "overhead"]
    totals = timing[parts].sum()
    if not totals.sum():
        return note("The job reports no times.")
    figure, (left, right) = _axes(2, (1.9, 1.1))
    bottom: Any = 0.0
    for part, shade in zip(parts, ("#0a58a8", "#6fa8dc", "#c9ddf0", "#8a939c"), strict=True):
        values = timing[part].astype(float).fillna(0)
        left.bar(timing["step"], values, bottom=bottom, color=shade, width=0.85, label=part)
        bottom = bottom + values
    _dress(left, "Seconds per step")
    left.legend(ncols=4, **_LEGEND)
    speed = _line("tokens", steps[steps["step"] > 0], "tokens_per_second", strong=True)
    if speed:
        _plot(right, Panel("Sampled tokens per second", (speed,)))
    right.set_visible(speed is not None)
    spent = ", ".join(f"{part} {number(float(totals[part]), 0)} s" for part in parts)
    return picture(
        figure, f"Bars of the seconds of each step. In all: {spent}.", f"In all: {spent}."
    )


def draw(panels: Sequence[Panel]) -> Figure:
    """Panels in rows of three, as a matplotlib figure."""
    figure, all_axes = _axes(len(panels))
    for axes, panel in zip(all_axes, panels, strict=False):
        _plot(axes, panel)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    return figure


def picture(figure: Figure, alt: str, caption: str = "", numbers: Html | None = None) -> Html:
    """A figure as an `<img>` that carries its own data, with its text and its numbers."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    width = round(figure.get_figwidth() * 96)
    data = base64.b64encode(png.getvalue()).decode("ascii")
    said = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    behind = (
        f'<details><summary data-lm-suppress-shortcuts="true">The numbers</summary>{numbers}'
        "</details>"
        if numbers
        else ""
    )
    return wrap(
        f'<figure><img width="{width}" alt="{text(alt)}" src="data:image/png;base64,{data}">'
        f"{said}</figure>{behind}",
        plain=alt,
    )


def _reward_panel(title: str, frame: pd.DataFrame) -> Panel:
    """Training is measured at each step, validation at some: only a failed one leaves a gap."""
    train = _line("train", frame[frame["step"] > 0], "train_reward_mean")
    valid = frame[frame["valid_reward_mean"].notna() | _validated(frame)]
    lines = (train, _line("validation", valid, "valid_reward_mean", strong=True, every=False))
    return Panel(title, tuple(line for line in lines if line))


def _validated(frame: pd.DataFrame) -> Any:
    """Steps that spent time on a validation, whether or not a reward came of it."""
    return frame["eval_seconds"] > 0 if "eval_seconds" in frame else False


def _line(
    label: str, frame: pd.DataFrame, column: str, *, strong: bool = False, every: bool = True
) -> Line | None:
    """A column by step; with `every`, steps that the frame lacks become gaps too."""
    values = dict(zip(frame["step"].astype(int), frame[column].astype(float), strict=True))
    if all(missing(value) for value in values.values()):
        return None
    steps = list(range(min(values), max(values) + 1)) if every else sorted(values)
    return Line(label, steps, [values.get(step) for step in steps], strong)


def _with_shared_bounds(panels: list[Panel]) -> list[Panel]:
    """Rewards between 0 and 1 all get the same axis, so that panels can be compared."""
    values = [v for panel in panels for line in panel.lines for v in line.values if not missing(v)]
    if not all(0 <= value <= 1 for value in values if value is not None):
        return panels
    return [replace(panel, bounds=(0, 1)) for panel in panels]


_LEGEND: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (-0.02, 0.985),
    "frameon": False,
    "fontsize": 7.5,
    "labelcolor": GREY,
    "handlelength": 1.6,
    "columnspacing": 1.0,
    "borderpad": 0.1,
}


def _axes(count: int, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = len(ratios) if ratios else min(COLUMNS, count)
    rows = -(-count // columns)
    width = PANEL_WIDTH * (COLUMNS if columns > 1 else 1.6)
    height = (PANEL_HEIGHT if columns > 1 else 2.6) * rows + 0.15
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    return figure, list(grid.flat)


def _plot(axes: Axes, panel: Panel) -> None:
    for index, line in enumerate(panel.lines):
        values = [float("nan") if value is None else value for value in line.values]
        style: dict[str, Any]
        if line.strong:
            style = {"color": "#0a58a8", "linewidth": 2, "marker": "o", "markersize": 3.5}
        else:
            dashes, marker = (("-", "."), ((0, (4, 1.5)), "^"), ((0, (1, 1)), "s"))[index % 3]
            style = {"color": "#8a939c", "linewidth": 1.1, "marker": marker, "markersize": 3}
            style |= {"linestyle": dashes}
        axes.plot(line.steps, values, label=line.label, **style)
        gaps = [step for step, value in zip(line.steps, line.values, strict=True) if missing(value)]
        if gaps:  # a mark on the floor: nothing was measured here
            floor = axes.get_xaxis_transform()
            axes.plot(gaps, [0.03] * len(gaps), "x", color="#ad2118", markersize=4, transform=floor)
    _dress(axes, panel.title)
    if panel.is_share:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
        axes.set_ylim(bottom=0, top=max(0.05, axes.get_ylim()[1]))
    elif panel.bounds:
        low, high = panel.bounds
        axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    if len(panel.lines) > 1:
        axes.legend(ncols=len(panel.lines), **_LEGEND)


def _dress(axes: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=9, fontweight="bold", color=INK, pad=16)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=7.5, length=0)
    axes.tick_params(axis="x", length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlabel("step", fontsize=7.5, color=GREY, labelpad=1)


def _described(panels: Sequence[Panel]) -> str:
    return " ".join(
        f"{panel.title} by step: {'; '.join(_said(line) for line in panel.lines)}."
        for panel in panels
    )


def _said(line: Line) -> str:
    known = [
        (step, value)
        for step, value in zip(line.steps, line.values, strict=True)
        if value is not None and not missing(value)
    ]
    (first, start), (last, end) = known[0], known[-1]
    top_step, top = max(known, key=lambda pair: pair[1])
    gaps = len(line.steps) - len(known)
    return (
        f"{line.label} {number(start)} at step {first}, {number(end)} at step {last}, "
        f"highest {number(top)} at step {top_step}"
        f"{f', {gaps} without a value' if gaps else ''}"
    )


def _coverage(steps: pd.DataFrame) -> str:
    """How much the curves rest on, and what is missing from them."""
    trained = steps[steps["step"] > 0]
    validations = steps[steps["valid_reward_mean"].notna()]
    lost = int((_validated(steps) & steps["valid_reward_mean"].isna()).sum())
    parts = [f"{counted(len(trained), 'step')}, {counted(len(validations), 'validation')}"]
    if untrained := int(trained["train_reward_mean"].isna().sum()):
        parts.append(f"{counted(untrained, 'step')} without a training reward (× on the axis)")
    if lost:
        parts.append(f"{counted(lost, 'validation')} without a reward (× on the axis)")
    failed = steps["failed_grades"]
    if failed.notna().any():
        count = int(failed.sum())
        parts.append(
            f"{counted(count, 'grade')} failed, left out of the means"
            if count
            else "no grade failed"
        )
    else:
        parts.append("failed grades are not reported")
    return f"{'; '.join(parts)}."
