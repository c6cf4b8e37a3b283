"""What many watchers cost a job, and how fast a long story is listed.

    python tests/benchmarks/pollers.py                      # 200 clients, smollm2, minutes
    python tests/benchmarks/pollers.py --model rftkit-tiny --clients 20 --rounds 1    # to try it

Two platforms on this machine: one trains, one is idle. One light generator process polls 20 events
for each of its clients every five seconds: in one phase the idle platform, in the other the one
that trains; the job is the same. The ratio of the steps' median seconds is what polling costs,
without what the generator itself takes from the machine. Last, 20 of 100,000 events are listed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from rftkit import client, settings
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store, new_id, now

TOY = Path(__file__).parents[2] / "datasets" / "tiny_copy"
EVERY_SECONDS = 5.0


async def poll(address: str, path: str, number: int, total: int, seen: dict[str, Any]) -> None:
    """One client: the newest events, every five seconds, over one kept connection."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    request = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode()
    await asyncio.sleep(EVERY_SECONDS * number / total)
    reader, writer = await asyncio.open_connection(host, port)
    while True:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        took = time.perf_counter() - began
        seen["seconds"].append(took)
        seen["errors"] += not head.startswith(b"HTTP/1.1 200")
        await asyncio.sleep(max(0.0, EVERY_SECONDS - took))


async def generate(address: str, path: str, clients: int) -> None:
    """Poll until stdin ends; then say what was seen."""
    seen: dict[str, Any] = {"seconds": [], "errors": 0}
    tasks = [asyncio.create_task(poll(address, path, n, clients, seen)) for n in range(clients)]
    await asyncio.to_thread(sys.stdin.read)
    broken = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    seconds = sorted(seen["seconds"]) or [0.0]
    print(
        json.dumps(
            {
                "requests": len(seen["seconds"]),
                "errors": seen["errors"] + len(broken),
                "median_ms": 1000 * statistics.median(seconds),
                "p99_ms": 1000 * seconds[int(0.99 * (len(seconds) - 1))],
            }
        )
    )


def start(home: Path) -> str:
    """A platform's address."""
    return client.start_server(home, idle_minutes=None).address


def connect(address: str) -> openai.OpenAI:
    """A client that uses no proxy."""
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{address}/v1", api_key="x", http_client=http)


def create(local: openai.OpenAI, model: Any, steps: int) -> str:
    """A job of so many steps; its id."""
    lines = (TOY / "train.jsonl").read_bytes().splitlines(keepends=True)
    files = [
        local.files.create(file=("rows.jsonl", b"".join(rows)), purpose="fine-tune").id
        for rows in (lines[: 8 * steps], lines[:2])
    ]
    method: Any = {
        "grader": json.loads((TOY / "grader.json").read_text()),
        "hyperparameters": {"batch_size": 8, "n_epochs": 1, "eval_interval": steps},
    }
    return local.fine_tuning.jobs.create(
        model=model, seed=1, training_file=files[0], validation_file=files[1],
        method={"type": "reinforcement", "reinforcement": method},
        metadata={"max_completion_tokens": "32"},
    ).id  # fmt: skip


def seconds_of_steps(local: openai.OpenAI, job_id: str) -> list[float]:
    """Once the job has ended: seconds of each of its steps but the first and the last."""
    while (job := local.fine_tuning.jobs.retrieve(job_id)).status != "succeeded":
        assert job.status not in ("failed", "cancelled"), job.error
        time.sleep(0.5)
    steps = {}
    for event in local.fine_tuning.jobs.list_events(job_id, limit=100):
        data: Any = event.data
        if event.type == "metrics":
            timing = data["timing"]["step"]
            steps[data["step"]] = timing["sampling"] + timing["training"]
    return [steps[step] for step in sorted(steps)[2:-1]]


def phase(trains: str, polled: str, idle_job: str | None, options: Any) -> tuple[list[float], Any]:
    """Train once while a generator polls; the steps' seconds and what the generator saw."""
    local = connect(trains)
    job_id = create(local, options.model, options.steps)
    path = f"/v1/fine_tuning/jobs/{idle_job or job_id}/events?limit=20"
    generator = subprocess.Popen(
        [sys.executable, __file__, "--generate", polled, path, "--clients", str(options.clients)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    seconds = seconds_of_steps(local, job_id)
    said, _ = generator.communicate()
    return seconds, json.loads(said)


def compare(options: Any) -> None:
    """Polling a platform that trains against polling one that does not."""
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder) / name for name in ("trains", "idle")]
        for home in homes:
            if options.models:
                shutil.copytree(options.models, home / "models")
        trains, idle = map(start, homes)
        try:
            told = connect(idle)
            idle_job = create(told, "rftkit-tiny", 20)
            seconds_of_steps(told, idle_job)
            phase(trains, idle, idle_job, options)  # warms up
            found: dict[str, list[float]] = {"idle": [], "training": []}
            for _ in range(options.rounds):
                for name, polled, job in (("idle", idle, idle_job), ("training", trains, None)):
                    seconds, seen = phase(trains, polled, job, options)
                    found[name] += seconds
                    median = statistics.median(seconds)
                    print(f"polling the {name} one: {median:.3f} s a step, {seen}", flush=True)
            ratio = statistics.median(found["training"]) / statistics.median(found["idle"])
            print(f"steps took {ratio:.3f} times as long while their own platform was polled")
        finally:
            for home in homes:
                client.stop_server(home)


def list_events(options: Any) -> None:
    """20 of very many events."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        store = Store.open(home)
        job = store.add_job(
            Job(
                id=new_id("ftjob-"), created_at=now(), status="cancelled", model="rftkit-tiny",
                seed=1, training_file="f", validation_file="f",
                method={"reinforcement": {"grader": {}}},
            )
        )  # fmt: skip
        with store.transaction():
            for number in range(options.events):
                data = {"step": number, "scores": {"train_reward_mean": 0.5}}
                store.add_event(job.id, f"Step {number}", type="metrics", data=data)
        store.close()
        address = start(home)
        try:
            local, took = connect(address), []
            for _ in range(200):
                began = time.perf_counter()
                assert len(local.fine_tuning.jobs.list_events(job.id, limit=20).data) == 20
                took.append(time.perf_counter() - began)
            print(
                f"20 of {options.events} events: {1000 * statistics.median(took):.1f} ms at the "
                "median, by the client's clock"
            )
        finally:
            client.stop_server(home)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--models", type=Path, help="a `models` folder to copy: no conversion")
    parser.add_argument("--only", choices=("pollers", "events"))
    parser.add_argument("--generate", nargs=2, metavar=("ADDRESS", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        asyncio.run(generate(*options.generate, options.clients))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no platform is left behind
    os.environ.update(settings.child_environment())
    if options.only != "events":
        compare(options)
    if options.only != "pollers":
        list_events(options)


if __name__ == "__main__":
    main()
