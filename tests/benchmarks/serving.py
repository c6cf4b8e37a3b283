"""Chats beside each other and beside a job, as ratios. Makes no claim about other machines.

    python tests/benchmarks/serving.py --clients 1 4 --steps 30
    python tests/benchmarks/serving.py --model smollm2-135m-instruct --clients 2 4 8 --steps 0

First, so many chats at once: sampled together (what the platform does), in turns of 50 ms, and one
after the other; and whether they say the same. Then a job alone, and with so many clients that each
ask again as soon as they are answered: by design (`ChatQueue`) the job keeps at least half of the
time, so its steps take at most about twice as long, however many clients there are, and a chat
waits for its first token for no longer than a piece of the job that nothing interrupts, and the
reading of the prompts before it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from in_process import ROWS, add_job, run

from rftkit.server.engine.base import Sampling, ServingEngine
from rftkit.server.engine.values import Completion, SampleRequest
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.worker.chats import TURN_SECONDS
from rftkit.server.worker.worker import Worker

TOKENS = 48


class Heard:
    """The completion of one request; see base.Listener."""

    streams = False

    def __init__(self) -> None:
        self.said: Completion | None = None

    def on_text(self, index: int, text: str) -> None: ...

    def on_completion(self, index: int, completion: Completion) -> None:
        self.said = completion

    def on_failure(self, error: Exception) -> None:
        raise error


Way = Callable[[ServingEngine, list[SampleRequest], list[Heard]], None]


def _finish(*samplings: Sampling) -> None:
    left = list(samplings)
    while left:
        left = [each for each in left if each.advance(TURN_SECONDS, lambda: False)]


def together(engine: ServingEngine, requests: list[SampleRequest], heard: list[Heard]) -> None:
    """One batch; each chat joins a token after the one before."""
    sampling = engine.begin(None)
    for number, each in enumerate(zip(requests, heard, strict=True)):
        sampling.join(number, *each)
        sampling.advance(0.0, lambda: False)
    _finish(sampling)


def in_turns(engine: ServingEngine, requests: list[SampleRequest], heard: list[Heard]) -> None:
    """A batch for each chat, in turns."""
    samplings = [engine.begin(None) for _ in requests]
    for sampling, *each in zip(samplings, requests, heard, strict=True):
        sampling.join(0, *each)
    _finish(*samplings)


def alone(engine: ServingEngine, requests: list[SampleRequest], heard: list[Heard]) -> None:
    """One after the other."""
    for each in zip(requests, heard, strict=True):
        sampling = engine.begin(None)
        sampling.join(0, *each)
        _finish(sampling)


def chats_at_once(engine: ServingEngine, num: int, temperature: float) -> str:
    """A line on so many chats."""
    requests = [
        SampleRequest(
            engine.encode([{"role": "user", "content": f"Write {number + 2} words on the sea."}]),
            [(number,)],
            TOKENS,
            temperature=temperature,
        )
        for number in range(num)
    ]
    ways: tuple[Way, ...] = (alone, in_turns, together)
    seconds, said = {}, {}
    for way in ways:
        heard = [Heard() for _ in requests]
        since = time.perf_counter()
        way(engine, requests, heard)
        seconds[way], said[way] = time.perf_counter() - since, [each.said for each in heard]
    same = sum(a == b for a, b in zip(said[alone], said[together], strict=True))
    return (
        f"{num} chats at temperature {temperature:g}: one after the other they take "
        f"{seconds[alone] / seconds[together]:.2f} times as long as together, in turns "
        f"{seconds[in_turns] / seconds[together]:.2f} times; {same} of {num} have the same tokens "
        "and log-probs, bit for bit"
    )


def beside_a_job(worker: Worker, model: str, clients: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of a job, and the seconds that each chat waited for its first token."""
    asked: dict[int, float] = {}
    waits: list[float] = []
    number = 0

    def ask() -> None:
        nonlocal number
        number += 1
        asked[number] = time.perf_counter()
        request = ChatRequest(model, ROWS[0]["messages"], max_tokens=TOKENS, stream=True)
        worker.chats.put(number, request)

    def answered(message: dict[str, Any]) -> None:
        since = asked.pop(message.get("id", 0), None)
        if since is not None:
            waits.append(time.perf_counter() - since)
        if "done" in message:
            ask()

    worker.chats._send = answered
    for _ in range(clients):
        ask()
    since = time.perf_counter()
    job = add_job(
        worker, model=model, batch_size=4, n_epochs=max(1, steps // 2), eval_interval=steps
    )
    run(worker, job)
    seconds = time.perf_counter() - since
    worker.chats._send = lambda message: None
    worker.chats.serve()
    return seconds, sorted(waits)


def main() -> None:
    """Print a line for each number of chats or clients."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="rftkit-tiny")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=30, help="of the job; 0: no job")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        worker = Worker(Path(home), lambda message: None)
        engine = worker.engines.get(options.model)
        chats_at_once(engine, 2, 1.0)  # the first products pack the weights
        for num in options.clients:
            for temperature in (0.0, 1.0):
                print(chats_at_once(engine, num, temperature), flush=True)
        if options.steps:
            seconds, _ = beside_a_job(worker, options.model, 0, options.steps)
            print(f"a job alone: {options.steps / seconds * 60:.0f} steps a minute", flush=True)
            step = seconds / options.steps
            for clients in options.clients:
                took, waits = beside_a_job(worker, options.model, clients, options.steps)
                print(
                    f"{clients} clients: a step takes {took / seconds:.2f} times as long; a first "
                    f"token comes after {sum(waits) / len(waits) / step:.2f} of a step alone, at "
                    f"most {waits[-1] / step:.2f}",
                    flush=True,
                )
        worker.store.close()


if __name__ == "__main__":
    main()
