"""JSON-schema-constrained decoding: which tokens may come next, as packed bit masks.

A thin layer over llguidance. A mask row is int32 words, one bit a vocabulary entry, lowest bit
first; a row with one bit set leaves no choice, so the log-prob is 0 and there is no gradient. Not
here: what the masks are applied to.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from rftkit.errors import RequestError
from rftkit.jsontext import parse_json
from rftkit.server.engine.decoding_state import DecodingState, thinking_grammar
from rftkit.server.engine.values import SEPARATORS, Thinking

__all__ = ["Grammars", "choices", "unpack"]

Masks = NDArray[np.int32]  # (R, V / 32)

SLICES = [r"[ a-zA-Z]{1,12}", r'[^".\\\x00-\x1F\x7F]{1,10}', *LLTokenizer.general_slices()]
"""Sets of tokens that are allowed or not as one. llguidance's own are for any text in quotes; words
and text without a full stop are in most patterns too, whose masks then take a third of the time."""
KEPT_BYTES = 2**26
"""Most bytes of masks that are kept: the trainer needs those that the sampler computed."""


class Grammars:
    """Compiled schemas of one tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self._hf = tokenizer
        self._eos_ids = set(eos_ids)
        self._tokenizer = from_tokenizer(
            tokenizer, n_vocab=vocab_size, eos_token=list(eos_ids), slices=SLICES
        )
        self._executor = LLExecutor(num_threads=2)
        self._compiled: dict[tuple[str, str | None], LLMatcher] = {}
        self._kept: OrderedDict[Hashable, NDArray[np.int32]] = OrderedDict()

    def start(self, schema: str | None, thinking: Thinking | None = None) -> DecodingState | None:
        """The decoding state at the start of a completion, or None when any token may follow.

        Raises:
            RequestError: when the schema cannot be compiled.
        """
        if schema is None and thinking is None:
            return None
        end = None if thinking is None else thinking.end
        matcher = None if schema is None else self.matcher(schema, end)
        end_ids = [] if end is None else self._ids(f"\n{end}")
        return DecodingState(matcher, thinking, end_ids, self._hf.decode)

    def matcher(self, schema: str, end: str | None = None) -> LLMatcher:
        """A matcher at the start of the schema, or of reasoning up to `end` and then the schema.

        Instead of a schema there may be rules in llguidance's Lark that define an `answer`.

        Raises:
            RequestError: when the schema is not one that can be compiled.
        """
        if (schema, end) not in self._compiled:
            try:
                matcher = LLMatcher(self._tokenizer, self._grammar(schema, end))
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raise _not_compiled(error) from None  # numbers beyond 64 bits, or nested too deeply
            if matcher.is_error():
                raise _not_compiled(matcher.get_error())
            if end is None and self._only_ends(matcher):
                raise _not_compiled("no answer fits it; does a `$ref` refer to itself without end?")
            self._compiled[schema, end] = matcher
        return self._compiled[schema, end].deep_copy()

    def _only_ends(self, matcher: LLMatcher) -> bool:
        """Whether the first token can be none but an end, so that there is no JSON to write."""
        mask = allocate_token_bitmask(1, self.vocab_size)
        fill_next_token_bitmask_par(self._executor, [(matcher, 0)], mask)
        allowed = set(np.flatnonzero(unpack(mask, self.vocab_size)[0]).tolist())
        return allowed <= self._eos_ids

    def _grammar(self, schema: str, end: str | None) -> str:
        if schema.startswith("answer"):
            rules = schema
        else:
            given = parse_json(schema)
            given = {**given, "x-guidance": {**SEPARATORS, **given.get("x-guidance", {})}}
            if end is None:
                return str(LLMatcher.grammar_from_json_schema(given))
            rules = f"answer: %json {json.dumps(given)}"
        if end is None:
            return str(LLMatcher.grammar_from_lark(f"start: answer\n{rules}\n"))
        ids = self._ids(end)
        special = ids[0] if len(ids) == 1 and ids[0] in self._hf.all_special_ids else None
        return str(LLMatcher.grammar_from_lark(thinking_grammar(end, special, rules)))

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self._hf.encode(text, add_special_tokens=False)]

    def masks(self, states: Sequence[DecodingState | None]) -> Masks:
        """Allowed next tokens of each row; a row without a state may take any."""
        masks: Masks = allocate_token_bitmask(len(states), self.vocab_size)
        work = []
        for row, state in enumerate(states):
            if state is not None and state.forced is not None:
                word, bit = divmod(state.forced, 32)
                masks[row] = 0
                masks[row].view(np.uint32)[word] = 1 << bit
            elif state is not None and state.matcher is not None:
                work.append((state.matcher, row))
        if work:
            fill_next_token_bitmask_par(self._executor, work, masks)
        return masks

    def distinct(self, states: Sequence[tuple[Hashable, DecodingState | None]]) -> Masks:
        """Like `masks`, for states that come with keys: what they follow, and the tokens so far.

        States with the same key are equal. The mask of each is computed once, and kept for a while.
        """
        missing = {key: state for key, state in states if key not in self._kept}
        made = dict(zip(missing, self.masks(list(missing.values())), strict=True))
        found = np.stack([made[key] if key in made else self._kept[key] for key, _ in states])
        self._keep([key for key, _ in states], made)
        return found

    def _keep(self, used: Sequence[Hashable], made: Mapping[Hashable, NDArray[np.int32]]) -> None:
        """Keep new masks; if there are too many, drop those that were used longest ago."""
        for key in used:
            if key in made:
                self._kept.setdefault(key, made[key].copy())
            self._kept.move_to_end(key)
        while len(self._kept) * 4 * -(-self.vocab_size // 32) > KEPT_BYTES:
            self._kept.popitem(last=False)

    def replay(
        self,
        schema: str | None,
        tokens_G_T: Sequence[Sequence[int]],
        thinking: Thinking | None = None,
    ) -> Masks:
        """The masks under which given completions were sampled, laid end to end.

        Raises:
            ValueError: when a completion does not follow the schema.
        """
        states = [self.start(schema, thinking) for _ in tokens_G_T]
        rows: list[list[NDArray[np.int32]]] = [[] for _ in tokens_G_T]
        for t in range(max(map(len, tokens_G_T), default=0)):
            alive = [g for g, tokens in enumerate(tokens_G_T) if t < len(tokens)]
            keys = [(schema, thinking, tuple(tokens_G_T[g][:t])) for g in alive]
            masks = self.distinct([(key, states[g]) for key, g in zip(keys, alive, strict=True)])
            for row, g in enumerate(alive):
                rows[g].append(masks[row])
                state = states[g]
                if state is not None and not state.consume_token(tokens_G_T[g][t]):
                    raise ValueError(f"completion {g} leaves its schema at token {t}")
        return np.stack([mask for row in rows for mask in row])

    def replay_turns(
        self,
        schema: str | None,
        tokens_G_T: Sequence[Sequence[int]],
        sampled_G_T: Sequence[Sequence[bool]],
        thinking: Thinking | None = None,
    ) -> Masks:
        """The masks of an episode: each stretch of sampled tokens is a turn; other tokens have
        none.
        """
        texts = [token for tokens in tokens_G_T for token in tokens]
        is_sampled = np.concatenate([np.asarray(each, np.bool_) for each in sampled_G_T])
        starts = np.cumsum([0, *map(len, tokens_G_T)])
        begins = is_sampled & ~np.concatenate([[False], is_sampled[:-1]])
        begins[starts[:-1][starts[:-1] < len(texts)]] = True
        turns = np.split(np.arange(len(texts)), np.flatnonzero(begins))
        turns = [places[is_sampled[places]] for places in turns]
        masks: Masks = allocate_token_bitmask(len(texts), self.vocab_size)
        masks[:] = -1
        given = [places for places in turns if len(places)]
        if given:
            replayed = self.replay(schema, [[texts[i] for i in each] for each in given], thinking)
            masks[np.concatenate(given)] = replayed
        return masks


def _not_compiled(why: object) -> RequestError:
    return RequestError(
        f"the JSON schema cannot be compiled: {str(why)[:1000]}", param="response_format"
    )


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
