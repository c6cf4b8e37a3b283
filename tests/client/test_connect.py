"""connect(): finds, starts and stops the local server; one per home; clear words when it cannot."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from rftkit import client
from rftkit.errors import MissingExtraError, PlatformError


@pytest.fixture
def own_home(home: Path) -> Iterator[Path]:
    """A home whose server does not outlive the test."""
    yield home
    client.stop_server(home)


def serve(home: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rftkit.server", "--home", str(home), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_a_base_url_gives_the_plain_client(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    plain = client.connect("https://example.test/v1", "sk-1", max_retries=5)
    assert (str(plain.base_url), plain.api_key) == ("https://example.test/v1/", "sk-1")
    assert plain.max_retries == 5
    monkeypatch.setenv("OPENAI_BASE_URL", "https://other.test/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-2")
    hosted = client.connect()
    assert (str(hosted.base_url), hosted.api_key) == ("https://other.test/v1/", "sk-2")
    assert not home.exists()


def test_the_address_of_the_local_server_needs_no_key(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosted")
    with client.connect() as first, client.connect(str(first.base_url)) as again:
        assert again.api_key == "local"
        assert again.models.list().data


def test_the_life_of_a_local_server(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert client.serve_status() is None
    found: list[openai.OpenAI] = []
    threads = [threading.Thread(target=lambda: found.append(client.connect())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({str(local.base_url) for local in found}) == 1
    assert {local.api_key for local in found} == {"local"}
    assert {local.admin_api_key for local in found} == {"local"}
    assert "rftkit-tiny" in [model.id for model in found[0].models.list()]
    status = client.serve_status()
    assert status is not None
    assert status.pid != os.getpid()
    record = json.loads((own_home / "server.json").read_text())
    assert (record["address"], record["pid"]) == (status.address, status.pid)

    refused = serve(own_home)
    assert refused.returncode == 1
    assert f"another server uses the home folder {own_home}" in refused.stderr
    assert status.address in refused.stderr

    os.kill(status.pid, signal.SIGKILL)
    while client.serve_status() is not None:
        time.sleep(0.02)
    again = client.connect()
    assert again.models.list().data
    assert client.stop_server() is not None
    assert client.serve_status() is None
    assert not (own_home / "server.json").exists()
    assert client.stop_server() is None


def test_an_idle_server_ends_by_itself(own_home: Path) -> None:
    status = client.start_server(own_home, idle_minutes=0.005)
    deadline = time.monotonic() + 60
    while client._is_locked(own_home):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.serve_status(own_home) is None
    assert status.home == own_home


def test_the_default_port_moves_on_and_a_chosen_one_does_not(home: Path) -> None:
    from rftkit.server.http.serving import _bind

    with _bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        refused = serve(home, "--port", str(port))
    assert refused.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be used" in refused.stderr
    assert "choose a free one with --port" in refused.stderr
    with _bind("127.0.0.1", None) as first, _bind("127.0.0.1", None) as second:
        assert second.getsockname()[1] > first.getsockname()[1]
        assert first.proto == socket.IPPROTO_TCP  # else every answer waits 40 ms for Nagle


def test_listening_elsewhere_needs_a_key(home: Path) -> None:
    refused = serve(home, "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 1
    assert "needs an API key: set RFTKIT_API_KEY or pass --api-key" in refused.stderr


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    with pytest.raises(PlatformError, match=r"cannot be written .* set RFTKIT_HOME"):
        client.start_server(home)
    refused = serve(home)
    assert refused.returncode == 1
    assert "set RFTKIT_HOME to a folder you own" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_missing_extra_says_what_to_type(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(client, "NEEDED", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r"pip install 'rftkit\[local\]'"):
        client.connect()
    assert not home.exists()


def test_a_server_that_cannot_start_shows_its_log(home: Path) -> None:
    home.mkdir()
    (home / "platform.sqlite").write_text("not a database " * 100)
    with pytest.raises(PlatformError, match=r"platform\.sqlite cannot be used as a database"):
        client.start_server()


def test_a_stale_record_is_not_believed(home: Path) -> None:
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    (home / "server.json").write_text(json.dumps({"address": f"http://127.0.0.1:{port}"}))
    assert client.serve_status() is None
    (home / "server.json").write_text("{half")
    assert client.serve_status() is None


NEVER_OURS = [
    {"home": 5}, {"pid": "x"}, {"pid": None}, {"version": None}, {"idle_seconds": None},
    {"home": "\0"}, {"problems": 5}, {"home": None},
]  # fmt: skip


@pytest.mark.parametrize("odd", [*NEVER_OURS, "[" * 100_000, "[]", "5"])
def test_what_another_program_says_of_its_health_is_no_server(
    home: Path, monkeypatch: pytest.MonkeyPatch, odd: Any
) -> None:
    home.mkdir()
    ours = {"home": str(home), "pid": 1, "version": "1", "idle_seconds": 0, "problems": []}
    body = odd if isinstance(odd, str) else json.dumps(ours | odd)

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        (home / "server.json").write_text(json.dumps({"address": address}))
        assert client.serve_status() is None
        server.shutdown()


@pytest.mark.parametrize("pid", [-1, 0, "-1", "x", None, 1e400])
def test_no_signal_goes_to_a_process_that_is_none(
    home: Path, monkeypatch: pytest.MonkeyPatch, pid: Any
) -> None:
    home.mkdir()
    (home / "server.json").write_text(json.dumps({"pid": pid}))
    monkeypatch.setattr(client, "ANNOUNCE_SECONDS", 0.0)
    monkeypatch.setattr(client, "_is_locked", lambda home: True)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    with pytest.raises(PlatformError, match="its process is not known"):
        client.stop_server()


def test_a_server_is_found_by_every_name_of_its_home_and_writes_its_record_again(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = client.start_server(own_home)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(own_home)
    monkeypatch.chdir(own_home.parent)
    for name in (link, own_home / ".." / own_home.name, Path(own_home.name)):
        monkeypatch.setenv("RFTKIT_HOME", str(name))
        with client.connect() as local:
            assert str(local.base_url).startswith(server.address)
    for damage in (
        "",
        "[" * 100_000,
        "[]",
        '"text"',
        '{"address": []}',
        '{"address": "http://127.0.0.1:9 9"}',
    ):
        (own_home / "server.json").write_text(damage)
        assert client.start_server().pid == server.pid
        (own_home / "server.json").write_text(damage)
        refused = serve(own_home)
        assert refused.returncode == 1
        assert "another server uses the home folder" in refused.stderr
    (own_home / "server.json").unlink()
    stopped = client.stop_server()
    assert stopped is not None
    assert stopped.pid == server.pid


def test_another_program_at_the_address_is_no_server(home: Path) -> None:
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:

        def babble() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example.test ESMTP\r\n")

        threading.Thread(target=babble, daemon=True).start()
        address = f"http://127.0.0.1:{other.getsockname()[1]}"
        (home / "server.json").write_text(json.dumps({"address": address}))
        assert client.serve_status() is None


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_program_that_trickles_at_the_address_is_no_server(
    start: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, and the last one never."""
    monkeypatch.setattr(client, "PROBE_SECONDS", 0.2)
    has_ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(start)
                while not has_ended.wait(0.02):
                    connection.sendall(b"x")

        threading.Thread(target=trickle, daemon=True).start()
        assert client._health(f"http://127.0.0.1:{listener.getsockname()[1]}") is None
        has_ended.set()


def test_the_light_process_imports_no_torch() -> None:
    code = "import sys, rftkit.server.http.serving, rftkit.client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_of_two_servers_started_at_once_one_ends_before_it_loads_anything(own_home: Path) -> None:
    """The home is locked first: both used to live for seconds, until all was imported."""
    code = "import sys, rftkit.server.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"uvicorn", "fastapi", "sqlite3.dump", "numpy"} & set(done.stdout.split())

    command = [sys.executable, "-m", "rftkit.server", "--home", str(own_home), "--port", "0"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    deadline = time.monotonic() + 60
    while all(each.poll() is None for each in both):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    [loser] = [each for each in both if each.poll() is not None]
    [winner] = [each for each in both if each is not loser]
    assert loser.returncode == 1
    assert f"uses the home folder {own_home}: process {winner.pid}, " in loser.communicate()[1]
    status = client._awaited(own_home, 60)
    assert status is not None
    assert status.pid == winner.pid
    client.stop_server(own_home)
    winner.communicate(timeout=60)
    assert not (own_home / "server.json").exists()


def test_a_server_that_fails_to_start_leaves_no_record(home: Path) -> None:
    assert serve(home, "--host", "0.0.0.0").returncode == 1
    assert not (home / "server.json").exists()


def test_a_disk_that_is_full_while_the_server_starts_is_said_without_a_traceback(
    home: Path,
) -> None:
    program = (
        "import errno, os, sys\n"
        "from rftkit.server import __main__ as server\n"
        "from rftkit.server.http import serving\n"
        "def serve(home, options):\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "serving.serve = serve\n"
        "sys.exit(server.main(['--home', sys.argv[1]]))\n"
    )
    command = [sys.executable, "-c", program, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "is full" in done.stderr
    assert "Traceback" not in done.stderr
