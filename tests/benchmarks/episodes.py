"""What episodes cost: many turns against the same tokens in one turn, and the wait for a tool.

    python tests/benchmarks/episodes.py [--model smollm2-135m-instruct] [--seconds 0.2]

Sequences of the same lengths are sampled twice: in one turn, and in three turns with results in
between that are as long as a turn. The lengths of turns are set by token limits, not by the model,
so that both sample the same number of tokens; a second of sampling is one of the same machine.
Figures are in README.md here. Not a test: nothing fails when it is slow.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rftkit.server.engine import models
from rftkit.server.engine.torch import completions
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import Completion, Observation, SampleRequest

GROUP = 8
TURNS = 3
LENGTHS = (16, 20, 24, 28, 32, 36, 40, 44)
"""Tokens of a turn, by the number of the completion."""
TEXT = "Answer from the policy only. " * 12 + "Question {}: may a visitor keep a badge overnight?"


class Tool:
    """Answers every turn but the last with tokens of about a turn's length, after a while."""

    def __init__(self, seconds: float, filler: list[int]) -> None:
        self.seconds, self.filler, self.idle, self.calls = seconds, filler, 0.0, 0

    def respond(self, request: int, index: int, completion: Completion) -> Future[Any] | None:
        if len(completion.turns) + 1 >= TURNS:
            return None
        self.calls += 1
        future: Future[Any] = Future()
        if not self.seconds:
            future.set_result(None)
            return future
        timer = threading.Timer(self.seconds, future.set_result, [None])
        timer.daemon = True
        timer.start()
        return future

    def observe(self, request: int, index: int, completion: Completion, answer: Any) -> Observation:
        return Observation(self.filler[: LENGTHS[-1 - index]])

    def waited(self, seconds: float) -> None:
        self.idle += seconds


def end_turns_at(lengths: Any) -> None:
    """Let turns end after so many tokens instead of at an end token."""

    def end(policy: Any, row: Any) -> None:
        sampled = len(row.tokens) - row.begins
        if row.completion is None and sampled >= lengths(row):
            row.completion = Completion(row.tokens, "", row.logprobs, "stop", turns=row.turns)

    completions._end = end  # type: ignore[assignment]


def requests(engine: TorchEngine, num: int) -> list[SampleRequest]:
    prompts = [engine.encode([{"role": "user", "content": TEXT.format(i)}]) for i in range(num)]
    return [
        SampleRequest(prompt, [(i, g) for g in range(GROUP)], 400, room=1000)
        for i, prompt in enumerate(prompts)
    ]


def timed(engine: TorchEngine, asked: list[SampleRequest], tool: Tool | None) -> tuple[float, int]:
    started = time.perf_counter()
    answers = engine.sample(asked, None, environment=tool)
    tokens = sum(len(each.tokens) for group in answers for each in group)
    return time.perf_counter() - started, tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--home", type=Path, required=True, help="a RFTKIT_HOME with the model")
    given = parser.parse_args()
    folder = models.prepare(models.find_base(given.model, given.home), given.home, print)
    engine = TorchEngine(folder, name=given.model)
    asked = requests(engine, given.prompts)
    filler = engine.encode([{"role": "user", "content": TEXT.format(0)}])[8:]
    whole = [dataclasses.replace(each, room=None) for each in asked]

    def in_turns(row: Any) -> int:
        return LENGTHS[row.index]

    def in_one(row: Any) -> int:
        return TURNS * LENGTHS[row.index] + (TURNS - 1) * LENGTHS[-1 - row.index]

    found: dict[str, list[float]] = {"one": [], "turns": [], "tool": [], "busy": []}
    for repeat in range(given.repeats + 1):
        end_turns_at(in_one)
        one, tokens = timed(engine, whole, None)
        end_turns_at(in_turns)
        turns, same = timed(engine, asked, Tool(0.0, filler))
        tool = Tool(given.seconds, filler)
        slow, _ = timed(engine, asked, tool)
        assert tokens == same, (tokens, same)
        if repeat:  # the first warms up
            for name, value in (("one", one), ("turns", turns), ("tool", slow)):
                found[name].append(value)
            found["busy"].append(1 - tool.idle / slow)
            print(f"one turn {one:.2f} s, {TURNS} turns {turns:.2f} s, with a tool {slow:.2f} s, "
                  f"of which it waited {tool.idle:.2f} s", flush=True)  # fmt: skip
    one, turns, busy = (statistics.median(found[name]) for name in ("one", "turns", "busy"))
    print(f"{tokens:,} tokens, {given.prompts} × {GROUP} episodes of {TURNS} turns")
    print(f"{turns / one:.2f} times the seconds of one turn")
    print(f"with a tool of {given.seconds:g} s the processor is busy {busy:.0%} of the time")


if __name__ == "__main__":
    main()
