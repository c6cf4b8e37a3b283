"""A ladder as a page shows it: which rung was worth it, what each one cost, and the two in a plot.

The numbers come from `rftkit.ladder`; the rows and the intervals of the comparison are drawn by
`compare_tables`, `compare_charts` and `compare_rows`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.views.compare_tables import interval
from rftkit.views.markup import Html, html, html_each, join, note, number, prose, wrap
from rftkit.views.plot import Chart, picture
from rftkit.views.svg import Canvas, value_axis

if TYPE_CHECKING:
    from rftkit.evals.comparison import Estimate
    from rftkit.ladder import Ladder

__all__ = ["LADDER", "ladder_chart", "ladder_headline"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in units of the drawing."""
LETTER, LINE = 10.0, 19.0
"""Width and height of a letter where it is largest: on a phone."""
LADDER = {
    "rung": "rung",
    "starts from": "starts from",
    "reward": "reward",
    "difference from base": "difference",
    "low": "low",
    "high": "high",
    "verdict": "verdict",
    "seconds in all": "seconds in all",
    "tokens in all": "tokens in all",
    "seconds": "own seconds",
    "tokens": "own tokens",
}
"""Columns of a table of `Ladder.records`, with their headings; notes are in the headline."""


def ladder_headline(ladder: Ladder) -> Html:
    """The sentence, a tile for the base, the rung that was worth it and the best, and caveats."""
    labels = dict.fromkeys([ladder.comparison.baseline, ladder.worth, ladder.best])
    tiles = join(_tile(ladder, label) for label in labels if label is not None)
    lines = ladder.records()
    notes = [f"{each['rung']}: {each['note']}" for each in lines if each.get("note")]
    points = html_each("<li>{}</li>", map(prose, [*notes, *ladder.comparison.notes]))
    return wrap(
        html(
            '<p class="rk-verdict">{}</p>{}{}',
            ladder.sentence,
            html("<div class=rk-tiles>{}</div>", tiles) if tiles else Html(),
            html("<ul>{}</ul>", points) if points else Html(),
        ),
        plain=ladder.sentence,
    )


def ladder_chart(ladder: Ladder) -> Html:
    """Mean reward of each rung with its interval, over the seconds that it took in all."""
    known = [run for run in ladder.comparison.runs if run.reward.value is not None]
    if len(known) < 2:
        return note("At least two rungs with a result are needed for a plot.")
    seconds = {run.label: ladder.seconds(run.label) for run in known}
    ends = {run.label: _ends(run.reward) for run in known}
    heights = [end for pair in ends.values() for end in pair]
    most = max(seconds.values()) * 1.15
    canvas = Canvas(
        value_axis([0.0, most], label="seconds in all"),
        value_axis(heights),
        is_wide=True,
        height=260,
    )
    words = []
    taken: list[Box] = []
    for run in known:
        mean, spent = run.reward.value or 0.0, seconds[run.label]
        said = f"{run.label} {number(mean, 2)} after {spent:,.0f} s"
        kind = "rk-main" if run.label in (ladder.worth, ladder.best) else "rk-other"
        canvas.point(spent, mean, f"{said} ({interval(run.reward, 2)})", kind, ends=ends[run.label])
        _name(canvas, taken, run.label, canvas.at_x(spent), canvas.at_y(mean))
        words.append(said)
    caption = "Seconds to make a rung, with the rung it starts from; the base took none."
    alt = f"Reward over seconds: {'; '.join(words)}."
    return picture([Chart("Mean reward on test rows", canvas, alt)], caption)


def _name(canvas: Canvas, taken: list[Box], label: str, x: float, y: float) -> None:
    """Write a name beside its point, inside the drawing and clear of the names before it."""
    wide = LETTER * len(label)
    sides = [("start", x + 8, x + 8), ("end", x - 8 - wide, x - 8)]
    places = [
        (anchor, at, below, (left, below - LINE, left + wide, below))
        for below in (y - 6, y + LINE + 2)
        for anchor, left, at in sides
        if left >= 0 and left + wide <= canvas.width
    ]
    free = [each for each in places if not any(_overlap(each[3], box) for box in taken)]
    anchor, at, below, box = next(iter(free or places), ("start", x + 8, y - 6, (0, 0, 0, 0)))
    canvas.word(at, below, label, anchor)
    taken.append(box)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ends(reward: Estimate) -> tuple[float, float]:
    """The interval of a mean; only the mean if there is no interval."""
    mean = reward.value or 0.0
    low, high = reward.low, reward.high
    return (mean, mean) if low is None or high is None else (low, high)


def _tile(ladder: Ladder, label: str) -> Html:
    run = ladder.comparison.summary(label)
    cost = f"{ladder.seconds(label):,.0f} s, {ladder.tokens(label):,} tokens"
    return html(
        '<div class="rk-tile"><span>{}</span><b>{}</b><small>{}; {}</small></div>',
        label,
        number(run.reward.value, 2),
        interval(run.reward, 2),
        cost,
    )
