"""The part of an engine that turns messages into tokens: the same wherever the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.server.engine import observed, prompts
from rftkit.server.engine.values import Text
from rftkit.server.engine.written_calls import CallForm, call_form

__all__ = ["Prompting"]


class Prompting:
    """Methods of `base.Engine` that need a tokenizer and no weights."""

    tokenizer: Any
    context_tokens: int
    eos_ids: frozenset[int]

    def encode(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[int]:
        """See Engine.encode."""
        return prompts.encode(self.tokenizer, messages, tools, thinking, self.context_tokens)

    def conversation(
        self,
        messages: list[dict[str, Any]],
        trained: Sequence[int],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[Text]:
        """See Engine.conversation."""
        return prompts.conversation(
            self.tokenizer, messages, trained, tools, thinking, end_ids=self.eos_ids
        )

    @property
    def call_form(self) -> CallForm:
        """See Engine.call_form."""
        return call_form(self.tokenizer, self.eos_ids)

    def observed(
        self,
        messages: list[dict[str, Any]],
        replies: Sequence[tuple[dict[str, Any], str]],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> list[int]:
        """See Engine.observed."""
        return observed.observed(
            self.tokenizer, messages, replies, tools, thinking, end_ids=self.eos_ids
        )

    def check_observed(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        thinking: str | None = None,
    ) -> None:
        """See Engine.check_observed."""
        observed.check_observed(self.tokenizer, messages, tools, thinking, end_ids=self.eos_ids)

    def tokens_until(self, tokens: list[int], text: str) -> int | None:
        """See Engine.tokens_until."""
        return prompts.tokens_until(self.tokenizer, tokens, text)
