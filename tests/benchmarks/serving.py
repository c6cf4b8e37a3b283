"""Chats beside a job: what each costs the other, as ratios. Makes no claim about other machines.

    python tests/benchmarks/serving.py --clients 1 4 --steps 30

Runs one job of `rftkit-tiny` alone, then with so many clients that each ask again as soon as they
are answered. By design (`ChatQueue`) the job keeps at least half of the time, so its steps take at
most about twice as long, however many clients there are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from in_process import ROWS, add_job, run

from rftkit.server.inference.requests import ChatRequest
from rftkit.server.worker.worker import Worker


def measured(worker: Worker, clients: int, steps: int) -> tuple[float, float | None]:
    """Seconds of a job, and the mean seconds that a chat waited for its first token."""
    asked: dict[int, float] = {}
    waits: list[float] = []
    number = 0

    def ask() -> None:
        nonlocal number
        number += 1
        asked[number] = time.perf_counter()
        messages = ROWS[0]["messages"]
        worker.chats.put(number, ChatRequest("rftkit-tiny", messages, max_tokens=64, stream=True))

    def answered(message: dict[str, Any]) -> None:
        since = asked.pop(message.get("id", 0), None)
        if since is not None:
            waits.append(time.perf_counter() - since)
        if "done" in message:
            ask()

    worker.chats._send = answered
    for _ in range(clients):
        ask()
    started = time.perf_counter()
    run(worker, add_job(worker, batch_size=4, n_epochs=max(1, steps // 2), eval_interval=steps))
    seconds = time.perf_counter() - started
    worker.chats._send = lambda message: None
    worker.chats.serve()
    return seconds, sum(waits) / len(waits) if waits else None


def main() -> None:
    """Print a line for each number of clients."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        worker = Worker(Path(home), lambda message: None)
        worker.engines.get("rftkit-tiny")
        alone, _ = measured(worker, 0, options.steps)
        print(f"alone: {options.steps / alone * 60:.0f} steps a minute")
        for clients in options.clients:
            seconds, wait = measured(worker, clients, options.steps)
            step = seconds / options.steps
            print(
                f"{clients} clients: a step takes {seconds / alone:.2f} times as long; a first "
                f"token comes after {(wait or 0.0) / step:.2f} of a step"
            )
        worker.store.close()


if __name__ == "__main__":
    main()
