"""Judges and endpoints: what they are asked, how each fault is told apart, cache and bounds."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rftkit import graders
from rftkit.errors import GraderSpecError
from rftkit.graders import (
    Completion,
    JudgeCache,
    Sample,
    compile_grader,
    completion_call,
    hosts,
    posting,
)
from rftkit.graders import endpoint as endpoint_module
from rftkit.graders import judge as judge_module

JUDGE = {
    "type": "score_model",
    "name": "j",
    "model": "judge-1",
    "range": [0, 5],
    "input": [
        {"role": "system", "content": "Grade 0 to 5."},
        {"role": "user", "content": "{{item.q}} / {{sample.output_text}}"},
    ],
    "sampling_params": {"max_completions_tokens": 64, "temperature": 0.0, "seed": 3},
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "cached_tokens": 0}
ENDPOINT = {"type": "endpoint", "url": "http://grader.test/x", "headers": {"X-Key": "secret"}}


class Scripted:
    """A completion call that answers from a list and keeps what it was asked."""

    endpoint = "http://judge.test"

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = itertools.cycle(answers), []

    def __call__(self, **question: Any) -> Completion:
        self.asked.append(question)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Completion):
            return answer
        return Completion(text=json.dumps(answer), usage=dict(USAGE))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(posting, "FIRST_PAUSE_SECONDS", 0.0)


def grade(answer: Any, spec: dict = JUDGE, **options: Any) -> graders.Grade:
    return graders.grade(spec, "A", {"q": "Q"}, complete=Scripted(answer), **options)


def test_what_a_judge_is_asked() -> None:
    complete = Scripted({"steps": [], "result": 4})
    result = graders.grade(JUDGE, "A", {"q": "Q"}, complete=complete)
    assert (result.reward, result.token_usage) == (4.0, {"judge-1": USAGE})
    (asked,) = complete.asked
    assert asked["model"] == "judge-1"
    assert asked["messages"][1] == {"role": "user", "content": "Q / A"}
    assert asked["sampling"] == {"max_completion_tokens": 64, "temperature": 0.0, "seed": 3}
    schema = asked["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert list(schema["schema"]["properties"]) == ["steps", "result"]
    body = result.to_wire(graders.validate(JUDGE))
    assert body["model_grader_token_usage_per_model"] == {"judge-1": USAGE}
    assert body["metadata"]["token_usage"] == USAGE
    assert body["metadata"]["sampled_model_name"] == "judge-1"


@pytest.mark.parametrize(("result", "reward"), [(9, 5.0), (-1, 0.0), (2.5, 2.5), (10**400, 5.0)])
def test_clipped_into_the_range(result: float, reward: float) -> None:
    assert grade({"steps": [], "result": result}).reward == reward


@pytest.mark.parametrize(
    ("answer", "flag"),
    [
        (Completion(text=None, refusal="I cannot judge this"), "model_grader_refusal_error"),
        (Completion('{"steps": [', "length"), "model_grader_exceeded_max_tokens_error"),
        (Completion("not json"), "model_grader_parse_error"),
        (Completion("[1]"), "model_grader_parse_error"),
        (Completion(None), "model_grader_parse_error"),
        ({"steps": []}, "model_grader_parse_error"),
        ({"result": "4"}, "model_grader_parse_error"),
        ({"result": True}, "model_grader_parse_error"),
        ({"result": None}, "model_grader_parse_error"),
        (Completion('{"result": NaN}'), "model_grader_parse_error"),
        (RuntimeError("down"), "model_grader_server_error"),
    ],
)
def test_faults_are_told_apart(answer: Any, flag: str) -> None:
    result = grade(answer)
    assert (result.reward, result.outcome) == (None, "failed")
    assert [name for name, value in result.errors.items() if value is True] == [flag]


def test_tokens_of_a_failed_judge_are_counted() -> None:
    result = grade(Completion("no", usage=dict(USAGE)), {"type": "multi", "graders": {"j": JUDGE},
                                                         "calculate_output": "j"})  # fmt: skip
    assert result.outcome == "failed"
    assert result.token_usage == {"judge-1": USAGE}
    assert result.sub_token_usage == {"j": {"judge-1": USAGE}}


def test_retries_what_may_pass() -> None:
    complete = Scripted(RuntimeError("down"), RuntimeError("down"), {"result": 1})
    assert graders.grade(JUDGE, "A", {"q": ""}, complete=complete).reward == 1.0
    assert len(complete.asked) == 3
    error = RuntimeError("bad request")
    error.status_code = 400  # type: ignore[attr-defined]
    complete = Scripted(error)
    assert graders.grade(JUDGE, "A", {"q": ""}, complete=complete).outcome == "failed"
    assert len(complete.asked) == 1


def test_no_judge_says_what_to_set() -> None:
    result = graders.grade(JUDGE, "A", {"q": ""})
    assert "RFTKIT_JUDGE_BASE_URL" in str(result.errors["model_grader_server_error_details"])


def test_cache(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "judge.jsonl"
    complete = Scripted(Completion("broken"), {"result": 3})

    def ask(text: str, spec: dict = JUDGE) -> graders.Grade:
        cache = JudgeCache(path)
        return graders.grade(spec, text, {"q": "Q"}, complete=complete, cache=cache)

    assert ask("A").outcome == "failed"
    assert ask("A").reward == 3.0
    again = ask("A")
    assert (again.reward, again.token_usage) == (3.0, {})
    assert len(complete.asked) == 2  # a broken answer is not kept, so it is asked again
    with path.open("a") as file:
        file.write('["cut o')
    ask("B")
    ask("A", JUDGE | {"model": "judge-2"})
    ask("A", JUDGE | {"sampling_params": {"temperature": 1.0}})
    ask("A")
    assert len(complete.asked) == 5


def test_bounded_and_side_by_side() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def complete(**question: Any) -> Completion:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return Completion('{"result": 1}')

    spec = {"type": "multi", "graders": {"a": JUDGE, "b": JUDGE}, "calculate_output": "a + b"}
    with compile_grader(spec, complete=complete, concurrency=3) as grader:
        grades = grader.grade_many([(Sample(str(i)), {"q": ""}) for i in range(30)])
    assert most == 3
    assert {grade.reward for grade in grades} == {2.0}


def test_parts_of_messages() -> None:
    content = [
        "{{item.q}}",
        {"type": "output_text", "text": "{{sample.output_text}}"},
        {"type": "input_image", "image_url": "data:{{item.q}}", "detail": "low", "file_id": None},
        {"type": "input_audio", "input_audio": {"data": "{{item.q}}", "format": "wav"}},
    ]
    complete = Scripted({"result": 1})
    spec = JUDGE | {"input": [{"role": "user", "content": content, "type": "message"}]}
    assert graders.grade(spec, "A", {"q": "Q"}, complete=complete).reward == 1.0
    assert complete.asked[0]["messages"][0]["content"] == [
        {"type": "text", "text": "Q"},
        {"type": "text", "text": "A"},
        {"type": "image_url", "image_url": {"url": "data:Q", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "Q", "format": "wav"}},
    ]


def test_label_model() -> None:
    spec = {"type": "label_model", "model": "m", "labels": ["good", "bad"],
            "passing_labels": ["good"], "input": [{"role": "user", "content": "?"}]}  # fmt: skip
    complete = Scripted({"result": "good"}, {"result": "bad"}, {"result": "ugly"})
    with compile_grader(spec, purpose="eval", complete=complete) as grader:
        grades = [grader.grade(Sample("A"), {}) for _ in range(3)]
    assert [grade.reward for grade in grades] == [1.0, 0.0, None]
    assert grades[2].errors["model_grader_parse_error"] is True
    format_ = complete.asked[0]["response_format"]["json_schema"]["schema"]
    assert format_["properties"]["result"]["enum"] == ["good", "bad"]


def test_completion_call_over_a_client() -> None:
    def create(**question: Any) -> Any:
        assert question["model"] == "judge-1"
        assert question["temperature"] == 0.0
        message = SimpleNamespace(content='{"result": 2}', refusal=None)
        usage = SimpleNamespace(**USAGE, prompt_tokens_details=SimpleNamespace(cached_tokens=5))
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=usage)

    client = SimpleNamespace(
        base_url="http://x/v1", chat=SimpleNamespace(completions=SimpleNamespace(create=create))
    )
    complete = completion_call(client)
    assert complete.endpoint == "http://x/v1"  # type: ignore[attr-defined]
    result = graders.grade(JUDGE, "A", {"q": ""}, complete=complete)
    assert (result.reward, result.token_usage["judge-1"]["cached_tokens"]) == (2.0, 5)


class TestEndpoint:
    def post(self, *answers: Any) -> tuple[Any, list]:
        script, asked = itertools.cycle(answers), []

        def http(url: str, headers: Any, body: bytes) -> tuple[int, bytes]:
            asked.append((url, dict(headers), json.loads(body)))
            answer = next(script)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return http, asked

    def test_what_it_is_sent(self) -> None:
        http, asked = self.post((200, b'{"score": 5}'))
        assert graders.grade(ENDPOINT, "A", {"q": "Q"}, http=http).reward == 5.0
        url, headers, body = asked[0]
        assert url == ENDPOINT["url"]
        assert headers["X-Key"] == "secret"
        assert body["item"] == {"q": "Q"}
        assert body["sample"]["choices"][0]["message"]["content"] == "A"
        assert body["trace_id"].startswith("trace_")

    def test_retries_faults_of_the_server_only(self) -> None:
        http, asked = self.post((503, b""), OSError("reset"), (429, b""), (200, b'{"score": 1}'))
        assert graders.grade(ENDPOINT, "A", {}, http=http).reward == 1.0
        assert len({body["trace_id"] for _, _, body in asked}) == 1
        http, asked = self.post((400, b"no such rubric"))
        result = graders.grade(ENDPOINT, "A", {}, http=http)
        assert result.errors["endpoint_grader_server_error"] is True
        assert "no such rubric" in str(result.errors["endpoint_grader_server_error_details"])
        assert len(asked) == 1
        http, asked = self.post(OSError("refused"))
        result = graders.grade(ENDPOINT, "A", {}, http=http)
        assert "no answer: OSError: refused" in str(result.errors)
        assert len(asked) == 4

    @pytest.mark.parametrize(
        "body", [b"", b"1", b'{"score": "1"}', b'{"score": true}', b'{"score": NaN}', b'{"s": 1}',
                 b'{"score": 1' + b"0" * 400 + b"}", b"\xff", b"[" * 100_000, b" " * 2_000_000]
    )  # fmt: skip
    def test_a_bad_answer_is_no_score(self, body: bytes) -> None:
        http, _ = self.post((200, body))
        result = graders.grade(ENDPOINT, "A", {}, http=http)
        assert result.reward is None
        assert result.errors["endpoint_grader_server_error"] is True

    def test_size_and_rate_limits(self) -> None:
        http, asked = self.post((200, b'{"score": 1}'))
        result = graders.grade(ENDPOINT, "x" * 1_000_000, {}, http=http)
        assert result.errors["endpoint_grader_internal_error"] is True
        assert asked == []
        start = time.monotonic()
        with compile_grader(ENDPOINT | {"rate_limit": 50}, http=http) as grader:
            grader.grade_many([(Sample("A"), {})] * 6)
        assert time.monotonic() - start >= 0.1  # a lower bound: five gaps of 20 ms

    def test_secrets_are_masked(self) -> None:
        spec = {"type": "multi", "graders": {"e": ENDPOINT}, "calculate_output": "e"}
        shown = graders.mask_secrets(graders.validate(spec))
        assert shown["graders"]["e"]["headers"] == {"X-Key": "********"}
        assert "secret" not in json.dumps(shown)
        assert graders.mask_secrets(ENDPOINT)["url"] == ENDPOINT["url"]

    def test_over_real_http(self) -> None:
        import http.server

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = json.dumps({"score": len(body["sample"]["output_text"])}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            spec = ENDPOINT | {"url": f"http://127.0.0.1:{server.server_port}/"}
            assert graders.grade(spec, "four", {}).reward == 4.0
        finally:
            server.shutdown()
            server.server_close()


class TestSecrets:
    KEY = "sk-very-secret-key"

    @pytest.fixture(autouse=True)
    def _is_public(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint_module, "is_private", lambda url: "127.0.0.1" in url)

    @pytest.mark.parametrize(
        ("header", "answer"),
        [
            ("Bearer {key}", "no access with {key}"),
            ("{key}", '{{"error": "Authorization: {key}"}}'),
            ("{key}\t", "denied: b'{key}\\t'"),
            ("Bearer {key}", "x" * 295 + "{key}"),
        ],
    )
    def test_a_key_that_is_echoed_is_hidden(self, header: str, answer: str) -> None:
        spec = ENDPOINT | {"headers": {"Authorization": header.format(key=self.KEY)}}
        body = answer.format(key=self.KEY).encode()
        result = graders.grade(spec, "x", {}, http=lambda *_: (403, body))
        assert result.outcome == "failed"
        assert "status 403" in str(result.errors)
        assert self.KEY[:4] not in str(result.errors)

    def test_a_key_in_an_exception_is_hidden(self) -> None:
        def fail(*_: Any) -> tuple[int, bytes]:
            raise ValueError(f"Illegal header value b'{self.KEY}'")

        spec = ENDPOINT | {"headers": {"Authorization": self.KEY}}
        result = graders.grade(spec, "x", {}, http=fail)
        assert "no answer: ValueError: Illegal header" in str(result.errors)
        assert self.KEY not in str(result.errors)

    def test_blanks_around_a_key_are_not_sent(self) -> None:
        sent: list[str] = []

        def answer(url: str, headers: Any, body: bytes) -> tuple[int, bytes]:
            sent.append(headers["X-Key"])
            return 200, b'{"score": 1}'

        spec = ENDPOINT | {"headers": {"X-Key": f" {self.KEY}\t"}}
        assert graders.grade(spec, "x", {}, http=answer).reward == 1.0
        assert sent == [self.KEY]

    @pytest.mark.parametrize(
        "value", ["{key}\nX-Other: 1", "{key}\x00", 7, "{key}\n", "{key}\r\n", "\n{key}"]
    )
    def test_a_header_that_cannot_be_sent_is_refused_without_it(self, value: Any) -> None:
        value = value.format(key=self.KEY) if isinstance(value, str) else value
        with pytest.raises(GraderSpecError, match=r"headers") as caught:
            graders.validate(ENDPOINT | {"headers": {"Authorization": value}})
        assert str(value)[:8] not in str(caught.value).replace("grader.test", "")

    def test_what_a_private_address_answers_is_not_repeated(self) -> None:
        spec = ENDPOINT | {"url": "http://127.0.0.1:1/"}
        result = graders.grade(spec, "x", {}, http=lambda *_: (500, b"root:x:0:0"))
        assert "status 500" in str(result.errors)
        assert "root:x" not in str(result.errors)

    @pytest.mark.parametrize(
        "host",
        ["169.254.169.254", "169.254.1.1", "2852039166", "0xA9FEA9FE", "0251.0376.0251.0376",
         "169.254.43518", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[fe80::1]",
         "[fd00:ec2::254]", "100.100.100.200", "metadata.google.internal",
         "Metadata.Google.Internal.", "user:pw@169.254.169.254"],
    )  # fmt: skip
    def test_what_describes_the_machine_is_no_grader(self, host: str) -> None:
        with pytest.raises(GraderSpecError, match="metadata service") as caught:
            graders.validate(ENDPOINT | {"url": f"http://{host}/latest/meta-data"})
        assert caught.value.param == "url"

    @pytest.mark.parametrize(
        "host", ["127.0.0.1:80", "10.1.2.3", "[::1]", "grader.test", "169.example"]
    )
    def test_graders_of_this_network_are_allowed(self, host: str) -> None:
        graders.validate(ENDPOINT | {"url": f"http://{host}/"})

    def test_a_name_that_leads_to_metadata_is_not_called(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = [(2, 1, 6, "", ("169.254.169.254", 0))]
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *_, flags=0, **__: found * (not flags)
        )
        monkeypatch.setattr(posting, "_client", lambda pid: pytest.fail("called"))
        monkeypatch.setattr(posting, "ATTEMPTS", 1)
        result = graders.grade(ENDPOINT | {"url": "http://innocent.test/"}, "x", {})
        assert "metadata service" in str(result.errors)

    def test_private_addresses_are_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        for host in ("127.0.0.1", "10.1.2.3", "[::1]", "169.254.169.254", "localhost", "0.0.0.0"):
            assert hosts.is_private(f"http://{host}:80/x")
        assert not hosts.is_private("http://8.8.8.8/")

    def test_the_time_limit_holds_for_the_whole_answer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(posting, "TIMEOUT_SECONDS", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def drip() -> None:
                with contextlib.suppress(OSError):
                    stream, _ = listener.accept()
                    with stream:
                        stream.sendall(b"HTTP/1.1 200 OK\r\n")
                        while True:  # headers without end
                            stream.sendall(b"X-A: 1\r\n")
                            time.sleep(0.05)

            threading.Thread(target=drip, daemon=True).start()
            port = listener.getsockname()[1]
            with pytest.raises(TimeoutError, match=r"longer than 0\.3 s"):
                posting.post(f"http://127.0.0.1:{port}/", {}, b"{}")


def test_a_multi_has_a_bound() -> None:
    many = {f"g{n}": ENDPOINT for n in range(33)}
    spec = {"type": "multi", "graders": many, "calculate_output": "g0"}
    with pytest.raises(GraderSpecError, match="33 graders; at most 32"):
        graders.validate(spec)


def test_python_graders_of_a_multi_share_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counted:
        def __init__(self, source: str, *, workers: int, **_: Any) -> None:
            asked.append(workers)

        def close(self, **_: Any) -> None: ...

        grade = None

    monkeypatch.setattr("rftkit.graders.leaves.Sandbox", Counted)
    python = {"type": "python", "source": "def grade(sample, item): return 1.0"}
    many = {f"g{n}": python for n in range(4)}
    spec = {"type": "multi", "graders": many, "calculate_output": "g0"}
    graders.compile_grader(spec, workers=8).close()
    assert asked == [2, 2, 2, 2]


def test_a_judge_that_echoes_its_key_does_not_leak_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_JUDGE_API_KEY", "sk-judge-key-123")

    def complete(**_: Any) -> Completion:
        error = RuntimeError("Incorrect API key provided: sk-judge-key-123")
        error.status_code = 401  # type: ignore[attr-defined]
        raise error

    result = graders.grade(JUDGE, "x", {"q": "Q"}, complete=complete)
    assert "Incorrect API key" in str(result.errors)
    assert "sk-judge" not in str(result.errors)


def test_keys_in_an_address_are_hidden_too() -> None:
    url = "https://me:passw0rd@grader.test/x?code=abc%2Fdef"
    spec = {"type": "endpoint", "url": url}
    shown = str(graders.mask_secrets(spec))
    result = graders.grade(spec, "x", {}, http=lambda *_: (403, b"passw0rd abc/def abc%2Fdef"))
    for text in (shown, str(result.errors)):
        assert "grader.test" in text or "status 403" in text
        assert "passw0rd" not in text
        assert "def" not in text.replace("undefined", "")


@pytest.mark.parametrize("field", ["content", "refusal"])
def test_what_a_judge_says_does_not_repeat_its_key(field: str) -> None:
    """A service that answers with the request that it got."""
    key = "sk-judge-key-123"
    message = SimpleNamespace(**{"content": "", "refusal": None, field: f"I got Bearer {key}"})
    answer = SimpleNamespace(
        choices=[SimpleNamespace(message=message, finish_reason="stop")], usage=None
    )
    create = SimpleNamespace(create=lambda **_: answer)
    client = SimpleNamespace(api_key=key, base_url="x", chat=SimpleNamespace(completions=create))
    result = graders.grade(JUDGE, "x", {"q": "Q"}, complete=completion_call(client))
    assert "I got Bearer ********" in str(result.errors)
    assert key not in str(result)
