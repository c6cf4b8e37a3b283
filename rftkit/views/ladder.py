"""A ladder as a page shows it: which rung was worth it, what each one cost, and the two in a plot.

The numbers come from `rftkit.ladder`; the rows and the intervals of the comparison are drawn by
`compare_tables`, `compare_charts` and `compare_rows`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.views.compare_charts import BLUE
from rftkit.views.compare_tables import interval
from rftkit.views.markup import Html, note, number, prose, text, wrap
from rftkit.views.plot import GREY, INK, dress, panel_axes, picture

if TYPE_CHECKING:
    from rftkit.ladder import Ladder

__all__ = ["LADDER", "ladder_chart", "ladder_headline"]

LADDER = {
    "rung": "rung",
    "starts from": "starts from",
    "reward": "reward",
    "difference from base": "difference from base",
    "low": "low",
    "high": "high",
    "verdict": "verdict",
    "seconds": "seconds",
    "tokens": "tokens",
    "seconds in all": "seconds in all",
    "tokens in all": "tokens in all",
}
"""Columns of a table of `Ladder.records`, with their headings; notes are in the headline."""


def ladder_headline(ladder: Ladder) -> Html:
    """The sentence, a tile for the base, the rung that was worth it and the best, and caveats."""
    labels = dict.fromkeys([ladder.comparison.baseline, ladder.worth, ladder.best])
    tiles = "".join(_tile(ladder, label) for label in labels if label is not None)
    lines = ladder.records()
    notes = [f"{each['rung']}: {each['note']}" for each in lines if each.get("note")]
    points = "".join(f"<li>{prose(each)}</li>" for each in [*notes, *ladder.comparison.notes])
    return wrap(
        f'<p class="rk-verdict">{text(ladder.sentence)}</p>'
        f"{f'<div class=rk-tiles>{tiles}</div>' if tiles else ''}"
        f"{f'<ul>{points}</ul>' if points else ''}",
        plain=ladder.sentence,
    )


def ladder_chart(ladder: Ladder) -> Html:
    """Mean reward of each rung with its interval, over the seconds that it took in all."""
    known = [run for run in ladder.comparison.runs if run.reward.value is not None]
    if len(known) < 2:
        return note("At least two rungs with a result are needed for a plot.")
    figure, axes = panel_axes(True, 2.8)
    words = []
    for run in known:
        seconds, mean = ladder.seconds(run.label), run.reward
        assert mean.value is not None
        half = mean.half_width or 0.0
        color = BLUE if run.label in (ladder.worth, ladder.best) else GREY
        axes.errorbar([seconds], [mean.value], yerr=[half], fmt="o", color=color, capsize=3)
        axes.annotate(
            run.label, (seconds, mean.value), xytext=(6, 4), textcoords="offset points",
            fontsize=8, color=INK,
        )  # fmt: skip
        words.append(f"{run.label} {number(mean.value, 2)} after {seconds:,.0f} s")
    axes.margins(x=0.15)
    dress(axes, "Mean reward on test rows over seconds in all")
    caption = "Seconds to make a rung, with the rung it starts from; the base took none."
    return picture([(figure, f"Reward over seconds: {'; '.join(words)}.")], caption)


def _tile(ladder: Ladder, label: str) -> str:
    run = ladder.comparison.summary(label)
    cost = f"{ladder.seconds(label):,.0f} s, {ladder.tokens(label):,} tokens"
    return (
        f'<div class="rk-tile"><span>{text(label)}</span><b>{number(run.reward.value, 2)}</b>'
        f"<small>{text(interval(run.reward, 2))}; {text(cost)}</small></div>"
    )
