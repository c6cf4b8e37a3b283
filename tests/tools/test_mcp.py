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


def opened_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str) -> Tools:
    import sys

    program = tmp_path / "shop.py"
    program.write_text(SERVER + more + "\nserver.run()\n")
    servers = {"shop": {"command": sys.executable, "args": [str(program)]}}
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    monkeypatch.setenv("RFTKIT_MCP_SERVERS", str(path))
    return open_tools(check_tools([{"type": "mcp", "server_label": "shop"}], "tools"))


def test_a_process_that_died_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.tools.mcp_server.FIRST_PAUSE_SECONDS", 0.0)
    mark = tmp_path / "died"
    tools = opened_by_command(
        tmp_path,
        monkeypatch,
        "\n@server.tool()\ndef die() -> str:\n    import os\n"
        f"    if os.path.exists({str(mark)!r}): return 'alive'\n"
        f"    open({str(mark)!r}, 'w').close()\n    os._exit(1)\n",
    )
    assert asked(tools, "die") == ("answer", "alive")
    tools.close()


def test_a_schema_of_answers_is_not_run_and_an_error_keeps_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.tools.mcp_server.FIRST_PAUSE_SECONDS", 0.0)
    tools = opened_by_command(
        tmp_path,
        monkeypatch,
        "\nstate = []\n@server.tool()\ndef again() -> str:\n"
        "    state.append(1)\n    return str(len(state))\n"
        "from mcp.shared.exceptions import MCPError\n"
        "@server.tool()\ndef refuse() -> str:\n    raise MCPError(-32000, 'no')\n",
    )
    assert asked(tools, "again") == ("answer", "1")
    server: Any = tools.server("again")
    client = server._session._client.result()
    assert client.session.validate_tool_result.__name__ == "_unchecked"
    with pytest.raises(ToolFailed):
        asked(tools, "refuse")
    assert asked(tools, "again") == ("answer", "2")
    tools.close()


@pytest.mark.parametrize("private", [True, False])
def test_an_address_is_looked_up_for_every_request(
    url: str, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the name says at first is public, or this machine; later it is a metadata service."""
    from rftkit.graders import hosts, posting

    monkeypatch.setattr("rftkit.tools.mcp_server.FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("rftkit.tools.toolbox._check_address", lambda *_: None)
    if private:
        monkeypatch.setattr(posting, "is_of_machine", lambda *_, **__: True)
        why = hosts.OF_MACHINE[:20]
    else:
        why = "address of this machine"
    entry = {"type": "mcp", "server_label": "shop", "server_url": url}
    with pytest.raises(ToolFailed) as raised:
        open_tools([entry], private=private)
    assert why in str(raised.value)


def test_answers_are_limited(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rftkit.tools.mcp_server.FIRST_PAUSE_SECONDS", 0.0)
    tools = open_tools([{"type": "mcp", "server_label": "shop", "server_url": url}])
    monkeypatch.setattr("rftkit.tools.mcp_server.MOST_ANSWER_BYTES", 3000)
    assert asked(tools, "shop_find", query="tea") == ("answer", "found tea")
    with pytest.raises(ToolFailed):
        asked(tools, "shop_find", query="x" * 5000)
    tools.close()


def test_too_many_functions(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rftkit.tools.mcp_server.MOST_FUNCTIONS", 1)
    with pytest.raises(ToolFailed, match="choose some with `allowed_tools`"):
        open_tools([{"type": "mcp", "server_label": "shop", "server_url": url}])


@pytest.mark.parametrize(
    ("message", "is_loss"),
    [
        ("Connection closed", True),
        ("Session terminated", True),
        ("Session not found", True),
        ("Bad Request: No valid session ID provided", True),
        ("Internal error", False),
    ],
)
def test_what_ends_a_session(message: str, is_loss: bool) -> None:
    from mcp.shared.exceptions import MCPError

    from rftkit.tools import mcp_server

    assert mcp_server._is_loss(MCPError(-32000, message)) is is_loss


def test_a_process_that_does_not_answer_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import sys

    monkeypatch.setattr("rftkit.tools.mcp_server.OPENING_SECONDS", 5.0)
    monkeypatch.setattr(sys.modules[__name__], "SERVER", "")
    mark = tmp_path / "pid"
    silent = f"\nimport os, signal, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\n"
    silent += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n"
    with pytest.raises(ToolFailed, match="no answer in time"):
        opened_by_command(tmp_path, monkeypatch, silent)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_call_after_the_end_starts_nothing(url: str) -> None:
    from rftkit.graders.calls import Abandoned

    tools = open_tools([{"type": "mcp", "server_label": "shop", "server_url": url}])
    server: Any = tools.server("count")
    tools.close()
    with pytest.raises(Abandoned):
        asked(tools, "count", names=[])
    assert server._session is None


def test_a_session_that_the_server_forgot_is_opened_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.tools.mcp_server.FIRST_PAUSE_SECONDS", 0.0)
    tools = open_tools([{"type": "mcp", "server_label": "shop", "server_url": url}])
    server: Any = tools.server("count")
    first = server._session
    client = first._client.result()

    async def lost(*_: Any, **__: Any) -> Any:
        from mcp.shared.exceptions import MCPError

        raise MCPError(-32600, "Session terminated")

    client.call_tool = lost
    assert asked(tools, "count", names=["a"]) == ("answer", "1")
    assert server._session is not first
    tools.close()


def test_a_line_without_an_end_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.tools.mcp_server.FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("rftkit.tools.mcp_server.MOST_ANSWER_BYTES", 100_000)
    tools = opened_by_command(
        tmp_path,
        monkeypatch,
        "\n@server.tool()\ndef shout() -> str:\n    return 'x' * 200_000\n",
    )
    with pytest.raises(ToolFailed, match="failed 4 times"):
        asked(tools, "shout")
    assert asked(tools, "shop_find", query="tea") == ("answer", "found tea")
    tools.close()


def test_a_command_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.tools.mcp_server.FIRST_PAUSE_SECONDS", 0.0)
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"shop": {"command": "no-such-program"}}}))
    monkeypatch.setenv("RFTKIT_MCP_SERVERS", str(path))
    with pytest.raises(ToolFailed, match="there is no program 'no-such-program'"):
        open_tools(check_tools([{"type": "mcp", "server_label": "shop"}], "tools"))


def test_a_call_that_takes_too_long_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rftkit.tools import mcp_server

    assert mcp_server.TIMEOUT_SECONDS == 600.0
    tools = opened_by_command(
        tmp_path,
        monkeypatch,
        "\n@server.tool()\nasync def sleep() -> str:\n"
        "    import asyncio\n    await asyncio.sleep(600)\n",
    )
    monkeypatch.setattr(mcp_server, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(ToolFailed, match="no answer in time"):
        asked(tools, "sleep")
    tools.close()


def test_a_description_does_not_repeat_a_secret() -> None:
    from rftkit.tools import mcp_server

    given = {"type": "function", "function": {
        "name": "secret-key", "description": "made for secret-key",
        "parameters": {"type": "object", "properties": {"type": {"type": "string",
            "description": "not secret-key"}}}}}  # fmt: skip
    shown = mcp_server._hidden(given, ["secret-key"])
    function = shown["function"]
    assert function["name"] == "secret-key"
    assert function["description"] == "made for ********"
    assert function["parameters"]["properties"]["type"]["description"] == "not ********"
