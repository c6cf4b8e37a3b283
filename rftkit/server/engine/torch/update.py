"""One optimizer update: micro-batches of graded groups, their loss, and its metrics.

The loss of a token does not depend on the other tokens of its micro-batch: losses are summed over
tokens and divided by the number of tokens of the whole batch. Not here: the losses themselves
(`loss.py`) and how groups are laid out (`batches.py`, `packed.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

from rftkit.server.engine.torch.batches import micro_batches, with_advantage
from rftkit.server.engine.torch.loss import LOSSES, LossInputs, kl_estimate
from rftkit.server.engine.torch.model import LoadedModel
from rftkit.server.engine.torch.policies import Policies
from rftkit.server.engine.values import NotFiniteError, StepStats, TrainGroup, TrainSettings

__all__ = ["take_step", "train_step"]


def train_step(
    model: LoadedModel,
    policies: Policies,
    groups: Sequence[TrainGroup],
    settings: TrainSettings,
    *,
    on_tick: Callable[[], None] | None = None,
) -> StepStats:
    """See Engine.train_step."""
    policies.trained()[1].zero_grad(set_to_none=True)
    num_tokens = sum(sum(group.learns(g)) for group in groups for g in range(len(group.tokens_G_T)))
    sums = _Sums()
    entropy = _entropy(groups)
    learnt = list(groups)
    if not settings.kl_coef:  # the KL penalty is on all tokens
        cut = [with_advantage(group) for group in groups]
        learnt = [group for group in cut if group.tokens_G_T] or learnt
    for batch in micro_batches(learnt, *model.batch_tokens(learnt)):
        loss = _loss(model, policies, batch, settings, num_tokens, sums)
        loss.backward()
        sums.loss += float(loss.detach())
        if on_tick is not None:
            on_tick()
    # Computed only if something is not finite, one group at a time, to name the group.
    losses = [
        functools.partial(_loss, model, policies, [group], settings, 1, _Sums()) for group in groups
    ]
    return sums.stats(take_step(policies, settings, sums.loss, losses), num_tokens, entropy)


def _entropy(groups: Sequence[TrainGroup]) -> float:
    """Mean −log-prob of the sampled tokens, by the policy that sampled them."""
    sampled = [
        logprob
        for group in groups
        for g, row in enumerate(group.sampling_logprobs_G_T)
        if not group.is_guided(g)
        for logprob, learns in zip(row, group.learns(g), strict=True)
        if learns
    ]
    return -sum(sampled) / max(1, len(sampled))


def take_step(
    policies: Policies,
    settings: TrainSettings,
    loss: float,
    losses: Sequence[Callable[[], torch.Tensor]],
) -> float:
    """Clip the gradients and let the optimizer take its step; the norm before clipping.

    `losses` compute the loss of each part of the batch again: to name the culprits.

    Raises:
        NotFiniteError: when loss or gradient is not finite; then the policy stays as it was.
    """
    policy, optimizer = policies.trained()
    norm = torch.nn.utils.clip_grad_norm_(list(policy.values()), settings.max_grad_norm)
    if not torch.isfinite(norm) or not math.isfinite(loss):
        found = f"loss {loss}, gradient norm {float(norm)}"
        raise NotFiniteError(found, _not_finite(policies, losses))
    for parameters in optimizer.param_groups:
        parameters["lr"] = settings.learning_rate
    optimizer.step()
    policies.apply_update()
    return float(norm)


def _not_finite(policies: Policies, losses: Sequence[Callable[[], torch.Tensor]]) -> list[int]:
    """Which losses, or gradients of them, are not finite."""
    policy, optimizer = policies.trained()
    found = []
    for index, loss_of in enumerate(losses):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        norm = torch.nn.utils.get_total_norm(
            [tensor.grad for tensor in policy.values() if tensor.grad is not None]
        )
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            found.append(index)
    optimizer.zero_grad(set_to_none=True)
    return found


def _loss(
    model: LoadedModel,
    policies: Policies,
    groups: Sequence[TrainGroup],
    settings: TrainSettings,
    num_tokens: int,
    sums: _Sums,
) -> torch.Tensor:
    reference = None
    if settings.kl_coef > 0 or (settings.measures_kl and not sums.kl_tokens):
        # The reference comes first: weights that the policy's forward pass used must not change
        # before its backward pass.
        some = groups if settings.kl_coef > 0 else groups[:1]
        with torch.no_grad(), policies.using(None):
            reference = model.logprobs(some, settings.temperature)
    policy_logprobs = model.logprobs(groups, settings.temperature)
    sampling_logprobs = torch.tensor(
        [x for g in groups for row in g.sampling_logprobs_G_T for x in row],
        device=model.device,
    )
    is_guided = torch.tensor(
        [
            group.is_guided(g)
            for group in groups
            for g, tokens in enumerate(group.tokens_G_T)
            for _ in tokens
        ],
        device=model.device,
    )
    # A given completion has a ratio of 1: its gradient is its log-prob's times its advantage.
    sampling_logprobs = torch.where(is_guided, policy_logprobs.detach(), sampling_logprobs)
    advantages = torch.tensor(
        [
            advantage
            for group in groups
            for tokens in group.token_advantages()
            for advantage in tokens
        ],
        device=model.device,
    )
    learns = torch.tensor(
        [
            learns
            for group in groups
            for g in range(len(group.tokens_G_T))
            for learns in group.learns(g)
        ],
        device=model.device,
    )
    inputs = LossInputs(
        policy_logprobs, sampling_logprobs, advantages, settings.clip_low, settings.clip_high
    )
    outputs = LOSSES[settings.loss](inputs)
    total = outputs.per_token.sum()
    if reference is not None:
        kl = kl_estimate(policy_logprobs[: len(reference)], reference).sum()
        if settings.kl_coef > 0:  # else it is only measured: 0 × infinity would be NaN
            total = total + settings.kl_coef * kl
        sums.kl += float(kl.detach())
        sums.kl_tokens += int(learns[: len(reference)].sum())
    is_sampled = ~is_guided & learns
    sums.add(outputs.clipped, policy_logprobs.detach(), sampling_logprobs, is_sampled)
    return total / num_tokens


class _Sums:
    """Running sums over the tokens that one update computes."""

    def __init__(self) -> None:
        self.loss = self.kl = self.clipped = self.gap = self.largest = 0.0
        self.kl_tokens = self.sampled_tokens = 0

    def add(
        self,
        clipped: torch.Tensor,
        policy: torch.Tensor,
        sampling: torch.Tensor,
        is_sampled: torch.Tensor,
    ) -> None:
        gap = (policy - sampling).abs()
        self.clipped += float(clipped.sum())
        self.gap += float(gap.sum())
        self.largest = max(self.largest, float(gap.max()))
        self.sampled_tokens += int(is_sampled.sum())

    def stats(self, grad_norm: float, num_tokens: int, entropy: float) -> StepStats:
        kl = self.kl / self.kl_tokens if self.kl_tokens else math.nan
        sampled = max(self.sampled_tokens, 1)
        return StepStats(
            loss=self.loss,
            grad_norm=grad_norm,
            clip_fraction=self.clipped / sampled,
            entropy=entropy,
            kl=kl if math.isfinite(kl) else None,
            logprob_gap_mean=self.gap / sampled,
            logprob_gap_max=self.largest,
            num_tokens=num_tokens,
        )
