"""SIGKILL of server and worker, pauses, a full disk: nothing lost, nothing done twice.

Counted from outside: each grade by the HTTP server that gives it, each call of the engine by a
tally beside the platform. The journal is not asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from rftkit import client

TOY = Path(__file__).parents[3] / "datasets" / "tiny_copy"
GRADES_AT_ONCE = 8
"""Most grades of an endpoint under way at the same time: those a kill may repeat."""


class Counting(BaseHTTPRequestHandler):
    """Grades answers and counts."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.grades += 1  # type: ignore[attr-defined]
        self.server.beside += self.server.is_sampling()  # type: ignore[attr-defined]
        said, wanted = asked["sample"]["output_text"], asked["item"]["answer"]
        score = sum(a == b for a, b in zip(said, wanted, strict=False)) / max(len(wanted), 1)
        body = json.dumps({"score": score}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


class Platform:
    """A platform that is started again whenever it was killed."""

    def __init__(self, home: Path, tally: Path, grader: ThreadingHTTPServer) -> None:
        self.home, self._tally, self._grader = home, tally, grader
        self._process: subprocess.Popen[bytes] | None = None
        self._client: openai.OpenAI | None = None
        grader.grades = grader.beside = 0  # type: ignore[attr-defined]
        grader.is_sampling = self.is_sampling  # type: ignore[attr-defined]

    def connect(self) -> openai.OpenAI:
        """A client of the running server; it is started when it does not run."""
        if self._client is not None and self._process and self._process.poll() is None:
            return self._client
        deadline = time.monotonic() + 120
        while (server := client.serve_status(self.home)) is None:
            assert time.monotonic() < deadline
            if self._process is None or self._process.poll() is not None:
                self._start()
            time.sleep(0.1)
        self._client = openai.OpenAI(
            base_url=server.base_url, api_key="x", max_retries=2, timeout=120,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )  # fmt: skip
        return self._client

    def _start(self) -> None:
        command = [sys.executable, str(Path(__file__).parents[2] / "counting_server.py")]
        self._process = subprocess.Popen(
            [*command, "--home", str(self.home), "--port", "0"],
            env={**os.environ, "TALLY": str(self._tally), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def job(self, model: str, **given: Any) -> Any:
        """A small job whose grades come from the counter."""
        local = self.connect()
        metadata = {"max_completion_tokens": "6", "lora_rank": "4", **given.pop("metadata", {})}
        lines = given.pop("lines", None)
        lines = lines or (TOY / "train.jsonl").read_bytes().splitlines(keepends=True)
        files = [
            local.files.create(file=("rows.jsonl", b"".join(rows)), purpose="fine-tune").id
            for rows in (lines[: given.pop("rows", 32)], lines[-4:])
        ]
        url = f"http://127.0.0.1:{self._grader.server_port}/"
        reinforcement: Any = {
            "grader": {"type": "endpoint", "name": "counter", "url": url},
            "hyperparameters": {"batch_size": 4, "n_epochs": 1, "eval_interval": 3, **given},
        }
        return local.fine_tuning.jobs.create(
            model=model, seed=5, training_file=files[0], validation_file=files[1],
            method={"type": "reinforcement", "reinforcement": reinforcement},
            metadata=metadata,
        )  # fmt: skip

    def finish(self, job: Any, disturb: Callable[[Any], None] = lambda job: None) -> Any:
        """Wait for the end of a job; `disturb` is called at every look."""
        deadline = time.monotonic() + 900
        while job.status not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline, job.status
            time.sleep(0.2)
            with contextlib.suppress(openai.APIConnectionError):  # killed a moment ago
                job = self.connect().fine_tuning.jobs.retrieve(job.id)
                disturb(job)
        return job

    def kill(self, who: str) -> None:
        """SIGKILL the server, its worker, or both."""
        server = client.serve_status(self.home)
        if server is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(server.pid)
            workers = [c for c in parent.children() if "--worker" in c.cmdline()]
            for process in workers * (who != "server") + [parent] * (who != "worker"):
                process.send_signal(signal.SIGKILL)

    def is_sampling(self) -> bool:
        """Whether a call of the engine has begun and not ended."""
        said = self._tally.read_text() if self._tally.exists() else ""
        return said.count("begun") > said.count("done")

    def counts(self) -> tuple[int, int, int]:
        """Grades given, calls of the engine begun, and calls that ended; then all are forgotten."""
        lines = self._tally.read_text().splitlines() if self._tally.exists() else []
        said = [json.loads(line)[0] for line in lines]
        grades: int = self._grader.grades  # type: ignore[attr-defined]
        self._grader.grades = 0  # type: ignore[attr-defined]
        self._tally.unlink(missing_ok=True)
        return grades, said.count("begun"), said.count("done")

    def adapters(self, job: Any) -> dict[str, bytes]:
        """All weights that a job has left, by their place."""
        root = self.home / "jobs" / job.id / "checkpoints"
        return {path.parent.name: path.read_bytes() for path in root.glob("*/*.safetensors")}

    def stop(self) -> None:
        """End it, and its worker."""
        client.stop_server(self.home)
        if self._process is not None:
            self._process.wait(60)


@pytest.fixture
def grader() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def platform(
    home: Path, tmp_path: Path, made_models: Path, grader: ThreadingHTTPServer
) -> Iterator[Platform]:
    shutil.copytree(made_models, home / "models")
    platform = Platform(home, tmp_path / "tally", grader)
    yield platform
    platform.stop()


TINY = pytest.param("rftkit-tiny", 5, {"rows": 36})
TINY_IN_FULL = pytest.param("rftkit-tiny", 3, {"rows": 36, "metadata": {"tuning": "full"}})
TINY_SLOWLY = pytest.param(
    "rftkit-tiny", 50, {"rows": 128}, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]
)
SMOLLM2 = pytest.param(
    "smollm2-135m-instruct", 5, {"rows": 8, "batch_size": 2, "compute_multiplier": 0.25},
    marks=[pytest.mark.slow, pytest.mark.timeout(1800)],
)  # fmt: skip


@pytest.mark.parametrize(("model", "kills", "given"), [TINY, TINY_IN_FULL, TINY_SLOWLY, SMOLLM2])
def test_kills_and_pauses_lose_nothing_and_repeat_at_most_what_was_under_way(
    platform: Platform, model: str, kills: int, given: Any
) -> None:
    chance = random.Random(kills)
    calm = platform.finish(platform.job(model, **given))
    assert calm.status == "succeeded", calm.error
    grades, begun, done = platform.counts()
    assert begun == done
    left = kills
    while left:  # a job is over after a while: go on with the next one
        due = [time.monotonic()]

        def disturb(job: Any, due: list[float] = due) -> None:
            nonlocal left
            if left and job.status == "running" and time.monotonic() > due[0]:
                platform.kill(chance.choice(["server", "worker", "both"]))
                left -= 1
                due[0] = time.monotonic() + chance.uniform(0.5, 4.0)

        before = left
        job = platform.finish(platform.job(model, **given), disturb)
        here = before - left
        assert job.status == "succeeded", job.error
        assert platform.adapters(job) == platform.adapters(calm) != {}
        graded, started, ended = platform.counts()
        assert grades <= graded <= grades + here * GRADES_AT_ONCE
        assert begun <= started <= begun + here
        assert ended <= started
        events = platform.connect().fine_tuning.jobs.list_events(job.id, limit=100).data
        steps = [event.data["step"] for event in events if event.type == "metrics"]
        assert steps == sorted(set(steps), reverse=True)
        assert steps[-1] == 0

    asked: list[str] = []

    def pause(job: Any) -> None:
        jobs = platform.connect().fine_tuning.jobs
        if job.status == "running" and len(asked) < 3:
            with contextlib.suppress(openai.BadRequestError):  # it may have ended by now
                jobs.pause(job.id)
                asked.append(job.id)
        elif str(job.status) == "paused":
            jobs.resume(job.id)

    job = platform.finish(platform.job(model, **given), pause)
    assert job.status == "succeeded", job.error
    assert asked
    assert platform.counts() == (grades, begun, done)  # a pause repeats nothing at all
    kept = platform.adapters(job)
    assert {name: kept[name] for name in platform.adapters(calm)} == platform.adapters(calm)


def test_grades_are_given_while_the_rest_of_a_step_is_sampled(
    platform: Platform, grader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["g", "ab", "fed", "gabe"] * 2  # as long as what the model will say
    rows = [
        {"messages": [{"role": "user", "content": f"copy: {answer}"}], "answer": answer}
        for answer in answers
    ]
    monkeypatch.setenv("TOKEN_SECONDS", "0.05")
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    job = platform.finish(platform.job("rftkit-tiny", lines=lines))
    assert job.status == "succeeded", job.error
    assert grader.beside > 0


@pytest.fixture
def small_disk(home: Path, made_models: Path) -> Iterator[Path]:
    """A home on a file system of its own of a few megabytes."""
    home.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(home)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.decode()[:200]}")
    shutil.copytree(made_models, home / "models")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=False)


def test_a_full_disk_stops_a_job_only_as_long_as_it_is_full(
    small_disk: Path, tmp_path: Path, grader: ThreadingHTTPServer
) -> None:
    platform = Platform(small_disk, tmp_path / "tally", grader)
    try:
        calm = platform.finish(platform.job("rftkit-tiny"))
        grades, begun, _ = platform.counts()
        job = platform.job("rftkit-tiny")
        kept = platform.connect().files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
        while not any((small_disk / "jobs" / job.id / "steps").glob("*")):
            time.sleep(0.02)
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        patient = platform.connect().with_options(max_retries=0)
        with pytest.raises(openai.InternalServerError, match=r"No space|full"):
            patient.files.create(file=("b.jsonl", b"y" * 100_000), purpose="fine-tune")
        time.sleep(3)
        assert platform.connect().fine_tuning.jobs.retrieve(job.id).status == "running"
        ballast.unlink()
        done = platform.finish(job)
        assert done.status == "succeeded", done.error
        assert platform.adapters(done) == platform.adapters(calm)
        local = platform.connect()
        assert local.files.content(kept.id).read() == b"{}"
        assert "b.jsonl" not in [file.filename for file in local.files.list()]
        graded, started, _ = platform.counts()
        waits = 4  # tries while it was full
        assert grades <= graded <= grades + waits * GRADES_AT_ONCE
        assert begun <= started <= begun + waits
    finally:
        platform.stop()
