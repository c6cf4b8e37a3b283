"""Plots of a comparison: reward with bands, paired differences, slices, rows across runs.

Not here: the numbers (`rftkit.evals`), how a figure becomes an image (`plot`). A clear
difference is a filled point, an unclear one is hollow. Lines differ in dash and weight as well as
in colour, so that a grey print is readable. The alt text of every plot states its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.evals.sentences import decimals
from rftkit.views.markup import Html, note, number, signed
from rftkit.views.plot import GREY, GRID, INK, LEGEND, dress, panel_axes, picture
from rftkit.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rftkit.evals.comparison import Comparison, Estimate, SliceTable
    from rftkit.evals.noise import JudgeNoise

__all__ = ["difference_chart", "reward_curve", "row_paths", "slice_chart"]

BLUE, RED = "#0a58a8", "#ad2118"
MOST_PATHS = 30
"""Rows that are drawn one by one."""
STAYED = 0.05
"""A row whose mean reward moved by less counts as unchanged."""


def reward_curve(comparison: Comparison, noise: JudgeNoise | None = None) -> Html:
    """Mean reward of each run with its interval; a line for each job.

    Args:
        comparison: from `evals.compare`.
        noise: of the judge, drawn as a band on the baseline: a gain inside it is the judge's own
            noise, and its point is grey.
    """
    runs = [run for run in comparison.runs if run.reward.value is not None]
    if not runs:
        return note("No run has a reward.")
    figure, axes = panel_axes(True, 2.8)
    places, by_step = _places(comparison)
    base = next((run for run in runs if run.label == comparison.baseline), None)
    band = noise.band if noise else None
    grey: list[str] = []
    if base is not None and band is not None and base.reward.value is not None:
        middle = base.reward.value
        axes.axhspan(middle - band, middle + band, facecolor="white", edgecolor="#b3bac1",
                     hatch="////", linewidth=0, label="judge's own noise")  # fmt: skip
        grey = [
            run.label
            for run in runs
            if run is not base and abs((run.reward.value or 0) - middle) <= band
        ]
    for index, (job, own) in enumerate(_by_job(comparison).items()):
        _curve(axes, comparison, [run for run in runs if run.label in own], places, index, job)
    _points(axes, comparison, places, grey)
    dress(axes, "Mean reward")
    if not by_step:
        axes.set_xlabel("")
        axes.set_xticks(list(places.values()), list(places), rotation=30, ha="right")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(ncols=4, **LEGEND)
    said = [
        f"{run.label} {number(run.reward.value)} ({number(run.reward.low)} to "
        f"{number(run.reward.high)})"
        for run in runs
    ]
    caption = f"Bands: {100 * comparison.level:g} % intervals, each for its run alone."
    if grey:
        caption += f" Within the judge's own noise, so not a reliable gain: {', '.join(grey)}."
    return picture([(figure, f"Mean reward by run: {'; '.join(said)}.")], caption)


def difference_chart(comparison: Comparison) -> Html:
    """The paired difference of every run from the baseline, with adjusted intervals."""
    pairs = [pair for pair in comparison.pairs if pair.difference.value is not None]
    if not pairs:
        return note("No two runs have graded the same rows.")
    entries = [
        _Entry(pair.after, pair.difference, pair.verdict in ("better", "worse")) for pair in pairs
    ]
    title = f"Paired reward difference from {comparison.baseline}"
    words = [
        f"{pair.after} {signed(pair.difference.value)} ({_ends(pair.difference)}), {pair.verdict}"
        for pair in pairs
    ]
    few = min(pair.num_rows for pair in pairs)
    caption = (
        f"{100 * comparison.level:g} % intervals, adjusted for "
        f"{counted(len(pairs), 'comparison')}, over at least {counted(few, 'row')}. "
        "Filled: better or worse; hollow: no clear difference."
    )
    figure = _forest(entries, title, comparison.margin)
    return picture([(figure, f"{title}: {'; '.join(words)}.")], caption)


def slice_chart(slices: SliceTable) -> Html:
    """The difference in each slice, most trouble first; slices with few rows are faint."""
    known = [each for each in slices.slices if each.difference.value is not None][:30]
    if not known:
        return note(f"No slice by {slices.by} has rows that both runs have graded.")
    entries = [
        _Entry(
            f"{each.value[:40]}  ({each.num_rows})",
            each.difference,
            each.verdict in ("better", "worse"),
            is_faint=each.is_small,
        )
        for each in known
    ]
    title = f"{slices.after} minus {slices.before} by {slices.by} (rows)"
    words = [
        f"{each.value} {signed(each.difference.value)} ({_ends(each.difference)}) on "
        f"{counted(each.num_rows, 'row')}, {each.verdict}"
        for each in known
    ]
    left = len(slices.slices) - len(known)
    caption = "Intervals are adjusted for the number of slices."
    caption += f" {counted(left, 'slice')} not drawn." if left else ""
    return picture([(_forest(entries, title, None), f"{title}: {'; '.join(words)}.")], caption)


def row_paths(comparison: Comparison) -> Html:
    """The rows whose reward changed most, each a line over the runs."""
    import numpy as np

    labels = comparison.samples.labels
    columns = [f"reward/{label}" for label in labels]
    rows = comparison.rows.dropna(subset=columns, how="all")
    if len(labels) < 2 or not len(rows):
        return note("At least two runs with rewards are needed to follow rows.")
    half = MOST_PATHS // 2
    rose = rows[rows["change"] >= STAYED].nlargest(half, "change")
    fell = rows[rows["change"] <= -STAYED].nsmallest(half, "change")
    figure, axes = panel_axes(True, 3.0)
    x = np.arange(len(labels))
    for kind, part in (("rose", rose), ("fell", fell)):
        for at, line in enumerate(part[columns].to_numpy(float)):
            axes.plot(x, line, label=kind if at == 0 else None, **_PATHS[kind])
    mean = rows[columns].mean().to_numpy(float)
    axes.plot(x, mean, color=INK, linewidth=2.4, label=f"mean of all {len(rows):,} rows")
    dress(axes, "Reward of single rows, run by run")
    axes.set_xlabel("")
    axes.set_xticks(x, labels, rotation=30 if len(labels) > 6 else 0,
                    ha="right" if len(labels) > 6 else "center")  # fmt: skip
    axes.legend(ncols=4, **LEGEND)
    up, down = int((rows["change"] >= STAYED).sum()), int((rows["change"] <= -STAYED).sum())
    said = (
        f"From {comparison.baseline} to {comparison.focus} {up:,} of {len(rows):,} rows rose and "
        f"{down:,} fell by "
        f"{STAYED:g} or more; the {len(rose)} that rose most and the {len(fell)} that fell most "
        "are drawn."
    )
    alt = f"Lines of the reward of single rows over {', '.join(labels)}. {said}"
    return picture([(figure, alt)], said)


_PATHS: dict[str, dict[str, Any]] = {
    "rose": {"color": BLUE, "linewidth": 0.8, "alpha": 0.65},
    "fell": {"color": RED, "linewidth": 0.9, "alpha": 0.8, "linestyle": (0, (4, 2))},
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a forest plot."""

    label: str
    estimate: Estimate
    is_sure: bool
    is_faint: bool = False


def _forest(entries: Sequence[_Entry], title: str, margin: float | None) -> Any:
    """Estimates with their intervals, one below the other, around zero."""
    figure, axes = panel_axes(True, 0.75 + 0.24 * len(entries))
    if margin is not None:
        axes.axvspan(-margin, margin, color="#eceff2", label=f"within ±{margin:g}: negligible")
    axes.axvline(0, color=GREY, linewidth=0.9)
    for place, entry in enumerate(entries):
        value, low, high = entry.estimate.value, entry.estimate.low, entry.estimate.high
        is_up = value is not None and value >= 0
        color = (BLUE if is_up else RED) if entry.is_sure and not entry.is_faint else "#8a939c"
        if low is not None and high is not None:
            style = (0, (2, 1.5)) if entry.is_faint else "-"
            axes.plot([low, high], [place, place], color=color, linewidth=1.6, linestyle=style)
        shape: dict[str, Any] = {"marker": "o" if is_up else "s", "markersize": 5.5, "color": color}
        filled = color if entry.is_sure else "white"
        axes.plot([value or 0.0], [place], markerfacecolor=filled, **shape)
    dress(axes, title)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_yticks(range(len(entries)), [entry.label for entry in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.xaxis.set_major_locator(_plain_ticks())
    axes.set_xlabel("")
    if margin is not None:
        axes.legend(**LEGEND)
    return figure


def _plain_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=7)


def _places(comparison: Comparison) -> tuple[dict[str, float], bool]:
    """The position of each run on the axis, and whether that is its step."""
    steps = [run.step for run in comparison.runs]
    if all(step is not None for step in steps):
        return {run.label: float(run.step or 0) for run in comparison.runs}, True
    return {run.label: float(at) for at, run in enumerate(comparison.runs)}, False


def _by_job(comparison: Comparison) -> dict[str, list[str]]:
    """Job -> labels of its runs; a run without a job is its own line."""
    found: dict[str, list[str]] = {}
    for run in comparison.samples.runs:
        found.setdefault(run.job_id or run.label, []).append(run.label)
    return {_job_name(job, labels): labels for job, labels in found.items()}


def _job_name(job: str, labels: Sequence[str]) -> str:
    """What the labels of a job's runs call it, such as `A` in `Step 12 · A`; else its id."""
    return labels[0].rpartition(" · ")[2] if " · " in labels[0] else job


def _curve(
    axes: Axes, comparison: Comparison, runs: Sequence[Any], places: Any, index: int, job: str
) -> None:
    import numpy as np

    runs = sorted(runs, key=lambda run: places[run.label])
    x = [places[run.label] for run in runs]
    ends = [
        [np.nan if each is None else each for each in (r.reward.value, r.reward.low, r.reward.high)]
        for r in runs
    ]
    value, low, high = np.array(ends, float).reshape(-1, 3).T
    several = len(_by_job(comparison)) > 1
    style = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))[index % 4]
    color = BLUE if index == 0 else ("#5b6570", "#b0560f", "#14713f")[(index - 1) % 3]
    line: dict[str, Any] = {"color": color, "linestyle": style, "label": job if several else None}
    if len(runs) > 1:
        axes.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(x, value, linewidth=1.8, **line)
    else:
        bars = [value - low, high - value]
        axes.errorbar(x, value, yerr=bars, color=color, capsize=3, fmt="none")


def _points(axes: Axes, comparison: Comparison, places: Any, grey: Sequence[str]) -> None:
    """A point for each run, filled where it clearly differs from the baseline."""
    sure = {pair.after for pair in comparison.pairs if pair.verdict in ("better", "worse")}
    deploy = comparison.choice.deploy if comparison.choice else None
    for run in comparison.runs:
        if run.reward.value is None:
            continue
        is_grey = run.label in grey
        color = "#8a939c" if is_grey else BLUE
        filled = run.label in sure and not is_grey
        axes.plot(places[run.label], run.reward.value, linestyle="none",
                  marker="*" if run.label == deploy else "o", color=color,
                  markersize=11 if run.label == deploy else 5.5,
                  markerfacecolor=color if filled or run.label == comparison.baseline else "white",
                  label=f"{deploy}: deploy" if run.label == deploy else None)  # fmt: skip


def _ends(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "too few rows for an interval"
    digits = decimals(estimate.low, estimate.high)
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}"
