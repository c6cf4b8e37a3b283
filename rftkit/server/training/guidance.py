"""Reference answers as one more completion of a group that does not reach the top reward.

Where no completion of a group has the highest reward of a sub-grader and the row's reference answer
has more, the reference joins the group: its reward counts in the group's baseline, and its tokens
are trained with a ratio of 1: the policy would hardly sample them, so that a true ratio and its
clip would leave no gradient (LUFFY, Yan et al. 2025, arXiv:2504.14945; ours has no shaping of the
ratio). Guided completions are kept apart from rollouts: no mean of rewards has them. Not here: what
the reference of a row is (`rftkit.graders.references`), nor how it becomes tokens (the engine's
`given`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rftkit.graders.references import reference_answer
from rftkit.server.engine.values import Completion
from rftkit.server.training import sampling
from rftkit.server.training.advantages import Leaf
from rftkit.server.training.context import RftRun
from rftkit.server.training.rollout import Group, Rollout

__all__ = ["guided"]

KIND = "guided"
"""The kind of journal that holds grades of reference answers until the record of the step has them.
"""
SAME = 1e-9  # rewards that differ by less are one


def guided(run: RftRun, step: int, groups: Sequence[Group]) -> list[Group]:
    """The groups, with the reference answer as a guided completion in each group that needs one."""
    leaves = run.weighing.leaves
    asked = [
        (index, completion)
        for index, group in enumerate(groups)
        if any(_top(group, leaf) < leaf.high - SAME for leaf in leaves)
        for completion in [_given(run, group)]
        if completion is not None
    ]
    if not asked:
        return list(groups)
    chosen = [groups[index] for index, _ in asked]
    draft = sampling.UngradedBatch(
        [group.row for group in chosen],
        [group.prompt_ids for group in chosen],
        [[completion] for _, completion in asked],
        0.0,
    )
    graded, _ = sampling.graded(run, KIND, step, draft, is_traced=False)
    result = list(groups)
    for (index, _), answer in zip(asked, graded, strict=True):
        [reference] = answer.rollouts
        if _helps(groups[index], reference, leaves):
            result[index] = replace(groups[index], guided=[reference])
    return result


def _helps(group: Group, reference: Rollout, leaves: Sequence[Leaf]) -> bool:
    """Whether the reference has more in some sub-grader, and is no worse than the group's mean."""
    known = [reward for reward in group.rewards_G if reward is not None]
    reward = reference.grade.reward
    if reference.grade.outcome != "graded" or reward is None or not known:
        return False
    return reward >= sum(known) / len(known) and any(
        (leaf.of(reference.grade) or 0.0) > _share(group, leaf) + SAME for leaf in leaves
    )


def _share(group: Group, leaf: Leaf) -> float:
    return max((leaf.of(r.grade) or 0.0 for r in group.rollouts), default=0.0)


def _top(group: Group, leaf: Leaf) -> float:
    """The leaf's highest reward in the group."""
    rewards = [leaf.reward(rollout.grade) for rollout in group.rollouts]
    return max((reward for reward in rewards if reward is not None), default=leaf.low)


def _given(run: RftRun, group: Group) -> Completion | None:
    """The reference answer as a completion; None if it could not have been sampled."""
    row = group.row
    if row.tools:
        return None
    text = reference_answer(row.item, run.response_format, grader=run.grader.spec)
    if text is None:
        return None
    tokens = run.engine.encode_answer(text, run.schema(row))
    if tokens is None or len(tokens) > run.plan.most_tokens(len(group.prompt_ids)):
        return None
    return Completion(tokens, text, [0.0] * len(tokens), "stop")
