"""What a training method and an engine exchange: requests, completions, batches, measurements.

No tensors here and no torch: token ids are plain lists, so that an engine may run in another
process or on another machine. The engine itself is in `base`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "FULL_FILE",
    "SEPARATORS",
    "Adapter",
    "Completion",
    "FullNeeds",
    "LoraConfig",
    "NotFiniteError",
    "Observation",
    "Pair",
    "PairStats",
    "SampleRequest",
    "StepStats",
    "Text",
    "TextStats",
    "Thinking",
    "TrainGroup",
    "TrainSettings",
    "Turn",
    "is_whole",
]

FULL_FILE = "weights.safetensors"
"""The file with all weights of a model in the folder of a policy that was trained in full."""


SEPARATORS: Any = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""The JSON separators that constrained decoding uses, in llguidance's notation."""


class NotFiniteError(FloatingPointError):
    """The gradient of an update has NaN or infinity, so the update was not applied."""

    def __init__(self, message: str, groups: Sequence[int]) -> None:
        """`groups` are those of the batch whose own gradient is not finite."""
        super().__init__(message)
        self.groups = list(groups)


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Shape of the low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 16
    alpha: float = 32.0
    """Updates are scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that learn; empty means every one but the output head."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How the completions of a reasoning model begin; the prompt ends with the opening tag."""

    end: str
    """The text that ends the reasoning, such as `</think>`."""
    budget: int
    """Most tokens of reasoning; then its end is forced."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt and how its completions are drawn."""

    prompt_ids: list[int]
    seeds: list[tuple[int, ...]]
    """One key for each of the G completions; the same key draws the same random numbers."""
    max_tokens: int
    """Most completion tokens, the end token included."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    schema: str | None = None
    """The rules for the answer: a JSON schema as text, or a grammar (`tool_calls.optional_calls`);
    None for free text."""
    thinking: Thinking | None = None
    """Set when reasoning comes before the answer."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    num_top_logprobs: int = 0
    room: int | None = None
    """For an episode: most tokens after the prompt, including those that its environment appends.
    """


@dataclass(frozen=True, slots=True)
class Observation:
    """What an environment answers to a turn of an episode."""

    tokens: list[int]
    """What follows the turn, up to and including the head of the next one."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """The calls of the turn with their replies, for whoever reads the completion."""
    failure: str | None = None
    """Why the episode failed, so that it ends here and has no grade."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of an episode that its environment answered."""

    num_tokens: int
    """Sampled ones, the end token included."""
    num_observed: int
    """Tokens appended after them, which were not sampled and are not learnt."""
    text: str
    reasoning: str = ""
    reasoning_tokens: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)
    """See `Observation.calls`."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Tokens the policy sampled for one prompt; of an episode, also those it observed."""

    tokens: list[int]
    """The end token is the last one when `stop_reason` is "stop"."""
    text: str
    """The answer, without the reasoning; of an episode that of its last turn."""
    sampling_logprobs: list[float]
    """The log-prob of each token, in nats, under the distribution that it was drawn from, at top_p
    = 1. 0 for an observed token."""
    stop_reason: Literal["stop", "length"]
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    reasoning: str = ""
    """The reasoning, without its end tag."""
    reasoning_tokens: int = 0
    """How many of `tokens` are reasoning, the end tag included: the first ones of each turn."""
    turns: list[Turn] = field(default_factory=list)
    """The turns before the last one; empty where there was one turn."""
    failure: str | None = None
    """Why the episode broke off, through no fault of the policy: it has no grade."""

    @property
    def is_sampled(self) -> list[bool]:
        """Which of the tokens were sampled."""
        mask: list[bool] = []
        for turn in self.turns:
            mask += [True] * turn.num_tokens + [False] * turn.num_observed
        return mask + [True] * (len(self.tokens) - len(mask))

    @property
    def num_sampled(self) -> int:
        """How many of the tokens were sampled."""
        return len(self.tokens) - sum(turn.num_observed for turn in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """The completion as JSON; keys that only episodes have are left out of others."""
        data = dataclasses.asdict(self)
        for name in ("turns", "failure"):
            if not data[name]:
                del data[name]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Completion:
        """The completion that `to_dict` wrote."""
        turns = [Turn(**turn) for turn in data.get("turns", ())]
        return cls(**{**data, "turns": turns})


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """The graded completions of one prompt, as the update needs them."""

    prompt_ids: list[int]
    tokens_G_T: list[list[int]]
    sampling_logprobs_G_T: list[list[float]]
    advantages_G: list[float]
    schema: str | None = None
    """The schema the completions were sampled under; the update uses the same distribution."""
    thinking: Thinking | None = None
    """How reasoning began when the completions were sampled."""
    guided_G: list[bool] = field(default_factory=list)
    """Which completions are reference answers, not samples; empty: none. They have no sampling
    log-probs (zeros take their place), so the loss uses a ratio of 1 and clips nothing."""
    advantages_G_T: list[list[float]] = field(default_factory=list)
    """The advantage of each token; empty: every token has that of its completion."""

    learnt_G_T: list[list[bool]] = field(default_factory=list)
    """Which tokens are trained, where a completion is the rest of a text, or an episode with
    observed tokens; empty: all of them. Each stretch of an episode's is a turn."""

    def token_advantages(self) -> list[list[float]]:
        """The advantage of each token, completion by completion; 0 where it is not trained."""
        rows = self.advantages_G_T
        if not rows:
            pairs = zip(self.advantages_G, self.tokens_G_T, strict=True)
            rows = [[advantage] * len(tokens) for advantage, tokens in pairs]
        if not self.learnt_G_T:
            return rows
        return [
            [advantage if learns else 0.0 for advantage, learns in zip(row, learnt, strict=True)]
            for row, learnt in zip(rows, self.learnt_G_T, strict=True)
        ]

    def learns(self, g: int) -> list[bool]:
        """Which tokens of a completion are trained."""
        return self.learnt_G_T[g] if self.learnt_G_T else [True] * len(self.tokens_G_T[g])

    def is_guided(self, g: int) -> bool:
        """Whether a completion is a reference answer."""
        return bool(self.guided_G) and self.guided_G[g]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The settings of one update."""

    learning_rate: float
    temperature: float = 1.0
    loss: str = "clipped"
    """A name in `loss.LOSSES`."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    max_grad_norm: float = 1.0
    measures_kl: bool = True
    """Whether to measure the distance from the base where no penalty needs it."""


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one update measured. Means are over the completion tokens that have an advantage."""

    loss: float
    grad_norm: float | None
    """The norm before clipping; None if the server does not report it."""
    clip_fraction: float
    entropy: float
    """Mean −log-prob of the sampled tokens, in nats, by the policy that sampled them: an unbiased
    estimate of its entropy."""
    kl: float | None
    """The KL divergence from the frozen base, in nats per token: over the whole batch if `kl_coef`
    is above 0, otherwise over the first group (rows are shuffled). None if the engine cannot
    measure it, or was not asked to."""
    logprob_gap_mean: float
    """Mean |policy − sampling log-prob| before the update. More than rounding is a bug."""
    logprob_gap_max: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation as tokens."""

    tokens: list[int]
    trained: list[bool]
    """Which of them are trained; never the first, which nothing predicts."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    preferred: Text
    non_preferred: Text
    reference: tuple[float, float] = (0.0, 0.0)
    """Sum of the log-probs of each answer under the model that the job starts from, in nats."""


@dataclass(frozen=True, slots=True)
class TextStats:
    """What was measured on texts, before an update of the policy if there was one."""

    loss: float
    """Mean −log-prob over all trained tokens, in nats."""
    accuracy: float | None
    """Share of trained tokens that were the most likely ones; None: it cannot be measured."""
    num_tokens: int
    """Trained ones."""
    grad_norm: float | None = None
    """The norm before clipping; None without an update."""


@dataclass(frozen=True, slots=True)
class PairStats:
    """What was measured on pairs; all but the token accuracy are means over pairs."""

    loss: float
    """−log σ(β · margin of the log-ratios), in nats."""
    preferred_reward: float
    """β times (log-prob − reference) of the preferred answer."""
    non_preferred_reward: float
    reward_accuracy: float
    """Share of pairs whose preferred answer has the higher reward; a tie counts as wrong."""
    accuracy: float
    """Share of tokens of preferred answers that were the most likely ones."""
    num_tokens: int
    """Trained ones, of both sides."""
    grad_norm: float | None = None

    @property
    def margin(self) -> float:
        """Preferred minus non-preferred reward."""
        return self.preferred_reward - self.non_preferred_reward


Adapter = Path | None
"""A folder with saved adapters or whole weights, or None for the base model."""


def is_whole(folder: Path) -> bool:
    """Whether a saved policy is whole weights, not adapters."""
    return (folder / FULL_FILE).is_file()


@dataclass(frozen=True, slots=True)
class FullNeeds:
    """What it takes to train every weight of a model, in bytes."""

    num_parameters: int
    memory: int
    """Memory in addition to the model itself, before anything is sampled or kept for a backward
    pass."""
    free: int
    """Memory that is free now."""
    state: int
    """A saved state on disk."""
    checkpoint: int
    """A saved checkpoint on disk."""
