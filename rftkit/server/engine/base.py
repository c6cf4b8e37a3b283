"""What an engine is: sample, train_step, save, load, and what its callers ask about its model.

Two engines implement this: `torch` on this machine and `tinker` on a server. What they exchange
with their callers is in `values`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Protocol

from rftkit.server.engine.values import (
    Adapter,
    Completion,
    FullNeeds,
    LoraConfig,
    Observation,
    Pair,
    PairStats,
    SampleRequest,
    StepStats,
    Text,
    TextStats,
    Thinking,
    TrainGroup,
    TrainSettings,
)
from rftkit.server.engine.written_calls import CallForm

__all__ = ["Engine", "Environment", "Listener", "Sampling", "ServingEngine"]


class Listener(Protocol):
    """Gets notified while one request is sampled."""

    @property
    def streams(self) -> bool:
        """Whether to call `on_text` before a completion has ended."""
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


class Environment(Protocol):
    """What answers the turns of an episode."""

    def respond(self, request: int, index: int, completion: Completion) -> Future[Any] | None:
        """Begin to answer a turn that has ended; None: the episode is over.

        It returns at once. The same turn is answered the same again.
        """
        ...

    def observe(self, request: int, index: int, completion: Completion, answer: Any) -> Observation:
        """What follows the turn, given the result of the future of `respond`.

        It is called by the thread that samples.
        """
        ...

    def waited(self, seconds: float) -> None:
        """Nothing could be sampled for so long, because all that is left waits for answers."""
        ...


class Sampling(Protocol):
    """Requests that decode together, with one adapter, whenever `advance` is called.

    A request gets the same completions alone and among others, up to rounding.
    """

    def join(self, number: int, request: SampleRequest, listener: Listener) -> None:
        """Add a request, from the next token on; the caller chooses its number."""
        ...

    def drop(self, number: int) -> None:
        """Stop sampling a request, from the next token on."""
        ...

    def advance(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Sample for about so many seconds, at least one token of each request.

        It returns earlier, between two tokens, when `until()` is true. False: all have ended.
        """
        ...


class Engine(Protocol):
    """The four primitives, and the facts about a model that callers need."""

    eos_ids: frozenset[int]
    context_tokens: int
    num_tokens: int
    """The size of the vocabulary."""
    width: int | None
    """Numbers in a hidden state; None: not known here."""
    thinking: str | None
    """The tag that opens the model's reasoning, from its chat template; None: no reasoning."""
    memory_bytes: int | None
    """Budget for the keys of completions that decode together, and for what a backward pass
    keeps; measured when the engine starts. A job sets it to that of its plan. None: the server
    decides."""

    @property
    def call_form(self) -> CallForm:
        """How the model's chat template writes a call."""
        ...

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

        With `thinking`, a tag such as `<think>`, the prompt ends with that tag.
        """
        ...

    def encode_answer(self, text: str, schema: str | None) -> list[int] | None:
        """Token ids of an answer, its end token included, as a policy could have sampled it.

        None if it does not follow the schema. Called only if `guidance` is allowed.
        """
        ...

    def tokens_until(self, tokens: list[int], text: str) -> int | None:
        """How many of the tokens contain `text`; None when they do not contain it."""
        ...

    def observed(
        self,
        messages: list[dict[str, Any]],
        replies: Sequence[tuple[dict[str, Any], str]],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[int]:
        """The tokens between a turn with calls and the next turn; see `observed.observed`.

        Raises:
            InputError: the chat template cannot be continued so.
        """
        ...

    def check_observed(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> None:
        """Find out whether the model gets to read the results of calls after these messages.

        Raises:
            InputError: it does not.
        """
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
        """Sentences for a job's events about how this engine trains: by which path, what learns."""
        ...

    def compare(self, prompts: Sequence[list[int]]) -> str | None:
        """Compare sampler, trainer and the model's own code on a few of a job's prompts.

        Returns:
            A sentence with the path that the job takes and the difference; None: there is nothing
            to compare on this machine.

        Raises:
            InputError: they differ by more than rounding, on every path.
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
        environment: Environment | None = None,
    ) -> list[list[Completion]]:
        """Completions of every request, in order. `on_tick` is called between token steps.

        `on_completion` gets (request, completion index, completion) as soon as one has ended. With
        an `environment` each is an episode: a turn that it answers is followed by what it observes
        and by another turn.
        """
        ...

    @property
    def max_keys(self) -> int:
        """Most token positions whose keys fit in the memory for sampling."""
        ...

    def begin(self, adapter: Adapter) -> Sampling:
        """Start a sampling without requests; they join it later.

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
        """One optimizer update towards the preferred answers; without settings they are only
        measured.

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
        """Free what the engine holds, here or on a server. It cannot be used afterwards."""
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
    """An engine that also answers chats."""

    name: str
    """The name of the base model."""
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
