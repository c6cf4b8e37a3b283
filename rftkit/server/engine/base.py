"""What travels between the training story and an engine, and the four primitives of an engine.

No tensors here and no torch: token ids are plain lists, so that an engine may live in another
process or on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

__all__ = [
    "SEPARATORS",
    "Adapter",
    "Completion",
    "Engine",
    "FullNeeds",
    "Listener",
    "LoraConfig",
    "NotFiniteError",
    "Pair",
    "PairStats",
    "SampleRequest",
    "Sampling",
    "StepStats",
    "Text",
    "TextStats",
    "Thinking",
    "TrainGroup",
    "TrainSettings",
    "is_whole",
]

FULL_FILE = "weights.safetensors"
"""In the folder of a saved policy: all weights of a model, where they were trained in full."""


SEPARATORS: Any = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""How JSON is written where decoding is constrained, in llguidance's words."""


class NotFiniteError(FloatingPointError):
    """An update came out as NaN or infinity and was not applied."""

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
    """How completions begin that think first; the prompt has opened the thoughts already."""

    end: str
    """The text that ends them, such as `</think>`."""
    budget: int
    """Most tokens of thoughts; then the end is forced."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt and how its completions are drawn."""

    prompt_ids: list[int]
    seeds: list[tuple[int, ...]]
    """One key a completion; the same key draws the same numbers. Its length is G."""
    max_tokens: int
    """Most completion tokens, the end token included."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    schema: str | None = None
    """What the answer must follow: a JSON schema as text, or rules (`tool_calls.optional_calls`);
    None: anything."""
    thinking: Thinking | None = None
    """Set when thoughts come before the answer."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    num_top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """Tokens the policy sampled for one prompt."""

    tokens: list[int]
    """The end token is the last one when `stop_reason` is "stop"."""
    text: str
    """The answer, without the thoughts."""
    sampling_logprobs: list[float]
    """One a token, in nats, of the distribution the token was drawn from at top_p = 1."""
    stop_reason: Literal["stop", "length"]
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    reasoning: str = ""
    """The thoughts, without their end mark."""
    reasoning_tokens: int = 0
    """The first so many of `tokens` are thoughts, end mark included."""


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
    """As the completions were sampled."""
    guided_G: list[bool] = field(default_factory=list)
    """Which completions were given, not sampled; empty: none. They have no sampling log-probs
    (zeros stand for them): the loss takes their ratio as 1, so that nothing is clipped."""
    advantages_G_T: list[list[float]] = field(default_factory=list)
    """Of each token, where they differ within a completion; empty: each has its completion's."""

    def token_advantages(self) -> list[list[float]]:
        """The advantage of each token, completion by completion."""
        if self.advantages_G_T:
            return self.advantages_G_T
        pairs = zip(self.advantages_G, self.tokens_G_T, strict=True)
        return [[advantage] * len(tokens) for advantage, tokens in pairs]

    learnt_G_T: list[list[bool]] = field(default_factory=list)
    """Which tokens are trained, of completions that are the rests of texts; empty: all of them."""

    def is_guided(self, g: int) -> bool:
        """Whether a completion was given."""
        return bool(self.guided_G) and self.guided_G[g]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What one update needs besides its data."""

    learning_rate: float
    temperature: float = 1.0
    loss: str = "clipped"
    """A name in `loss.LOSSES`."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one update measured. Means are over the completion tokens that have an advantage."""

    loss: float
    grad_norm: float | None
    """Before clipping; None when the engine is not told."""
    clip_fraction: float
    entropy: float
    """Mean −log-prob of the sampled tokens, in nats, by the policy that sampled them: an unbiased
    estimate of its entropy."""
    kl: float | None
    """To the frozen base, in nats a token: over the whole batch when `kl_coef` is above 0, else
    over the first group (rows come shuffled); None when the engine cannot tell."""
    logprob_gap_mean: float
    """Mean |policy − sampling log-prob| before the update: rounding, unless something is wrong."""
    logprob_gap_max: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation as tokens."""

    tokens: list[int]
    trained: list[bool]
    """Which of them are learnt; never the first, which nothing predicts."""


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
    """Share of trained tokens that were the most likely ones; None when the engine cannot tell."""
    num_tokens: int
    """Trained ones."""
    grad_norm: float | None = None
    """Before clipping; None without an update."""


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
    num_pairs: int
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
    """What training every weight of a model takes, in bytes."""

    num_parameters: int
    memory: int
    """Beside the model itself, before anything is sampled or kept for a backward pass."""
    free: int
    """Memory that is free now."""
    state: int
    """A saved state on disk."""
    checkpoint: int
    """A saved checkpoint on disk."""


class Listener(Protocol):
    """Who hears how the completions of one request go."""

    @property
    def streams(self) -> bool:
        """Whether text is wanted before a completion has ended."""
        ...

    def on_text(self, index: int, text: str) -> None:
        """Take new text of a completion."""
        ...

    def on_completion(self, index: int, completion: Completion) -> None:
        """Take a completion that has ended."""
        ...

    def on_failure(self, error: Exception) -> None:
        """Take the error that ended the request."""
        ...


class Sampling(Protocol):
    """Requests that are sampled together, with one adapter, as they are given time.

    A request gets the same completions alone and among others, up to rounding.
    """

    def join(self, number: int, request: SampleRequest, listener: Listener) -> None:
        """Sample one more request, from the next token on; its number is the caller's."""
        ...

    def drop(self, number: int) -> None:
        """Sample a request no further, from the next token on."""
        ...

    def go_on(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Sample for about so long, one token of each request at least; False when all have ended.

        It returns earlier, between two tokens, when `until()` is true.
        """
        ...


class Engine(Protocol):
    """The four primitives, and what a caller must know about the model behind them."""

    eos_ids: frozenset[int]
    context_tokens: int
    num_tokens: int
    """Of the vocabulary."""
    width: int | None
    """Numbers in a hidden state; None: not known here."""
    thinking: str | None
    """The tag that opens the model's reasoning, from its chat template; None: no reasoning."""
    memory_bytes: int | None
    """Budget for the keys of completions that decode together, and for what a backward pass
    keeps; measured when the engine starts. A job sets it to that of its plan. None: not ours."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Device, dtype, threads and versions, for the job's first event."""
        ...

    def encode(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[int]:
        """Token ids of a prompt under the model's chat template, ready for an answer.

        With `thinking`, a mark such as `<think>`, the prompt ends by opening the thoughts.
        """
        ...

    def given(self, text: str, schema: str | None) -> list[int] | None:
        """Token ids of an answer, its end token included, as a policy could have sampled it.

        None if it does not follow the schema. Called only if `guidance` is allowed.
        """
        ...

    def tokens_until(self, tokens: list[int], text: str) -> int | None:
        """How many of the tokens it takes to say `text`; None when they do not."""
        ...

    def conversation(
        self,
        messages: list[dict[str, Any]],
        trained: Sequence[int],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[Text]:
        """A conversation as texts to learn from; see `prompts.conversation`."""
        ...

    def notes(
        self, schema: str | None, thinking: Thinking | None, *, full: bool = False
    ) -> list[str]:
        """What a job's events should say of how this engine works: by which path, what learns."""
        ...

    def compare(self, prompts: Sequence[list[int]]) -> str | None:
        """Compare sampler, trainer and the model's own code on a few of a job's prompts.

        Returns:
            What to say of it, the path that the job takes and the difference; None: not ours.

        Raises:
            InputError: when they part by more than rounding, on every path.
        """
        ...

    def full_needs(self) -> FullNeeds:
        """What full fine-tuning would take here."""
        ...

    def sample(
        self,
        requests: Sequence[SampleRequest],
        adapter: Adapter | Literal["policy"] = "policy",
        *,
        on_tick: Callable[[], None] | None = None,
        on_text: Callable[[int, int, str], None] | None = None,
        on_completion: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """Completions of every request, in order. `on_tick` is called between token steps.

        `on_completion` gets (request, completion index, completion) as soon as one has ended.
        """
        ...

    @property
    def max_keys(self) -> int:
        """Most token positions whose keys fit in the memory for sampling."""
        ...

    def begin(self, adapter: Adapter) -> Sampling:
        """A sampling without requests; they join it, and go on when it is given time.

        Other work may run in between: training, and other samplings.
        """
        ...

    def train_step(
        self,
        groups: Sequence[TrainGroup],
        settings: TrainSettings,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> StepStats:
        """One optimizer update of the policy.

        Raises:
            FloatingPointError: when it is NaN or infinity (NotFiniteError where it is known whose).
        """
        ...

    def imitate(
        self,
        given: Sequence[Text],
        settings: TrainSettings | None,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> TextStats:
        """One optimizer update towards these texts; without settings they are only measured.

        Raises:
            FloatingPointError: as from `train_step`; its `groups` are texts.
        """
        ...

    def prefer(
        self,
        pairs: Sequence[Pair],
        beta: float,
        settings: TrainSettings | None,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> PairStats:
        """One optimizer update towards the preferred answers; without settings only measure.

        Raises:
            FloatingPointError: as from `train_step`; its `groups` are pairs.
        """
        ...

    def answer_logprobs(
        self,
        pairs: Sequence[Pair],
        adapter: Adapter,
        *,
        on_tick: Callable[[], None] | None = None,
    ) -> list[tuple[float, float]]:
        """The log-prob of both answers of each pair under saved weights: `Pair.reference`."""
        ...

    def start_policy(
        self, config: LoraConfig | None, seed: int, adapter: Path | None = None
    ) -> None:
        """Start a fresh policy and optimizer from the base model, or continue a saved policy.

        Without a `config` every weight learns.
        """
        ...

    def drop_policy(self) -> None:
        """Forget the policy; what was saved of it stays."""
        ...

    def close(self) -> None:
        """Let go of what the engine holds, here or on a server; it is not used again."""
        ...

    def save(self, folder: Path) -> None:
        """Write the policy, optimizer included, into an empty folder."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write what inference needs of the policy into an empty folder."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, bit for bit."""
        ...


class ServingEngine(Engine, Protocol):
    """An engine that also answers chats: what the chat queue needs beside the four primitives."""

    name: str
    """Of the base model."""
    tokenizer: Any
    """The model's own, of transformers."""

    @property
    def grammars(self) -> Any:
        """Compiled JSON schemas; `start(schema, thinking)` refuses what cannot be compiled."""
        ...

    def embed(self, inputs: Sequence[list[int]], adapter: Adapter = None) -> list[list[float]]:
        """One vector of length 1 for each text.

        Raises:
            InputError: where this engine gives none.
        """
        ...
