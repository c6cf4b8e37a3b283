"""Tool calls in the forms of common chat templates; what is no call stays text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_models import write

from rftkit.server.engine.call_forms import answer_text, tool_calls_in
from rftkit.server.engine.torch.engine import TorchEngine

LOOK = {
    "name": "look",
    "parameters": {
        "type": "object",
        "properties": {
            "at": {"type": "string"},
            "n": {"type": "integer"},
            "all": {"type": "boolean"},
            "box": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        },
    },
}
TOOLS: Any = [{"type": "function", "function": each} for each in (LOOK, {"name": "web.find"})]
AT = {"at": "Zürich, 7", "n": 7}
GIVEN = '{"at": "Zürich, 7", "n": 7}'
XML = "<function=look>\n<parameter=at>\nZürich, 7\n</parameter>\n<parameter=n>\n7\n</parameter>\n"

ONE = {
    "Hermes": '<tool_call>\n{"name": "look", "arguments": %s}\n</tool_call>',
    "cut before its end": '<tool_call>\n{"name": "look", "arguments": %s}',
    "Llama 3": '{"name": "look", "parameters": %s}',
    "Llama 3 with a tag": '<|python_tag|>{"type": "function", "name": "look", "parameters": %s}',
    "Llama 3, Meta's own": "<function=look>%s</function>",
    "Llama 4": '<|python_start|>[look(at="Zürich, 7", n=7)]<|python_end|>',
    "Python alone": "[look(at='Zürich, 7', n=7)]",
    "LFM2": '<|tool_call_start|>[look(at="Zürich, 7", n=7)]<|tool_call_end|>',
    "OLMo 3": '<function_calls>look(at="Zürich, 7", n=7)</function_calls>',
    "Mistral 7B v0.3": '[TOOL_CALLS] [{"name": "look", "arguments": %s, "id": "abcdefghi"}]',
    "Ministral": "[TOOL_CALLS]look[ARGS]%s",
    "Mistral Small": "[TOOL_CALLS]look[CALL_ID]abcdefghi[ARGS]%s",
    "Mistral v11": "[TOOL_CALLS]look%s",
    "Granite": '<|tool_call|>[{"name": "look", "arguments": %s}]',
    "Phi-4-mini": '<|tool_call|>[{"name": "look", "arguments": %s}]<|/tool_call|>',
    "Cohere": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "look", "parameters": %s}]'
    "<|END_ACTION|>",
    "DeepSeek V3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
    "look\n```json\n%s\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "DeepSeek V3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look<｜tool▁sep｜>%s"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "Kimi K2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0"
    "<|tool_call_argument_begin|>%s<|tool_call_end|><|tool_calls_section_end|>",
    "Qwen3-Coder": f"<tool_call>\n{XML}</function>\n</tool_call>",
    "Qwen3-Coder without its mark": f"{XML}</function>",
    "GLM 4.5": "<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>Zürich, 7</arg_value>\n"
    "<arg_key>n</arg_key>\n<arg_value>7</arg_value>\n</tool_call>",
    "MiniMax M2": '<minimax:tool_call>\n<invoke name="look">\n<parameter name="at">Zürich, 7'
    '</parameter>\n<parameter name="n">7</parameter>\n</invoke>\n</minimax:tool_call>',
    "Gemma 4": '<|tool_call>call:look{at:<|"|>Zürich, 7<|"|>,n:7}<tool_call|>',
    "FunctionGemma": "<start_function_call>call:look{at:<escape>Zürich, 7<escape>,n:7}"
    "<end_function_call>",
    "gpt-oss": "commentary to=functions.look json%s",
}


@pytest.mark.parametrize("form", ONE)
def test_a_call_in_every_form(form: str) -> None:
    said = ONE[form].replace("%s", GIVEN)
    rest, calls = tool_calls_in(said, TOOLS)
    assert rest == ""
    [call] = calls
    assert call["type"] == "function"
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]) == AT


@pytest.mark.parametrize("form", [form for form in ONE if form not in ("Llama 3", "Python alone")])
def test_text_before_a_call_is_the_answers_text(form: str) -> None:
    said = ONE[form].replace("%s", GIVEN)
    rest, calls = tool_calls_in(f"I will look it up.\n\n{said}", TOOLS)
    assert (rest, len(calls)) == ("I will look it up.", 1)


@pytest.mark.parametrize("form", ONE)
def test_a_call_of_an_unknown_tool_stays_text(form: str) -> None:
    said = ONE[form].replace("%s", GIVEN).replace("look", "jump")
    assert tool_calls_in(said, TOOLS) == (said, [])


@pytest.mark.parametrize(
    "said",
    [
        '<|python_tag|>{"name": "look", "parameters": {}}; {"name": "web.find", "parameters": {}}',
        '[TOOL_CALLS]look{}[TOOL_CALLS]web.find{"a": 1}',
        '[TOOL_CALLS] [{"name": "look", "arguments": {}}, {"name": "web.find", "arguments": {}}]',
        "<|tool_call_start|>[look(), web.find(a=[1, None])]<|tool_call_end|>",
        "<function_calls>look()\nweb.find(a={'b': True})</function_calls>",
        "<tool_call><function=look></function></tool_call>\n"
        "<tool_call><function=web.find></function></tool_call>",
        "<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_call_begin|>functions.web.find:1<|tool_call_argument_begin|>{}<|tool_call_end|>",
    ],
)
def test_several_calls(said: str) -> None:
    rest, calls = tool_calls_in(said, TOOLS)
    assert (rest, [call["function"]["name"] for call in calls]) == ("", ["look", "web.find"])
    assert len({call["id"] for call in calls}) == 2


def test_values_in_tags_have_the_type_of_their_schema() -> None:
    def given(key: str, text: str) -> Any:
        said = f"<function=look><parameter={key}>\n{text}\n</parameter></function>"
        [call] = tool_calls_in(said, TOOLS)[1]
        return json.loads(call["function"]["arguments"])[key]

    assert given("at", "7") == "7"
    assert given("at", '{"a": 1}\n  b') == '{"a": 1}\n  b'
    assert given("n", "7") == 7
    assert given("all", "True") is True
    assert given("box", '{"a": [1]}') == {"a": [1]}
    assert given("box", "null") is None
    assert given("n", "seven") == "seven"
    assert given("unknown", "7") == "7"


@pytest.mark.parametrize(
    "said",
    [
        "[TOOL_CALLS] none of them",
        "<|python_tag|>print(1)",
        "<function=look>{oops</function>",
        "<function=look>at the sea</function>",
        "<tool_call><function=look></function> by the way</tool_call>",
        "look(at=open('x'))",
        "[look(1)]",
        "[look(at={1, 2})]",
        "Use <function=NAME> or [TOOL_CALLS].",
        '{"name": "look"} is how you call it',
        "<｜tool▁calls▁begin｜> of old",
        "look",
    ],
)
def test_what_cannot_be_read_as_a_call_stays_as_it_is(said: str) -> None:
    assert tool_calls_in(said, TOOLS) == (said, [])


@pytest.mark.parametrize(
    "piece",
    ["<tool_call>", "<function=look>", "[TOOL_CALLS]", "<parameter=a>", "look(", "call:look{", '"',
     "<arg_key>", "functions.", "{a:", "<tool_call><function=", "commentary to=functions."],
)  # fmt: skip
@pytest.mark.parametrize("end", ["", "</tool_call>", "</function>"])
def test_no_text_takes_long(piece: str, end: str) -> None:
    said = piece * (200_000 // len(piece)) + end
    assert tool_calls_in(said, TOOLS) == (said, [])
    marked = f"<tool_call>{said}"
    assert tool_calls_in(marked, TOOLS) == (marked, [])


def test_control_tokens_that_mark_calls_stay_in_the_text(tmp_path: Path) -> None:
    tokenizer = TorchEngine(write(tmp_path, "Llama"), name="llama").tokenizer
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["[TOOL_CALLS]", "[ARGS]", "<|other|>"]},
        replace_extra_special_tokens=False,
    )
    ids = tokenizer.encode("hm<|other|>[TOOL_CALLS]look[ARGS]{}", add_special_tokens=False)
    assert answer_text(tokenizer, [*ids, tokenizer.eos_token_id]) == "hm[TOOL_CALLS]look[ARGS]{}"


class Plain:
    """A tokenizer without control tokens that mark calls."""

    all_special_ids = (0,)
    added_tokens_decoder: dict[int, Any] = {}

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return f"{tokens} {skip_special_tokens}"


def test_without_such_tokens_the_text_is_decoded_as_ever() -> None:
    assert answer_text(Plain(), [3, 4]) == "[3, 4] True"
