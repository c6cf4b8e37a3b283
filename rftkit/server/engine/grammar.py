"""JSON-schema-constrained decoding: which tokens may come next, as packed bit masks.

A thin layer over llguidance. A mask row is int32 words, one bit a vocabulary entry, lowest bit
first; a row with one bit set leaves no choice, so its log-prob is 0 and nothing is to be learnt
there. Not here: what the masks are applied to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from rftkit.errors import RequestError

__all__ = ["Grammars", "choices", "unpack"]

Masks = NDArray[np.int32]  # (R, V / 32)

SEPARATORS: Any = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


class Grammars:
    """Compiled schemas of one tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(eos_ids))
        self._executor = LLExecutor(num_threads=2)
        self._compiled: dict[str, LLMatcher] = {}

    def matcher(self, schema: str) -> LLMatcher:
        """A matcher at the start of the schema.

        Raises:
            RequestError: when the schema is not one that can be compiled.
        """
        if schema not in self._compiled:
            grammar = LLMatcher.grammar_from_json_schema(json.loads(schema), defaults=SEPARATORS)
            matcher = LLMatcher(self._tokenizer, grammar)
            if matcher.is_error():
                raise RequestError(
                    f"the JSON schema cannot be compiled: {matcher.get_error()}",
                    param="response_format",
                )
            self._compiled[schema] = matcher
        return self._compiled[schema].deep_copy()

    def masks(self, matchers: Sequence[LLMatcher | None]) -> Masks:
        """Allowed next tokens of each row; a row without matcher may do anything."""
        masks: Masks = allocate_token_bitmask(len(matchers), self.vocab_size)
        work = [(matcher, row) for row, matcher in enumerate(matchers) if matcher is not None]
        if work:
            fill_next_token_bitmask_par(self._executor, work, masks)
        return masks

    def replay(self, schema: str, tokens_G_T: Sequence[Sequence[int]]) -> Masks:
        """The masks under which given completions were sampled, laid end to end.

        Raises:
            ValueError: when a completion does not follow the schema.
        """
        matchers = [self.matcher(schema) for _ in tokens_G_T]
        rows: list[list[NDArray[np.int32]]] = [[] for _ in tokens_G_T]
        for t in range(max(map(len, tokens_G_T), default=0)):
            alive = [g for g, tokens in enumerate(tokens_G_T) if t < len(tokens)]
            masks = self.masks([matchers[g] for g in alive])
            for row, g in enumerate(alive):
                rows[g].append(masks[row])
                if not matchers[g].consume_token(tokens_G_T[g][t]):
                    raise ValueError(f"completion {g} leaves its schema at token {t}")
        return np.stack([mask for row in rows for mask in row])


def choices(masks: Masks) -> NDArray[np.int64]:
    """Number of allowed tokens of each row."""
    counts: NDArray[np.int64] = np.bitwise_count(masks.view(np.uint32)).sum(axis=1, dtype=np.int64)
    return counts


def unpack(masks: Masks, vocab_size: int) -> NDArray[np.bool_]:
    """(R, V / 32) words → (R, V) booleans."""
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    return bits[:, :vocab_size].view(np.bool_)


def only_choice(masks: Masks) -> NDArray[np.int64]:
    """The token of each row that allows exactly one."""
    word = np.argmax(masks != 0, axis=1)
    value = masks[np.arange(len(masks)), word].view(np.uint32)
    bit = np.bitwise_count(value - np.uint32(1))
    only: NDArray[np.int64] = word.astype(np.int64) * 32 + bit.astype(np.int64)
    return only
