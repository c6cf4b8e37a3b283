"""Calls under a response format: sampled as the chat template writes them and training teaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_models import write
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit.server.engine.call_forms import answer_text, attempted_calls_in, tool_calls_in
from rftkit.server.engine.grammar import Grammars
from rftkit.server.engine.prompts import conversation
from rftkit.server.engine.tiny import _tokenizer
from rftkit.server.engine.tool_calls import answer_or_calls
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.written_calls import JSON_CALL, call_form
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.worker.prepare import sample_request

Json = dict[str, Any]

END = frozenset({0})
ANSWER: Json = {
    "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
    "additionalProperties": False,
}  # fmt: skip
LOOK: Json = {"type": "function", "function": {"name": "look", "parameters": {
    "type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"],
    "additionalProperties": False}}}  # fmt: skip
LOOK_UP: Json = {"type": "function", "function": {"name": "look_up", "parameters": {
    "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}}  # fmt: skip
TOOLS = [LOOK, LOOK_UP]


def template(calls: str) -> str:
    """A template that writes the calls of a message so."""
    return (
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}"
        f"{{% if m.tool_calls %}}{calls}{{% endif %}}<end>{{% endfor %}}"
        "{% if tools %}{% endif %}{% if add_generation_prompt %}<a>{% endif %}"
    )


EACH = "{% for c in m.tool_calls %}{% set f = c.function %}%s{% endfor %}"
MARKED = '<tool_call>{{ {"name": f.name, "arguments": f.arguments} | tojson }}</tool_call>\n'
CONTROL = (
    "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}<｜tool▁call▁end｜>"
)
XML = (
    "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}"
    "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
WITH_ID = '[TOOL_CALLS] [{{ {"name": f.name, "arguments": f.arguments, "id": c.id} | tojson }}]'
FORMS: dict[str, tuple[str | None, int]] = {
    "no tools in the template": (None, 2),
    "Hermes": (template(EACH.replace("%s", MARKED)), 2),
    "Llama": (
        template("{% set f = m.tool_calls[0].function %}"
                 '{{ {"name": f.name, "parameters": f.arguments} | tojson }}'), 1),
    "DeepSeek": (template(EACH.replace("%s", CONTROL)), 2),
    "Qwen3-Coder": (template(EACH.replace("%s", XML)), 2),
    "Mistral": (template(EACH.replace("%s", WITH_ID)), 1),
    "calls are left out": (template("nothing"), 0),
}  # fmt: skip
"""Of each the template, and how many calls it writes so that they can be read again."""


def tokenizer(name: str) -> Any:
    found = _tokenizer()
    if name == "DeepSeek":
        marks = ("begin｜>", "end｜>")
        own = ["<｜tool▁sep｜>", *(f"<｜tool▁call▁{each}" for each in marks)]
        found.add_tokens(own, special_tokens=True)
    if FORMS[name][0]:
        found.chat_template = FORMS[name][0]
    return found


def call(name: str, arguments: Json) -> Json:
    given = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": "abcdefghi", "type": "function", "function": given}


def taught(found: Any, calls: list[Json]) -> list[int]:
    """The tokens that supervised training teaches for a message with these calls."""
    messages = [
        {"role": "user", "content": "where?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    [text] = conversation(found, messages, [1], TOOLS, end_ids=END)
    return [token for token, is_own in zip(text.tokens, text.trained, strict=True) if is_own]


def follows(found: Any, tokens: list[int], *, most: int | None = None) -> bool:
    rules = answer_or_calls(ANSWER, TOOLS, call_form(found, END), most=most)
    matcher = Grammars(found, len(found), sorted(END)).matcher(rules)
    return bool(matcher.validate_tokens(tokens) == len(tokens))


LOOKS = [call("look", {"at": 'a "b"\n}'}), call("look_up", {"n": 12})]


@pytest.mark.parametrize("name", FORMS)
def test_what_supervised_training_teaches_can_be_sampled_and_is_read(name: str) -> None:
    found, most = tokenizer(name), FORMS[name][1]
    for calls in ([LOOKS[0]], [LOOKS[1]], LOOKS, LOOKS * 4)[: 4 if most > 1 else 2 * most]:
        tokens = taught(found, calls)
        assert follows(found, tokens)
        read = attempted_calls_in(answer_text(found, tokens), TOOLS)
        wanted = [each["function"]["name"] for each in calls]
        assert [each["function"]["name"] for each in read] == wanted
    assert follows(found, [*found.encode('{"ok": true}', add_special_tokens=False), 0])
    assert not follows(found, [*found.encode("I look", add_special_tokens=False), 0])


def test_a_call_that_ends_the_answer_is_the_only_one() -> None:
    found = tokenizer("Hermes")
    assert follows(found, taught(found, LOOKS[:1]), most=1)
    assert not follows(found, taught(found, LOOKS), most=1)


def test_arguments_and_names_are_those_of_the_functions() -> None:
    for name in ("no tools in the template", "Hermes", "Llama", "DeepSeek"):
        found = tokenizer(name)
        assert not follows(found, taught(found, [call("look", {"n": 1})])), name
        assert not follows(found, taught(found, [call("find", {"at": "x"})])), name


def test_a_template_that_writes_no_calls_gets_them_as_json() -> None:
    found = tokenizer("calls are left out")
    assert call_form(found, END) is JSON_CALL
    tokens = found.encode('{"name": "look", "arguments": {"at": "x"}}', add_special_tokens=False)
    assert follows(found, [*tokens, 0])


@settings(max_examples=30, deadline=None)
@given(at=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20))
def test_any_argument_that_is_taught_can_be_sampled(at: str) -> None:
    for name in ("no tools in the template", "Llama"):
        found = tokenizer(name)
        tokens = taught(found, [call("look", {"at": at})])
        assert follows(found, tokens), (name, at)
        _, [read] = tool_calls_in(answer_text(found, tokens), TOOLS)
        assert json.loads(read["function"]["arguments"]) == {"at": at}


def test_a_model_with_random_weights_answers_or_calls(tmp_path: Path) -> None:
    folder = write(tmp_path, "Llama", max_position_embeddings=20_000)
    engine = TorchEngine(folder, name="llama")
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": ANSWER}}
    few = [{"type": "function", "function": {"name": "look", "parameters": {
        "type": "object", "properties": {"at": {"enum": ["here", "there"]}}, "required": ["at"],
    }}}]  # fmt: skip
    asked = ChatRequest("llama", [{"role": "user", "content": "where?"}], few, n=24, seed=3,
                        max_tokens=600, response_format=form)  # fmt: skip
    [completions] = engine.sample([sample_request(engine, None, asked)])
    calls = 0
    for each in (each for each in completions if each.stop_reason == "stop"):
        text, found = tool_calls_in(each.text, few)
        calls += len(found)
        assert bool(found) != (text in ('{"ok": true}', '{"ok": false}')), each.text
    assert calls
