"""Metric events of a job as tidy pandas frames, one row per step.

Every function takes events as plain dicts (`rftkit.jobs.events`), so frames of a running job, of
a finished one and of a saved dump are made alike; `events_from_csv` reads the result file of a
job into the same form. Names that the services spell in several ways (nested and flat, old and
new) end in one column. Empty cells mean "not measured at this step", never zero.
Not here: plots, comparisons between jobs, statistics.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rftkit.jobs.jobs import Event

if TYPE_CHECKING:
    import pandas as pd
from rftkit.errors import InputError

__all__ = [
    "COLUMNS",
    "answer_frame",
    "error_frame",
    "events_from_csv",
    "grader_frame",
    "judge_frame",
    "start_step",
    "step_frame",
    "step_metrics",
    "timing_frame",
]

# Extras of the local platform, under `learning`.
LEARNING = (
    "flat_groups",
    "truncated_share",
    "failed_grades",
    "guided",
    "guided_reward_mean",
    "valid_reward_stderr",
    "valid_truncated_share",
    "valid_failed_grades",
    "tokens_per_second",
    "loss",
    "entropy",
    "kl",
    "clip_fraction",
    "grad_norm",
    "logprob_gap_mean",
    "logprob_gap_max",
    "learning_rate",
)
JUDGE_FIGURES = (
    "required_met_mean",
    "correctness_met_mean",
    "presence_met_mean",
    "undecided_share",
    "position_bias",
    "order_disagreement",
)
# Column -> its possible paths in an event's `data`; the first one found wins.
COLUMNS: dict[str, tuple[str, ...]] = {
    "train_reward_mean": ("scores.train_reward_mean", "train_reward_mean", "train_mean_reward"),
    "valid_reward_mean": (
        "scores.valid_reward_mean",
        "valid_reward_mean",
        "full_valid_mean_reward",
    ),
    "completion_tokens_mean": ("completion_tokens_mean",),
    "train_reasoning_tokens_mean": (
        "usage.samples.train_reasoning_tokens_mean",
        "reasoning_tokens_mean",
    ),
    "valid_reasoning_tokens_mean": (
        "usage.samples.valid_reasoning_tokens_mean",
        "valid_reasoning_tokens_mean",
    ),
    "is_relative": ("scores.is_relative",),
    "unresponsive_share": ("mean_unresponsive_rewards",),
    "valid_parse_error_share": ("full_valid_mean_parse_error",),
    "sampling_seconds": ("timing.step.sampling", "sampling_duration"),
    "training_seconds": ("timing.step.training", "training_duration"),
    "eval_seconds": ("timing.step.eval", "eval_duration"),
    "step_seconds": ("timing.step.full_iteration", "total_duration"),
    **{name: (f"learning.{name}",) for name in LEARNING},
    # Events of older versions do not count the groups that reference answers guide.
    "no_signal_groups": ("learning.no_signal_groups", "learning.flat_groups"),
    # Supervised and dpo jobs; the last names are those of result files.
    "train_loss": ("train_loss",),
    "train_accuracy": ("train_mean_token_accuracy", "train_accuracy"),
    "valid_loss": ("valid_loss",),
    "valid_accuracy": ("valid_mean_token_accuracy", "validation_mean_token_accuracy"),
    "full_valid_loss": ("full_valid_loss",),
    "full_valid_accuracy": ("full_valid_mean_token_accuracy",),
    **{
        f"{side}_{name}": (f"preferences.{side}_{name}",)
        for side in ("train", "valid", "full_valid")
        for name in ("reward_accuracy", "reward_margin")
    },
}

_KEYS = {
    column: tuple(tuple(path.split(".")) for path in paths) for column, paths in COLUMNS.items()
}
_TEXT_COLUMNS = frozenset(
    {"grader", "type", "split", "error", "answer", "value", "figure", "criterion", "check"}
)
_ERROR = re.compile(r"(train|valid)_(.+)_(mean|count)")


def step_metrics(data: dict[str, Any]) -> dict[str, float | None]:
    """The columns of one metric event; None where the event has no value."""
    return {column: _first(data, keys) for column, keys in _KEYS.items()}


def start_step(events: Iterable[Event]) -> int:
    """The step that a job starts from: 0, or that of another job which a branch continues."""
    settings = ((each.get("data") or {}).get("hyperparameters") for each in events)
    found = (each.get("branch_step") for each in settings if isinstance(each, dict))
    return next((int(step) for step in found if step), 0)


def step_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row per step, sorted: `step`, `total_steps` and the names of `COLUMNS`.

    Step 0 is the baseline validation before training. A step that a restarted job reported twice
    counts as it was reported last.
    """
    rows = [
        {"step": step, "total_steps": data.get("total_steps"), **step_metrics(data)}
        for step, data in _steps(events)
    ]
    return _frame(rows, ["step", "total_steps", *COLUMNS])


def grader_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row per step and grader: mean rewards, their spread, and mean seconds per grade.

    `…_reward_spread` is the mean over groups of highest minus lowest, `…_flat_groups` the share of
    groups without any; both are the local platform's own. In its jobs, answers that a sub-grader
    could not read count in each of these with its lowest reward.
    """
    fields = {
        "train_reward_mean": "scores",
        "valid_reward_mean": "scores",
        "train_reward_spread": "scores",
        "train_flat_groups": "scores",
        "valid_reward_spread": "scores",
        "valid_flat_groups": "scores",
        "valid_reward_stderr": "scores",
        "train_execution_latency_mean": "timing",
        "valid_execution_latency_mean": "timing",
    }
    rows = []
    for step, data in _steps(events):
        graders: dict[tuple[str, str], dict[str, Any]] = {}
        for family in ("scores", "timing"):
            for each in _graders(data, family):
                graders.setdefault((each["name"], each["type"]), {}).update(each)
        rows += [
            {"step": step, "grader": name, "type": kind, **{f: each.get(f) for f in fields}}
            for (name, kind), each in graders.items()
        ]
    return _frame(rows, ["step", "grader", "type", *fields])


def judge_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row per step, rubric or relative grader, split and figure, with its `number`.

    Of a rubric: the shares of required, correctness and presence criteria that were met, the share
    that the judge did not decide, and `met` for each `criterion`, with its `check` and whether it
    is `required` (1 or 0). Of a relative grader:
    `position_bias`, what an answer gains at the top of the list over the bottom, and
    `order_disagreement`, the share of pairs that its two orders rank differently.
    """
    from rftkit.graders.rubric import criterion_names

    rows = []
    for step, data in _steps(events):
        for line in _graders(data, "scores"):
            entry: dict[str, Any] = {"step": step, "grader": line["name"]}
            for name, value in line.items():
                split, _, figure = name.partition("_")
                if figure in JUDGE_FIGURES and value is not None:
                    rows.append({**entry, "split": split, "figure": figure, "number": value})
            criteria = line.get("criteria") or ()
            for name, each in zip(criterion_names(criteria), criteria, strict=True):
                entry |= {"criterion": name, "check": each["check"], "required": each["required"]}
                rows += [
                    {**entry, "split": split, "figure": "met", "number": each[f"{split}_met_mean"]}
                    for split in ("train", "valid")
                    if each.get(f"{split}_met_mean") is not None
                ]
    columns = ["step", "grader", "split", "figure", "criterion", "check", "required", "number"]
    return _frame(rows, columns)


def answer_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row per step, split, place of a closed answer and value: shares of 0 to 1.

    `samples` is the share of the completions, `references` of the rows that have a reference;
    `never_sampled` says that no completion of this split had the value up to this step. Empty for
    services that do not report answers.
    """
    columns = ["step", "split", "answer", "value", "samples", "references", "never_sampled"]
    rows = [
        {
            "step": step,
            "split": split,
            "answer": line["name"],
            "value": value,
            "samples": found["samples"].get(value) if found["samples"] else None,
            "references": found["references"].get(value, 0.0) if found["references"] else None,
            "never_sampled": float(value in found.get("never_sampled", ())),
        }
        for step, data in _steps(events)
        for line in data.get("answers") or []
        for split in ("train", "valid")
        if (found := line.get(split)) and line["values"]
        for value in dict.fromkeys([*line["values"], *found["samples"]])
    ]
    return _frame(rows, columns)


def error_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row per step, grader, split and kind of error: its `rate` per sample and `count`.

    Kinds of which a grader had none at a step are rows of zero, as the service reports them.
    """
    rows: list[dict[str, Any]] = []
    for step, data in _steps(events):
        for grader in _graders(data, "errors"):
            kinds: dict[tuple[str, str], dict[str, Any]] = {}
            for key, value in grader.items():
                if match := _ERROR.fullmatch(key):
                    split, kind, measure = match.groups()
                    kinds.setdefault((split, kind), {})[measure] = value
            rows += [
                {
                    "step": step,
                    "grader": grader["name"],
                    "type": grader["type"],
                    "split": split,
                    "error": kind,
                    "rate": found.get("mean"),
                    "count": found.get("count"),
                }
                for (split, kind), found in kinds.items()
            ]
    return _frame(rows, ["step", "grader", "type", "split", "error", "rate", "count"])


def timing_frame(events: Iterable[Event]) -> pd.DataFrame:
    """Seconds per step: sampling, training, eval, overhead and their sum `full_iteration`."""
    steps = step_frame(events).set_index("step")
    parts = ["sampling", "training", "eval"]
    frame = steps[[f"{part}_seconds" for part in parts]].set_axis(parts, axis=1)
    frame["overhead"] = (steps["step_seconds"] - frame.sum(axis=1)).clip(lower=0)
    frame["full_iteration"] = steps["step_seconds"]
    return frame.reset_index()


def events_from_csv(text: str) -> list[Event]:
    """Metric events made of a job's result file (`job.result_files[0]`), for the frames above.

    Raises:
        InputError: a record has more cells than the header has names, or a cell is no number.
    """
    events: list[Event] = []
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    records = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = records.fieldnames or []
        if len(set(names)) < len(names):
            raise InputError(f"two columns have the same name; found {', '.join(names)}")
        for number, row in enumerate(records, start=1):
            if None in row:
                raise InputError(f"record {number} has more cells than the header has names")
            events.append({"type": "metrics", "data": _data_from_csv_row(row, number)})
    except csv.Error as error:
        raise InputError(f"record {len(events) + 1}: {error}") from None
    return events


def _data_from_csv_row(row: dict[str, str], number: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    graders: dict[tuple[str, str, str], dict[str, Any]] = {}
    for column, text in row.items():
        if (cell := _cell(text, column, number)) is None:
            continue
        family, *path = column.split("/")
        if path[:1] == ["graders"] and len(path) >= 4:
            kind, name = path[1], "/".join(path[2:-1]).removesuffix("/errors")
            grader = graders.setdefault((family, kind, name), {"name": name, "type": kind})
            grader[path[-1]] = cell
        elif path:
            data.setdefault(family, {})["/".join(path)] = cell
        else:
            data[column] = int(cell) if column in ("step", "total_steps") else cell
    for (family, _, _), grader in graders.items():
        data.setdefault(family, {}).setdefault("graders", []).append(grader)
    return data


def _cell(text: str | None, column: str, number: int) -> float | None:
    """The number in a cell; None if it is empty. NaN and infinity report nothing either."""
    try:
        value = float(text) if text and text.strip() else math.nan
    except ValueError:
        raise InputError(
            f"record {number}: `{column}` must be a number, found {text!r:.80}"
        ) from None
    return value if math.isfinite(value) else None


def _steps(events: Iterable[Event]) -> Iterator[tuple[int, dict[str, Any]]]:
    by_step: dict[int, dict[str, Any]] = {}
    for event in events:
        data = event.get("data") or {}
        if data.get("step") is not None and event.get("type", "metrics") == "metrics":
            by_step[int(data["step"])] = data
    yield from sorted(by_step.items())


def _graders(data: dict[str, Any], family: str) -> list[dict[str, Any]]:
    graders: list[dict[str, Any]] = (data.get(family) or {}).get("graders") or []
    return graders


def _first(data: dict[str, Any], paths: Iterable[tuple[str, ...]]) -> float | None:
    for keys in paths:
        value: Any = data
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return float(value)
    return None


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=columns)
    numbers = [column for column in columns if column not in _TEXT_COLUMNS]
    return frame.astype(dict.fromkeys(numbers, float) | {"step": int})
