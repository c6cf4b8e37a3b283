"""The tokens a completion may have next: reasoning up to its end tag, then what a schema allows.

A decoding state is a function of the tokens so far and nothing else, so the trainer replays exactly
the masks of the sampler. Reasoning is free; when its budget is spent the end tag is forced,
token by token, with no choice and therefore log-prob 0. Not here: how a mask is filled (`grammar`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llguidance import LLMatcher

from rftkit.server.engine.values import Thinking

__all__ = ["DecodingState", "thinking_grammar"]


class DecodingState:
    """The state of one completion."""

    def __init__(
        self,
        matcher: LLMatcher | None,
        thinking: Thinking | None,
        end_ids: Sequence[int],
        decode: Callable[[list[int]], str],
    ) -> None:
        """`end_ids` are forced when the budget of `thinking` is spent."""
        self.matcher = matcher
        """The grammar, or None when every token is allowed."""
        self.num_reasoning: int | None = None if thinking else 0
        """Reasoning tokens, end tag included; None while the reasoning continues."""
        self._thinking, self._end_ids, self._decode = thinking, list(end_ids), decode
        self._tokens: list[int] = []
        self._pending: list[int] = []
        self._force()

    @property
    def forced(self) -> int | None:
        """Return the only token that may come next, if the grammar does not decide it."""
        return self._pending[0] if self._pending else None

    def consume_token(self, token: int) -> bool:
        """Advance by one token; False when it was not allowed."""
        if self._pending and self._pending.pop(0) != token:
            return False
        if self.matcher is not None and not self.matcher.consume_token(token):
            return False
        if self._thinking is not None and self.num_reasoning is None:
            self._tokens.append(token)
            # A token has at least one byte, so the end tag is within the last len(end) + 1 tokens.
            if self._thinking.end in self._decode(self._tokens[-len(self._thinking.end) - 1 :]):
                self.num_reasoning, self._pending = len(self._tokens), []
            else:
                self._force()
        return True

    def _force(self) -> None:
        if self._thinking is None or self._pending or len(self._tokens) < self._thinking.budget:
            return
        if self.matcher is not None and self.matcher.validate_tokens(self._end_ids[:1]) == 0:
            return  # inside a character: wait for its last byte
        self._pending = list(self._end_ids)


def thinking_grammar(end: str, special_id: int | None, rules: str) -> str:
    """A grammar in llguidance's Lark: anything up to the end tag, then the `answer` of the given
    rules.

    `special_id` is the token of the tag, if the tokenizer has one for it.
    """
    if special_id is not None:
        reasoning = f"reasoning: /(?s:.*)/ <[{special_id}]>"
    else:
        tag = "".join(f"\\x{byte:02x}" for byte in end.encode())
        reasoning = f"reasoning[lazy]: /(?s:.*){tag}/"
    return "\n".join(
        ["start: reasoning BREAK? answer", reasoning, "BREAK: /[ \\n]{1,2}/", rules, ""]
    )
