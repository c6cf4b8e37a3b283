"""Small multiples: panels of lines, drawn by matplotlib, each one `<img>` with words for it.

`charts` chooses the panels of a job. pyplot is not used: callbacks that draw at the same time can
corrupt each other's figures through it. A missing value is a gap with a cross on the axis, never a
zero and never a joined line. Lines differ in weight and marker, so that a grey print is readable.

A picture has a white background, which every viewer shows well. The style sheet blends it into
light pages and inverts it on dark ones. Each panel is one picture, so that a phone can stack them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.views.markup import Html, missing, number, text, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LEGEND", "Line", "Panel", "describe", "draw", "dress", "panel_axes", "picture"]

INK, GREY, GRID = "#1c2127", "#67717c", "#dde2e7"
WIDTH, WIDE, HEIGHT = 3.4, 7.0, 2.2  # inches, at 96 pixels of the page each
DPI = 160
COLORS = 96  # of a picture


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel."""

    label: str
    steps: Sequence[int]
    values: Sequence[float | None]
    """As many as `steps`; None and NaN are drawn as a gap."""
    strong: bool = False
    """Drawn heavier and with markers, for the main series."""
    spread: Sequence[float | None] = ()
    """Half the width of the interval around each value; drawn where it is known."""


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


LEGEND: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (-0.02, 0.985),
    "frameon": False,
    "fontsize": 7.5,
    "labelcolor": GREY,
    "handlelength": 1.6,
    "columnspacing": 1.0,
    "borderpad": 0.1,
}


def draw(panel: Panel, *, is_wide: bool = False) -> Figure:
    """One panel as a figure, two columns wide if asked."""
    figure, axes = panel_axes(is_wide)
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
        if line.spread:
            widths = [float("nan") if width is None else width for width in line.spread]
            bars: dict[str, Any] = {"fmt": "none", "ecolor": style["color"], "elinewidth": 1}
            axes.errorbar(line.steps, values, yerr=widths, capsize=2, **bars)
        gaps = [step for step, value in zip(line.steps, line.values, strict=True) if missing(value)]
        if gaps:  # a cross on the axis: nothing was measured here
            floor = axes.get_xaxis_transform()
            axes.plot(gaps, [0.03] * len(gaps), "x", color="#ad2118", markersize=4, transform=floor)
    dress(axes, panel.title)
    if panel.is_share:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
        axes.set_ylim(bottom=0, top=max(0.05, axes.get_ylim()[1]))
    elif panel.bounds:
        low, high = panel.bounds
        axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    if len(panel.lines) > 1:
        axes.legend(ncols=len(panel.lines), **LEGEND)
    return figure


def panel_axes(is_wide: bool = False, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure and its empty axes; `height` is in inches."""
    from matplotlib.figure import Figure

    size = (WIDE if is_wide else WIDTH, height)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    return figure, figure.subplots()


def dress(axes: Axes, title: str) -> None:
    """Title, grid and ticks, alike for every panel."""
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


def describe(panel: Panel) -> str:
    """What a panel shows, in words: first, last and highest value of each line."""
    return f"{panel.title} by step: {'; '.join(_said(line) for line in panel.lines)}."


def picture(drawn: Sequence[tuple[Figure, str]], caption: str = "", numbers: str = "") -> Html:
    """Figures with their alt texts, side by side where there is room.

    Args:
        drawn: (figure, what it shows); each becomes an `<img>` that carries its own data.
        caption: a line below.
        numbers: markup of a table, folded away below.
    """
    images = "".join(_image(figure, alt) for figure, alt in drawn)
    said = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    behind = (
        '<details><summary data-lm-suppress-shortcuts="true">Show the numbers</summary>'
        f"{numbers}</details>"
        if numbers
        else ""
    )
    return wrap(
        f'<figure><div class="rk-panels">{images}</div>{said}</figure>{behind}',
        plain="\n".join([*(alt for _, alt in drawn), caption]),
    )


def _image(figure: Figure, alt: str) -> str:
    from PIL import Image

    drawn, png = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    # A palette needs a third of the bytes, and line drawings look the same.
    Image.open(drawn).convert("RGB").quantize(COLORS).save(png, format="png", optimize=True)
    data = base64.b64encode(png.getvalue()).decode("ascii")
    width = figure.get_figwidth()
    kind = ' class="rk-wide"' if width > WIDTH else ""
    return (
        f'<img{kind} width="{width * 96:.0f}" alt="{text(alt)}" src="data:image/png;base64,{data}">'
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
