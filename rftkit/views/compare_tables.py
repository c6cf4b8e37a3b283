"""Runs side by side in numbers: one line per run, with intervals and a verdict.

The numbers come from `rftkit.evals.compare`; plots are in `compare_charts`, rows in `compare_rows`.
Every row count is a link to the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.evals.sentences import decimals
from rftkit.views.jumps import Jumps
from rftkit.views.listing import listing, table
from rftkit.views.markup import (
    Html,
    fact_table,
    html,
    html_each,
    join,
    missing,
    note,
    number,
    prose,
    signed,
    text,
    wrap,
)
from rftkit.wording import counted

if TYPE_CHECKING:
    from rftkit.evals.comparison import Comparison, Estimate, PairSummary, RunSummary, SliceTable

__all__ = [
    "compare_headline",
    "compare_runs",
    "grader_means",
    "interval",
    "pair_facts",
    "slice_lines",
]

VERDICTS = {
    "better": ("▲ better", "rk-good"),
    "worse": ("▼ worse", "rk-bad"),
    "same": ("= same", ""),
    "unclear": ("? unclear", "rk-warn"),
}


def compare_headline(comparison: Comparison) -> Html:
    """The recommendation, three figures, and the caveats.

    Of several jobs the first sentence says which setting won; the choice of a step comes after it.
    """
    choice, jobs = comparison.choice, comparison.jobs
    said = choice.sentence if choice else _no_choice(comparison)
    tiles = Html()
    if choice:
        best = comparison.summary(choice.deploy)
        start = comparison.summary(choice.baseline)
        tiles = _run_tile(start)
        if best is not start:
            tiles += _run_tile(best)
        if choice.expected_gain is not None and choice.best != choice.baseline:
            tiles += _tile(
                f"Expected gain of {choice.best} on new rows",
                signed(choice.expected_gain, 2),
                f"{_little(choice.optimism)} subtracted for selection bias",
            )
    steps = [f"Of all steps: {said}"] if jobs else []
    points = html_each("<li>{}</li>", map(prose, [*steps, *comparison.notes]))
    first = jobs.sentence if jobs else said
    return wrap(
        html(
            '<p class="rk-verdict">{}</p>{}{}',
            first,
            html("<div class=rk-tiles>{}</div>", tiles) if tiles else Html(),
            html("<ul>{}</ul>", points) if points else Html(),
        ),
        plain="\n".join([first, *steps]),
    )


def _run_tile(run: RunSummary) -> Html:
    return _tile(f"{run.label}, mean reward", number(run.reward.value, 2), interval(run.reward, 2))


def compare_runs(comparison: Comparison, *, jumps: Jumps | None = None) -> Html:
    """One line per run: reward, pass rate, difference from the baseline, problems.

    Args:
        comparison: from `evals.compare`.
        jumps: where its rows are; by default they are not on the page, and nothing leads to them.
    """
    if not comparison.runs:
        return note("There are no runs to show.")
    jumps = jumps or Jumps()
    pairs = {pair.after: pair for pair in comparison.pairs}
    is_alone = len(comparison.runs) == 1
    against = (f">difference from {comparison.baseline}", "verdict", ">fixed", ">broken")
    headings = [
        *("run", ">reward", ">pass rate", *(() if is_alone else against)),
        *(">tokens", ">failed", ">not scorable", ">cut off"),
    ]  # `>`: to the right
    head = join(
        html('<th scope="col"{}>{}</th>', _TH if name.startswith(">") else "", name.lstrip(">"))
        for name in headings
    )
    lines = [_run_line(comparison, run, pairs.get(run.label), jumps) for run in comparison.runs]
    listed = listing(
        lines,
        lambda body: html(
            '<div class="rk-scroll" tabindex="0"><table class="rk-tight"><thead>'
            '<tr>{}</tr></thead><tbody class="rk-items">{}</tbody></table></div>',
            head,
            body,
        ),
        noun="run",
        page=50,
    )
    adjusted = f"; those of differences are adjusted for {counted(len(pairs), 'comparison')}"
    said = (
        f"Small print: {100 * comparison.level:g} % intervals{adjusted * bool(pairs)}. "
        f"{'Click a row count to see the rows. ' * jumps.lead}{jumps.note}"
    )
    return join([listed, note(said.strip())], plain=_plain(comparison))


def grader_means(comparison: Comparison) -> Html:
    """The mean of each grader by run, with intervals."""
    names = list(dict.fromkeys(name for run in comparison.runs for name in run.graders))
    if not names:
        return note("There is one grader; its mean is the reward.")
    rows = [
        {"run": run.label}
        | {
            name: html("{} {}", number(run.graders[name].value), _faint(run.graders[name]))
            for name in names
            if name in run.graders
        }
        for run in comparison.runs
    ]
    return table(rows, caption="Mean score of each grader", noun="run", page=50)


def pair_facts(pair: PairSummary, jumps: Jumps) -> Html:
    """Two runs compared: difference, tests, and the smallest detectable difference."""
    many = pair.num_comparisons > 1
    adjusted = f", adjusted for {counted(pair.num_comparisons, 'comparison')}" if many else ""
    facts = [
        ("rows graded in both runs", f"{pair.num_rows:,}"),
        (f"mean difference{adjusted}", _change(pair.difference)),
        *((f"of it in {name}", _change(each)) for name, each in pair.graders.items()),
        ("difference in pass rate", _change(pair.pass_difference)),
        ("rows fixed", jumps.link(pair.fixed_rows, f"fixed from {pair.before} to {pair.after}")),
        ("rows broken", jumps.link(pair.broken_rows, f"broken from {pair.before} to {pair.after}")),
        ("rows with a higher reward",
         jumps.link(pair.up_rows, f"higher at {pair.after} than at {pair.before}")),
        ("rows with a lower reward",
         jumps.link(pair.down_rows, f"lower at {pair.after} than at {pair.before}")),
        ("rows with an unchanged verdict", f"{pair.num_unchanged:,}"),
        (f"sign-flip permutation test{adjusted}", _p(pair.p)),
        ("exact McNemar test of fixed against broken", _p(pair.mcnemar_p)),
        ("smallest difference that this many rows can show", number(pair.detectable)),
    ]  # fmt: skip
    if pair.margin is not None:
        facts.append((f"equal within {pair.margin:g}, two one-sided tests", _p(pair.equivalence_p)))
    return wrap(
        html("<p>{}</p>{}", pair.sentence, fact_table(facts)),
        plain=pair.sentence,
    )


def slice_lines(slices: SliceTable, jumps: Jumps) -> Html:
    """One line per slice: rows, means, difference with its interval, and the verdict."""
    ends = [slices.before, slices.after]
    rows = [
        {
            slices.by: each.value + (" (few rows)" if each.is_small else ""),
            "rows": jumps.link(each.rows, f"with {slices.by} = {each.value}"),
            **{label: each.means[label].value if label in each.means else None for label in ends},
            "difference": each.difference.value,
            "interval": interval(each.difference, signs=True),
            "verdict": _verdict(each.verdict),
        }
        for each in slices.slices
    ]
    shown = table(rows, noun="slice", page=20)
    notes = [note(each) for each in slices.notes]
    return join([shown, *notes], plain=shown.plain)


_TH = Html(' class="rk-number"')


def _run_line(
    comparison: Comparison, run: RunSummary, pair: PairSummary | None, jumps: Jumps
) -> Html:
    label = text(run.label)
    if comparison.choice and run.label == comparison.choice.deploy:
        label = html("<b>{}</b> ★", label)
    is_alone = len(comparison.runs) == 1
    if run.label == comparison.baseline and not is_alone:
        label += Html(" <small>baseline</small>")
    bad = f"at {run.label}"
    cells = [
        html('<td title="{}">{}</td>', run.model or '', label),
        _num(run.reward.value, below=interval(run.reward)),
        _num(run.pass_rate.value, _share(run.pass_rate.value)),
        *([] if is_alone else _pair_cells(pair, jumps)),
        _num(run.tokens.value, number(run.tokens.value, 0)),
        _count(jumps.link(run.failed_rows, f"without a grade {bad}",
                          shown=_share(run.failed_share)), run.failed_share),
        _count(jumps.link(run.unscorable_rows, f"not scorable {bad}",
                          shown=_share(run.unscorable_share)), run.unscorable_share),
        _num(run.truncated_share, _share(run.truncated_share)),
    ]  # fmt: skip
    return html("<tr>{}</tr>", join(cells))


def _pair_cells(pair: PairSummary | None, jumps: Jumps) -> list[Html]:
    if pair is None:
        return [Html("<td></td>")] * 4
    return [
        _num(
            pair.difference.value,
            signed(pair.difference.value),
            interval(pair.difference, signs=True),
        ),
        html("<td>{}</td>", _verdict(pair.verdict)),
        _count(jumps.link(pair.fixed_rows, f"fixed at {pair.after}"), pair.num_fixed),
        _count(jumps.link(pair.broken_rows, f"broken at {pair.after}"), pair.num_broken),
    ]


def _num(value: float | None, shown: str | None = None, below: str = "") -> Html:
    key = "" if value is None or missing(value) else repr(float(value))
    said = text(shown if shown is not None else number(value)) if key else "–"
    said += html("<br><small>{}</small>", below) if below and key else Html()
    return html('<td class="rk-number" style="text-align:right" data-v="{}">{}</td>', key, said)


def _count(shown: Html | None, value: float | None) -> Html:
    key = "" if value is None else repr(float(value))
    return html(
        '<td class="rk-number" style="text-align:right" data-v="{}">{}</td>', key, shown or ""
    )


def _verdict(verdict: str) -> Html:
    words, tone = VERDICTS[verdict]
    return html('<span class="rk-mark {}">{}</span>', tone, words, plain=words)


def interval(estimate: Estimate, digits: int = 3, *, signs: bool = False) -> str:
    """The bounds of an interval, or the reason why it is missing."""
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return estimate.why_no_interval
    shown = signed if signs else _negative
    digits = decimals(estimate.low, estimate.high, least=digits)
    return f"{shown(estimate.low, digits)} to {shown(estimate.high, digits)}"


def _negative(value: float, digits: int) -> str:
    return number(value, digits) if value >= 0 else f"−{number(-value, digits)}"


def _change(estimate: Estimate) -> str:
    return f"{signed(estimate.value)} ({interval(estimate, signs=True)})"


def _faint(estimate: Estimate) -> Html:
    return html('<small class="rk-missing">{}</small>', interval(estimate, 2))


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.{0 if value in (0, 1) else 1}f} %"


def _little(value: float | None) -> str:
    return "less than 0.001" if value is None or value < 0.001 else number(value)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _tile(label: str, figure: str, below: str) -> Html:
    return html(
        '<div class="rk-tile"><span>{}</span><b>{}</b><small>{}</small></div>', label, figure, below
    )


def _no_choice(comparison: Comparison) -> str:
    if len(comparison.runs) == 1:
        only = comparison.runs[0]
        mean = only.reward
        if mean.value is None:
            return f"There is one run, {only.label}, and none of its answers has a grade."
        ends = f" ({interval(mean, 2)})" if mean.low is not None else ""
        rows = counted(mean.num_rows, "row")
        return f"{only.label} earns {number(mean.value, 2)}{ends} on {rows}."
    if not comparison.runs:
        return "There are no runs to compare."
    return "No recommendation: no run shares a graded row with the baseline."


def _plain(comparison: Comparison) -> str:
    return "\n".join(
        f"{run.label}: {number(run.reward.value)} ({interval(run.reward)})"
        for run in comparison.runs
    )
