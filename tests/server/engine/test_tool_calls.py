"""Answers that have to be tool calls, drawn from a model with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rftkit.errors import RequestError
from rftkit.server.engine.tool_calls import calls_schema, forced_calls_in, optional_calls
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import Completion
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.worker.answers import done_message
from rftkit.server.worker.prepare import sample_request
from tests.engine_models import write

USER = [{"role": "user", "content": "what is it?"}]


def tool(name: str, parameters: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **rest}}


SIZE = {"enum": ["small", "large"]}
NESTED = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.com/a.json",
    "$defs": {"Size": SIZE, "Box": {"type": "object", "properties": {
        "size": {"$ref": "#/$defs/Size"}}, "required": ["size"], "additionalProperties": False}},
    "type": "object",
    "properties": {"box": {"$ref": "#/$defs/Box"}, "ok": {"type": "boolean"}},
    "required": ["box", "ok"],
}  # fmt: skip
"""As pydantic writes a model within a model."""
FLAT = {
    "type": "object",
    "properties": {"sizes": {"type": "array", "items": SIZE, "uniqueItems": True, "maxItems": 2}},
    "required": ["sizes"],
}
"""With a keyword that constrained decoding cannot follow."""
TOOLS = [tool("pack", NESTED, strict=True), tool("list", FLAT), tool("nothing")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder: Path = write(tmp_path_factory.mktemp("calls"), "Llama", max_position_embeddings=20_000)
    return TorchEngine(folder, name="llama")


def calls_of(engine: TorchEngine, **request: Any) -> list[list[dict[str, Any]]]:
    asked = ChatRequest("llama", USER, TOOLS, n=6, seed=3, max_tokens=300, **request)
    [completions] = engine.sample([sample_request(engine, None, asked)])
    done = done_message(engine, asked, 0, completions)["completions"]
    found = [each for each in done if each["stop_reason"] == "stop"]
    assert found
    assert [each["text"] for each in found] == [""] * len(found)
    return [[call["function"] for call in each["tool_calls"]] for each in found]


@pytest.mark.parametrize("effort", [None, "low"])
def test_a_named_function_is_called_once_with_its_arguments(
    engine: TorchEngine, effort: str | None
) -> None:
    thinking = "<think>" if effort else None
    for calls in calls_of(
        engine, must_call=("pack",), most_calls=1, reasoning_effort=effort, thinking=thinking
    ):
        [call] = calls
        arguments = json.loads(call["arguments"])
        assert call["name"] == "pack"
        assert arguments["box"]["size"] in SIZE["enum"]
        assert isinstance(arguments["ok"], bool)
        assert set(arguments) == {"box", "ok"}


def test_some_function_has_to_be_called(engine: TorchEngine) -> None:
    found = calls_of(engine, must_call=("pack", "list"))
    assert {call["name"] for calls in found for call in calls} <= {"pack", "list"}
    assert all(calls for calls in found)
    single = calls_of(engine, must_call=("pack", "list"), most_calls=1)
    assert {len(calls) for calls in single} == {1}


def test_an_answer_that_was_cut_is_still_a_call() -> None:
    text = '[{"name": "a", "arguments": {"x": "]}"}}, {"name": "b", "arguments": {"y": "so'
    calls = [call["function"] for call in forced_calls_in(text)]
    assert calls == [
        {"name": "a", "arguments": '{"x": "]}"}'}, {"name": "b", "arguments": '{"y": "so'}
    ]  # fmt: skip
    assert len({call["id"] for call in forced_calls_in(text)}) == 2
    assert forced_calls_in('{"name": "a') == []


def test_references_lead_to_where_the_parameters_are() -> None:
    tree = {"properties": {"child": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    schema = json.loads(calls_schema([tool("a", NESTED), tool("b", tree)], ("a", "b")))
    first, second = schema["$defs"]["arguments_0"], schema["$defs"]["arguments_1"]
    assert first["properties"]["box"] == {"$ref": "#/$defs/arguments_0/$defs/Box"}
    assert "$id" not in first
    assert second["properties"]["child"]["anyOf"][0] == {"$ref": "#/$defs/arguments_1"}


def test_parameters_that_are_no_schema_are_named(engine: TorchEngine) -> None:
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"properties": {"a": deep}}
    for parameters in ({"$ref": "#/$defs/none"}, {"type": "wrong"}, deep):
        asked = ChatRequest("llama", USER, [tool("a", parameters)], must_call=("a",))
        with pytest.raises(RequestError, match="schema") as caught:
            sample_request(engine, None, asked)
        assert caught.value.param == "tools"


def written(name: str, arguments: Any) -> str:
    given = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{given}\n</tool_call>"


PACK = written("pack", {"box": {"size": "small"}, "ok": True})
WRONG = written("pack", {"box": {"size": "huge"}, "ok": True})


@pytest.mark.parametrize("most", [None, 1])
@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("no {call} at <all>", (True, True)),
        (f"Let me see. {PACK}", (True, True)),
        (WRONG, (False, False)),  # strict: arguments follow the parameters
        (written("list", {"any": [1]}), (True, True)),
        (written("unknown", {}), (False, False)),
        (f"{PACK} bye", (True, False)),
        (f"{PACK}\n{PACK}", (True, False)),  # one call ends the answer
        ("<tool_call>\nno JSON", (False, False)),
    ],
)
def test_calls_made_at_will_follow_the_rules(
    engine: TorchEngine, most: int | None, text: str, allowed: tuple[bool, bool]
) -> None:
    rules = optional_calls(TOOLS, most=most)
    assert rules is not None
    matcher = engine.grammars.matcher(rules)
    ids = engine.tokenizer.encode(text, add_special_tokens=False)
    assert (matcher.validate_tokens(ids) == len(ids)) == allowed[most == 1]


def test_rules_are_used_where_they_have_an_effect(engine: TorchEngine) -> None:
    def rules(tools: list[dict[str, Any]], **request: Any) -> str | None:
        asked = ChatRequest("llama", USER, tools, max_tokens=20, **request)
        return sample_request(engine, None, asked).schema

    lax = [tool("list", FLAT), tool("nothing")]
    assert rules(lax) is None
    assert str(rules(lax, most_calls=1)).startswith("answer: FREE | call\n")
    assert str(rules(TOOLS)).startswith("answer: call* FREE\n")
    asked = ChatRequest("llama", USER, TOOLS, n=3, seed=1, max_tokens=30, most_calls=1)
    thinking = ChatRequest("llama", USER, TOOLS, seed=1, max_tokens=30, most_calls=1,
                           thinking="<think>", reasoning_effort="low")  # fmt: skip
    for request in (asked, thinking):
        [completions] = engine.sample([sample_request(engine, None, request)])
        assert all(each.tokens for each in completions)


def test_a_function_without_parameters_is_called_without_arguments(engine: TorchEngine) -> None:
    for calls in calls_of(engine, must_call=("nothing",), most_calls=1):
        assert [call["arguments"] for call in calls] == ["{}"]


def test_the_open_objects_of_a_format_are_closed(engine: TorchEngine) -> None:
    inner = {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}
    schema = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    asked = ChatRequest("llama", USER, response_format=form, n=6, seed=2, max_tokens=100)
    request = sample_request(engine, None, asked)
    assert str(request.schema).count('"additionalProperties": false') == 2
    [completions] = engine.sample([request])
    assert {each.text for each in completions} <= {'{"a": {"b": true}}', '{"a": {"b": false}}'}


@pytest.mark.parametrize(
    "parameters", [{}, {"type": "object", "properties": {}}, {"type": "object", "title": "Now"}]
)
def test_parameters_that_name_no_argument_allow_none(
    engine: TorchEngine, parameters: dict[str, Any]
) -> None:
    """As clients write a function without arguments: JSON Schema would allow any."""
    asked = ChatRequest("llama", USER, [tool("now", parameters)], n=4, seed=1, max_tokens=60,
                        must_call=("now",), most_calls=1)  # fmt: skip
    [completions] = engine.sample([sample_request(engine, None, asked)])
    done = done_message(engine, asked, 0, completions)["completions"]
    assert [call["function"]["arguments"] for each in done for call in each["tool_calls"]] == [
        "{}"
    ] * 4


def test_free_arguments_stay_free() -> None:
    given = {"type": "object", "additionalProperties": {"type": "string"}}
    schema = json.loads(calls_schema([tool("tag", given)], ("tag",)))
    assert schema["$defs"]["arguments_0"] == given


def test_a_stop_text_does_not_end_a_forced_call(engine: TorchEngine) -> None:
    """Its arguments would be cut, and the answer would still say that it is complete."""
    asked = ChatRequest("llama", USER, TOOLS, must_call=("pack",), stop=("}", '"'))
    assert sample_request(engine, None, asked).stop == ()
    free = ChatRequest("llama", USER, TOOLS, stop=("}",))
    assert sample_request(engine, None, free).stop == ("}",)


@pytest.mark.parametrize("text", ["", '{"na', '{"name": "pack", "argu', '[{"name": "pa'])
def test_a_forced_call_that_was_cut_before_its_arguments_is_no_text(
    engine: TorchEngine, text: str
) -> None:
    asked = ChatRequest("llama", USER, TOOLS, must_call=("pack",), max_tokens=3)
    cut = Completion([5, 6, 7], text, [-1.0] * 3, "length")
    [answer] = done_message(engine, asked, 0, [cut])["completions"]
    assert (answer["text"], answer["tool_calls"]) == ("", None)
    assert answer["stop_reason"] == "length"
