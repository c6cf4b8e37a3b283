"""Shared fixtures: an own home for every test, the platform in memory, the platform as a process.

The official `openai` client drives both platforms; where the model worker is not the point, a
`FakeLink` answers in its place.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import openai
import pytest

from rftkit import client as rftkit_client
from rftkit.server.worker.worker import Worker

GRADER = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
ROW = b'{"messages": [{"role": "user", "content": "say hi"}], "answer": "hi"}\n'


def pytest_configure() -> None:
    """A shell that starts the tests in the background has them ignore Ctrl-C, and what they start
    inherits that: the tests of interrupts would wait for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty RFTKIT_HOME; nothing of the outside environment reaches a test."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "RFTKIT_API_KEY", "RFTKIT_MODE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("RFTKIT_HOME", str(folder))
    return folder


@dataclass
class FakeLink:
    """A worker that answers at once with what `say` returns for a request."""

    say: Callable[[dict[str, Any]], Any] = lambda request: "hello"
    requests: list[dict[str, Any]] = field(default_factory=list)
    wakes: int = 0
    aborted: int = 0

    def wake(self) -> None:
        self.wakes += 1

    def end_chats(self, reason: str) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def chat(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        self.requests.append(request)
        if request.get("task") == "count":
            yield {"done": {"prompt_tokens": 3}}
            return
        if request.get("task") == "embed":
            vectors = [[float(len(text)), 1.0] for text in request["input"]]
            yield {"done": {"prompt_tokens": 3, "embeddings": vectors}}
            return
        completions = []
        for index in range(request["n"]):
            said = self.say(request)
            if isinstance(said, Exception):
                raise said
            completion = said if isinstance(said, dict) else {"text": said}
            completion = {
                "index": index, "stop_reason": "stop", "tokens": len(completion["text"]),
                "reasoning_tokens": 0, "tool_calls": None, "logprobs": None, **completion,
            }  # fmt: skip
            completions.append(completion)
            if request["stream"]:
                for word in completion["text"].split(" "):
                    yield {"delta": {"index": index, "text": word}}
        yield {"done": {"prompt_tokens": 3, "completions": completions}}


@dataclass
class Served:
    """A platform in memory and what is behind it."""

    client: openai.OpenAI
    http: Any
    platform: Any
    link: FakeLink

    def upload(self, content: bytes = ROW, **options: Any) -> str:
        """The id of a fine-tune file."""
        file = self.client.files.create(
            file=("rows.jsonl", content), purpose="fine-tune", **options
        )
        return file.id

    def create_job(self, **changes: Any) -> Any:
        """A job that asks for nothing unusual."""
        file_id = self.upload()
        body: dict[str, Any] = {
            "model": "rftkit-tiny",
            "training_file": file_id,
            "validation_file": file_id,
            "method": {"type": "reinforcement", "reinforcement": {"grader": GRADER}},
        }
        return self.client.fine_tuning.jobs.create(**{**body, **changes})


@contextmanager
def serving(wrap: Callable[[Any], Any] = lambda app: app, path: str = "/v1") -> Iterator[Served]:
    """The real application in this process, its store in memory, its worker a `FakeLink`.

    `wrap` may put something between the client and the application, which then answers at `path`.
    """
    from starlette.testclient import TestClient

    from rftkit.server.http.app import create_app
    from rftkit.server.inference.platform import Platform
    from rftkit.server.store.store import Store

    link = FakeLink()
    platform = Platform(store=Store.open(None), worker=link)
    at = {"base_url": "http://localhost", "client": ("127.0.0.1", 50_000)}
    with TestClient(wrap(create_app(platform)), **at) as http:
        client = openai.OpenAI(
            base_url=f"http://localhost{path}", api_key="local", http_client=http, max_retries=0
        )
        yield Served(client, http, platform, link)
    platform.store.close()


@pytest.fixture
def served() -> Iterator[Served]:
    """See `serving`."""
    with serving() as found:
        yield found


@pytest.fixture
def app_client(served: Served) -> openai.OpenAI:
    """The official client of `served`."""
    return served.client


@pytest.fixture(scope="session")
def made_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `models` folder with `rftkit-tiny`, made once for all processes that run tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    program = (
        "import pathlib, sys; from rftkit.server.engine import models; "
        "models.prepare(models.BUNDLED['rftkit-tiny'], pathlib.Path(sys.argv[1]))"
    )
    with filelock.FileLock(folder / "made.lock"):
        if not (folder / "made").is_dir():
            subprocess.run([sys.executable, "-c", program, str(folder / "made")], check=True)
    return folder / "made" / "models"


@pytest.fixture
def tiny(home: Path, made_models: Path) -> Path:
    """The folder of `rftkit-tiny` in the home of the test."""
    shutil.copytree(made_models, home / "models")
    [folder] = (home / "models").glob("rftkit-tiny-*")
    return folder


@pytest.fixture
def worker(home: Path, tiny: Path) -> Iterator[Worker]:
    """A worker without its process; `in_process` gives it jobs on `rftkit-tiny`."""
    worker = Worker(home, lambda message: None)
    yield worker
    worker.store.close()


@pytest.fixture(scope="session")
def platform(
    tmp_path_factory: pytest.TempPathFactory, made_models: Path
) -> Iterator[openai.OpenAI]:
    """The official client of a real server process with its real worker, one for the session."""
    folder = tmp_path_factory.mktemp("platform")
    shutil.copytree(made_models, folder / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFTKIT_HOME", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")  # tiny models wait for threads more than they compute
        patch.delenv("OPENAI_BASE_URL", raising=False)
        client = rftkit_client.connect()
    with client:
        yield client
    rftkit_client.stop_server(folder)
