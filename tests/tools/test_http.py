"""The contract with a tool server: what is posted, and what each answer means."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fake_tools import definition

from rftkit.graders import posting
from rftkit.graders.calls import Abandoned, Calls
from rftkit.tools import ToolCall, ToolFailed, Tools, open_tools, try_tool

CALL = ToolCall("call_7", "search", '{"query": "x"}')
ITEM = {"messages": [], "tools": [definition("search", "query")], "answer": "y"}
OUTPUT = {"type": "function_call_output", "call_id": "call_7", "id": "fc_7", "output": "found"}


class Stub:
    """A server that answers with what `say(number of the call)` returns."""

    def __init__(self, say: Callable[[int], tuple[int, Any]]) -> None:
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.got.append(json.loads(body))
                stub.headers.append(dict(self.headers))
                status, answer = say(len(stub.got))
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/tool"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Stub, Tools]]]:
    monkeypatch.setattr(posting, "FIRST_PAUSE_SECONDS", 0.0)
    opened: list[tuple[Stub, Tools]] = []

    def serve(say: Any, **entry: Any) -> tuple[Stub, Tools]:
        stub = Stub(say if callable(say) else lambda number: say)
        tools = open_tools([{"name": "search", "server_url": stub.url, "headers": {}, **entry}])
        opened.append((stub, tools))
        return stub, tools

    yield serve
    for stub, tools in opened:
        tools.close()
        stub.server.shutdown()
        stub.server.server_close()


def asked(tools: Tools) -> tuple[str, str]:
    reply = tools.call(CALL, trace_id="trace_1", item=ITEM)
    return reply.kind, reply.text


def test_what_is_posted(served: Any) -> None:
    stub, tools = served((200, OUTPUT), headers={"X-Key": "secret-key"})
    assert asked(tools) == ("answer", "found")
    assert stub.got == [
        {
            "type": "function_call", "id": "fc_7", "call_id": "call_7", "name": "search",
            "arguments": '{"query": "x"}', "trace_id": "trace_1", "item": ITEM,
        }
    ]  # fmt: skip
    assert stub.headers[0]["X-Key"] == "secret-key"


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ((200, {"output": "plain", "id": "other"}), ("answer", "plain")),
        ((200, {"output": ""}), ("answer", "")),
        ((404, {"detail": "no such page"}), ("error", '{"detail": "no such page"}')),
        ((422, {"output": "write a longer query"}), ("error", "write a longer query")),
        ((429, b"slow down"), ("error", "slow down")),
        ((400, b""), ("error", "Error 400.")),
        ((403, b"secret-key is wrong"), ("error", "******** is wrong")),
        (
            (200, {"output": "x" * 1_000_001}),
            ("error", "Error 413: the answer is larger than 1000000 bytes."),
        ),
    ],
)
def test_the_model_reads(answer: Any, reply: tuple[str, str], served: Any) -> None:
    stub, tools = served(answer, headers={"X-Key": "secret-key"})
    assert asked(tools) == reply
    assert len(stub.got) == 1


@pytest.mark.parametrize(
    ("answer", "attempts", "why"),
    [
        ((500, b"secret-key broke it"), 4, r"status 500 after 4 attempts.*\*{8} broke it"),
        ((503, {"output": "not an output"}), 4, "status 503"),
        ((302, b""), 1, "status 302: redirects are not followed"),
        ((307, b""), 1, "redirects"),
        ((200, b"<html>"), 4, "no JSON object.*<html>"),
        ((200, ["found"]), 4, "no JSON object"),
        ((200, {"result": "found"}), 4, "no `output`.*its keys: result"),
        ((200, {"output": {"a": 1}}), 4, "`output` of its answer is an object"),
        ((200, {"output": None}), 4, "`output` of its answer is null"),
    ],
)
def test_the_rollout_fails(answer: Any, attempts: int, why: str, served: Any) -> None:
    stub, tools = served(answer, headers={"X-Key": "secret-key"})
    with pytest.raises(ToolFailed, match=why) as failed:
        asked(tools)
    assert failed.value.tool == "search"
    assert "secret-key" not in str(failed.value)
    assert len(stub.got) == attempts


def test_a_server_that_recovers_fails_nothing(served: Any) -> None:
    stub, tools = served(lambda number: (500, b"") if number < 4 else (200, OUTPUT))
    assert asked(tools) == ("answer", "found")
    assert len(stub.got) == 4


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ToolFailed, match=r"nothing answers at 127\.0\.0\.1 port 1 "):
        open_tools([{"name": "search", "server_url": "http://127.0.0.1:1/"}])


def test_a_private_address_that_a_name_hides_is_not_called(
    monkeypatch: pytest.MonkeyPatch, served: Any
) -> None:
    monkeypatch.setattr(posting, "FIRST_PAUSE_SECONDS", 0.0)
    stub = Stub(lambda number: (200, OUTPUT))
    url = stub.url.replace("127.0.0.1", "localhost")
    entry = {"name": "search", "server_url": url}
    monkeypatch.setattr("rftkit.tools.toolbox.reach", lambda *_: pytest.fail("connected"))
    with pytest.raises(ToolFailed, match="address of this machine"):
        open_tools([entry], private=False)
    monkeypatch.undo()
    monkeypatch.setattr(posting, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("rftkit.tools.toolbox._check_address", lambda *_: None)
    tools = open_tools([entry], private=False)
    with pytest.raises(ToolFailed, match="localhost is an address of this machine"):
        asked(tools)
    assert stub.got == []
    stub.server.server_close()


def test_a_row_that_is_too_large_is_no_fault_of_the_model(served: Any) -> None:
    _, tools = served((200, OUTPUT))
    with pytest.raises(ToolFailed, match="the row has 1000"):
        tools.call(CALL, trace_id="trace_1", item={**ITEM, "text": "x" * 1_000_000})
    large = ToolCall("call_8", "search", json.dumps({"query": "x" * 1_000_000}))
    reply = tools.call(large, trace_id="trace_1", item=ITEM)
    assert (reply.kind, reply.text[:9]) == ("error", "Error 413")


def test_closing_ends_the_calls_under_way(served: Any) -> None:
    arrived, go = threading.Event(), threading.Event()

    def say(number: int) -> tuple[int, Any]:
        arrived.set()
        go.wait(20)
        return 200, OUTPUT

    _, tools = served(say)
    ended: list[BaseException] = []

    def call() -> None:
        try:
            asked(tools)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert arrived.wait(20)
    tools.close()
    thread.join(20)
    go.set()
    assert isinstance(ended[0], Abandoned)


@pytest.mark.parametrize("status", [200, 404])
def test_a_header_that_a_tool_repeats_is_hidden(served: Any, status: int) -> None:
    answer = {"output": "you sent Bearer secret-key", "seen": {"key": "secret-key"}}
    stub, tools = served((status, answer), headers={"Authorization": "Bearer secret-key"})
    assert "secret-key" not in asked(tools)[1]
    entry = {
        "name": "search",
        "server_url": stub.url,
        "headers": {"Authorization": "Bearer secret-key"},
    }
    assert "secret-key" not in json.dumps(try_tool(entry, CALL, "trace_1", ITEM, private=True))


def test_keys_of_a_wrong_answer_are_hidden_and_few(served: Any) -> None:
    answer = {"secret-key": 1} | {f"key{number}": 1 for number in range(900)}
    _, tools = served((200, answer), headers={"X-Key": "secret-key"})
    with pytest.raises(ToolFailed, match="its keys: ") as raised:
        asked(tools)
    assert "secret-key" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_numbers_that_json_lacks_are_texts(served: Any) -> None:
    stub, _ = served((200, b'{"output": "x", "score": NaN, "most": 1e999}'))
    entry = {"name": "search", "server_url": stub.url, "headers": {}}
    status, found = try_tool(entry, CALL, "trace_1", ITEM, private=True)
    assert status == 200
    assert isinstance(found, dict)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("entry", [{"name": "search"}, {"type": "mcp", "server_label": "shop"}])
@pytest.mark.parametrize("address", ["169.254.169.254", "168.63.129.16", "192.0.0.192"])
def test_a_name_of_a_metadata_service_is_not_called(
    entry: dict[str, Any], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(2, 1, 6, "", (address, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, flags=0, **__: found * (not flags))
    monkeypatch.setattr(posting, "_client", lambda pid: pytest.fail("called"))
    url = "http://innocent.test/tool"
    with pytest.raises(ToolFailed, match="metadata service"):
        open_tools([{**entry, "server_url": url}], private=True)
    for public_only in (True, False):
        with pytest.raises((PermissionError, ValueError)):
            posting.post(url, {}, b"", public_only=public_only)


class Clock:
    """In place of the module `time`: it moves when somebody pauses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def pause(self, _: Calls, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(posting, "time", clock)
    monkeypatch.setattr(Calls, "pause", lambda calls, seconds: clock.pause(calls, seconds))
    return clock


def test_a_server_gets_at_most_fifty_calls_a_second(clock: Clock) -> None:
    """The functions of a server share the limit; another server has its own."""
    sent: list[float] = []
    first, second = (Stub(lambda _: (sent.append(clock.now), (200, OUTPUT))[1]) for _ in range(2))
    names = ("search", "find")
    entries = [{"name": name, "server_url": first.url} for name in names]
    with contextlib.closing(
        open_tools([*entries, {"name": "other", "server_url": second.url}])
    ) as t:
        item = {"tools": [definition(name, "query") for name in (*names, "other")]}
        for number in range(101):
            call = ToolCall("call_1", names[number % 2], "{}")
            assert t.call(call, trace_id="trace_1", item=item).text == "found"
        assert sent == pytest.approx([1000 + number / 50 for number in range(101)])
        t.call(ToolCall("call_1", "other", "{}"), trace_id="trace_1", item=item)
        assert sent[-1] == sent[-2], "no pause"
    for stub in (first, second):
        stub.server.shutdown()
        stub.server.server_close()


def test_attempts_end_after_ten_minutes(served: Any, clock: Clock) -> None:
    def say(number: int) -> tuple[int, Any]:
        clock.now += 400.0
        return 500, b""

    stub, tools = served(say)
    with pytest.raises(ToolFailed, match=r"status 500 after 2 attempts within 600 s; it answered"):
        asked(tools)
    assert len(stub.got) == 2, "a third attempt would begin after ten minutes"


def test_a_call_without_an_answer_ends(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert posting.TIMEOUT_SECONDS == 600.0
    go = threading.Event()
    _, tools = served(lambda number: (go.wait(20), (200, OUTPUT))[1])
    monkeypatch.setattr(posting, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ToolFailed, match=r"no answer (within 0.2 s \(1 attempt|after 1 attempt)"):
        asked(tools)
    go.set()


def test_a_last_attempt_without_an_answer_names_the_limit_of_all(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    _, tools = served(lambda number: (number > 1 and go.wait(20), (500, b"broken"))[1])
    monkeypatch.setattr(posting, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(ToolFailed, match=r"no answer within 0.5 s \(2 attempts\)|after 2 attempts"):
        asked(tools)
    go.set()


def test_the_address_that_was_looked_up_is_the_one_that_is_called(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name whose second answer is a metadata service reaches what the first one said."""
    stub, _ = served((200, OUTPUT))
    port = stub.server.server_address[1]
    real = socket.getaddrinfo
    looked_up: list[Any] = []

    def rebinding(host: Any, *given: Any, **more: Any) -> Any:
        if host != "innocent.test":
            return real(host, *given, **more)
        if more.get("flags"):
            raise OSError("not a number")
        looked_up.append(host)
        address = "127.0.0.1" if len(looked_up) == 1 else "169.254.169.254"
        return [(2, 1, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr("rftkit.tools.toolbox._check_address", lambda *_: None)
    status, *_ = posting.post(f"http://innocent.test:{port}/tool", {}, b'{"name": "search"}')
    assert status == 200
    assert looked_up == ["innocent.test"]
    assert stub.headers[-1]["Host"] == f"innocent.test:{port}"


def test_a_name_with_several_addresses_reaches_the_one_that_listens(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, _ = served((200, OUTPUT))
    port = stub.server.server_address[1]
    found = [(10, 1, 6, "", ("::1", port)), (2, 1, 6, "", ("127.0.0.1", port))]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo",
        lambda host, *a, **k: found if host == "localhost" else real(host, *a, **k),
    )  # fmt: skip
    status, *_ = posting.post(f"http://localhost:{port}/tool", {}, b"{}")
    assert status == 200
