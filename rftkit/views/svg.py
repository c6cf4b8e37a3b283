"""A chart as SVG: scales, ticks, and marks in the units of the data.

It is plain markup, so that it is crisp at any size and on paper, follows the colours of the page,
and needs no script: each point has a `<title>`. The script (`views.js`) shows it at once, lets the
arrow keys go from point to point, and follows the link of a point to its rows. Words of a chart
that may be long (title, legend, names) are text of the page around it (`plot`), which can wrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rftkit.views.markup import Html, html, join, number

__all__ = ["NARROW", "WIDE", "WIDE_LETTER", "Axis", "Canvas", "share", "value_axis", "whole_axis"]

NARROW, WIDE = 340, 680
"""Width of a chart in its own units, about pixels."""
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 38
LETTER, WIDE_LETTER = 6.0, 9.0
"""Width of a letter: in a wide chart words are larger on a phone, which scales it down."""
MOST_VERTICES = 600
"""Vertices of a line; of a longer one the lowest and highest value of each stretch are kept."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale with its ticks."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str = ""


def value_axis(
    values: Iterable[float],
    *,
    label: str = "",
    bounds: tuple[float, float] | None = None,
    is_share: bool = False,
    num: int = 5,
) -> Axis:
    """Round ends and ticks around some values.

    Args:
        values: What must fit; at least one.
        label: Name of the axis, with its unit.
        bounds: The ends, where they have a meaning.
        is_share: Shares of one, shown in per cent from zero up.
        num: About how many ticks.
    """
    known = list(values) + list(bounds or ()) + ([0.0] if is_share else [])
    low, high = min(known), max(known)
    if high - low < 1e-12:
        top = 1.0 if 0.0 <= high <= 1.0 else 2 * high  # rewards and shares are at most 1
        low, high = (0.0, top) if high >= 0 else (low * 2, 0.0)
    step = _round_step((high - low) / num)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(at * step, 12) for at in range(first, last + 1)]
    shown = tuple((tick, f"{100 * tick:g}" if is_share else f"{tick:,g}") for tick in ticks)
    return Axis(ticks[0], ticks[-1], shown, label)


def whole_axis(low: int, high: int) -> Axis:
    """An axis of steps that ends where the data ends, with about six numbers."""
    step = max(1, round(_round_step(max(1, high - low) / 6)))
    ticks = list(range(-(-low // step) * step, high + 1, step)) or [low]
    if high - ticks[-1] >= 0.6 * step:
        ticks.append(high)
    return Axis(low, max(high, low + 1), tuple((at, f"{at:,}") for at in ticks), "step")


def share(value: float) -> str:
    """A share of one in per cent: `2.5 %`."""
    return f"{100 * value:.3g} %"


def _round_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(scale * nice for nice in (1, 2, 2.5, 5, 10) if scale * nice >= rough * 0.999)


class Canvas:
    """A plot area that takes marks in data units and gives one `<svg>`."""

    def __init__(self, x: Axis, y: Axis | None, *, is_wide: bool, height: int = 210) -> None:
        """`y` may be None where rows are placed by hand, from 0 at the top to 1 at the bottom."""
        self.x, self.y, self.is_wide = x, y, is_wide
        self.width, self.height = WIDE if is_wide else NARROW, height
        self._left = LEFT if y else RIGHT
        self._behind: list[Html] = []
        self._points: list[Html] = []
        self._grid()

    def at_x(self, value: float) -> float:
        """The horizontal place of a value."""
        part = (value - self.x.low) / (self.x.high - self.x.low)
        return round(self._left + part * (self.width - self._left - RIGHT), 1)

    def at_y(self, value: float) -> float:
        """The vertical place of a value."""
        room = self.height - TOP - BOTTOM
        if self.y is None:
            return round(TOP + value * room, 1)
        part = (value - self.y.low) / (self.y.high - self.y.low)
        return round(TOP + (1 - part) * room, 1)

    def line(self, points: Sequence[tuple[float, float | None]], kind: str) -> None:
        """A line; None is a gap in it."""
        path, is_new = [], True
        for x, y in _thinned(points):
            if y is None:
                is_new = True
                continue
            path.append(f"{'M' if is_new else 'L'}{self.at_x(x):g} {self.at_y(y):g}")
            is_new = False
        self._behind.append(html('<path class="rk-line {}" d="{}"/>', kind, "".join(path)))

    def band(self, points: Sequence[tuple[float, float, float]], kind: str) -> None:
        """An area between two lines: (x, low, high)."""
        there = [f"{self.at_x(x):g},{self.at_y(high):g}" for x, _, high in points]
        back = [f"{self.at_x(x):g},{self.at_y(low):g}" for x, low, _ in reversed(points)]
        self._behind.append(
            html('<polygon class="rk-band {}" points="{}"/>', kind, " ".join(there + back))
        )

    def box(self, x: tuple[float, float], y: tuple[float, float], kind: str) -> None:
        """A rectangle without words, behind the marks."""
        self._behind.append(self._rect(x, y, kind))

    def rule(self, x: float, kind: str = "") -> None:
        """A vertical line at a value."""
        at = f"{self.at_x(x):g}"
        self._behind.append(
            html(
                '<line class="rk-rule {}" x1="{}" x2="{}" y1="{}" y2="{}"/>',
                kind,
                at,
                at,
                TOP,
                self.height - BOTTOM,
            )
        )

    def word(self, x: float, y: float, words: str, anchor: str = "start") -> None:
        """A short text at a place given in units of the drawing."""
        self._behind.append(
            html(
                '<text class="rk-word" x="{:g}" y="{:g}" text-anchor="{}">{}</text>',
                x,
                y,
                anchor,
                words,
            )
        )

    def gap(self, x: float, words: str) -> None:
        """A cross on the axis: nothing was measured here."""
        place = f"translate({self.at_x(x):g} {self.height - BOTTOM - 5:g})"
        cross = html('<path class="rk-gap" transform="{}" d="M-3 -3L3 3M-3 3L3 -3"/>', place)
        self._point(cross, self.at_x(x), self.height - BOTTOM - 5, words, "")

    def point(
        self,
        x: float,
        y: float,
        words: str,
        kind: str,
        *,
        ends: tuple[float, float] | None = None,
        is_across: bool = False,
        link: str = "",
    ) -> None:
        """A point that says its words, with its interval and where it leads.

        Args:
            x: Place.
            y: Place.
            words: What it says, with the unit.
            kind: Classes of the style sheet, such as `rk-main`; `rk-bare` is not drawn.
            ends: Its interval, up and down, or along x if `is_across`.
            is_across: See `ends`.
            link: Attributes of a link to its rows.
        """
        left, top = self.at_x(x), self.at_y(y)
        shape = Html()
        if ends is not None:
            shape += self._ends(left, top, ends, kind, is_across=is_across)
        if "rk-star" in kind:
            shape += html(
                '<path class="{}" transform="translate({:g} {:g})" d="{}"/>', kind, left, top, _STAR
            )
        elif "rk-square" in kind:
            shape += html(
                '<rect class="{}" x="{:g}" y="{:g}" width="8" height="8"/>', kind, left - 4, top - 4
            )
        elif "rk-bare" not in kind:
            is_large = is_across or "rk-main" in kind or "rk-job" in kind
            radius = 4 if is_large else 2.5
            shape += html(
                '<circle class="{}" cx="{:g}" cy="{:g}" r="{:g}"/>', kind, left, top, radius
            )
        self._point(shape, left, top, words, link)

    def bar(
        self, x: tuple[float, float], y: tuple[float, float], words: str, kind: str, link: str = ""
    ) -> None:
        """A bar that says its words."""
        inner = html("<title>{}</title>{}", words, self._rect(x, y, kind))
        self._points.append(_focusable(inner, words, link))

    def svg(self, alt: str) -> Html:
        """The whole chart; `alt` states its numbers."""
        inner = join(self._points).replace(Html('tabindex="-1"'), Html('tabindex="0"'), 1)
        return html(
            '<svg class="rk-svg" viewBox="0 0 {} {}" role="group" '
            'data-lm-suppress-shortcuts="true" aria-label="{}">{}{}</svg>',
            self.width,
            self.height,
            alt,
            join(self._behind),
            inner,
        )

    def _point(self, shape: Html, left: float, top: float, words: str, link: str) -> None:
        hit = html('<circle class="rk-hit" cx="{:g}" cy="{:g}" r="8"/>', left, top)
        self._points.append(
            _focusable(html("<title>{}</title>{}{}", words, shape, hit), words, link)
        )

    def _ends(
        self, left: float, top: float, ends: tuple[float, float], kind: str, *, is_across: bool
    ) -> Html:
        if is_across:
            low, high = (self.at_x(each) for each in ends)
            return html(
                '<path class="rk-ends {}" d="M{:g} {:g}L{:g} {:g}"/>', kind, low, top, high, top
            )
        low, high = (self.at_y(each) for each in ends)
        caps = "".join(f"M{left - 3:g} {each:g}L{left + 3:g} {each:g}" for each in (low, high))
        return html(
            '<path class="rk-ends {}" d="M{:g} {:g}L{:g} {:g}{}"/>',
            kind,
            left,
            low,
            left,
            high,
            caps,
        )

    def _rect(self, x: tuple[float, float], y: tuple[float, float], kind: str) -> Html:
        left, right = sorted(self.at_x(each) for each in x)
        top, bottom = sorted(self.at_y(each) for each in y)
        size = html('width="{:g}" height="{:g}"', max(0.5, right - left), max(0.0, bottom - top))
        return html('<rect class="{}" x="{:g}" y="{:g}" {}/>', kind, left, top, size)

    def _grid(self) -> None:
        floor = self.height - BOTTOM
        lines, words = [], []
        for value, label in self.y.ticks if self.y else ():
            top = self.at_y(value)
            lines.append(f"M{self._left} {top:g}H{self.width - RIGHT}")
            words.append(
                html(
                    '<text x="{}" y="{:g}" text-anchor="end">{}</text>',
                    self._left - 6,
                    top + 4,
                    label,
                )
            )
        for value, label in self.x.ticks:
            left = self.at_x(value)
            if self.y is None:
                lines.append(f"M{left:g} {TOP}V{floor}")
            half = len(label) * (WIDE_LETTER if self.is_wide else LETTER) / 2
            at, anchor = left, "middle"
            if left + half > self.width:
                at, anchor = self.width, "end"
            elif left < half:
                at, anchor = 0, "start"
            place = html('x="{:g}" y="{}"', at, floor + 15)
            words.append(html('<text {} text-anchor="{}">{}</text>', place, anchor, label))
        if self.x.label:
            words.append(
                html(
                    '<text x="{}" y="{}" text-anchor="end">{}</text>',
                    self.width - RIGHT,
                    self.height - 4,
                    self.x.label,
                )
            )
        self._behind.append(html('<path class="rk-grid" d="{}"/>', "".join(lines)))
        self._behind.append(
            html('<path class="rk-axis" d="M{} {}H{}"/>', self._left, floor, self.width - RIGHT)
        )
        self._behind.append(join(words))


_STAR = "M0 -8L2.1 -2.9L7.6 -2.5L3.4 1.1L4.7 6.5L0 3.6L-4.7 6.5L-3.4 1.1L-7.6 -2.5L-2.1 -2.9Z"


def _focusable(inner: Html, words: str, link: str) -> Html:
    """A mark that the arrow keys reach; the first one of a chart is a stop of the tab key."""
    if link:
        return html(
            '<a class="rk-pt rk-jump" tabindex="-1" aria-label="{}" {}>{}</a>', words, link, inner
        )
    return html('<g class="rk-pt" tabindex="-1" role="img">{}</g>', inner)


def _thinned(
    points: Sequence[tuple[float, float | None]],
) -> Sequence[tuple[float, float | None]]:
    width = -(-2 * len(points) // MOST_VERTICES)
    if width < 2:
        return points
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), width):
        part = points[start : start + width]
        known = [(x, y) for x, y in part if y is not None]
        if not known:
            kept.append((part[0][0], None))
            continue
        ends = {min(known, key=lambda point: point[1]), max(known, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def shown(value: float, *, is_share: bool) -> str:
    """A number in the unit of its chart."""
    return share(value) if is_share else number(value)
