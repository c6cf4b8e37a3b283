"""Servers that speak MCP, through the official SDK on both sides."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rftkit.tools import ToolCall, ToolFailed, Tools, check_tools, open_tools

pytest.importorskip("mcp")

SERVER = '''
import sys
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("shop")

@server.tool(name="shop.find")
def find(query: str) -> str:
    """Find a thing."""
    if query == "nothing":
        raise ToolError("nothing found")
    return f"found {query}"

@server.tool()
def count(names: list[str]) -> int:
    """Count them."""
    return len(names)
'''


def asked(tools: Tools, name: str, **arguments: Any) -> tuple[str, str]:
    item: dict[str, Any] = {"messages": []}
    call = ToolCall("call_1", name, json.dumps(arguments))
    reply = tools.call(call, trace_id="trace_1", item=item)
    return reply.kind, reply.text


@pytest.fixture
def url() -> Iterator[str]:
    """The server over streamable HTTP, in this process."""
    import uvicorn

    found: dict[str, Any] = {}
    exec(SERVER, found)
    config = uvicorn.Config(found["server"].streamable_http_app(), log_level="error")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        server.should_exit = True
        thread.join(20)


def check(tools: Tools) -> None:
    definitions = {
        each["function"]["name"]: each["function"] for each in tools.definitions({}) or []
    }
    assert list(definitions) == ["shop_find", "count"]
    assert definitions["shop_find"]["description"] == "Find a thing."
    assert definitions["shop_find"]["parameters"]["required"] == ["query"]
    assert asked(tools, "shop_find", query="tea") == ("answer", "found tea")
    kind, text = asked(tools, "shop_find", query="nothing")
    assert (kind, "nothing found" in text) == ("error", True)
    assert asked(tools, "count", names=["a", "b"]) == ("answer", "2")
    kind, _ = asked(tools, "count", wrong=1)
    assert kind == "error"


def test_streamable_http(url: str) -> None:
    tools = open_tools([{"type": "mcp", "server_label": "shop", "server_url": url}])
    check(tools)
    tools.close()


def test_allowed_tools(url: str) -> None:
    entry = {"type": "mcp", "server_label": "shop", "server_url": url}
    tools = open_tools([{**entry, "allowed_tools": ["count"]}])
    assert tools.names == ["count"]
    tools.close()
    with pytest.raises(ToolFailed, match="names 'sell', and the MCP server shop lists shop"):
        open_tools([{**entry, "allowed_tools": ["sell"]}])


def test_a_command_of_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    program = tmp_path / "shop.py"
    program.write_text(SERVER + "\nserver.run()\n")
    servers = {"shop": {"command": sys.executable, "args": [str(program)]}}
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    monkeypatch.setenv("RFTKIT_MCP_SERVERS", str(path))
    entries = check_tools([{"type": "mcp", "server_label": "shop"}], "tools")
    tools = open_tools(entries)
    check(tools)
    tools.close()


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rftkit.tools.mcp_server.FIRST_PAUSE_SECONDS", 0.0)
    with pytest.raises(ToolFailed, match="the MCP server shop failed 4 times: "):
        open_tools(
            [{"type": "mcp", "server_label": "shop", "server_url": "http://127.0.0.1:1/mcp"}]
        )
