"""Python functions as tools: their definitions, their state, and who may call them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from rftkit.errors import InputError
from rftkit.tools import ToolCall, ToolError, ToolFailed, Tools, open_tools, serve


def search(query: str, most: int = 3, order: Literal["new", "old"] = "new") -> str:
    """Search the policy
    of the company.

    Args:
        query: words to look for,
            in any order
        most (int): how many sentences

    Returns:
        The sentences.
    """
    if query == "none":
        raise ToolError("nothing found")
    if query == "broken":
        raise KeyError("index")
    return f"{query} {most} {order}"


def facts(names: list[str]) -> dict[str, int]:
    return {name: len(name) for name in names}


@dataclass
class Basket:
    """What one rollout has put together."""

    row: dict[str, Any]
    things: list[str] = field(default_factory=list)


def put(thing: str, state: Basket) -> list[str]:
    """Put a thing into the basket."""
    state.things.append(thing)
    return [state.row["owner"], *state.things]


def asked(tools: Tools, name: str, trace_id: str = "trace_1", **arguments: Any) -> tuple[str, str]:
    item = {"owner": "me", "tools": [{"type": "function", "function": {"name": name}}]}
    call = ToolCall("call_1", name, json.dumps(arguments))
    reply = tools.call(call, trace_id=trace_id, item=item)
    return reply.kind, reply.text


def test_a_definition_is_made_of_types_and_docstring() -> None:
    with serve([search]) as served:
        assert served.definitions == [
            {
                "type": "function",
                "function": {
                    "name": "search",
                    "description": "Search the policy of the company.",
                    "parameters": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["query"],
                        "properties": {
                            "query": {
                                "type": "string",
                                "description": "words to look for, in any order",
                            },
                            "most": {
                                "type": "integer",
                                "default": 3,
                                "description": "how many sentences",
                            },
                            "order": {"type": "string", "default": "new", "enum": ["new", "old"]},
                        },
                    },
                },
            }
        ]


def test_functions_are_called_as_any_tool_is() -> None:
    with serve([search, facts]) as served:
        tools = open_tools(served.entries)
        assert asked(tools, "search", query="wifi") == ("answer", "wifi 3 new")
        assert asked(tools, "facts", names=["ab", "c"]) == ("answer", '{"ab": 2, "c": 1}')
        assert asked(tools, "search", query="none") == ("error", "nothing found")
        kind, text = asked(tools, "search", querry="wifi")
        assert (kind, text) == ("error", "Error: the argument query: Field required.")
        tools.close()


def test_a_broken_function_fails_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rftkit.graders.posting.FIRST_PAUSE_SECONDS", 0.0)
    with serve([search]) as served:
        tools = open_tools(served.entries)
        with pytest.raises(ToolFailed, match="KeyError: 'index'"):
            asked(tools, "search", query="broken")
        tools.close()


def test_every_rollout_has_its_own_state() -> None:
    with serve([put], state=Basket) as served:
        assert "state" not in json.dumps(served.definitions)
        tools = open_tools(served.entries)
        assert asked(tools, "put", thing="a") == ("answer", '["me", "a"]')
        assert asked(tools, "put", "trace_2", thing="b") == ("answer", '["me", "b"]')
        assert asked(tools, "put", thing="c") == ("answer", '["me", "a", "c"]')
        tools.close()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, {"name": "search"}, 401),
        ({"Authorization": "Bearer wrong"}, {"name": "search"}, 401),
        ({"Authorization": "Bearer of-the-test"}, {"name": "find"}, 404),
        ({"Authorization": "Bearer of-the-test"}, ["search"], 400),
        ({"Authorization": "Bearer of-the-test"}, {"name": "search", "arguments": "{"}, 400),
        ({"Authorization": "Bearer of-the-test"}, "x" * 1_000_000, 413),
    ],
)
def test_who_is_refused(headers: dict[str, str], body: Any, status: int) -> None:
    with serve([search], token="of-the-test") as served:
        assert "127.0.0.1" in served.url
        assert "of-the-test" not in repr(served)
        request = urllib.request.Request(served.url, json.dumps(body).encode(), headers)
        with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as got:
            urllib.request.urlopen(request)
        if isinstance(got.value, urllib.error.HTTPError):
            assert got.value.code == status
            got.value.close()


def untyped(query) -> str:  # type: ignore[no-untyped-def]
    return str(query)


def anything(**arguments: str) -> str:
    return str(arguments)


def unjson(query: threading_lock) -> str:  # type: ignore[name-defined]  # noqa: F821
    return str(query)


@pytest.mark.parametrize(
    ("functions", "why"),
    [
        ([], "no functions"),
        ([search, search], "two functions are called search"),
        ([untyped], "the parameter query of untyped has no type; write query: str"),
        ([anything], "named arguments only"),
        ([unjson], "the types of unjson cannot be read"),
        ([lambda query: query], "define it with `def`"),
    ],
)
def test_what_cannot_be_a_tool(functions: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        serve(functions)
