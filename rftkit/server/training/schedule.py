"""The learning rate of a step: the plan's rate, warmed up, decayed, and guarded by entropy. Pure.

The optimizer's rate is set anew at every step from the step's number and from what was sampled, so
that a job that continues after a kill has the same rate. Not here: the base rate (`plan`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rftkit.server.training.plan import CommonPlan, Plan
from rftkit.server.training.rollout import Group

__all__ = ["SCHEDULES", "entropy_of", "guarded_rate", "learning_rate"]

LAST_SHARE = 0.1
"""The share of the learning rate at which a decay ends."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - (1.0 - LAST_SHARE) * done,
    "cosine": lambda done: LAST_SHARE + (1.0 - LAST_SHARE) * (1.0 + math.cos(math.pi * done)) / 2.0,
}
"""Share of the rate when this share of the steps after the warm-up is done."""


def learning_rate(plan: CommonPlan, step: int) -> float:
    """The rate of a step's update: warmed up, then decayed."""
    if step <= plan.warmup_steps:
        return plan.learning_rate * step / (plan.warmup_steps + 1)
    left = plan.total_steps - plan.warmup_steps - 1
    done = (step - plan.warmup_steps - 1) / left if left > 0 else 0.0
    return plan.learning_rate * SCHEDULES[plan.schedule](done)


def guarded_rate(plan: Plan, step: int, groups: Sequence[Group] = ()) -> float:
    """The rate of a reinforcement step.

    Where the samples of the step have less entropy than `entropy_floor`, it is smaller in
    proportion: a policy about to collapse onto one answer is moved less.
    """
    rate = learning_rate(plan, step)
    if plan.entropy_floor > 0 and groups:
        rate *= min(1.0, entropy_of(groups) / plan.entropy_floor)
    return rate


def entropy_of(groups: Sequence[Group]) -> float:
    """Mean −log-prob of the sampled tokens, in nats: an unbiased estimate of the entropy."""
    logprobs = [
        logprob
        for group in groups
        for rollout in group.rollouts
        for logprob in rollout.completion.sampling_logprobs
    ]
    return -sum(logprobs) / max(len(logprobs), 1)
