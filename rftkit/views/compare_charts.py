"""Plots of a comparison: reward with bands, paired differences, slices, rows across runs.

Not here: the numbers (`rftkit.evals`), scales and marks (`svg`). A clear difference is a filled
point, an unclear one is hollow. Lines differ in dash and weight as well as in colour, so that a
grey print is readable. The alt text of every plot states its numbers, and a point leads to its
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rftkit.views.forest import SLOT, Entry, forest
from rftkit.views.jumps import Jumps
from rftkit.views.markup import Html, missing, note, number, signed
from rftkit.views.plot import Chart, picture
from rftkit.views.svg import WIDE, WIDE_LETTER, Axis, Canvas, value_axis, whole_axis
from rftkit.wording import counted

if TYPE_CHECKING:
    from rftkit.evals.comparison import Comparison, Estimate, PairSummary, RunSummary, SliceTable
    from rftkit.evals.noise import JudgeNoise

__all__ = ["difference_chart", "reward_curve", "row_paths", "slice_chart"]

MOST_PATHS = 30
"""Rows that are drawn one by one."""
MOST_BANDS = 3
"""With more jobs, the intervals are drawn as bars of the points only."""
STAYED = 0.05
"""A row whose mean reward moved by less counts as unchanged."""


def reward_curve(
    comparison: Comparison, noise: JudgeNoise | None = None, *, jumps: Jumps | None = None
) -> Html:
    """Mean reward of each run with its interval; a line for each job.

    Args:
        comparison: from `evals.compare`.
        noise: of the judge, drawn as a band on the baseline: a gain inside it is the judge's own
            noise, and its point is grey.
        jumps: where the rows are, so that a point leads to those that changed.
    """
    runs = [run for run in comparison.runs if run.reward.value is not None]
    if not runs:
        return note("No run has a reward.")
    if not any(run.reward.value for run in runs):
        return note(f"The mean reward of {_each_of(runs)} is 0.")
    base = next((run for run in runs if run.label == comparison.baseline), None)
    grey, band = _within_noise(runs, base, noise)
    said = [f"{run.label} {_with_ends(run.reward)}" for run in runs]
    caption = f"Bands and bars: {100 * comparison.level:g} % intervals, each for its run alone."
    if grey:
        caption += f" Within the judge's own noise, so not a reliable gain: {', '.join(grey)}."
    points = _Points(comparison, jumps, grey)
    by_step = all(run.step is not None for run in runs) and len({run.step for run in runs}) > 1
    chart = _by_step(comparison, runs, points, band) if by_step else _by_run(runs, points, band)
    return picture([chart(f"Mean reward by run: {'; '.join(said)}.")], caption)


def _each_of(runs: Sequence[RunSummary]) -> str:
    return runs[0].label if len(runs) == 1 else f"each of the {len(runs)} runs"


def difference_chart(comparison: Comparison, *, jumps: Jumps | None = None) -> Html:
    """The paired difference of every run from the baseline, with adjusted intervals."""
    pairs = [pair for pair in comparison.pairs if pair.difference.value is not None]
    if not pairs:
        return note("No two runs have graded the same rows.")
    if not any(pair.up_rows or pair.down_rows for pair in pairs):
        return note(f"No run earns more or less than {comparison.baseline} in any row.")
    entries = [
        Entry(
            pair.after,
            pair.difference,
            pair.verdict,
            link=_changed(pair, jumps),
        )
        for pair in pairs
    ]
    title = f"Paired reward difference from {comparison.baseline}"
    few = min(pair.num_rows for pair in pairs)
    caption = (
        f"{100 * comparison.level:g} % intervals, adjusted for "
        f"{counted(len(pairs), 'comparison')}, over at least {counted(few, 'row')}. "
        "Filled: better or worse; hollow: no clear difference."
    )
    return picture([forest(entries, title, comparison.margin)], caption)


def slice_chart(slices: SliceTable, *, jumps: Jumps | None = None) -> Html:
    """The difference in each slice, most trouble first; slices with few rows are faint."""
    known = [each for each in slices.slices if each.difference.value is not None][:30]
    if not known:
        return note(f"No slice by {slices.by} has rows that both runs have graded.")
    if all(each.difference.value == 0 and each.difference.low is None for each in known):
        return note(f"No slice by {slices.by} shows a difference.")
    entries = [
        Entry(
            f"{each.value[:60]} ({counted(each.num_rows, 'row')})",
            each.difference,
            each.verdict,
            is_faint=each.is_small,
            link=jumps.attributes(each.rows, f"with {slices.by} = {each.value}") if jumps else "",
        )
        for each in known
    ]
    title = f"{slices.after} minus {slices.before} by {slices.by}"
    left = len(slices.slices) - len(known)
    caption = "Intervals are adjusted for the number of slices."
    caption += f" {counted(left, 'slice')} not drawn." if left else ""
    return picture([forest(entries, title, None)], caption)


def row_paths(comparison: Comparison, *, jumps: Jumps | None = None) -> Html:
    """The rows whose reward changed most, each a line over the runs."""
    labels = comparison.samples.labels
    columns = [f"reward/{label}" for label in labels]
    ends = _ends_of_jobs(comparison)
    rows = comparison.rows.dropna(subset=columns, how="all")
    if len(labels) < 2 or not len(rows):
        return note("At least two runs with rewards are needed to follow rows.")
    half = MOST_PATHS // 2
    rose = rows[rows["change"] >= STAYED].nlargest(half, "change")
    fell = rows[rows["change"] <= -STAYED].nsmallest(half, "change")
    if not len(rose) and not len(fell):
        return note(
            f"No row rose or fell by {STAYED:g} or more from {comparison.baseline} to "
            f"{comparison.focus}."
        )
    canvas = Canvas(
        _run_axis(labels), value_axis(_known(rows[columns]), label=""), is_wide=True, height=270
    )
    for kind, part in (("rk-up rk-thin", rose), ("rk-down rk-thin rk-dash1", fell)):
        lines: list[Any] = part.to_dict("records")
        for line in lines:
            _path(canvas, line, columns, kind, jumps, ends)
    mean = [float(each) for each in rows[columns].mean()]
    canvas.line(_parted([(at, _value(each)) for at, each in enumerate(mean)], ends), "rk-mean")
    for at, (label, each) in enumerate(zip(labels, mean, strict=True)):
        if not missing(each):
            canvas.point(at, each, f"mean of all rows, {label}: {number(each)}", "rk-mean")
    up, down = int((rows["change"] >= STAYED).sum()), int((rows["change"] <= -STAYED).sum())
    said = (
        f"From {comparison.baseline} to {comparison.focus}, {up:,} of {len(rows):,} rows rose and "
        f"{down:,} fell by {STAYED:g} or more; the {len(rose)} that rose most and the {len(fell)} "
        "that fell most are drawn."
    )
    legend = [
        *([("rk-up", "rose")] if len(rose) else []),
        *([("rk-down rk-dash1", "fell")] if len(fell) else []),
        ("rk-mean", f"mean of all {len(rows):,} rows"),
    ]
    names = f"The runs from left to right: {', '.join(labels)}."
    alt = f"Lines of the reward of single rows over {', '.join(labels)}. {said}"
    return picture([Chart("Reward of single rows, run by run", canvas, alt, legend)],
                   f"{said} {names}")  # fmt: skip


def _ends_of_jobs(comparison: Comparison) -> list[int]:
    """The places of the runs after which another job begins: no line leads from one to the other.

    A base that jobs share belongs to the first of them.
    """
    jobs = [run.job_id for run in comparison.samples.runs]
    return [at for at, (own, following) in enumerate(pairwise(jobs)) if own and own != following]


def _parted(
    values: Sequence[tuple[float, float | None]], ends: Sequence[int]
) -> list[tuple[float, float | None]]:
    """The points of a line, with a gap after each of these places."""
    found: list[tuple[float, float | None]] = []
    for at, value in enumerate(values):
        found.append(value)
        if at in ends:
            found.append((value[0], None))
    return found


def _path(
    canvas: Canvas,
    line: dict[str, Any],
    columns: Sequence[str],
    kind: str,
    jumps: Jumps | None,
    jobs: Sequence[int],
) -> None:
    """One row followed through the runs; the end of its line links to the row."""
    values = [(at, _value(line[column])) for at, column in enumerate(columns)]
    canvas.line(_parted(values, jobs), kind)
    ends = [(at, value) for at, value in values if value is not None]
    words = f"row {int(line['number'])}: {signed(line['change'], 2)}. {line['prompt'][:80]}"
    link = jumps.attributes([line["row"]], f"number {int(line['number'])}") if jumps else ""
    canvas.point(*ends[-1], words, kind, link=link)


class _Points:
    """How the point of a run is drawn, its text, and its link."""

    def __init__(self, comparison: Comparison, jumps: Jumps | None, grey: Sequence[str]) -> None:
        self.comparison, self.grey = comparison, grey
        self.pairs = {pair.after: pair for pair in comparison.pairs}
        self.deploy = comparison.choice.deploy if comparison.choice else None
        self.jumps = jumps

    def kind(self, run: RunSummary, of_job: str = "rk-main") -> str:
        """Filled where it clearly differs from the baseline; a star is the recommended run."""
        pair = self.pairs.get(run.label)
        is_sure = pair is None or pair.verdict in ("better", "worse")
        tone = "rk-unclear" if run.label in self.grey else of_job
        star = "rk-star" if run.label == self.deploy else ""
        return f"{tone} {star} {'' if is_sure and run.label not in self.grey else 'rk-hollow'}"

    def words(self, run: RunSummary) -> str:
        """The run's numbers and its verdict."""
        said = f"{run.label}: {_with_ends(run.reward)}"
        pair = self.pairs.get(run.label)
        if pair and pair.difference.value is not None:
            said += f", {signed(pair.difference.value)} from {pair.before}, {pair.verdict}"
        return said + (", deploy" if run.label == self.deploy else "")

    def link(self, run: RunSummary) -> str:
        """The link to the rows that changed."""
        pair = self.pairs.get(run.label)
        return _changed(pair, self.jumps) if pair else ""


def _by_step(
    comparison: Comparison,
    runs: Sequence[RunSummary],
    points: _Points,
    band: tuple[float, float] | None,
) -> Any:
    """A line for each job over the steps."""
    steps = [int(run.step or 0) for run in runs]
    values = [end for run in runs for end in (run.reward.value, run.reward.low, run.reward.high)]
    canvas = Canvas(
        whole_axis(min(steps), max(steps)),
        value_axis([each for each in values if each is not None]),
        is_wide=True,
        height=270,
    )
    legend: list[tuple[str, str]] = []
    if band:
        canvas.box((min(steps), max(steps)), band, "rk-box rk-margin")
        legend.append(("rk-box rk-margin", "judge's own noise"))
    jobs = _by_job(comparison)
    kinds: dict[str, str] = {}
    for at, (job, labels) in enumerate(jobs.items()):
        own = sorted((run for run in runs if run.label in labels), key=lambda run: run.step or 0)
        kind = _kind_of_job(at)
        ends = [(float(run.step or 0), run.reward.low, run.reward.high) for run in own]
        known = [(x, low, high) for x, low, high in ends if low is not None and high is not None]
        if len(jobs) <= MOST_BANDS and len(known) > 1:
            canvas.band(known, kind)
        canvas.line([(float(run.step or 0), run.reward.value) for run in own], kind)
        # a base model that jobs share counts to the first one
        kinds = dict.fromkeys(labels, kind) | kinds
        legend += [(kind, job)] if len(jobs) > 1 else []
    for run in runs:
        canvas.point(
            float(run.step or 0),
            run.reward.value or 0.0,
            points.words(run),
            points.kind(run, kinds[run.label]),
            ends=_bar_of(run) if len(jobs) > MOST_BANDS or len(runs) == 1 else None,
            link=points.link(run),
        )
    if points.deploy:
        legend.append(("", f"★ {points.deploy}: deploy"))
    return lambda alt: Chart("Mean reward", canvas, alt, legend)


def _kind_of_job(at: int) -> str:
    """How the line of a job is drawn: five styles that differ in colour and dash, then thinner
    lines.
    """
    if at == 0:
        return "rk-main"
    again = min(2, (at - 1) // 4)
    return f"rk-job{(at - 1) % 4 + 1}" + (f" rk-again{again}" if again else "")


def _by_run(runs: Sequence[RunSummary], points: _Points, band: tuple[float, float] | None) -> Any:
    """The runs one below the other."""
    values = [end for run in runs for end in (run.reward.value, run.reward.low, run.reward.high)]
    known = [each for each in values if each is not None]
    canvas = Canvas(
        value_axis([*known, *(band or ())], num=7), None, is_wide=True, height=48 + SLOT * len(runs)
    )
    if band:
        canvas.box(band, (0.0, 1.0), "rk-box rk-margin")
    slot = 1 / len(runs)
    for at, run in enumerate(runs):
        star = " ★ deploy" if run.label == points.deploy else ""
        name = f"{run.label}{star}"
        canvas.word(canvas.at_x(canvas.x.low), canvas.at_y(at * slot) + 13, name)
        canvas.point(
            run.reward.value or 0.0, (at + 0.68) * slot, points.words(run), points.kind(run),
            ends=_bar_of(run), is_across=True, link=points.link(run),
        )  # fmt: skip
    legend = [("rk-box rk-margin", "judge's own noise")] if band else []
    return lambda alt: Chart("Mean reward", canvas, alt, legend)


def _within_noise(
    runs: Sequence[RunSummary], base: RunSummary | None, noise: JudgeNoise | None
) -> tuple[list[str], tuple[float, float] | None]:
    """Runs whose gain may be the judge's own noise, and the band of it."""
    if base is None or base.reward.value is None or noise is None or noise.band is None:
        return [], None
    middle, band = base.reward.value, noise.band
    inside = [run for run in runs if abs((run.reward.value or 0) - middle) <= band]
    return [run.label for run in inside if run is not base], (middle - band, middle + band)


def _changed(pair: PairSummary, jumps: Jumps | None) -> str:
    """A link to the rows of a pair whose reward changed."""
    rows = [*pair.up_rows, *pair.down_rows]
    words = f"whose reward changed from {pair.before} to {pair.after}"
    return jumps.attributes(rows, words) if jumps and rows else ""


def _by_job(comparison: Comparison) -> dict[str, list[str]]:
    """Job -> labels of its runs; a run without a job is its own line."""
    found: dict[str, list[str]] = {}
    jobs = {run.job_id for run in comparison.samples.runs if run.job_id}
    shared = [run.label for run in comparison.samples.runs if run.step == 0 and not run.job_id]
    for run in comparison.samples.runs:
        if run.label not in shared or not jobs:
            found.setdefault(run.job_id or run.label, []).append(run.label)
    named = {_job_name(job, labels): labels for job, labels in found.items()}
    return {job: [*shared, *labels] if jobs else labels for job, labels in named.items()}


def _job_name(job: str, labels: Sequence[str]) -> str:
    """What the labels of a job's runs call it, such as `A` in `Step 12 · A`; else its id."""
    return labels[0].rpartition(" · ")[2] if " · " in labels[0] else job


def _run_axis(labels: Sequence[str]) -> Axis:
    """Runs from left to right, by number where their names would not fit."""
    room = 0.9 * WIDE / max(1, len(labels) - 1)
    is_short = 1.5 * WIDE_LETTER * max(map(len, labels)) <= room  # the last one ends at the edge
    names = labels if is_short else [str(at + 1) for at in range(len(labels))]
    every = max(1, len(labels) // 12)
    ticks = tuple((float(at), name) for at, name in enumerate(names) if at % every == 0)
    return Axis(0.0, max(1.0, len(labels) - 1.0), ticks, "" if is_short else "run")


def _known(frame: Any) -> list[float]:
    return [float(each) for each in frame.to_numpy(float).ravel() if not missing(float(each))]


def _value(value: float) -> float | None:
    return None if missing(value) else float(value)


def _bar_of(run: RunSummary) -> tuple[float, float] | None:
    low, high = run.reward.low, run.reward.high
    return None if low is None or high is None else (low, high)


def _with_ends(estimate: Estimate) -> str:
    ends = f"{number(estimate.low)} to {number(estimate.high)}"
    return f"{number(estimate.value)} ({ends})"
