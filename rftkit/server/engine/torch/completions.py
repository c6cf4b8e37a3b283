"""One completion while it is sampled: its tokens, which tokens may come next, and how it ends.

A turn of an episode ends like a completion; then `observe` appends what its environment answers.
Where a grammar leaves no choice the token is appended at once (`append_forced`), and the model
reads it later. Not here: the model's passes (`sampler.py`) and how a token is drawn (`draw.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rftkit.errors import RequestError
from rftkit.server.engine.base import Listener
from rftkit.server.engine.call_forms import answer_text
from rftkit.server.engine.decoding_state import DecodingState
from rftkit.server.engine.grammar import Grammars, choices, only_choice
from rftkit.server.engine.torch.decode import Decode
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.torch.plain import PlainDecode
from rftkit.server.engine.torch.ragged import Ragged
from rftkit.server.engine.values import Completion, Observation, SampleRequest, Turn

__all__ = [
    "DROPPED",
    "Layout",
    "Policy",
    "Row",
    "append",
    "append_forced",
    "observe",
    "report",
    "start",
]

Layout = Decode | PlainDecode | Ragged
DROPPED = Completion([], "", [], "length")


class Policy(Protocol):
    """The model as the sampler needs it."""

    device: torch.device
    head: torch.Tensor
    cap: float | None
    eos_ids: frozenset[int]
    tokenizer: Any

    @property
    def grammars(self) -> Grammars:
        """Compiled schemas."""
        ...

    @property
    def is_plain(self) -> bool:
        """Whether a pass of the model computes whole texts."""
        ...

    def hidden(self, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        """Last hidden states (N, width) of tokens (N,) under a layout."""
        ...

    def decode(
        self, prefill: Packed, texts: Sequence[list[int]], groups: list[int]
    ) -> Decode | PlainDecode:
        """The layout of rows that continue prefilled texts; row r continues that of `groups[r]`."""
        ...


@dataclass(slots=True)
class Row:
    """One completion that is being sampled."""

    request: int
    """The number of its request."""
    asked: SampleRequest
    index: int
    """Which completion of the request it is."""
    listener: Listener
    uniforms: NDArray[np.float64]
    state: DecodingState | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    text: str | None = None
    """Set when a stop text ended the row."""
    sent: int = 0
    """Characters that the listener has already."""
    read: int = 0
    """Tokens that the model has read."""
    mask: NDArray[np.int32] | None = None
    """Mask of the tokens that may come next, (V / 32,); None: any."""
    completion: Completion | None = None
    failure: RequestError | None = None
    begins: int = 0
    """The position in `tokens` at which the current turn begins; 0 unless it follows another."""
    turns: list[Turn] = field(default_factory=list)
    """The turns before the current one."""

    @property
    def num_sampled(self) -> int:
        """How many of the tokens were sampled."""
        return len(self.tokens) - sum(turn.num_observed for turn in self.turns)

    @property
    def is_full(self) -> bool:
        """Whether there can be no further token."""
        room = self.asked.room
        is_over = room is not None and len(self.tokens) >= room
        return is_over or self.num_sampled >= self.asked.max_tokens


def start(policy: Policy, number: int, asked: SampleRequest, index: int, listener: Listener) -> Row:
    """A row without tokens. Its numbers depend on its own key alone."""
    seed = np.random.SeedSequence([part % 2**32 for part in asked.seeds[index]])
    uniforms = np.random.Generator(np.random.Philox(seed)).random(asked.max_tokens)
    state = None
    if asked.schema is not None or asked.thinking is not None:  # grammars take a second to make
        state = policy.grammars.start(asked.schema, asked.thinking)
    return Row(number, asked, index, listener, uniforms, state)


def append(row: Row, token: int, logprob: float) -> None:
    """Append a token; the row fails when its grammar refuses it."""
    row.tokens.append(token)
    row.logprobs.append(logprob)
    if row.state is not None and not row.state.consume_token(token):
        row.failure = RequestError(
            f"the JSON schema cannot be followed: the grammar refused token {token}, which it had "
            "allowed. Can an answer end at all, or does a `$ref` include itself without end?",
            param="response_format",
        )
        row.completion = DROPPED


def append_forced(policy: Policy, rows: Sequence[Row]) -> None:
    """Append tokens while there is no choice. A row then has ended, or has the mask of a choice."""
    for row in rows:
        if len(row.tokens) > row.begins:
            _end(policy, row)
    todo = [row for row in rows if row.state is not None and row.completion is None]
    while todo:
        masks = policy.grammars.distinct(
            [
                ((row.asked.schema, row.asked.thinking, tuple(row.tokens[row.begins :])), row.state)
                for row in todo
            ]
        )
        is_forced = choices(masks) == 1
        tokens = iter(only_choice(masks[is_forced]).tolist())
        for row, mask, forced in zip(todo, masks, is_forced, strict=True):
            row.mask = mask
            if forced:
                append(row, next(tokens), 0.0)
                if row.asked.num_top_logprobs:
                    row.top.append(((row.tokens[-1], 0.0),))
                _end(policy, row)
        todo = [
            row
            for row, forced in zip(todo, is_forced, strict=True)
            if forced and row.completion is None
        ]


def _end(policy: Policy, row: Row) -> None:
    """Set the row's completion, if its last token ended it."""
    if row.completion is not None:
        return
    ended = row.tokens[-1] in policy.eos_ids
    if row.asked.stop and not ended:
        text = _texts(policy, row)[1]
        cuts = [at for stop in row.asked.stop if (at := text.find(stop)) >= 0]
        if cuts:
            row.text, ended = text[: min(cuts)], True
    if not ended and not row.is_full:
        return
    reasoning, answer = _texts(policy, row)
    row.completion = Completion(
        tokens=row.tokens,
        text=answer if row.text is None else row.text,
        sampling_logprobs=row.logprobs,
        stop_reason="stop" if ended else "length",
        top_logprobs=row.top,
        reasoning=reasoning,
        reasoning_tokens=_num_reasoning(row) + sum(turn.reasoning_tokens for turn in row.turns),
        turns=row.turns,
    )


def observe(policy: Policy, row: Row, observation: Observation) -> None:
    """Append what an environment answered to the turn that has ended, and begin the next one.

    The row has ended if the episode failed, or if there is no room for another token.
    """
    ended = row.completion
    assert ended is not None, "only a turn that has ended is answered"
    tokens, room = observation.tokens, row.asked.room
    fits = room is None or len(row.tokens) + len(tokens) < room
    is_over = observation.failure is not None or not fits or row.is_full
    if is_over:
        tokens = []
    before = sum(turn.reasoning_tokens for turn in row.turns)
    turn = Turn(
        num_tokens=len(row.tokens) - row.begins,
        num_observed=len(tokens),
        text=ended.text,
        reasoning=ended.reasoning,
        reasoning_tokens=ended.reasoning_tokens - before,
        calls=observation.calls,
    )
    row.turns = [*row.turns, turn]
    row.tokens, row.logprobs = [*row.tokens, *tokens], [*row.logprobs, *[0.0] * len(tokens)]
    if row.asked.num_top_logprobs:
        row.top += [()] * len(tokens)
    row.begins, row.completion = len(row.tokens), None
    if is_over:
        row.completion = replace(
            ended,
            text="",
            reasoning="",
            stop_reason="length" if observation.failure is None else ended.stop_reason,
            turns=row.turns,
            failure=observation.failure,
        )
    elif row.state is not None:
        row.state = policy.grammars.start(row.asked.schema, row.asked.thinking)


def report(policy: Policy, row: Row) -> None:
    """Tell the listener of new text, and of the row's end or failure."""
    if row.failure is not None:
        row.listener.on_failure(row.failure)
        return
    if row.listener.streams and row.tokens:
        _report_text(policy, row)
    if row.completion is not None:
        row.listener.on_completion(row.index, row.completion)


def _report_text(policy: Policy, row: Row) -> None:
    """Report the part of the answer that can no longer change."""
    if row.completion is not None:
        text = row.completion.text
    else:
        text = _texts(policy, row)[1]
        if text.endswith("\ufffd"):  # the rest of a character is still to come
            return
        # these characters may become a stop text
        held = max(map(len, row.asked.stop), default=1) - 1
        text = text[: len(text) - held]
    if len(text) > row.sent:
        row.listener.on_text(row.index, text[row.sent :])
        row.sent = len(text)


def _texts(policy: Policy, row: Row) -> tuple[str, str]:
    """Reasoning and answer so far; what follows the end tag in its token is part of the answer."""
    tokens = row.tokens[row.begins :]
    count = _num_reasoning(row)
    answer = answer_text(policy.tokenizer, tokens[count:])
    if row.asked.thinking is None:
        return "", answer
    before = policy.tokenizer.decode(tokens[:count])
    reasoning, _, rest = before.partition(row.asked.thinking.end)
    return reasoning.strip(), (rest + answer).lstrip()


def _num_reasoning(row: Row) -> int:
    if row.state is None:
        return 0
    sampled = len(row.tokens) - row.begins
    return sampled if row.state.num_reasoning is None else row.state.num_reasoning
