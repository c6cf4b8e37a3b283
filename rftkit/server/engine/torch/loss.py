"""Policy-gradient losses, token-summed: one function each, one table, no options inside.

No value model. Advantages arrive centred on their group. A loss is summed over completion tokens
and divided by the tokens of the *whole* batch, so that splitting a batch changes nothing. The KL
term is added by the trainer only if `kl_coef > 0`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["LOSSES", "LossInputs", "LossOutputs", "kl_estimate"]


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Completion tokens of a batch, laid end to end."""

    policy_logprobs: torch.Tensor  # (N,), carries the gradient
    sampling_logprobs: torch.Tensor  # (N,)
    advantages: torch.Tensor  # (N,), each token has its completion's
    clip_low: float
    clip_high: float


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """The result of a loss for each token."""

    per_token: torch.Tensor  # (N,)
    clipped: torch.Tensor  # (N,) bool: the gradient of this token was cut off


def clipped(inputs: LossInputs) -> LossOutputs:
    """−min(r·A, clip(r, 1 − low, 1 + high)·A) with r = exp(policy − sampling log-prob).

    PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7) with group-centred
    advantages (Shao et al. 2024, arXiv:2402.03300) that are not divided by a deviation (Liu et al.
    2025, arXiv:2503.20783).
    """
    ratio = torch.exp(inputs.policy_logprobs - inputs.sampling_logprobs)
    bounded = ratio.clamp(1 - inputs.clip_low, 1 + inputs.clip_high)
    free, cut = ratio * inputs.advantages, bounded * inputs.advantages
    return LossOutputs(-torch.minimum(free, cut), cut < free)


def importance_sampling(inputs: LossInputs) -> LossOutputs:
    """−r·A without a bound: unbiased, with more variance when the policy has moved."""
    ratio = torch.exp(inputs.policy_logprobs - inputs.sampling_logprobs)
    return LossOutputs(-ratio * inputs.advantages, torch.zeros_like(ratio, dtype=torch.bool))


def reinforce(inputs: LossInputs) -> LossOutputs:
    """−log π·A (Williams 1992), for samples of the current policy."""
    per_token = -inputs.policy_logprobs * inputs.advantages
    return LossOutputs(per_token, torch.zeros_like(per_token, dtype=torch.bool))


LOSSES: dict[str, Callable[[LossInputs], LossOutputs]] = {
    "clipped": clipped,
    "importance_sampling": importance_sampling,
    "reinforce": reinforce,
}


def kl_estimate(policy_logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Per-token e^d − d − 1 with d = reference − policy, in nats: never negative, unbiased.

    The k3 estimator of http://joschu.net/blog/kl-approx.html.
    """
    difference = reference_logprobs - policy_logprobs
    return torch.expm1(difference) - difference
