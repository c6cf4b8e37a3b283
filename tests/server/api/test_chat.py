"""Chat completions over the wire: what reaches the worker, what comes back, streams, failures."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from conftest import ROW, Served

from rftkit.server.inference.worker_process import ChatError

MODEL: Any = "rftkit-tiny"
USER: Any = [{"role": "user", "content": "hi"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def test_every_parameter_reaches_the_worker(served: Served) -> None:
    served.client.chat.completions.create(
        model=MODEL, messages=USER, n=2, temperature=0.0, top_p=0.5, max_completion_tokens=9,
        seed=4, stop="END", response_format=SCHEMA, logprobs=True, top_logprobs=2, tools=[TOOL],
        user="me", metadata={"a": "b"},
    )  # fmt: skip
    assert served.link.requests == [
        {
            "model": MODEL, "messages": USER, "tools": [TOOL], "n": 2, "temperature": 0.0,
            "top_p": 0.5, "max_tokens": 9, "seed": 4, "stop": ("END",), "response_format": SCHEMA,
            "must_call": (), "most_calls": None,
            "task": "chat", "top_logprobs": 2, "stream": False, "reasoning_effort": None,
            "thinking": None, "is_turn": False, "turns": (),
        }
    ]  # fmt: skip


def test_a_top_p_of_zero_takes_the_likeliest_token_everywhere(served: Served) -> None:
    served.client.chat.completions.create(model=MODEL, messages=USER, top_p=0)
    served.client.responses.create(model=MODEL, input="hi", top_p=0)
    judge = {
        "type": "score_model", "name": "j", "model": MODEL, "sampling_params": {"top_p": 0},
        "input": [{"role": "user", "content": "rate"}],
    }  # fmt: skip
    body = {"grader": judge, "model_sample": "x", "item": {}}
    served.http.post("/v1/fine_tuning/alpha/graders/run", json=body)
    assert [0 < request["top_p"] < 1e-6 for request in served.link.requests] == [True] * 3


def test_an_answer_has_the_known_shape(served: Served) -> None:
    served.link.say = lambda request: {"text": "abcd", "stop_reason": "length", "tokens": 4,
                                       "reasoning_tokens": 1}  # fmt: skip
    answer = served.client.chat.completions.create(model=MODEL, messages=USER, n=2)
    assert [choice.message.content for choice in answer.choices] == ["abcd", "abcd"]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 8, 11)
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 2
    assert answer.model == MODEL


def test_log_probabilities_and_tool_calls(served: Served) -> None:
    token = {"token": "ü", "logprob": -0.5, "top": [{"token": "u", "logprob": -1.0}]}
    served.link.say = lambda request: {"text": "", "tool_calls": [CALL], "logprobs": [token]}
    [choice] = served.client.chat.completions.create(
        model=MODEL, messages=USER, tools=[TOOL], logprobs=True, top_logprobs=1
    ).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].to_dict() == CALL
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    [entry] = choice.logprobs.content
    assert entry.bytes == [195, 188]
    assert entry.top_logprobs[0].token == "u"


def test_a_stream_says_the_same(served: Served) -> None:
    served.link.say = lambda request: "one two three"
    stream = served.client.chat.completions.create(
        model=MODEL, messages=USER, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "onetwothree", 1: "onetwothree"}
    assert chunks[0].choices[0].delta.role == "assistant"
    endings = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert endings == ["stop", "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 29
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_streamed_tool_call(served: Served) -> None:
    served.link.say = lambda request: {"text": "", "tool_calls": [CALL]}
    with served.client.chat.completions.stream(model=MODEL, messages=USER, tools=[TOOL]) as stream:
        [choice] = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].function.name == "look"


OTHER: Any = {"type": "function", "function": {"name": "jump"}}
BY_NAME: Any = {"type": "function", "function": {"name": "look"}}
CHOICES: Any = [
    (None, None, (["look", "jump"], (), None)),
    ("auto", False, (["look", "jump"], (), 1)),
    ("none", None, (None, (), None)),
    ("required", None, (["look", "jump"], ("look", "jump"), None)),
    ("required", False, (["look", "jump"], ("look", "jump"), 1)),
    (BY_NAME, None, (["look", "jump"], ("look",), 1)),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [BY_NAME]}}, None,
     (["look"], (), None)),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [BY_NAME]}}, None,
     (["look"], ("look",), None)),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "parallel", "expected"), CHOICES)
def test_tool_choice_reaches_the_worker(
    served: Served, choice: Any, parallel: Any, expected: Any
) -> None:
    options = {"tool_choice": choice, "parallel_tool_calls": parallel}
    given = {key: value for key, value in options.items() if value is not None}
    served.client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL, OTHER], **given)  # type: ignore[call-overload]
    [asked] = served.link.requests
    names = asked["tools"] and [tool["function"]["name"] for tool in asked["tools"]]
    assert (names, asked["must_call"], asked["most_calls"]) == expected


def test_a_call_that_was_cut_ends_by_its_length(served: Served) -> None:
    served.link.say = lambda request: {
        "text": "", "tool_calls": [CALL], "stop_reason": "length", "tokens": 4,
    }  # fmt: skip
    answer = served.client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL])
    assert answer.choices[0].finish_reason == "length"


def test_the_parse_method_of_the_client_works(served: Served) -> None:
    from pydantic import BaseModel

    class Answer(BaseModel):
        compliant: str

    served.link.say = lambda request: '{"compliant": "yes"}'
    answer = served.client.chat.completions.parse(
        model=MODEL, messages=USER, response_format=Answer
    )
    assert answer.choices[0].message.parsed == Answer(compliant="yes")


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_worker_keeps_its_words(served: Served, stream: bool) -> None:
    served.link.say = lambda request: ChatError(
        "the schema uses `$dynamicRef`", status=400, type="invalid_request_error",
        param="response_format", code="unsupported_schema",
    )  # fmt: skip
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.chat.completions.create(model=MODEL, messages=USER, stream=stream)  # type: ignore[call-overload]
    assert caught.value.param == "response_format"
    assert caught.value.code == "unsupported_schema"


def test_a_failure_in_the_middle_of_a_stream_reaches_the_client(served: Served) -> None:
    async def chat(request: Any) -> Any:
        yield {"delta": {"index": 0, "text": "half"}}
        raise ChatError("the worker died")

    served.link.chat = chat  # type: ignore[method-assign]
    stream = served.client.chat.completions.create(model=MODEL, messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="the worker died"):
        list(stream)


def test_thoughts_are_kept_apart_and_counted(served: Served) -> None:
    served.link.say = lambda request: {
        "text": "yes", "reasoning": "let me see", "reasoning_tokens": 4, "tokens": 6,
    }  # fmt: skip
    made = served.client.chat.completions.create(
        model=MODEL, messages=USER, reasoning_effort="low", metadata={"thinking": "<think>"}
    )
    asked = served.link.requests[-1]
    assert (asked["reasoning_effort"], asked["thinking"]) == ("low", "<think>")
    message: Any = made.choices[0].message
    assert (message.content, message.reasoning_content) == ("yes", "let me see")
    assert made.usage is not None
    assert made.usage.completion_tokens_details is not None
    assert made.usage.completion_tokens_details.reasoning_tokens == 4
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        served.client.chat.completions.create(
            model=MODEL,
            messages=USER,
            reasoning_effort="huge",  # type: ignore[arg-type]
        )


def test_azure_clients_change_one_address(served: Served) -> None:
    azure = openai.AzureOpenAI(
        azure_endpoint="http://localhost", api_version="2025-04-01-preview", api_key="local",
        http_client=served.http, max_retries=0,
    )  # fmt: skip
    answer = azure.chat.completions.create(model=MODEL, messages=USER)
    assert answer.choices[0].message.content == "hello"
    stream = azure.chat.completions.create(model=MODEL, messages=USER, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == "hello"
    assert azure.responses.create(model=MODEL, input="hi").output_text == "hello"
    assert azure.embeddings.create(model=MODEL, input="hi").data
    file = azure.files.create(file=("rows.jsonl", ROW), purpose="fine-tune")
    assert azure.files.content(file.id).content == ROW
    assert azure.fine_tuning.jobs.list().data == []
    deployed = openai.AzureOpenAI(
        azure_endpoint="http://localhost", azure_deployment="rftkit-tiny", api_version="1",
        api_key="local", http_client=served.http, max_retries=0,
    )  # fmt: skip
    assert deployed.chat.completions.create(model="gpt-4o", messages=USER).model == MODEL
    newest = openai.OpenAI(
        base_url="http://localhost/openai/v1/", api_key="local", http_client=served.http
    )
    assert newest.chat.completions.create(model=MODEL, messages=USER).choices
    path = "/openai/deployments/rftkit-tiny/chat/completions?api-version=1"
    plain = served.http.post(path, json={"messages": USER}, headers={"api-key": "local"})
    assert plain.json()["model"] == MODEL
    assert served.http.post(path, content=b"{oops").status_code == 400


def test_the_key_of_azure_clients_is_checked(served: Served) -> None:
    served.platform.needs_key = True
    served.platform.store.set_api_key("secret")
    path = "/openai/v1/models"
    assert served.http.get(path, headers={"api-key": "wrong"}).status_code == 401
    assert served.http.get(path, headers={"api-key": "secret"}).status_code == 200
