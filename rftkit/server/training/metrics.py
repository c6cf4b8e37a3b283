"""From graded groups to the numbers of a job: the metric event, and the CSV of all steps.

Both spellings of the service are written, nested and flat, and our own figures: under `learning`,
in the lines of `scores.graders` (spread, flat groups) and under `answers` (see `signal`).

Means of rewards, whole and of each sub-grader, count what an update learns from: answers that were
cut off or cannot be read have the floor reward, and in each sub-grader that could not read them its
lowest reward (`Grade`). A grade that failed is left out of the mean reward, which comes with the
number of failed grades; a sub-grader that gave a number nevertheless counts it in its own mean.
What was not measured has no key. Source: protocol, metrics event and result file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rftkit.graders import Grade
from rftkit.graders.engine import Leaf
from rftkit.graders.types import SPECS
from rftkit.safetext import cell
from rftkit.server.engine.values import StepStats
from rftkit.server.training import judged, signal, tool_metrics
from rftkit.server.training.rollout import Group
from rftkit.wording import cut

__all__ = [
    "broken_graders",
    "failure",
    "mean_reward",
    "merged",
    "result_csv",
    "step_data",
    "step_message",
    "truncated_share",
    "unscorable",
    "unscorable_example",
    "usage_metrics",
]

COUNTED_ERRORS = ("other_error", "sample_parse_error", "invalid_variable_error")
"""Errors every grader reports; others only where they can occur."""
SHOWN = 120
"""Characters of an answer that an event quotes."""
COUNTS = ("prompt_tokens", "completion_tokens")
RELATIVE = "relative: train within groups, validation against an anchor"


def grades_of(groups: Iterable[Group]) -> list[Grade]:
    """All grades, in order."""
    return [rollout.grade for group in groups for rollout in group.rollouts]


def mean_reward(groups: Sequence[Group]) -> float | None:
    """Mean over graded and unscorable answers; None when there is none."""
    return _mean(grade.reward for grade in grades_of(groups))


def failure(groups: Sequence[Group]) -> tuple[int, int, Grade | None]:
    """Failed grades, all grades, and one failed grade to show."""
    grades = grades_of(groups)
    failed = [grade for grade in grades if grade.outcome == "failed"]
    return len(failed), len(grades), failed[0] if failed else None


def unscorable(groups: Sequence[Group]) -> tuple[int, int]:
    """Unscorable answers, and all answers."""
    grades = grades_of(groups)
    return sum(grade.outcome == "unscorable" for grade in grades), len(grades)


def unscorable_example(groups: Sequence[Group]) -> str:
    """An answer that could not be scored, shortened, and why."""
    found = next(
        each for group in groups for each in group.rollouts if each.grade.outcome == "unscorable"
    )
    why = "; ".join(str(v) for k, v in found.grade.errors.items() if k.endswith("_details") and v)
    text = " ".join(found.completion.text.split())
    return f"“{cut(text, SHOWN)}” ({why or 'the grader cannot read it'})."


def step_message(step: int, total_steps: int, data: Mapping[str, Any]) -> str:
    """The line of a step, worded as the service words it."""
    parts = []
    for name, key in (
        ("train mean reward", "train_mean_reward"),
        ("full validation mean reward", "full_valid_mean_reward"),
        ("full validation mean parse error", "full_valid_mean_parse_error"),
    ):
        if data.get(key) is not None:
            parts.append(f"{name}={data[key]:.6f}")
    said = f"Step {step}/{total_steps} , " + ", ".join(parts)
    return f"{said} ({RELATIVE})" if data["scores"].get("is_relative") else said


def step_data(
    step: int,
    total_steps: int,
    leaves: Sequence[Leaf],
    train: Sequence[Group] | None,
    valid: Sequence[Group] | None,
    timing: Mapping[str, float],
    stats: StepStats | None = None,
    learning_rate: float | None = None,
    answers: Sequence[dict[str, Any]] = (),
    *,
    has_tools: bool = False,
) -> dict[str, Any]:
    """`data` of a metric event.

    `timing` has seconds: sampling, training, eval, full_iteration, and with tools waiting;
    `answers` is `signal.answers`.
    """
    sides = {"train": train, "valid": valid}
    present = {name: groups for name, groups in sides.items() if groups is not None}
    data: dict[str, Any] = {
        "step": step,
        "total_steps": total_steps,
        "scores": {
            **{f"{side}_reward_mean": mean_reward(groups) for side, groups in present.items()},
            "graders": [_scores(leaf, len(leaves) == 1, present) for leaf in leaves],
            **({"is_relative": True} if any(each.type == "relative" for each in leaves) else {}),
        },
        "usage": {
            "samples": _reasoning(present),
            "graders": [_usage(leaf, len(leaves) == 1, present) for leaf in leaves],
        },
        "errors": {"graders": [_errors(leaf, len(leaves) == 1, present) for leaf in leaves]},
        "timing": {
            "step": dict(timing),
            "graders": [_latency(leaf, len(leaves) == 1, present) for leaf in leaves],
        },
    }
    if has_tools:
        data["tools"] = tool_metrics.tool_lines(present)
    if answers:
        data["answers"] = list(answers)
    if train is not None:
        data |= _flat_train(train)
        data["learning"] = _learning(train, timing, stats, learning_rate)
        if has_tools:
            data["learning"] |= _episodes("", train)
    if valid is not None:
        grades = grades_of(valid)
        unscorable = sum("sample_parse_error" in grade.errors for grade in grades)
        data |= {
            "full_valid_mean_reward": mean_reward(valid),
            "valid_reasoning_tokens_mean": _mean(_reasoning_tokens(valid)) or 0.0,
            "full_valid_mean_parse_error": unscorable / max(len(grades), 1),
        }
        data.setdefault("learning", {})["valid_truncated_share"] = truncated_share(valid)
        data["learning"]["valid_failed_grades"] = failure(valid)[0]
        data["learning"] |= _range("valid_", valid)
        if has_tools:
            data["learning"] |= _episodes("valid_", valid)
        data["learning"]["valid_reward_stderr"] = signal.standard_error(signal.rewards_of(valid))
    return data


def merged(before: Any, fresh: Any) -> Any:
    """The data of a metric event with newer figures in the place of older ones, at any depth."""
    if isinstance(before, Mapping) and isinstance(fresh, Mapping):
        both = {k: merged(before[k], v) if k in before else v for k, v in fresh.items()}
        return {**before, **both}
    if isinstance(before, list) and isinstance(fresh, list) and len(before) == len(fresh):
        return [merged(old, new) for old, new in zip(before, fresh, strict=True)]
    return fresh


def usage_metrics(
    before: Mapping[str, Any] | None,
    train: Sequence[Group] | None,
    valid: Sequence[Group] | None,
    timing: Mapping[str, float],
    stats: StepStats | None,
    judges: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """A job's account after one more step: seconds of its core loop, tokens by purpose and judge.

    `tokens` has the tokens read and sampled in training (`sampling`) and in `validation`, and those
    of updates (`training`); `model_graders` has the tokens that judges read and wrote, by model, in
    the whole job (`accounts`).
    """
    before = before or {}
    tokens = {**before.get("tokens", {})}
    for purpose, groups in (("sampling", train), ("validation", valid)):
        old = tokens.get(purpose, {})
        new = _tokens(groups or ())
        tokens[purpose] = {name: old.get(name, 0) + count for name, count in new.items()}
    tokens["training"] = tokens.get("training", 0) + (stats.num_tokens if stats else 0)
    return {
        "core_seconds": before.get("core_seconds", 0.0) + timing["full_iteration"],
        "trained_tokens": tokens["training"],
        "tokens": tokens,
        "model_graders": dict(judges),
    }


def _tokens(groups: Sequence[Group]) -> dict[str, int]:
    return {
        "prompt_tokens": sum(len(group.prompt_ids) for group in groups),
        "completion_tokens": sum(r.completion.num_sampled for g in groups for r in g.rollouts),
        "reasoning_tokens": sum(_reasoning_tokens(groups)),
    }


def broken_graders(leaves: Sequence[Leaf], groups: Sequence[Group]) -> str:
    """Which graders failed and how often, in words."""
    counts = {leaf.name: 0 for leaf in leaves}
    of_graders = [r for g in groups for r in g.rollouts if r.completion.failure is None]
    for grade in (rollout.grade for rollout in of_graders):
        if grade.outcome == "failed":
            for leaf in leaves:
                counts[leaf.name] += len(leaves) == 1 or leaf.key in grade.sub_errors
    return ", ".join(f"{name} ({count} times)" for name, count in counts.items() if count)


def result_csv(steps: Iterable[Mapping[str, Any]]) -> bytes:
    """`step_metrics.csv`: one line a step, validation cells empty between validations.

    Text that a spreadsheet would run, in a name or a value, gets a `'`; numbers stay numbers.
    """
    lines = [{cell(k): cell(v) for k, v in _csv_row(data).items()} for data in steps]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in line.items()} for line in lines)
    return text.getvalue().encode()


def _flat_train(groups: Sequence[Group]) -> dict[str, Any]:
    lengths = [r.completion.num_sampled for group in groups for r in group.rollouts]
    lost, num = unscorable(groups)
    return {
        "train_mean_reward": mean_reward(groups),
        "reasoning_tokens_mean": _mean(_reasoning_tokens(groups)) or 0.0,
        "completion_tokens_mean": sum(lengths) / max(len(lengths), 1),
        "mean_unresponsive_rewards": lost / max(num, 1),
    }


def _learning(
    groups: Sequence[Group],
    timing: Mapping[str, float],
    stats: StepStats | None,
    learning_rate: float | None,
) -> dict[str, Any]:
    tokens = sum(r.completion.num_sampled for group in groups for r in group.rollouts)
    seconds = timing["sampling"] + timing["training"]
    learning = {
        "flat_groups": sum(group.is_flat for group in groups) / max(len(groups), 1),
        "no_signal_groups": sum(not group.has_signal for group in groups) / max(len(groups), 1),
        **_range("", groups),
        "truncated_share": truncated_share(groups),
        "failed_grades": failure(groups)[0],
        "prompts": len(groups),
        "guided": sum(len(group.guided) for group in groups),
        "guided_reward_mean": _mean(r.grade.reward for group in groups for r in group.guided),
        "tokens_per_second": tokens / seconds if seconds else None,
        "learning_rate": learning_rate,
    }
    if stats is not None:
        learning |= {
            "loss": stats.loss,
            "entropy": stats.entropy,
            "kl": stats.kl,
            "clip_fraction": stats.clip_fraction,
            "grad_norm": stats.grad_norm,
            "logprob_gap_mean": stats.logprob_gap_mean,
            "logprob_gap_max": stats.logprob_gap_max,
        }
    return learning


def _episodes(prefix: str, groups: Sequence[Group]) -> dict[str, Any]:
    """The metrics that only jobs with tools have."""
    turns = [len(r.completion.turns) + 1 for group in groups for r in group.rollouts]
    return {
        f"{prefix}turns_mean": _mean(turns),
        f"{prefix}step_limit_share": tool_metrics.step_limit_share(groups),
        f"{prefix}invalid_calls": tool_metrics.invalid_calls(groups),
    }


def _range(prefix: str, groups: Sequence[Group]) -> dict[str, Any]:
    """The lowest and highest reward, and how many there are."""
    rewards = [grade.reward for grade in grades_of(groups) if grade.reward is not None]
    return {
        f"{prefix}reward_min": min(rewards, default=None),
        f"{prefix}reward_max": max(rewards, default=None),
        f"{prefix}num_graded": len(rewards),
    }


def truncated_share(groups: Sequence[Group]) -> float:
    """The share of answers that were cut off at the token limit."""
    reasons = [r.completion.stop_reason for group in groups for r in group.rollouts]
    return reasons.count("length") / max(len(reasons), 1)


Sides = Mapping[str, Sequence[Group]]


def _reasoning_tokens(groups: Iterable[Group]) -> list[int]:
    return [r.completion.reasoning_tokens for group in groups for r in group.rollouts]


def _reasoning(sides: Sides) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for side, groups in sides.items():
        counts = _reasoning_tokens(groups)
        result[f"{side}_reasoning_tokens_mean"] = _mean(counts) or 0.0
        result[f"{side}_reasoning_tokens_count"] = sum(counts)
    return result


def _named(leaf: Leaf) -> dict[str, Any]:
    return {"name": leaf.name, "type": leaf.type}


def _scores(leaf: Leaf, is_only: bool, sides: Sides) -> dict[str, Any]:
    def rewards(groups: Sequence[Group]) -> list[float | None]:
        if is_only:
            return [grade.reward for grade in grades_of(groups)]
        return [grade.sub_rewards.get(leaf.key) for grade in grades_of(groups)]

    means = {f"{side}_reward_mean": _mean(rewards(groups)) for side, groups in sides.items()}
    spread = signal.of_leaf(None if is_only else leaf.key, sides)
    return {**_named(leaf), **means, **spread, **judged.of_leaf(leaf, sides)}


def _errors(leaf: Leaf, is_only: bool, sides: Sides) -> dict[str, Any]:
    result = _named(leaf)
    for side, groups in sides.items():
        grades = grades_of(groups)
        for flag in (*COUNTED_ERRORS, *SPECS[leaf.type].error_flags):
            count = sum(
                bool((grade.errors if is_only else grade.sub_errors.get(leaf.key, {})).get(flag))
                for grade in grades
            )
            result[f"{side}_{flag}_mean"] = count / max(len(grades), 1)
            result[f"{side}_{flag}_count"] = count
    return result


def _usage(leaf: Leaf, is_only: bool, sides: Sides) -> dict[str, Any]:
    result: dict[str, Any] = {**_named(leaf), "model": None}
    for side, groups in sides.items():
        grades = grades_of(groups)
        used = [
            (model, counts)
            for grade in grades
            for model, counts in (
                grade.token_usage if is_only else grade.sub_token_usage.get(leaf.key, {})
            ).items()
        ]
        for name in COUNTS:
            total = sum(counts.get(name, 0) for _, counts in used)
            result[f"{side}_{name}_count"] = total
            result[f"{side}_{name}_mean"] = total / max(len(grades), 1)
        result["model"] = result["model"] or next((model for model, _ in used), None)
    return result


def _latency(leaf: Leaf, is_only: bool, sides: Sides) -> dict[str, Any]:
    means = {
        f"{side}_execution_latency_mean": _mean(
            grade.seconds if is_only else grade.sub_seconds.get(leaf.key)
            for grade in grades_of(groups)
        )
        for side, groups in sides.items()
    }
    return {**_named(leaf), **means}


def _csv_row(data: Mapping[str, Any]) -> dict[str, Any]:
    seconds = data["timing"]["step"]
    row = {"step": data["step"]}
    for name in (
        "train_mean_reward",
        "full_valid_mean_reward",
        "completion_tokens_mean",
        "reasoning_tokens_mean",
        "mean_unresponsive_rewards",
    ):
        row[name] = data.get(name)
    for column, key in (
        ("sampling_duration", "sampling"),
        ("training_duration", "training"),
        ("eval_duration", "eval"),
        ("total_duration", "full_iteration"),
    ):
        row[column] = seconds.get(key)
    for scores in data["scores"]["graders"]:
        where = f"scores/graders/{scores['type']}/{scores['name']}"
        for side in ("train", "valid"):
            for figure in ("reward_mean", *signal.FIGURES, *judged.FIGURES):
                if f"{side}_{figure}" in scores:
                    row[f"{where}/{side}_{figure}"] = scores[f"{side}_{figure}"]
    for errors in data["errors"]["graders"]:
        where = f"errors/graders/{errors['type']}/{errors['name']}/errors"
        row |= {f"{where}/{k}": v for k, v in errors.items() if k not in ("name", "type")}
    row |= tool_metrics.columns(data)
    for name, value in data.get("learning", {}).items():
        row[f"learning/{name}"] = value
    for each in data.get("watch", ()):
        row[f"watch/{each['name']}"] = each["mean"]
    return row


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
