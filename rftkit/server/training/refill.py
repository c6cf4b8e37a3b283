"""Further prompts for a step whose groups are flat in a sub-grader, up to a cap.

As many other rows are sampled as there are such groups, at most `refill`; once, so that a step has
an upper bound. All groups stay: one that is flat in a sub-grader may differ in another. After
DAPO's dynamic sampling (Yu et al. 2025, arXiv:2503.14476), which samples until a batch is full.
"""

from __future__ import annotations

from collections.abc import Sequence

from rftkit.server.training import sampling
from rftkit.server.training.advantages import Leaf
from rftkit.server.training.batches import spare_rows
from rftkit.server.training.context import RftRun
from rftkit.server.training.rollout import Group

__all__ = ["is_flat_in", "refilled"]

KIND = "refill"
"""The kind of journal that holds added completions and grades until the record of the step has
them."""


def refilled(run: RftRun, step: int, groups: list[Group]) -> list[Group]:
    """The groups, and those of further rows for the flat ones among them."""
    flat = sum(any(is_flat_in(group, leaf) for leaf in run.weighing.leaves) for group in groups)
    rows = spare_rows(run.rows, run.plan, step, min(flat, run.plan.refill))
    if not rows:
        return groups
    ask = sampling.SamplingPlan(rows, step, run.plan.completions_per_prompt, run.plan.temperature)
    return groups + sampling.graded(run, KIND, step, ask)[0]


def is_flat_in(group: Group, leaf: Leaf) -> bool:
    """Whether a sub-grader has no signal in a group."""
    rewards: Sequence[float] = [
        reward for r in group.rollouts if (reward := leaf.of(r.grade)) is not None
    ]
    return len(rewards) < 2 or max(rewards) == min(rewards)
