"""Before a job: sampler, trainer and the model's own code on some of its prompts, at full length.

What a model does only to long texts (windows, chunks, angles that change) does not show in the
short texts that are compared on load (`agreement.py`). Where the shared-prompt way parts from the
model's own code, the model takes the plain path from here on; where sampler and trainer part even
there, the job is refused. Not here: which prompts are used (`LoadedModel` takes a few).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rftkit.server.engine.values import Completion, SampleRequest, TrainGroup

__all__ = ["NUM_PROMPTS", "NUM_TOKENS", "groups_of", "mean_difference", "some_of", "within"]

NUM_PROMPTS = 3
NUM_TOKENS = 6
"""Tokens of each of the two completions."""
MOST, MOST_BFLOAT16 = 0.002, 0.15
"""Mean difference of log-probs, in nats: more than rounding makes, less than another formula."""


def some_of(prompts: Sequence[list[int]], longest: int) -> list[SampleRequest]:
    """Return requests for the shortest, the median and the longest prompt that leave room."""
    fitting = sorted({len(each): each for each in prompts if each}.items())
    fitting = [each for each in fitting if each[0] + NUM_TOKENS <= longest]
    wanted = sorted({round(i * (len(fitting) - 1) / 2) for i in range(NUM_PROMPTS)})
    if not fitting:
        return []
    return [SampleRequest(fitting[i][1], [(0, i), (1, i)], NUM_TOKENS) for i in wanted]


def groups_of(
    requests: Sequence[SampleRequest], answers: Sequence[Sequence[Completion]]
) -> list[TrainGroup]:
    """The sampled completions in the form that the trainer takes."""
    return [
        TrainGroup(
            request.prompt_ids,
            [each.tokens for each in some],
            [each.sampling_logprobs for each in some],
            [0.0] * len(some),
        )
        for request, some in zip(requests, answers, strict=True)
    ]


def mean_difference(
    groups: Sequence[TrainGroup], found: torch.Tensor, other: torch.Tensor | None
) -> float:
    """The mean difference of log-probs from others, or from those stored during sampling."""
    if other is None:
        stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
        other = torch.tensor(stored, device=found.device)
    return float((found - other).abs().mean().nan_to_num(nan=torch.inf))


def within(difference: float, dtype: torch.dtype) -> bool:
    """Whether rounding explains the difference."""
    return difference <= (MOST if dtype == torch.float32 else MOST_BFLOAT16)
