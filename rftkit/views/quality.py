"""Whether a grader is reliable: agreement with people, reward drift, the effect of an edit.

The numbers come from `rftkit.evals`. A table below a number shows the samples that it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rftkit.views.compare_tables import interval
from rftkit.views.conversation import readable
from rftkit.views.jumps import StepJumps
from rftkit.views.listing import table
from rftkit.views.markup import Html, fact_table, html, html_each, join, missing, note, number, wrap
from rftkit.views.plot import Chart, Line, Panel, drawn, leading, picture
from rftkit.views.steps import training_steps, validation_steps
from rftkit.views.svg import Canvas, value_axis
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from rftkit.evals.agreement import Agreement
    from rftkit.evals.drift import Drift
    from rftkit.evals.noise import JudgeNoise
    from rftkit.evals.regrade import Regrade
    from rftkit.evals.samples import Samples

__all__ = ["agreement", "drift_chart", "judge_noise", "regrade", "sample_lines"]

Place = tuple[str, str, int]
MOST_SAMPLES = 60
"""Samples in a table behind a number."""


def agreement(found: Agreement, samples: Samples) -> Html:
    """How well a grader agrees with people, where it is lenient or harsh, and a better threshold.

    Args:
        found: from `evals.agree`.
        samples: what was labelled.
    """
    facts = [
        ("labels", f"{found.num_labels:,}"),
        ("labels without a grade", f"{found.num_left_out:,}"),
        ("verdicts that agree", _ranged(found.agreement)),
        ("Cohen's kappa", _ranged(found.kappa)),
        ("rank correlation with people", _ranged(found.correlation)),
        ("reward minus label, mean", _ranged(found.bias)),
        ("lenient: passes what people reject", f"{len(found.lenient):,}"),
        ("harsh: fails what people accept", f"{len(found.harsh):,}"),
    ]
    if found.suggested is not None:
        at = f"{found.suggested.value:.3g} (kappa {number(found.suggested.kappa, 2)})"
        facts.append(("threshold that agrees better", at))
    parts = [_summary(found.sentence, facts)]
    curve = [(each.value, each.kappa) for each in found.thresholds if each.kappa is not None]
    if len(curve) > 2:
        best = found.suggested.value if found.suggested else None
        parts.append(_threshold_chart(curve, best))
    for title, places in (("Lenient", found.lenient), ("Harsh", found.harsh)):
        if places:
            parts.append(sample_lines(samples, places, caption=f"{title}, worst first"))
    return join(parts, plain=found.sentence)


def judge_noise(noise: JudgeNoise) -> Html:
    """How much a grader disagrees with itself about the same answers."""
    facts = [
        ("samples graded again", f"{noise.num_samples:,}"),
        ("grades in total", f"{noise.num_grades:,}"),
        ("standard deviation of one grade", number(noise.one_grade)),
        (f"noise band of a difference between two runs, {counted(noise.num_rows, 'row')}",
         _plus(noise.band)),
        ("verdicts that change between grades",
         "–" if noise.flips is None else f"{100 * noise.flips:.1f} %"),
    ]  # fmt: skip
    return _summary(noise.sentence, facts)


def drift_chart(
    found: Drift | Mapping[str, Drift],
    training: Mapping[str, Sequence[dict[str, Any]]] | None = None,
) -> Html:
    """Reward beside a second grader, training beside validation, length of the answers, by step.

    A point leads to the answers of its validation, or to the steps that it is the mean of; both are
    listed below. Several jobs have their charts one below the other.

    Args:
        found: From `evals.drift`, or of several jobs from `evals.drift_of_jobs`.
        training: Job -> its steps, from `jobs.step_rollouts`.
    """
    jobs = found if isinstance(found, Mapping) else {"": found}
    if not jobs:
        return note("There are no validations of a job among these runs.")
    shown = {
        _job_of(each, job): _drift_of_job(each, (training or {}).get(job, ()), f"rk-drift{at}")
        for at, (job, each) in enumerate(jobs.items())
    }
    if len(shown) == 1:
        return next(iter(shown.values()))
    parts = [each for job in shown for each in (wrap(html("<h4>{}</h4>", job)), shown[job])]
    return join(parts, "\n".join(f"{job}: {each.plain}" for job, each in shown.items()))


def _drift_of_job(found: Drift, trained: Sequence[dict[str, Any]], list_id: str) -> Html:
    frame = found.frame
    if not len(frame):
        return note("The job has no validation yet.")
    steps = [int(step) for step in frame["step"]]
    reward = _line(frame, steps, "reward", "validation reward", strong=True)
    panels = []
    if found.watch is not None:
        second = _line(frame, steps, "watch", found.watch)
        panels.append(Panel("Reward and a grader never trained on", (reward, second)))
    train = _line(frame, steps, "train_reward", "training")
    if any(not missing(value) for value in train.values):
        panels.append(Panel("Training and validation", (reward, train)))
    length = "tokens" if frame["tokens"].notna().any() else "characters"
    panels.append(
        Panel(f"Length of answers, {length}", (_line(frame, steps, length, length, strong=True),))
    )
    points = html_each("<li>{}</li>", found.sentences)
    answers = StepJumps(frozenset(steps if found.samples else ()), list_id)
    rows = StepJumps(frozenset(each["step"] for each in trained), f"{list_id}-training")
    since = {step: range(before + 1, step + 1) for before, step in pairwise([0, *steps])}

    def link(line: Line, step: int) -> str:
        is_training = line.label == train.label
        return rows.attributes(*since[step]) if is_training else answers.attributes(step)

    charts, zero = drawn(leading(panels, link))
    parts = [
        picture(charts, zero, _numbers(frame)),
        wrap(html("<ul>{}</ul>", points)),
    ]
    if found.samples is not None:
        parts.append(wrap(Html("<h4>Answers of each validation</h4>")))
        name = found.watch or ""
        parts.append(
            validation_steps(found.samples, found.second, list_id=list_id, second_name=name)
        )
    if trained:
        parts.append(wrap(Html("<h4>What each step learned from</h4>")))
        parts.append(training_steps(trained, list_id=rows.list_id))
    return join(parts, plain="\n".join(found.sentences))


def _numbers(frame: pd.DataFrame) -> Html:
    """The validations as a table; columns without a measurement are left out."""
    shown = frame.drop(columns="run").dropna(axis="columns", how="all")
    return table(
        shown, {str(name): str(name).replace("_", " ") for name in shown}, noun="validation"
    )


def _job_of(found: Drift, job: str) -> str:
    """The name of a job behind the steps of its labels, such as `seed 1`; else its id."""
    labels = found.frame["run"]
    return str(labels.iloc[0]).rpartition(" · ")[2] if len(labels) else job


def regrade(found: Regrade) -> Html:
    """What an edited grader changes: ranks, verdicts, advantages, signal."""
    rows = [
        {
            "run": each.label,
            "reward before": each.before.value,
            "reward after": each.after.value,
            "rank correlation": each.rank_correlation,
            "failed": each.num_failed,
        }
        for each in found.runs
    ]
    facts = [
        ("rank correlation over all samples", _ranged(found.rank_correlation)),
        ("failed before, pass now", f"{len(found.flipped_to_pass):,}"),
        ("passed before, fail now", f"{len(found.flipped_to_fail):,}"),
        ("advantages that change sign",
         f"{len(found.flipped_advantages):,} of {found.num_advantages:,}"),
        ("prompts that gain a signal", f"{len(found.gained_signal):,}"),
        ("prompts that lose their signal", f"{len(found.lost_signal):,}"),
    ]  # fmt: skip
    parts = [_summary(found.sentence, facts)]
    parts += [note(each) for each in found.notes]
    parts.append(table(rows, caption=f"Before, and with {found.grader}", noun="run"))
    for title, places in (
        ("Failed before, pass now", found.flipped_to_pass),
        ("Passed before, fail now", found.flipped_to_fail),
        ("Training would push in the opposite direction", found.flipped_advantages),
    ):
        if places:
            parts.append(sample_lines(found.samples, places, caption=title))
    return join(parts, plain=found.sentence)


def sample_lines(samples: Samples, places: Sequence[Place], *, caption: str) -> Html:
    """The samples of (row, run, number), in that order: prompt, answer, reward."""
    shown = list(places)[:MOST_SAMPLES]
    frame = samples.frame
    wanted = frame[frame["row"].isin({row for row, _, _ in shown})]
    known: dict[Place, Any] = {
        (line["row"], line["run"], line["sample"]): line for line in _records(wanted)
    }
    rows = [
        {
            "row": samples.numbers.get(row),
            "run": run,
            "prompt": samples.prompt(row),
            "answer": readable(known[row, run, at]["answer"]),
            "reward": known[row, run, at]["reward"],
            "judge": known[row, run, at]["judge"],
        }
        for row, run, at in shown
        if (row, run, at) in known
    ]
    return table(rows, caption=caption, noun="sample", page=8, total=len(places))


def _records(frame: Any) -> Iterable[Any]:
    records: list[Any] = frame.to_dict("records")
    return records


def _summary(sentence: str, facts: Sequence[tuple[str, str]]) -> Html:
    return wrap(
        html("<p><b>{}</b></p>{}", sentence, fact_table(facts)),
        plain=sentence,
    )


def _ranged(estimate: Any) -> str:
    shown = number(estimate.value).replace("-", "−")
    return "–" if estimate.value is None else f"{shown} ({interval(estimate)})"


def _plus(value: float | None) -> str:
    return "–" if value is None else f"±{number(value)}"


def _line(frame: Any, steps: list[int], column: str, label: str, *, strong: bool = False) -> Line:
    values = [None if missing(each) else float(each) for each in frame[column]]
    ends: list[tuple[float, float] | None] = []
    if f"{column}_high" in frame:
        pairs = zip(frame[f"{column}_low"], frame[f"{column}_high"], strict=True)
        ends = [None if missing(low) else (float(low), float(high)) for low, high in pairs]
    first = next((at for at, value in enumerate(values) if value is not None), 0)
    return Line(label, steps[first:], values[first:], strong, ends[first:])


def _threshold_chart(curve: Sequence[tuple[float, float | None]], suggested: float | None) -> Html:
    known = [(value, kappa) for value, kappa in curve if kappa is not None]
    canvas = Canvas(
        value_axis([value for value, _ in known], label="pass threshold: this and more passes"),
        value_axis([kappa for _, kappa in known]),
        is_wide=True,
    )
    if suggested is not None:
        canvas.rule(suggested, "rk-dash1")
    canvas.line(known, "rk-main")
    for value, kappa in known:
        canvas.point(value, kappa, f"threshold {value:.3g}: kappa {number(kappa, 2)}", "rk-main")
    best = max(curve, key=lambda each: each[1] or 0.0)
    alt = f"Cohen's kappa by pass threshold; highest {number(best[1], 2)} at {best[0]:.3g}."
    if suggested is None:
        alt += " The best of many thresholds is partly luck, so this is not shown to be better."
    return picture([Chart("Agreement with people (kappa) by threshold", canvas, alt)])
