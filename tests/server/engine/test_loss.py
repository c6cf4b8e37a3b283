"""Losses by hand, their gradients, advantages and masks: exact and on paper first."""

from __future__ import annotations

import math

import pytest
import torch

from rftkit.server.engine.torch.loss import LOSSES, LossInputs, kl_estimate
from rftkit.server.training.rollout import advantages


def inputs(policy: list[float], sampling: list[float], advantage: list[float]) -> LossInputs:
    return LossInputs(
        policy_logprobs=torch.tensor(policy, requires_grad=True),
        sampling_logprobs=torch.tensor(sampling),
        advantages=torch.tensor(advantage),
        clip_low=0.2,
        clip_high=0.3,
    )


def test_clipped_loss_by_hand() -> None:
    # Ratios 1.5 and 0.5. Up with A > 0: cut at 1.3. Down with A < 0: cut at 0.8.
    data = inputs([math.log(1.5), math.log(0.5)], [0.0, 0.0], [2.0, -1.0])
    outputs = LOSSES["clipped"](data)
    assert outputs.per_token.tolist() == pytest.approx([-2.6, 0.8])
    assert outputs.clipped.tolist() == [True, True]


def test_clipping_never_hides_a_move_in_the_wrong_direction() -> None:
    data = inputs([math.log(1.5), math.log(0.5)], [0.0, 0.0], [-1.0, 1.0])
    outputs = LOSSES["clipped"](data)
    assert outputs.per_token.tolist() == pytest.approx([1.5, -0.5])
    assert outputs.clipped.tolist() == [False, False]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_fresh_rollouts_give_the_policy_gradient(name: str) -> None:
    # Where the ratio is 1, every loss has the gradient −A of plain REINFORCE.
    data = inputs([-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5], [0.7, -0.2, 0.0])
    LOSSES[name](data).per_token.sum().backward()
    assert data.policy_logprobs.grad is not None
    assert data.policy_logprobs.grad.tolist() == pytest.approx([-0.7, 0.2, 0.0])


def test_a_clipped_token_has_no_gradient() -> None:
    data = inputs([math.log(2.0)], [0.0], [1.0])
    LOSSES["clipped"](data).per_token.sum().backward()
    assert data.policy_logprobs.grad is not None
    assert data.policy_logprobs.grad.tolist() == [0.0]


def test_kl_estimate_by_hand() -> None:
    policy, reference = torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -1.5])
    expected = [0.0, math.exp(-0.5) + 0.5 - 1]
    assert kl_estimate(policy, reference).tolist() == pytest.approx(expected, abs=1e-7)


def test_advantages_are_centred_and_ignore_failed_grades() -> None:
    assert advantages([1.0, 0.0, None, 0.5]) == pytest.approx([0.5, -0.5, None, 0.0])
    assert advantages([None, None]) == [None, None]


@pytest.mark.parametrize("rewards", [[0.3], [0.3, 0.3, 0.3], [0.0, 0.0]])
def test_equal_rewards_give_no_signal(rewards: list[float]) -> None:
    assert advantages(rewards) == pytest.approx([0.0] * len(rewards))
