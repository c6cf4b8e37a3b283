"""The sentences of a comparison. Every number in them is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rftkit.evals.comparison import Estimate, PairSummary
from rftkit.evals.samples import Run
from rftkit.wording import counted, listed

__all__ = [
    "choice_sentence",
    "decimals",
    "interval",
    "names",
    "pair_sentence",
    "signed",
]


def pair_sentence(pair: PairSummary) -> str:
    """The conclusion about two runs."""
    several = (
        f", corrected for {pair.num_comparisons} comparisons" if pair.num_comparisons > 1 else ""
    )
    rows = counted(pair.num_rows, "row")
    found = f"{interval(pair.difference, with_sign=True)} on {rows}{several}"
    if pair.num_rows == 0:
        return f"{pair.after} and {pair.before} share no graded row, so they cannot be compared."
    if pair.verdict in ("better", "worse"):
        more = "more" if pair.verdict == "better" else "less"
        said = f"{pair.after} earns {more} than {pair.before}: {found}."
    elif pair.verdict == "same":
        said = f"{pair.after} and {pair.before} earn the same within ±{pair.margin:g}: {found}."
    elif not (pair.up_rows or pair.down_rows):
        return f"{pair.after} and {pair.before} earn exactly the same in each of {rows}."
    else:
        said = f"No clear difference of {pair.after} from {pair.before}: {found}."
        if pair.detectable is not None:
            said += (
                " The smallest difference that this many rows would show in four of five "
                f"repetitions is {pair.detectable:.3f}."
            )
    if pair.ungraded is not None and pair.difference.low is not None:
        old, new = pair.ungraded
        said += (
            f" {counted(new, 'sample')} of {pair.after} have no grade, {old:,} of {pair.before}: "
            "more than chance explains, so the interval also covers the rewards they could have "
            "had."
        )
    if pair.num_fixed or pair.num_broken:
        said += f" {counted(pair.num_fixed, 'row')} fixed, {pair.num_broken} broken."
    return said


def choice_sentence(
    *,
    runs: Sequence[Run],
    best: str,
    deploy: str,
    tied: Sequence[str],
    mean: float,
    is_level: bool,
    num_rows: int,
    num_graded: int,
    pair: PairSummary | None,
    baseline: str,
    expected_gain: float | None,
    optimism: float | None,
    left_out: Mapping[str, str],
) -> str:
    """The recommendation: which is best, which are as good, what to expect, what to deploy.

    `pair` compares the run to deploy with the baseline; it is None if that is the baseline.
    `is_level` states that all runs have the same mean. `num_graded` rows of `num_rows` are graded
    in the best run; a mean of less than half of them is marked.
    """
    rows = counted(num_rows, "row")
    found = f"({mean:.3f} on {rows})"
    if 2 * num_graded < num_rows:
        found = f"(about {mean:.3f}: it has graded only {num_graded:,} of {rows})"
    all_runs = "Both runs" if len(runs) == 2 else f"All {len(runs)} runs"
    said = [f"{all_runs} have the same mean {found}" if is_level else f"{best} is best {found}"]
    why_not = "".join(f" {label} is left out: {why}." for label, why in left_out.items())
    if len(tied) == len(runs):
        said.append("either could be the best on new rows" if len(tied) == 2 else
                    f"each of the {len(runs)} runs could be the best on new rows")  # fmt: skip
    elif len(tied) > 1:
        said.append(f"{names(runs, tied)} could each be the best on new rows")
    if pair is None:
        why = "" if best == baseline else f"no run is shown to beat {baseline}; "
        return f"{'; '.join(said)}; {why}keep {baseline}.{why_not}"
    gain = interval(pair.difference, with_sign=True)
    said.append(f"against {baseline}, {deploy} gains {gain}")
    if deploy == best and expected_gain is not None and optimism is not None and optimism >= 0.002:
        said.append(
            f"expect {expected_gain:+.3f} on new rows, as the best of {len(runs)} is partly luck"
        )
    return f"{'; '.join(said)}; deploy {deploy}.{why_not}"


def names(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """Labels as text, such as `steps 9 to 15 and 21`; neighbours become one range."""
    places = [place for place, run in enumerate(runs) if run.label in labels]
    spans: list[list[Run]] = []
    for place in places:
        if spans and spans[-1][-1] is runs[place - 1]:
            spans[-1].append(runs[place])
        else:
            spans.append([runs[place]])
    if not all(run.label == f"Step {run.step}" for span in spans for run in span):
        return listed([run.label for span in spans for run in span])
    said = [
        f"{span[0].step} to {span[-1].step}"
        if len(span) > 2
        else listed([str(run.step) for run in span])
        for span in spans
    ]
    return f"step{'s' if len(places) > 1 else ''} {listed(said)}"


def signed(value: float | None) -> str:
    """`+0.120`, or a dash."""
    return "–" if value is None else f"{value:+.3f}"


def interval(estimate: Estimate, *, with_sign: bool = False) -> str:
    """`0.71 (0.65 to 0.77)`; an end beside zero is never rounded to it."""
    if estimate.value is None:
        return "–"
    show = f"{'+' if with_sign else ''}.{decimals(estimate.value, estimate.low, estimate.high)}f"
    value = format(estimate.value, show)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({estimate.low + 0.0:{show}} to {estimate.high + 0.0:{show}})"


ROUNDING = 1e-12
"""Rounding errors may be this large instead of 0."""


def decimals(*ends: float | None, least: int = 3) -> int:
    """Decimals that show an interval: an end beside zero is not rounded to zero."""
    known = [end for end in ends if end and abs(end) > ROUNDING]
    enough = (n for n in range(least, 7) if all(round(end, n) for end in known))
    return next(enough, 7)
