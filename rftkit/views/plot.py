"""Small multiples: panels of lines as SVG, each with a title, a legend and words for it.

`charts` chooses the panels of a job. A missing value is a gap with a cross on the axis, never a
zero and never a joined line. Lines differ in weight, dash and marker, so that a grey print is
readable. A panel whose values are all zero is named and not drawn. Each panel is one picture, so
that a phone can stack them. Not here: scales and marks (`svg`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rftkit.views.markup import Html, html, join, missing, wrap
from rftkit.views.svg import Canvas, shown, value_axis, whole_axis
from rftkit.wording import listed

__all__ = [
    "Chart",
    "Line",
    "Panel",
    "all_zero",
    "describe",
    "draw",
    "leading",
    "picture",
]

MOST_POINTS = 150
"""Points of a line that say their value; of a longer line they are evenly spread."""
MOST_MARKERS = 60
"""Points of a line that are drawn."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel."""

    label: str
    steps: Sequence[int]
    values: Sequence[float | None]
    """As many as `steps`; None and NaN are drawn as a gap."""
    strong: bool = False
    """Drawn heavier and with markers, for the main series."""
    ends: Sequence[tuple[float, float] | None] = ()
    """The interval of each value; drawn where it is known."""
    links: Sequence[str] = ()
    """Attributes of a link from each value to its rows; empty for none."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One small chart."""

    title: str
    """With the unit, when it has one."""
    lines: tuple[Line, ...]
    bounds: tuple[float, float] | None = None
    """The ends of the vertical axis, if values have natural bounds."""
    is_share: bool = False
    """Shares of one are shown in per cent, from zero up."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart and the words around it."""

    title: str
    canvas: Canvas
    alt: str
    """A text alternative: what the chart shows, with its numbers in their own unit."""
    legend: Sequence[tuple[str, str]] = ()
    """(classes of the style sheet, label) of each kind of mark."""

    def markup(self) -> Html:
        """Title, legend and picture."""
        keys = Html(" ").join(
            html("<span>{}{}</span>", _key(kind) if kind else Html(), label)
            for kind, label in self.legend
        )
        legend = html('<div class="rk-legend">{}</div>', keys) if keys else Html()
        wide = " rk-wide" if self.canvas.is_wide else ""
        return html(
            '<div class="rk-chart{}" style="display:inline-block">'
            '<div class="rk-chart-title">{}</div>{}{}</div>',
            wide,
            self.title,
            legend,
            self.canvas.svg(self.alt),
        )


def draw(panel: Panel, *, is_wide: bool = False) -> Chart:
    """One panel as a chart, two columns wide if asked."""
    steps = [step for line in panel.lines for step in line.steps]
    canvas = Canvas(
        whole_axis(min(steps), max(steps)),
        value_axis(_extent(panel), bounds=panel.bounds, is_share=panel.is_share),
        is_wide=is_wide,
    )
    kinds = _kinds(panel.lines)
    for line, kind in zip(panel.lines, kinds, strict=True):
        _draw_line(canvas, panel, line, kind)
    legend = [(kind, line.label) for line, kind in zip(panel.lines, kinds, strict=True)]
    return Chart(panel.title, canvas, describe(panel), legend if len(legend) > 1 else ())


def describe(panel: Panel) -> str:
    """What a panel shows, in words: first, last and highest value of each line, in its unit."""
    said = [
        _said(line, lambda value: shown(value, is_share=panel.is_share)) for line in panel.lines
    ]
    return f"{panel.title} by step: {'; '.join(said)}."


def all_zero(panel: Panel) -> bool:
    """Whether there is nothing to see but a line on the axis."""
    return all(value == 0 for line in panel.lines for value in line.values if not missing(value))


def picture(charts: Sequence[Chart], caption: str = "", numbers: Html | None = None) -> Html:
    """Charts side by side where there is room.

    Args:
        charts: From `draw`, or made of a `Canvas`.
        caption: A line below.
        numbers: Markup of a table, folded away below.
    """
    inner = join(chart.markup() for chart in charts)
    said = html("<figcaption>{}</figcaption>", caption) if caption else Html()
    behind = (
        html(
            '<details><summary data-lm-suppress-shortcuts="true">Show the '
            "numbers</summary>{}</details>",
            numbers,
        )
        if numbers
        else Html()
    )
    return wrap(
        html('<figure><div class="rk-panels">{}</div>{}</figure>{}', inner, said, behind),
        plain="\n".join([*(chart.alt for chart in charts), caption]),
    )


def drawn(panels: Sequence[Panel], *, is_wide: bool | None = None) -> tuple[list[Chart], str]:
    """Panels as charts, and a sentence about those that are zero throughout and not drawn."""
    kept = [panel for panel in panels if not all_zero(panel)]
    zero = [panel.title.removesuffix(", %") for panel in panels if all_zero(panel)]
    is_wide = len(kept) == 1 if is_wide is None else is_wide
    charts = [draw(panel, is_wide=is_wide) for panel in kept]
    return charts, f"Zero at each step: {listed(zero)}." if zero else ""


def leading(panels: Sequence[Panel], link: Callable[[Line, int], str]) -> list[Panel]:
    """The panels with a link for each point that has none, from its line and its step."""
    return [
        replace(panel, lines=tuple(_led(line, link) for line in panel.lines)) for panel in panels
    ]


def _led(line: Line, link: Callable[[Line, int], str]) -> Line:
    known = line.links or [""] * len(line.steps)
    pairs = zip(line.steps, known, strict=True)
    return replace(line, links=[given or link(line, step) for step, given in pairs])


def _draw_line(canvas: Canvas, panel: Panel, line: Line, kind: str) -> None:
    values = [None if missing(value) else value for value in line.values]
    canvas.line(list(zip(line.steps, values, strict=True)), kind)
    every = -(-len(values) // MOST_POINTS)
    has_markers = sum(value is not None for value in values) <= MOST_MARKERS
    for at, (step, value) in enumerate(zip(line.steps, values, strict=True)):
        if value is None:
            canvas.gap(step, f"{line.label}, step {step}: not measured")
        elif at % every == 0 or at == len(values) - 1:
            ends = line.ends[at] if line.ends else None
            words = f"{line.label}, step {step}: {shown(value, is_share=panel.is_share)}"
            if ends:
                low, high = (shown(each, is_share=panel.is_share) for each in ends)
                words += f" ({low} to {high})"
            link = line.links[at] if line.links else ""
            marker = kind if has_markers else "rk-bare"
            canvas.point(step, value, words, marker, ends=ends, link=link)


def _kinds(lines: Sequence[Line]) -> list[str]:
    """Classes of the style sheet: the main line, and others that differ in their dashes."""
    kinds, others = [], 0
    for line in lines:
        kinds.append("rk-main" if line.strong else f"rk-other rk-dash{others % 4}")
        others += not line.strong
    return kinds


def _key(kind: str) -> Html:
    """A mark of the legend."""
    if "rk-box" in kind:
        mark = html('<rect class="{}" x="6" y="1" width="12" height="8"/>', kind)
    else:
        dot = (
            html('<circle class="{}" cx="12" cy="5" r="3"/>', kind) if "rk-main" in kind else Html()
        )
        mark = html('<path class="rk-line {}" d="M0 5H24"/>{}', kind, dot)
    return html('<svg viewBox="0 0 24 10" aria-hidden="true">{}</svg>', mark)


def _extent(panel: Panel) -> list[float]:
    known = [v for line in panel.lines for v in line.values if v is not None and not missing(v)]
    return [*known, *(end for line in panel.lines for ends in line.ends if ends for end in ends)]


def _said(line: Line, show: Callable[[float], str]) -> str:
    known = [
        (step, value)
        for step, value in zip(line.steps, line.values, strict=True)
        if value is not None and not missing(value)
    ]
    (first, start), (last, end) = known[0], known[-1]
    top_step, top = max(known, key=lambda pair: pair[1])
    gaps = len(line.steps) - len(known)
    return (
        f"{line.label} {show(start)} at step {first}, {show(end)} at step {last}, "
        f"highest {show(top)} at step {top_step}"
        f"{f', {gaps} without a value' if gaps else ''}"
    )
