"""Models that think first: thoughts kept apart, their budget, and the same masks in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write

from rftkit.server.engine import prompts
from rftkit.server.engine.call_forms import tool_calls_in
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import LoraConfig, SampleRequest, Thinking, TrainGroup

USER: Any = [{"role": "user", "content": "hello"}]
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "string", "enum": ["x", "yy"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder = write(tmp_path_factory.mktemp("llama"), "Llama")
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    engine.start_policy(LoraConfig(rank=4, alpha=8.0), 3)
    return engine


def asked(engine: TorchEngine, budget: int, **options: Any) -> SampleRequest:
    return SampleRequest(
        engine.encode(USER, thinking="<think>"),
        **{
            "seeds": [(1, i) for i in range(4)],
            "max_tokens": 60,
            "thinking": Thinking("</think>", budget),
            **options,
        },
    )


@pytest.mark.parametrize("budget", [0, 1, 7])
@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_a_spent_budget_closes_the_thoughts(
    engine: TorchEngine, budget: int, schema: str | None
) -> None:
    [answers] = engine.sample([asked(engine, budget, schema=schema)])
    forced = len("\n</think>")
    thought = [each for each in answers if each.stop_reason == "stop" or each.reasoning_tokens < 60]
    assert any(each.reasoning_tokens == budget + forced for each in answers)
    for each in thought:
        assert each.reasoning_tokens <= budget + forced
        assert "</think>" not in each.text
        if schema:
            assert json.loads(each.text)["a"] in ("x", "yy")
        if each.reasoning_tokens == budget + forced:
            assert set(each.sampling_logprobs[budget : budget + forced]) == {0.0}


@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_sampler_and_trainer_agree_on_thoughts_and_answers(
    engine: TorchEngine, schema: str | None
) -> None:
    request = asked(engine, 6, schema=schema)
    [answers] = engine.sample([request])
    group = TrainGroup(
        request.prompt_ids,
        [each.tokens for each in answers],
        [each.sampling_logprobs for each in answers],
        [1.0, -1.0, 0.5, -0.5],
        schema,
        request.thinking,
    )
    again = engine.logprobs([group]).detach()
    stored = torch.tensor([x for each in answers for x in each.sampling_logprobs])
    assert float((again - stored).abs().max()) < 1e-4


def test_streamed_text_and_stop_texts_are_of_the_answer_only(engine: TorchEngine) -> None:
    said: dict[int, str] = {}

    def hear(_: int, index: int, text: str) -> None:
        said[index] = said.get(index, "") + text

    request = asked(engine, 5, stop=("a", "e", "<"))
    [answers] = engine.sample([request], on_text=hear)
    assert [said.get(i, "") for i in range(4)] == [each.text for each in answers]
    assert any(each.reasoning for each in answers)
    assert not any(mark in each.text for each in answers for mark in ("a", "e", "<"))


def test_forced_tokens_have_their_log_probs_listed(engine: TorchEngine) -> None:
    [answers] = engine.sample([asked(engine, 2, schema=SCHEMA, num_top_logprobs=2)])
    assert all(len(each.top_logprobs) == len(each.tokens) for each in answers)


def test_the_prompt_opens_the_thoughts_once(engine: TorchEngine) -> None:
    opened = engine.tokenizer.decode(engine.encode(USER, thinking="<think>"))
    assert opened.endswith("<think>\n")
    before = engine.tokenizer.chat_template
    engine.tokenizer.chat_template = before + "{% if add_generation_prompt %}<think>{% endif %}"
    try:
        assert prompts.thinking_mark(engine.tokenizer) == "<think>"
        assert engine.tokenizer.decode(engine.encode(USER, thinking="<think>")).count("<th") == 1
    finally:
        engine.tokenizer.chat_template = before
    assert prompts.thinking_mark(engine.tokenizer) is None
    assert prompts.closing("[THINK]") == "[/THINK]"


TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALLS = [
    ('<tool_call>\n{"name": "look", "arguments": {"at": "ü"}}\n</tool_call>', "", ['{"at": "ü"}']),
    ('Let me.<tool_call>{"name": "look"}</tool_call>', "Let me.", ["{}"]),
    ('{"name": "look", "parameters": {"n": 1}}', "", ['{"n": 1}']),
    ('[{"name": "look", "arguments": "{}"}, {"name": "look", "arguments": {}}]', "", ["{}", "{}"]),
    ('{"name": "jump", "arguments": {}}', '{"name": "jump", "arguments": {}}', []),
    ("<tool_call>{oops</tool_call>", "<tool_call>{oops</tool_call>", []),
    ("plain", "plain", []),
]


@pytest.mark.parametrize(("said", "text", "arguments"), CALLS)
def test_tool_calls_are_read_from_the_answer(said: str, text: str, arguments: list[str]) -> None:
    rest, calls = tool_calls_in(said, TOOLS)
    assert rest == text
    assert [call["function"]["arguments"] for call in calls] == arguments
    assert len({call["id"] for call in calls}) == len(calls)
    assert tool_calls_in(said, TOOLS) == (rest, calls)
    assert tool_calls_in(said, None) == (said, [])


def test_a_template_without_tools_is_shown_them_as_text(
    engine: TorchEngine, tmp_path: Path
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"n": 1}'}}
    talk = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "a cat"},
        {"role": "user", "content": "and?"},
    ]
    shown = engine.tokenizer.decode(engine.encode(talk, TOOLS))
    assert '<tools>\n{"type": "function", "function": {"name": "look"' in shown
    assert '<tool_call>\n{"name": "look", "arguments": {"n": 1}}\n</tool_call>' in shown
    before = engine.tokenizer.chat_template
    engine.tokenizer.chat_template = "{% for t in tools %}[{{ t.function.name }}]{% endfor %}"
    try:
        assert engine.tokenizer.decode(engine.encode(talk, TOOLS)) == "[look]"
    finally:
        engine.tokenizer.chat_template = before
