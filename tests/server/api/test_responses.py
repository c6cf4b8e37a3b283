"""Responses over the wire: text, tools, conversations, streams."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from conftest import FakeLink, Served
from openai.types.responses import Response, ResponseItemList

from rftkit.server.api import responses
from rftkit.server.inference import chat_request
from rftkit.server.inference.worker_process import ChatError

MODEL: Any = "rftkit-tiny"
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}


def test_a_response_has_the_known_shape(served: Served) -> None:
    made = served.client.responses.create(
        model=MODEL, input="hi", instructions="be kind", max_output_tokens=9, temperature=0,
        reasoning={"effort": "low"}, metadata={"a": "b"},
        text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    )  # fmt: skip
    assert made.output_text == "hello"
    assert made.status == "completed"
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (3, 5)
    Response.model_validate(made.to_dict())
    [asked] = served.link.requests
    assert asked["messages"] == [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "hi"},
    ]
    assert asked["response_format"]["json_schema"] == {"name": "x", "schema": {"type": "object"}}
    assert (asked["max_tokens"], asked["temperature"]) == (9, 0.0)
    assert asked["reasoning_effort"] == "low"


def test_a_conversation_goes_on(served: Served) -> None:
    responses = served.client.responses
    first = responses.create(model=MODEL, input="one")
    second = responses.create(model=MODEL, input="two", previous_response_id=first.id)
    said = [m["content"] for m in served.link.requests[1]["messages"]]
    assert said == ["one", "hello", "two"]
    assert responses.retrieve(second.id).output_text == "hello"
    [item] = responses.input_items.list(second.id).data
    assert item.content[0].text == "two"  # type: ignore[union-attr, index]
    responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        responses.create(model=MODEL, input="x", previous_response_id=first.id)
    unkept = responses.create(model=MODEL, input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(unkept.id)


def test_tools_are_called_and_answered(served: Served) -> None:
    served.link.say = lambda request: {"text": "", "tool_calls": [CALL]}
    made = served.client.responses.create(model=MODEL, input="look", tools=[TOOL])
    [call] = made.output
    assert call.type == "function_call"
    assert (call.call_id, call.name, call.arguments) == ("call_1", "look", "{}")
    assert served.link.requests[0]["tools"][0]["function"]["name"] == "look"
    answer: Any = {"type": "function_call_output", "call_id": "call_1", "output": "a cat"}
    served.client.responses.create(model=MODEL, input=[answer], previous_response_id=made.id)
    assert served.link.requests[1]["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
    ]


def test_a_cut_answer_is_incomplete(served: Served) -> None:
    served.link.say = lambda request: {"text": "half", "stop_reason": "length"}
    made = served.client.responses.create(model=MODEL, input="hi")
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("tools", [False, True])
def test_a_stream_adds_up(served: Served, tools: bool) -> None:
    said = {"text": "one two", "tool_calls": [CALL] if tools else None}
    served.link.say = lambda request: said
    with served.client.responses.stream(model=MODEL, input="hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert deltas == "onetwo"
    assert len(final.output) == (2 if tools else 1)
    assert served.client.responses.retrieve(final.id).output_text == "one two"


CHOICES: Any = [
    ("required", ("look",)),
    ({"type": "function", "name": "look"}, ("look",)),
    ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]},
     ("look",)),
    ("auto", ()),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "must_call"), CHOICES)
def test_a_forced_call_is_streamed_piece_by_piece(
    served: Served, choice: Any, must_call: tuple[str, ...]
) -> None:
    async def chat(request: Any) -> Any:
        served.link.requests.append(request)
        yield {"delta": {"index": 0, "text": "", "reasoning": ""}}
        done = {"index": 0, "text": "", "stop_reason": "stop", "tokens": 3, "tool_calls": [CALL]}
        yield {"done": {"prompt_tokens": 3, "completions": [done]}}

    served.link.chat = chat  # type: ignore[method-assign]
    with served.client.responses.stream(
        model=MODEL, input="hi", tools=[TOOL], tool_choice=choice, parallel_tool_calls=False
    ) as stream:
        events = list(stream)
        [call] = stream.get_final_response().output
    assert served.link.requests[0]["must_call"] == must_call
    assert served.link.requests[0]["most_calls"] == 1
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    added: Any = events[2]
    assert (added.item.arguments, added.item.status) == ("", "in_progress")
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("look", "{}")


def test_what_was_asked_is_listed_as_parts(served: Served) -> None:
    given: Any = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a cat"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and?"}]},
    ]
    made = served.client.responses.create(model=MODEL, input=given)
    listed = served.client.responses.input_items.list(made.id, order="asc")
    ResponseItemList.model_validate(listed.to_dict() | {"object": "list"}, strict=False)
    texts = [item.content[0].text for item in listed.data if item.type == "message"]  # type: ignore[union-attr]
    assert texts == ["look", "I look.", "and?"]
    assert [item.id.split("_")[0] for item in listed.data] == ["msg", "msg", "fc", "fco", "msg"]  # type: ignore[union-attr]
    [part] = made.output[0].content  # type: ignore[union-attr, misc]
    assert part.to_dict() == {
        "type": "output_text", "text": "hello", "annotations": [], "logprobs": [],
    }  # fmt: skip


@pytest.mark.parametrize("cut", [False, True])
def test_a_kept_response_is_streamed_again(served: Served, cut: bool) -> None:
    served.link.say = lambda request: {
        "text": "one two", "tool_calls": [CALL], "reasoning": "hm",
        "stop_reason": "length" if cut else "stop",
    }  # fmt: skip
    made = served.client.responses.create(model=MODEL, input="hi")
    events = list(served.client.responses.retrieve(made.id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == ("response.incomplete" if cut else "response.completed")
    assert last.response.to_dict() == made.to_dict()
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "one two"
    rest = list(served.client.responses.retrieve(made.id, stream=True, starting_after=3))
    assert [event.sequence_number for event in rest] == list(range(4, len(events)))


def test_a_refusal_in_the_conversation_is_read_and_listed(served: Served) -> None:
    refusal = {"type": "refusal", "refusal": "I will not."}
    answer: Any = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    given: Any = [{"role": "user", "content": "do it"}, {**answer, "content": [refusal]}]
    made = served.client.responses.create(model=MODEL, input=[*given, *given[:1]])
    assert [m["content"] for m in served.link.requests[0]["messages"]] == [
        "do it", "I will not.", "do it",
    ]  # fmt: skip
    listed = served.http.get(f"/v1/responses/{made.id}/input_items?order=asc").json()
    ResponseItemList.model_validate(listed)
    assert listed["data"][1]["content"] == [refusal]
    served.client.chat.completions.create(
        model=MODEL, messages=[given[0], {"role": "assistant", "content": [refusal]}, given[0]]
    )


def test_parameters_that_have_no_effect_here_may_be_null(served: Served) -> None:
    names = (*responses.NEUTRAL, "max_tool_calls")
    for name in names:
        body: Any = {"model": MODEL, "input": "x"}
        assert served.http.post("/v1/responses", json=body | {name: None}).status_code == 200
    refused = served.http.post("/v1/responses", json=body | {"conversation": "conv_1"})
    assert refused.json()["error"]["param"] == "conversation"
    for name in chat_request.NEUTRAL:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        assert served.http.post("/v1/chat/completions", json=body | {name: None}).status_code == 200
    refused = served.http.post("/v1/chat/completions", json=body | {"functions": [{"name": "f"}]})
    assert "`functions` is not supported" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        (3, "input", "found 3"),
        (["x"], "input[0]", "found 'x'"),
        ([{"role": "user", "content": "x"}, None], "input[1]", "found null"),
    ],
)
def test_a_value_of_none_of_several_types_is_named_by_its_place(
    served: Served, given: Any, param: str, words: str
) -> None:
    answer = served.http.post("/v1/responses", json={"model": MODEL, "input": given})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(f"Invalid `{param}`: ")
    assert words in error["message"]


def test_a_failure_in_a_stream_is_an_event(served: Served) -> None:
    async def chat(request: Any) -> Any:
        yield {"delta": {"index": 0, "text": "half"}}
        raise ChatError("the worker died")

    served.link.chat = chat  # type: ignore[method-assign]
    events = list(served.client.responses.create(model=MODEL, input="hi", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.message == "the worker died"


BAD: Any = [
    ({"input": 3}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"background": True}, "background"),
    ({"temperature": 9}, "temperature"),
    ({"truncation": "middle"}, "truncation"),
    ({"extra_body": {"top_k": 3}}, "top_k"),
]


@pytest.mark.parametrize("given", ["auto", "disabled", None])
def test_truncation_is_accepted_and_echoed(served: Served, given: Any) -> None:
    made = served.client.responses.create(model=MODEL, input="hi", truncation=given)
    assert made.truncation == (given or "disabled")
    counted = served.client.responses.input_tokens.count(
        model=MODEL, input="hi", truncation=given or "disabled"
    )
    assert counted.input_tokens == 3


@pytest.mark.parametrize(("changes", "param"), BAD)
def test_a_response_that_cannot_be(served: Served, changes: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.responses.create(**{"model": MODEL, "input": "hi", **changes})
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)
    assert served.link.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_an_item_of_their_own(served: Served, stream: bool) -> None:
    async def chat(request: Any) -> Any:
        if request["stream"]:
            yield {"delta": {"index": 0, "text": "yes", "reasoning": "let me see"}}
        completion = {
            "index": 0, "text": "yes", "reasoning": "let me see", "reasoning_tokens": 4,
            "tokens": 6, "stop_reason": "stop", "tool_calls": None,
        }  # fmt: skip
        yield {"done": {"prompt_tokens": 3, "completions": [completion]}}

    served.link.chat = chat  # type: ignore[method-assign]
    responses = served.client.responses
    if stream:
        with responses.stream(model=MODEL, input="hi") as events:
            added = [e for e in events if e.type == "response.output_item.added"]
            made = events.get_final_response()
        assert [(e.output_index, e.item.type) for e in added] == [(0, "reasoning"), (1, "message")]
    else:
        made = responses.create(model=MODEL, input="hi")
    thought, message = made.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "let me see"
    assert (made.output_text, message.type) == ("yes", "message")
    assert made.usage is not None
    assert made.usage.output_tokens_details.reasoning_tokens == 4
    Response.model_validate(made.to_dict())
    served.link.chat = FakeLink().chat  # type: ignore[method-assign]
    again = responses.create(model=MODEL, input="and?", previous_response_id=made.id)
    assert again.output_text == "hello"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"effort": "immense"}}, "reasoning.effort"),
        ({"input": []}, "input"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": 5}}},
            "text.format.schema",
        ),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
def test_a_refusal_names_the_parameter_of_this_route(
    served: Served, wrong: dict[str, Any], param: str
) -> None:
    answer = served.http.post("/v1/responses", json={"model": MODEL, "input": "hi", **wrong})
    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert error["param"] == param
    assert "completion" not in error["message"]
    assert "response_format" not in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_was_cut_is_incomplete(served: Served, stream: bool) -> None:
    second = {**CALL, "id": "call_2"}
    served.link.say = lambda request: {
        "text": "", "tool_calls": [CALL, second], "stop_reason": "length", "tokens": 4,
    }  # fmt: skip
    made: Any = served.client.responses.create(
        model=MODEL, input="x", tools=[TOOL], tool_choice="required", stream=stream
    )
    found = list(made)[-1].response if stream else made
    assert found.status == "incomplete"
    assert [item.status for item in found.output] == ["completed", "incomplete"]
    assert served.link.requests[0]["must_call"] == ("look",)
