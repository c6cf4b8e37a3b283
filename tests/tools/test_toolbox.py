"""What a model's call becomes, before any server is asked."""

from __future__ import annotations

import pytest
from fake_tools import ToolRefused, definition, fails, fake_tools

from rftkit.tools import ToolCall, ToolFailed

ITEM = {"messages": [], "tools": [definition("search", "query"), definition("broken")]}


def search(query: str) -> str:
    if query == "secret":
        raise ToolRefused("no such page")
    return f"found {query}"


def test_a_call_is_answered() -> None:
    reply = fake_tools(search=search).call(
        ToolCall("call_1", "search", '{"query": "x"}'), trace_id="trace_1", item=ITEM
    )
    assert (reply.text, reply.kind) == ("found x", "answer")
    assert reply.seconds >= 0


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("find", "{}", "Error: there is no function 'find'. Functions: search."),
        ("search", '{"query": "x"', "Error: the arguments are not a JSON object."),
        ("search", '["x"]', "Error: the arguments are not a JSON object."),
        ("search", '{"query": "secret"}', "no such page"),
    ],
)
def test_an_error_is_read_by_the_model(name: str, arguments: str, text: str) -> None:
    reply = fake_tools(search=search).call(
        ToolCall("call_1", name, arguments), trace_id="trace_1", item=ITEM
    )
    assert (reply.text, reply.kind) == (text, "error")


def test_a_broken_server_fails_the_rollout() -> None:
    tools = fake_tools(search=search, broken=fails)
    with pytest.raises(ToolFailed, match="status 500"):
        tools.call(ToolCall("call_1", "broken", "{}"), trace_id="trace_1", item=ITEM)
