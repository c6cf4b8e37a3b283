"""The embedded language model thinks first, as a prompt makes it, asked by the official client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

MODEL = "smollm2-135m-instruct"
MOST = 96
SHARES = {"none": 0.0, "minimal": 1 / 8, "low": 1 / 4, "medium": 1 / 2, "high": 3 / 4}
CLOSING = 8
"""Tokens that the forced end of the thoughts may take."""
ASKED: Any = {
    "model": MODEL,
    "metadata": {"thinking": "<think>"},
    "store": False,
}
QUESTION = "Backups are kept on the same disk as the data. Is that safe? Think step by step."
VERDICT = {
    "type": "object",
    "properties": {"safe": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["safe"],
    "additionalProperties": False,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("effort", SHARES)
def test_thoughts_are_free_and_the_answer_is_constrained(
    platform: openai.OpenAI, effort: Any
) -> None:
    schema: Any = {"name": "verdict", "schema": VERDICT, "strict": True}
    said = platform.chat.completions.create(
        messages=[{"role": "user", "content": QUESTION}],
        reasoning_effort=effort,
        max_completion_tokens=MOST,
        seed=1,
        response_format={"type": "json_schema", "json_schema": schema},
        **ASKED,
    )
    message: Any = said.choices[0].message
    assert json.loads(message.content)["safe"] in ("yes", "no")
    assert "think>" not in message.content
    details = said.usage and said.usage.completion_tokens_details
    assert said.usage is not None
    assert details is not None
    assert details.reasoning_tokens is not None
    assert details.reasoning_tokens <= SHARES[effort] * MOST + CLOSING
    assert details.reasoning_tokens < said.usage.completion_tokens <= MOST + CLOSING
    if SHARES[effort] >= 1 / 4:
        assert len(message.reasoning_content.split()) > 5  # words, not one mark alone


def test_a_response_has_its_thoughts_as_an_item_of_their_own(platform: openai.OpenAI) -> None:
    said = platform.responses.create(
        input=QUESTION,
        reasoning={"effort": "medium"},
        max_output_tokens=MOST,
        text={"format": {"type": "json_schema", "name": "verdict", "schema": VERDICT}},
        **ASKED,
    )
    assert [item.type for item in said.output] == ["reasoning", "message"]
    assert json.loads(said.output_text)["safe"] in ("yes", "no")
    assert said.usage is not None
    assert 0 < said.usage.output_tokens_details.reasoning_tokens <= MOST / 2 + CLOSING
