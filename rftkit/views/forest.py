"""A forest plot: estimates with their intervals, one below the other, around zero.

A clear difference is a filled point, an unclear one is hollow. Each name is above its interval,
so that long names fit on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rftkit.evals.sentences import decimals
from rftkit.views.markup import signed
from rftkit.views.plot import Chart
from rftkit.views.svg import Canvas, value_axis

if TYPE_CHECKING:
    from rftkit.evals.comparison import Estimate

__all__ = ["SLOT", "Entry", "forest"]

SLOT = 38
"""Height of one line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a forest plot."""

    label: str
    estimate: Estimate
    verdict: str
    is_faint: bool = False
    link: str = ""

    @property
    def kind(self) -> str:
        """The CSS classes of the line."""
        is_up = (self.estimate.value or 0.0) >= 0
        side = ("rk-up" if is_up else "rk-down rk-square") if self.is_sure else "rk-unclear"
        return f"{side} {'' if self.is_sure else 'rk-hollow'} {'rk-dash1' if self.is_faint else ''}"

    @property
    def is_sure(self) -> bool:
        """Whether the difference is shown."""
        return self.verdict in ("better", "worse")

    @property
    def words(self) -> str:
        """The numbers of the line as text."""
        shown = f"{signed(self.estimate.value)} ({_ends(self.estimate)})"
        return f"{self.label} {shown}, {self.verdict}"


def forest(entries: Sequence[Entry], title: str, margin: float | None) -> Chart:
    """A column of estimates with their intervals around zero, each under its name."""
    known = [entry.estimate for entry in entries]
    ends = [end for each in known for end in (each.value, each.low, each.high) if end is not None]
    canvas = Canvas(
        value_axis([0.0, *ends, *([-margin, margin] if margin else [])], num=7),
        None,
        is_wide=True,
        height=48 + SLOT * len(entries),
    )
    if margin is not None:
        canvas.box((-margin, margin), (0.0, 1.0), "rk-box rk-margin")
    canvas.rule(0.0)
    slot = 1 / len(entries)
    for at, entry in enumerate(entries):
        value, low, high = entry.estimate.value, entry.estimate.low, entry.estimate.high
        canvas.word(canvas.at_x(canvas.x.low), canvas.at_y(at * slot) + 13, entry.label)
        canvas.point(
            value or 0.0,
            (at + 0.68) * slot,
            entry.words,
            entry.kind,
            ends=None if low is None or high is None else (low, high),
            is_across=True,
            link=entry.link,
        )
    legend = [("rk-box rk-margin", f"within ±{margin:g}: negligible")] if margin else []
    return Chart(title, canvas, f"{title}: {'; '.join(e.words for e in entries)}.", legend)


def _ends(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"no interval: {estimate.why_no_interval}"
    digits = decimals(estimate.low, estimate.high)
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}"
