"""Curves of one job: reward and health of the training.

Not here: the numbers (`rftkit.jobs`), how a panel is drawn (`plot`), comparisons of several jobs.
The caption of a chart counts the values that are missing from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rftkit.diagnosis.gains import CERTAINTY
from rftkit.views.jumps import Jumps, StepJumps
from rftkit.views.listing import table
from rftkit.views.markup import Html, missing, note
from rftkit.views.plot import Line, Panel, drawn, leading, picture
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from rftkit.evals.comparison import Comparison

__all__ = ["health_chart", "line_of", "reward_chart"]


def reward_chart(
    events: Iterable[dict[str, Any]],
    validations: Comparison | None = None,
    *,
    jumps: Jumps | None = None,
    training: StepJumps | None = None,
    validated: StepJumps | None = None,
) -> Html:
    """Reward of training and validation by step, over all graders and for each.

    A supervised or dpo job has losses and accuracies instead; if it is graded, it has both.

    Args:
        events: Of the job, as on the wire.
        validations: Its validations compared row by row, whose intervals are drawn then.
        jumps: Where the validation rows are, so that a point leads to them.
        training: Where the rows of training steps are.
        validated: Where the rows of validations are, if not in `jumps`.
    """
    from rftkit.jobs.metrics import grader_frame, start_step, step_frame

    events = list(events)
    start = start_step(events)
    steps, graders = step_frame(events), _with_unique_names(grader_frame(events))
    if steps["train_loss"].notna().any():
        return _losses(steps, training, validated)
    names = list(dict.fromkeys(graders["grader"]))
    panels = [_with_validations(_reward_panel("Reward", steps, start), validations, jumps)]
    if len(names) > 1:
        panels += [
            _with_validations(
                _reward_panel(name, graders[graders["grader"] == name], start),
                validations,
                jumps,
                name,
            )
            for name in names
        ]
    panels = _with_shared_bounds([panel for panel in panels if panel.lines])
    if not panels:
        return note("No rewards yet. The job has not completed a step.")
    shown = steps[["step", "train_reward_mean", "valid_reward_mean"]].copy()
    for name in names if len(names) > 1 else []:
        one = graders[graders["grader"] == name].set_index("step")["valid_reward_mean"]
        known = {**one.to_dict(), **(_means(validations, name) if validations else {})}
        shown[f"validation: {name}"] = shown["step"].map(known)
    headings = {"step": "step", "train_reward_mean": "train", "valid_reward_mean": "validation"}
    headings |= {column: column for column in shown.columns if column not in headings}
    charts, zero = drawn(leading(panels, _to_rows(training, validated)))
    said = " ".join(filter(None, (_coverage(steps, start), zero)))
    return picture(charts, said, table(shown, headings))


def _to_rows(training: StepJumps | None, validated: StepJumps | None) -> Callable[[Line, int], str]:
    """A link of each point to the rows of its step."""

    def link(line: Line, step: int) -> str:
        place = validated if line.label.startswith("validation") else training
        return place.attributes(step) if place else ""

    return link


_LOSS_PANELS = {
    "Loss": {"train_loss": "train", "valid_loss": "validation batch",
             "full_valid_loss": "validation"},
    "Tokens right, %": {"train_accuracy": "train", "valid_accuracy": "validation batch",
                        "full_valid_accuracy": "validation"},
    "Pairs right, %": {"train_reward_accuracy": "train",
                       "full_valid_reward_accuracy": "validation"},
    "Margin of preferred over other answers": {"train_reward_margin": "train",
                                               "full_valid_reward_margin": "validation"},
    "Reward of graded answers": {"valid_reward_mean": "validation"},
}  # fmt: skip


def _losses(steps: pd.DataFrame, training: StepJumps | None, validated: StepJumps | None) -> Html:
    """The curves of a job that learns from the answers of its rows."""
    panels = [_loss_panel(title, columns, steps) for title, columns in _LOSS_PANELS.items()]
    panels = [panel for panel in panels if panel.lines]
    trained = steps[steps["step"] > 0]
    whole = int(steps["full_valid_loss"].notna().sum())
    said = f"{counted(len(trained), 'step')}, {counted(whole, 'whole validation')}."
    names = [name for columns in _LOSS_PANELS.values() for name in columns]
    shown = steps[["step", *[name for name in names if steps[name].notna().any()]]]
    charts, _ = drawn(leading(panels, _to_rows(training, validated)))
    return picture(charts, said, table(shown, [str(name) for name in shown.columns]))


def _loss_panel(title: str, columns: dict[str, str], steps: pd.DataFrame) -> Panel:
    """Validation is measured at some steps only; what is between them is no gap."""
    lines = []
    for name, label in columns.items():
        is_train = name.startswith("train_")
        frame = steps[steps["step"] > 0] if is_train else steps[steps[name].notna()]
        if len(frame) and (
            line := line_of(label, frame, name, strong=label == "validation", every=is_train)
        ):
            lines.append(line)
    return Panel(title, tuple(lines), is_share=title.endswith("%"))


def health_chart(events: Iterable[dict[str, Any]], *, training: StepJumps | None = None) -> Html:
    """Tokens, errors and training metrics by step, as far as the job reports them.

    Args:
        events: Of the job, as on the wire.
        training: Where the rows of training steps are, so that a point leads to them.
    """
    from rftkit.jobs.metrics import error_frame, start_step, step_frame

    events = list(events)
    steps, errors = step_frame(events), error_frame(events)
    steps = steps[steps["step"] > start_step(events)].copy()
    rate = errors[errors["split"] == "train"].groupby("step")["rate"].max()
    if not steps["guided"].sum():  # only guided jobs need this panel
        steps["guided"] = float("nan")
    steps["grader_error_rate"] = steps["step"].map(rate)
    panels = [_health_panel(title, columns, steps) for title, columns in _HEALTH.items()]
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return note("The job reports no tokens, errors or training metrics.")
    charts, zero = drawn(leading(panels, _to_rows(training, None)))
    names = list(dict.fromkeys(name for columns in _HEALTH.values() for name in columns))
    measured = [name for name in names if steps[name].notna().any()]
    trained = steps[["step", *measured]]
    headings = {"step": "step", **{name: name.replace("_", " ") for name in measured}}
    return picture(charts, zero, table(trained, headings))


_HEALTH = {
    "Tokens per completion": {"completion_tokens_mean": "tokens"},
    "Reasoning tokens": {"train_reasoning_tokens_mean": "tokens"},
    "Samples with problems, %": {
        "truncated_share": "cut off",
        "unresponsive_share": "not scorable",
        "grader_error_rate": "grader error",
    },
    "Groups without signal, %": {"no_signal_groups": "without signal"},
    "Guided completions, not in the means": {"guided": "completions"},
    "Entropy, nats per token": {"entropy": "entropy"},
    "KL to the base, nats per token": {"kl": "KL"},
    "Tokens clipped, %": {"clip_fraction": "clipped"},
    "Gradient norm": {"grad_norm": "norm"},
}


def _health_panel(title: str, columns: dict[str, str], steps: pd.DataFrame) -> Panel:
    found = [line_of(label, steps, column) for column, label in columns.items()]
    lines = [line for line in found if line]
    if lines:
        lines[0] = replace(lines[0], strong=True)
    return Panel(title, tuple(lines), is_share=title.endswith("%"))


def _reward_panel(title: str, frame: pd.DataFrame, start: int) -> Panel:
    """Training is measured at each step, validation at some; only a failed validation is a gap."""
    train = line_of("train", frame[frame["step"] > start], "train_reward_mean")
    valid = frame[frame["valid_reward_mean"].notna() | _validated(frame)]
    line = line_of("validation", valid, "valid_reward_mean", strong=True, every=False)
    if line and "valid_reward_stderr" in frame and valid["valid_reward_stderr"].notna().any():
        known = valid.set_index(valid["step"].astype(int))["valid_reward_stderr"].astype(float)
        line = replace(line, ends=_around(line, {step: known.get(step) for step in line.steps}))
    lines = (train, line)
    return Panel(title, tuple(line for line in lines if line))


def _around(line: Line, errors: dict[int, Any]) -> list[tuple[float, float] | None]:
    """The interval of each value from its standard error, within 0 to 1 where all values are."""
    known = [value for value in line.values if value is not None and not missing(value)]
    low, high = (0.0, 1.0) if min(known) >= 0 and max(known) <= 1 else (-math.inf, math.inf)
    ends: list[tuple[float, float] | None] = []
    for step, value in zip(line.steps, line.values, strict=True):
        error = errors.get(step)
        if value is None or missing(value) or error is None or missing(error):
            ends.append(None)
        else:
            half = CERTAINTY * float(error)
            ends.append((max(low, value - half), min(high, value + half)))
    return ends


def _means(found: Comparison, grader: str) -> dict[int, float | None]:
    """The mean of a grader at each validation, over the answers that its interval is of."""
    return {
        run.step: run.graders[grader].value
        for run in found.runs
        if run.step is not None and grader in run.graders
    }


def _with_validations(
    panel: Panel, found: Comparison | None, jumps: Jumps | None, grader: str | None = None
) -> Panel:
    """The validation line with the intervals of the comparison, and with links to its rows.

    Of a grader also with its means, so that point and interval are of the same answers: other
    services, and jobs of earlier versions, leave out answers that nothing could score.
    """
    if found is None:
        return panel
    by_step = {run.step: run for run in found.runs if run.step is not None}
    means = _means(found, grader) if grader else {}
    changed = {pair.after: [*pair.up_rows, *pair.down_rows] for pair in found.pairs}

    def ends(step: int) -> tuple[float, float] | None:
        run = by_step.get(step)
        if run is None:
            return None
        reward = run.graders.get(grader) if grader else run.reward
        if reward is None or reward.low is None or reward.high is None:
            return None
        return reward.low, reward.high

    def link(step: int) -> str:
        label = by_step[step].label if step in by_step else ""
        rows = changed.get(label)
        words = f"whose reward changed from {found.baseline} to {label}"
        return jumps.attributes(rows, words) if jumps and rows else ""

    def measured(line: Line) -> Line:
        if line.label != "validation":
            return line
        if means:
            line = replace(line, steps=list(means), values=list(means.values()), ends=())
        known = zip_longest(line.steps, line.ends)
        return replace(
            line,
            ends=[ends(step) or old for step, old in known if step is not None],
            links=[link(step) for step in line.steps],
        )

    return replace(panel, lines=tuple(map(measured, panel.lines)))


def _with_unique_names(graders: pd.DataFrame) -> pd.DataFrame:
    """Graders of one name but several types get the type added to it."""
    shared = graders.groupby("grader")["type"].transform("nunique") > 1
    named = graders["grader"].where(~shared, graders["grader"] + " (" + graders["type"] + ")")
    return graders.assign(grader=named)


def _validated(frame: pd.DataFrame) -> Any:
    """Steps that spent time on a validation, with or without a reward."""
    return frame["eval_seconds"] > 0 if "eval_seconds" in frame else False


def line_of(
    label: str, frame: pd.DataFrame, column: str, *, strong: bool = False, every: bool = True
) -> Line | None:
    """A column by step; with `every`, steps that the frame lacks become gaps too."""
    values = dict(zip(frame["step"].astype(int), frame[column].astype(float), strict=True))
    if all(missing(value) for value in values.values()):
        return None
    steps = list(range(min(values), max(values) + 1)) if every else sorted(values)
    return Line(label, steps, [values.get(step) for step in steps], strong)


def _with_shared_bounds(panels: list[Panel]) -> list[Panel]:
    """Rewards between 0 and 1 all get the same axis, so that panels can be compared."""
    values = [v for panel in panels for line in panel.lines for v in line.values if not missing(v)]
    if not all(0 <= value <= 1 for value in values if value is not None):
        return panels
    return [replace(panel, bounds=(0, 1)) for panel in panels]


def _coverage(steps: pd.DataFrame, start: int) -> str:
    """The number of steps and validations behind the curves, and what is missing."""
    trained = steps[steps["step"] > start]
    validations = steps[steps["valid_reward_mean"].notna()]
    lost = int((_validated(steps) & steps["valid_reward_mean"].isna()).sum())
    parts = [f"{counted(len(trained), 'step')}, {counted(len(validations), 'validation')}"]
    if len(validations):
        parts.append(
            "bars: 95 % interval over the validation rows"
            if validations["valid_reward_stderr"].notna().any()
            else "the uncertainty of a validation is not reported"
        )
    if untrained := int(trained["train_reward_mean"].isna().sum()):
        parts.append(f"{counted(untrained, 'step')} without a training reward (× on the axis)")
    if lost:
        parts.append(f"{counted(lost, 'validation')} without a reward (× on the axis)")
    failed = steps["failed_grades"]
    if failed.notna().any():
        count = int(failed.sum())
        parts.append(
            f"{counted(count, 'grade')} failed, left out of the means"
            if count
            else "no grade failed"
        )
    else:
        parts.append("failed grades are not reported")
    return f"{'; '.join(parts)}."
