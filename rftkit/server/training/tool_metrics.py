"""What the tools of a job did, as figures of its metric events: calls, errors and latency by tool.

Names follow the service's pattern for graders, with `train_` or `valid_` before them; the column of
errors in the result file is the service's own. Latencies are in seconds, retries included. Source:
protocol, tool-calling RFT.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.server.engine.values import Completion
from rftkit.server.training.rollout import Group
from rftkit.server.training.transcripts import said

__all__ = ["broken_tools", "columns", "invalid_calls", "step_limit_share", "tool_lines"]

Json = dict[str, Any]


def tool_lines(sides: Mapping[str, Sequence[Group]]) -> list[Json]:
    """A line for each function that rows show their model."""
    names = dict.fromkeys(
        name for groups in sides.values() for group in groups for name in _functions(group)
    )
    return [_line(name, sides) for name in names]


def _line(name: str, sides: Mapping[str, Sequence[Group]]) -> Json:
    line: Json = {"name": name}
    for side, groups in sides.items():
        rollouts = [each.completion for group in groups for each in group.rollouts]
        made = [(turn, call) for each in rollouts for turn in each.turns for call in turn.calls]
        own = [(turn, call) for turn, call in made if call["name"] == name]
        seconds = sorted(call["seconds"] for _, call in own)
        tokens = [turn.num_tokens / len(turn.calls) for turn, _ in own]
        kinds = [call["kind"] for _, call in own]
        line |= {
            f"{side}_calls_per_rollout_mean": len(own) / max(len(rollouts), 1),
            f"{side}_tokens_per_call_mean": statistics.fmean(tokens) if tokens else None,
            f"{side}_error_count": kinds.count("error"),
            f"{side}_failure_count": kinds.count("failed"),
            f"{side}_latency_median": statistics.median(seconds) if seconds else None,
            f"{side}_latency_95": seconds[math.ceil(0.95 * len(seconds)) - 1] if seconds else None,
        }
    return line


def invalid_calls(groups: Sequence[Group]) -> int:
    """Calls that could not be read, or were of functions that do not exist."""
    return sum(
        call["name"] not in _functions(group)
        for group in groups
        for each in group.rollouts
        for turn in each.completion.turns
        for call in turn.calls
    )


def step_limit_share(groups: Sequence[Group]) -> float:
    """The share of rollouts that still called when they had no turn left."""
    ends = [_is_open(each.completion, group) for group in groups for each in group.rollouts]
    return sum(ends) / max(len(ends), 1)


def broken_tools(groups: Sequence[Group]) -> str:
    """Which tools failed and how often, in words."""
    counts: dict[str, int] = {}
    for group in groups:
        for each in group.rollouts:
            for turn in each.completion.turns if each.completion.failure else ():
                for call in turn.calls:
                    if call["kind"] == "failed":
                        counts[call["name"]] = counts.get(call["name"], 0) + 1
    return ", ".join(f"{name} ({count} times)" for name, count in counts.items())


def columns(data: Mapping[str, Any]) -> Json:
    """The columns of a metric event in the result file."""
    row: Json = {}
    for line in data.get("tools", ()):
        name = line["name"]
        row |= {f"{key}_{name}": value for key, value in line.items() if key != "name"}
    return row


def _functions(group: Group) -> list[str]:
    return [tool.get("function", tool).get("name", "") for tool in group.row.tools or ()]


def _is_open(completion: Completion, group: Group) -> bool:
    has_answer = not completion.turns or completion.turns[-1].num_observed > 0
    return has_answer and bool(said(completion, group.row)[1])
