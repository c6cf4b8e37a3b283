"""The training history of a job, summarised from its metric events.

It keeps the first and the last validation, the last few training steps, sums over all steps, and
for each alarm one number per step. `rules` judges it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rftkit.diagnosis.alarms import Alarms

__all__ = ["WINDOW", "Range", "Story", "grader_line", "learning", "scores", "story_of"]

Json = Mapping[str, Any]

WINDOW = 4
"""Number of recent training steps on which the rules are based."""


@dataclass(slots=True)
class Range:
    """Every reward of one grader so far."""

    low: float = float("inf")
    high: float = float("-inf")
    num: int = 0
    steps: int = 0
    """Training steps and validations with at least one reward."""

    def add(self, low: float | None, high: float | None, num: int) -> None:
        """Add the rewards of one step."""
        if low is not None and high is not None and num:
            self.low, self.high = min(self.low, low), max(self.high, high)
            self.num, self.steps = self.num + num, self.steps + 1

    def widen(self, guided: float | None) -> None:
        """Include what reference answers that guide the job earned: the grader can give it."""
        if guided is not None:
            self.low, self.high = min(self.low, guided), max(self.high, guided)


@dataclass(slots=True)
class Story:
    """The metric events of a job up to a step."""

    settings: Json = field(default_factory=dict)
    """The settings that the job runs with, as its first event shows them, and whether it has a
    `response_format`; empty if unknown."""
    step: int = 0
    """The step that was added last."""
    total_steps: int | None = None
    is_offline: bool = False
    """Whether the job learns from answers of its rows, supervised or dpo: nothing is sampled."""
    recent: deque[Json] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Data of the last training steps, oldest first."""
    num_steps: int = 0
    """Training steps so far."""
    num_idle_steps: int = 0
    """Training steps in which no group had a signal, so that no weight changed."""
    start: int = 0
    """The step whose validation is the baseline: 0, or the step that the job was branched from."""
    alarms: Alarms = field(default_factory=Alarms)
    """Tests for signs that the reward rises without the answers getting better."""
    paused_at: int | None = None
    """The step after which the job paused because its answers could not be scored."""
    first_valid: Json | None = None
    last_valid: Json | None = None
    valid_before: Json | None = None
    """The validation before the last one."""
    ranges: dict[str, Range] = field(default_factory=dict)
    """Name of a grader, and "" for the whole reward -> its rewards so far."""
    answers: dict[tuple[str, str], Json] = field(default_factory=dict)
    """(place of the answer, train or valid) -> its newest figures."""
    references: dict[str, Counter[str]] = field(default_factory=dict)
    """Place of the answer -> references seen so far, training and validation rows."""

    @classmethod
    def under(cls, settings: Json) -> Story:
        """The empty story of a job that runs with these settings."""
        start, alarms = settings.get("branch_step") or 0, Alarms(settings.get("alarm_rate"))
        return cls(settings, start=start, alarms=alarms)

    def add(self, data: Json) -> None:
        """Add one metric event; events must be in the order of steps."""
        self.step = int(data["step"])
        self.total_steps = data.get("total_steps") or self.total_steps
        self.is_offline |= data.get("train_loss") is not None
        if self.step > self.start:
            self.alarms.add(self.step, self.total_steps, data.get("watch") or ())
            self.recent.append(data)
            self.num_steps += 1
            figures = learning(data)
            self.num_idle_steps += figures.get("flat_groups") == 1 and "loss" not in figures
        if _valid_mean(data) is not None:
            self.first_valid = self.first_valid or data
            self.valid_before, self.last_valid = self.last_valid, data
        self._add_rewards(data)
        self._add_answers(data)

    @property
    def taught_nothing(self) -> bool:
        """Whether the job is at its end, or paused for this, and no step changed a weight."""
        is_over = self.step in (self.total_steps, self.paused_at)
        return is_over and 0 < self.num_steps == self.num_idle_steps

    @property
    def graders(self) -> list[Json]:
        """Lines of the graders in the newest event that has any."""
        for data in (*reversed(self.recent), self.last_valid):
            if lines := scores(data or {}).get("graders"):
                found: list[Json] = lines
                return found
        return []

    def recent_values(self, name: str) -> list[float]:
        """Return a figure of `learning` in the recent steps that report it."""
        values = [learning(data).get(name) for data in self.recent]
        return [value for value in values if value is not None]

    def last_steps(self, num: int) -> str:
        """Return `step 3` or `steps 3 to 6`: the last ones, as text."""
        steps = [data["step"] for data in self.recent][-num:]
        return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"

    def _add_rewards(self, data: Json) -> None:
        for line in scores(data).get("graders") or []:
            for side in ("train", "valid"):
                self.ranges.setdefault(line["name"], Range()).add(
                    line.get(f"{side}_reward_min"),
                    line.get(f"{side}_reward_max"),
                    line.get(f"{side}_num_graded") or 0,
                )
            self.ranges[line["name"]].widen(line.get("train_guided_reward_mean"))
        figures = learning(data)
        for side in ("", "valid_"):
            self.ranges.setdefault("", Range()).add(
                figures.get(f"{side}reward_min"),
                figures.get(f"{side}reward_max"),
                figures.get(f"{side}num_graded") or 0,
            )
        self.ranges[""].widen(figures.get("guided_reward_mean"))

    def _add_answers(self, data: Json) -> None:
        for line in data.get("answers") or []:
            for side in ("train", "valid"):
                if found := line.get(side):
                    self.answers[line["name"], side] = found
                    counts = self.references.setdefault(line["name"], Counter())
                    for value, share in (found.get("references") or {}).items():
                        counts[value] += round(share * found.get("num_references", 0))


def story_of(events: Iterable[Json]) -> Story:
    """Summarise the events of a job, in any order."""
    settings: Json = {}
    paused_at, steps = None, {}
    for event in events:
        data = event.get("data") or {}
        if given := data.get("hyperparameters"):
            settings = {**given, "response_format": data.get("response_format")}
        if data.get("unscorable") is not None:
            paused_at = data.get("step")
        if event.get("type") == "metrics" and data.get("step") is not None:
            steps[int(data["step"])] = data
    story = Story.under(settings)
    story.paused_at = paused_at
    for _, data in sorted(steps.items()):
        story.add(data)
    return story


def scores(data: Json) -> Json:
    """Return the rewards of a metric event."""
    found: Json = data.get("scores") or {}
    return found


def learning(data: Json) -> Json:
    """Return the figures of a metric event that only rftkit's platform reports."""
    found: Json = data.get("learning") or {}
    return found


def grader_line(data: Json, name: str) -> Json:
    """Return the rewards of one grader in a metric event; empty if there are none."""
    lines = scores(data).get("graders") or []
    found: Json = next((line for line in lines if line["name"] == name), {})
    return found


def _valid_mean(data: Json) -> Any:
    found = scores(data).get("valid_reward_mean")
    return found if found is not None else data.get("full_valid_mean_reward")
