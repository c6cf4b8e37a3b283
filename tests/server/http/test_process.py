"""The platform as processes: real worker, and what SIGKILL leaves of what was accepted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import openai
import pytest
from conftest import GRADER, ROW, Served

from rftkit import client
from rftkit.server.http.serving import _is_stderr

TOY = Path(__file__).parents[3] / "datasets" / "tiny_copy"
MODEL: Any = "rftkit-tiny"
USER: Any = [{"role": "user", "content": "copy: abc"}]


def test_the_real_worker_answers_many_at_once(platform: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = platform.chat.completions.create(
            model=MODEL, messages=USER, max_completion_tokens=8, seed=seed % 2
        )
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len(set(answers[::2])) == len(set(answers[1::2])) == 1  # one seed, one answer
    chunks = platform.chat.completions.create(
        model=MODEL, messages=USER, max_completion_tokens=8, seed=0, stream=True
    )
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == answers[0]


def test_rows_that_cannot_be_used_fail_the_job(platform: openai.OpenAI) -> None:
    good = platform.files.create(file=("good.jsonl", ROW), purpose="fine-tune")
    cases = {
        b"{broken\n": "bad.jsonl:2: not valid JSON",
        b'{"answer": "x"}\n': "bad.jsonl:2: the row has no `messages`",
        b'{"messages": [{"role": "assistant", "content": "x"}], "answer": "x"}\n':
            "bad.jsonl:2: the last message must be the user's",
        ROW.replace(b"answer", b"label"): "answer",
    }  # fmt: skip
    for line, words in cases.items():
        bad = platform.files.create(file=("bad.jsonl", ROW + line), purpose="fine-tune")
        job = platform.fine_tuning.jobs.create(
            model=MODEL,
            training_file=good.id,
            validation_file=bad.id,
            method={"type": "reinforcement", "reinforcement": {"grader": GRADER}},  # type: ignore[typeddict-item]
        )
        deadline = time.monotonic() + 60
        while job.status in ("validating_files", "queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
            job = platform.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "failed"
        assert job.error is not None
        assert job.error.param == "validation_file"
        assert words in job.error.message
        assert platform.fine_tuning.jobs.checkpoints.list(job.id).data == []
        platform.files.delete(bad.id)


def accept(local: openai.OpenAI, kept: dict[str, Any], number: int) -> None:
    """One round of writes; only what was answered goes into `kept`."""
    content = ROW + b"\n" * number
    file = local.files.create(file=(f"{number}.jsonl", content), purpose="fine-tune")
    kept[file.id] = content
    record = local.evals.create(
        data_source_config={"type": "custom", "item_schema": {"type": "object"}},
        testing_criteria=[GRADER],  # type: ignore[list-item]
    )
    kept[record.id] = record.id


@pytest.mark.parametrize(
    "kills", [2, pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_what_was_accepted_survives_every_kill(home: Path, kills: int) -> None:
    kept: dict[str, Any] = {}
    try:
        for kill in range(kills):
            local = client.connect(max_retries=0)
            server = client.serve_status()
            assert server is not None
            rounds = 3 + kill % 5
            killer = threading.Timer(0.05 * rounds, os.kill, (server.pid, signal.SIGKILL))
            killer.start()
            try:
                for number in range(10_000):
                    accept(local, kept, number)
            except openai.APIConnectionError:
                pass
            killer.join()
        local = client.connect()
        files = {file.id: file for file in local.files.list()}
        evals = {record.id for record in local.evals.list(limit=1000)}
        for object_id, content in kept.items():
            if isinstance(content, bytes):
                assert local.files.content(object_id).read() == content
            else:
                assert object_id in evals
        assert all(local.files.content(file_id).read() for file_id in files)
        assert list((home / "files").rglob("*.part")) == []
    finally:
        client.stop_server()


def test_a_killed_worker_comes_back(platform: openai.OpenAI) -> None:
    pid = _pid_behind(platform)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("needs /proc to find the worker")
    [worker] = children.read_text().split()[:1]
    os.kill(int(worker), signal.SIGKILL)
    answer = platform.with_options(max_retries=8).chat.completions.create(
        model=MODEL, messages=USER, max_completion_tokens=4
    )
    assert answer.choices


@pytest.mark.skipif(os.name != "posix", reason="needs a limit of open files")
def test_a_server_without_file_descriptors_waits_and_says_so_once(home: Path) -> None:
    log = home.parent / "log"
    command = f"ulimit -n 32; exec {sys.executable} -m rftkit.server --home {home} --port 0"
    with log.open("wb") as errors:
        server = subprocess.Popen(["sh", "-c", command], stderr=errors, stdout=errors)
    try:
        status = until(lambda: client.serve_status(home))
        address = urlsplit(status.address)
        held = []
        for _ in range(60):
            held.append(socket.create_connection((address.hostname, address.port), 30))
            held[-1].sendall(b"GET /health HTTP/1.1\r\n")
        until(lambda: "Too many files are open" in log.read_text())
        for connection in held:
            connection.close()
        assert until(lambda: client.serve_status(home)).pid == server.pid
        assert log.read_text().count("oo many") <= 2  # the words, and the system's own
        assert "out of system resource" not in log.read_text()
    finally:
        client.stop_server(home)
        server.wait(60)


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def _pid_behind(local: openai.OpenAI) -> int:
    with urlopen(str(local.base_url).replace("/v1/", "/health")) as response:
        pid: int = json.load(response)["pid"]
    return pid


def test_a_server_knows_whether_it_writes_the_log_of_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "server.log"
    assert not _is_stderr(log)
    with log.open("w") as errors:
        monkeypatch.setattr("sys.stderr", errors)
        assert _is_stderr(log)
        (tmp_path / "other.log").touch()
        assert not _is_stderr(tmp_path / "other.log")


def test_a_failure_names_the_log_that_is_written(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(served.platform.store, "evals", fail)
    served.platform.log_place = "what `rftkit serve` wrote to stderr"
    with pytest.raises(openai.InternalServerError, match=r"see req_.* in what `rftkit serve`"):
        served.client.evals.list()
