"""What a job would take, from the events of its probe: time, memory, judge tokens, calls, cost.

A probe takes two steps (`rftkit.jobs.probe`). The sum assumes that the other steps are like these;
answers that get longer while the model learns make it too low, shorter ones too high. Not here:
running the probe, and prices, which are given.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rftkit.errors import InputError
from rftkit.jobs.jobs import Event
from rftkit.jobs.metrics import step_metrics

__all__ = ["Calls", "Episodes", "Estimate", "estimate"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one tool."""

    num: float
    """The number of calls in the whole job, validations included."""
    median_seconds: float | None
    """The median seconds of a call, retries included; None if the probe made none."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """What rollouts with tools take. Their seconds are part of the seconds of steps."""

    calls: dict[str, Calls]
    """Calls by the name of the function."""
    turns_mean: float
    """The mean number of turns of a rollout."""
    tokens_mean: float
    """Sampled by a rollout in all of its turns."""
    waiting_seconds: tuple[float, float]
    """Seconds of a step, from low to high, in which everything waited for tools and nothing was
    sampled."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the whole job would take."""

    total_steps: int
    num_validations: int
    """The number of validations, with those before the first step and after the last."""
    ready_seconds: float
    """Loading the model; not part of `seconds`, because the job finds it loaded."""
    step_seconds: tuple[float, float]
    """Seconds of the two steps that were taken, the shorter first."""
    validation_seconds: float
    """Seconds of one validation, over all validation rows."""
    host_memory_bytes: int
    """Peak memory of the training process."""
    device_memory_bytes: int | None
    """Peak memory reserved on the GPU; None on a CPU."""
    judge_tokens: dict[str, tuple[float, float]]
    """Model of a model grader -> prompt and completion tokens of the whole job."""
    hyperparameters: Json
    """Every setting as the platform resolved it."""
    episodes: Episodes | None = None
    """Only for a job with tools."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of all steps and validations, if each step took as long as the shorter or the
        longer one.
        """
        fixed = self.num_validations * self.validation_seconds
        low, high = self.step_seconds
        return fixed + self.total_steps * low, fixed + self.total_steps * high

    def cost(
        self,
        usd_per_hour: float = 0.0,
        usd_per_million_prompt_tokens: float = 0.0,
        usd_per_million_completion_tokens: float = 0.0,
    ) -> tuple[float, float]:
        """What it would cost, in US dollars, from low to high.

        Args:
            usd_per_hour: Of the machine that trains.
            usd_per_million_prompt_tokens: Of the judge.
            usd_per_million_completion_tokens: Of the judge.
        """
        judging = sum(
            prompt * usd_per_million_prompt_tokens + completion * usd_per_million_completion_tokens
            for prompt, completion in self.judge_tokens.values()
        )
        low, high = self.seconds
        return (
            low / 3600 * usd_per_hour + judging / 1e6,
            high / 3600 * usd_per_hour + judging / 1e6,
        )


def estimate(events: Iterable[Event]) -> Estimate:
    """Estimate the whole job from the events of a finished probe.

    Raises:
        InputError: They are not the events of a finished probe.
    """
    events = list(events)
    data_of = [event.get("data") or {} for event in events]
    started = next((data for data in data_of if "hyperparameters" in data and "rows" in data), None)
    found = next((data["probe"] for data in data_of if "probe" in data), None)
    metrics = {data["step"]: data for data in data_of if data.get("step") is not None}
    steps = [
        seconds
        for step, data in sorted(metrics.items())
        if step and (seconds := step_metrics(data)["step_seconds"]) is not None
    ]
    if started is None or found is None or not steps:
        raise InputError("these are not the events of a finished probe; see rftkit.jobs.probe")
    settings, rows = started["hyperparameters"], started["rows"]["valid"]
    total, interval = settings["total_steps"], settings["eval_interval"]
    # Without a grader a job that learns from its rows measures nothing before its first step.
    baseline = "method" not in settings or "scores" in metrics.get(0, {})
    validations = int(baseline) + total // interval + (total % interval > 0)
    share = rows / max(found["validated_rows"], 1)
    return Estimate(
        total_steps=total,
        num_validations=validations,
        ready_seconds=_ready_seconds(events),
        step_seconds=(min(steps), max(steps)),
        validation_seconds=(step_metrics(metrics.get(0, {}))["eval_seconds"] or 0.0) * share,
        host_memory_bytes=found["host_memory_bytes"],
        device_memory_bytes=found["device_memory_bytes"],
        judge_tokens=_judge_tokens(metrics, total, validations * share),
        hyperparameters=settings,
        episodes=_episodes(metrics, settings, total, validations * rows),
    )


def _episodes(
    metrics: dict[int, Json], settings: Json, total_steps: int, validated_rows: float
) -> Episodes | None:
    """Estimate them from the steps that were taken; `validated_rows` counts a row once for each
    validation.
    """
    steps = [data for step, data in sorted(metrics.items()) if step and "tools" in data]
    if not steps:
        return None
    baseline = metrics.get(0, {})
    trained = total_steps * settings["batch_size"] * settings["completions_per_prompt"]
    validated = validated_rows * settings["eval_samples"]
    waiting = [data["timing"]["step"].get("waiting", 0.0) for data in steps]
    names = dict.fromkeys(line["name"] for data in steps for line in data["tools"])
    return Episodes(
        calls={
            name: Calls(
                trained * (_of_tool(steps, name, "train_calls_per_rollout_mean") or 0.0)
                + validated * (_of_tool([baseline], name, "valid_calls_per_rollout_mean") or 0.0),
                _of_tool(steps, name, "train_latency_median"),
            )
            for name in names
        },
        turns_mean=statistics.fmean(data["learning"]["turns_mean"] or 0.0 for data in steps),
        tokens_mean=statistics.fmean(data["completion_tokens_mean"] for data in steps),
        waiting_seconds=(min(waiting), max(waiting)),
    )


def _of_tool(steps: Iterable[Json], name: str, key: str) -> float | None:
    """The mean of a figure of a tool; None where no step has it."""
    lines = [line for data in steps for line in data.get("tools", ()) if line["name"] == name]
    known = [line[key] for line in lines if line.get(key) is not None]
    return statistics.fmean(known) if known else None


def _ready_seconds(events: list[Event]) -> float:
    """Seconds from the first event about loading to the plan."""
    loading = [e["created_at"] for e in events if e.get("message", "").startswith("Loading ")]
    planned = [e["created_at"] for e in events if "rows" in (e.get("data") or {})]
    return float(planned[0] - loading[0]) if loading and planned else 0.0


def _judge_tokens(
    metrics: dict[int, Json], total_steps: int, validations: float
) -> dict[str, tuple[float, float]]:
    """Tokens of each judge: of a step times the steps, of the validated rows times all rows."""
    num_steps = sum(step > 0 for step in metrics)
    times = {"train": total_steps / max(num_steps, 1), "valid": validations}
    spent: dict[str, tuple[float, float]] = {}
    for data in metrics.values():
        for grader in (data.get("usage") or {}).get("graders") or []:
            if model := grader.get("model"):
                prompt, completion = (
                    sum(
                        grader.get(f"{side}_{kind}_tokens_count", 0) * n
                        for side, n in times.items()
                    )
                    for kind in ("prompt", "completion")
                )
                before = spent.get(model, (0.0, 0.0))
                spent[model] = (before[0] + prompt, before[1] + completion)
    return spent
