"""Chats beside chats and beside training: who waits for whom; nobody waits for the gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from in_process import ROWS, adapters, add_job, run

from rftkit.server.engine.base import Completion
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.worker import chats
from rftkit.server.worker.worker import Worker

Answers = list[dict[str, Any]]


def ask(worker: Worker, number: int, *, model: str = "rftkit-tiny", tokens: int = 3) -> None:
    """A chat that takes all its tokens; a digit never ends an answer."""
    schema = {"type": "string", "pattern": f"^[0-9]{{{tokens}}}$"}
    format_ = {"type": "json_schema", "json_schema": {"name": "digits", "schema": schema}}
    worker.chats.put(
        number,
        ChatRequest(
            model, ROWS[0]["messages"], max_tokens=tokens, response_format=format_, seed=number
        ),
    )


@pytest.fixture
def answers(worker: Worker) -> Answers:
    found: Answers = []
    worker.chats._send = found.append
    return found


def ended(answers: Answers) -> list[int]:
    return [message["id"] for message in answers if "done" in message]


def test_a_short_chat_does_not_wait_for_a_long_one(worker: Worker, answers: Answers) -> None:
    ask(worker, 1, tokens=60)
    worker.chats.serve(0.0)
    ask(worker, 2, tokens=3)
    worker.chats.serve()
    assert ended(answers) == [2, 1]


def test_a_chat_of_another_model_does_not_wait_for_a_long_one(
    worker: Worker, answers: Answers
) -> None:
    job = run(worker, add_job(worker, n_epochs=1))
    assert job.fine_tuned_model is not None
    ask(worker, 1, tokens=60)
    worker.chats.serve(0.0)
    ask(worker, 2, model=job.fine_tuned_model, tokens=3)
    worker.chats.serve()
    assert ended(answers) == [2, 1]


def test_chats_say_the_same_alone_and_between_others(worker: Worker, answers: Answers) -> None:
    for number in (1, 2, 3):
        ask(worker, number, tokens=20)
        worker.chats.serve()
    alone = {message["id"]: message["done"] for message in answers if "done" in message}
    answers.clear()
    for number in (1, 2, 3):
        ask(worker, number, tokens=20)
        worker.chats.serve(0.0)
    worker.chats.serve()
    assert {message["id"]: message["done"] for message in answers if "done" in message} == alone


def test_hanging_up_ends_the_sampling(worker: Worker, answers: Answers) -> None:
    ask(worker, 1, tokens=60)
    ask(worker, 2, tokens=60)
    ask(worker, 3, tokens=3)
    worker.chats.serve(0.0)
    worker.chats.abort(1)  # in a batch that is sampled
    ask(worker, 4)
    worker.chats.abort(4)  # before it was begun
    worker.chats.serve()
    assert sorted(ended(answers)) == [2, 3]
    ask(worker, 5, tokens=60)
    worker.chats.serve(0.0)
    worker.chats.abort(5)
    worker.chats.serve(0.0)
    assert not worker.chats.serve(0.0)  # nothing is left to do
    assert 5 not in ended(answers)


def test_a_judge_that_nobody_waits_for_is_not_sampled_on(worker: Worker) -> None:
    from rftkit.graders.calls import Abandoned, Calls

    calls, failures = Calls(), []
    request = ChatRequest("rftkit-tiny", ROWS[0]["messages"], max_tokens=60)

    def judge() -> None:
        try:
            calls.run(lambda: worker.chats.ask(request), 60)
        except Abandoned as error:
            failures.append(error)

    thread = threading.Thread(target=judge)
    thread.start()
    while not worker.chats.serve(0.0):
        pass
    calls.close(now=True)
    thread.join(60)
    assert len(failures) == 1
    worker.chats.serve(0.0)
    assert not worker.chats.serve(0.0)


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SlowEngine:
    """Reads a prompt for so long, then draws tokens of a tenth of a second."""

    max_keys = 10**9
    context_tokens = 10**6
    tokenizer: Any = None
    eos_ids = frozenset({0})

    def __init__(self, clock: Clock, reading: float) -> None:
        self.clock, self.reading = clock, reading

    def begin(self, requests: Any, adapter: Any, on_completion: Any, on_text: Any) -> Any:
        engine, left = self, [self.reading, *[0.1] * requests[0].max_tokens]

        class Sampling:
            def go_on(self, seconds: float) -> bool:
                deadline = engine.clock.now + seconds
                while left:
                    engine.clock.now += left.pop(0)
                    if engine.clock.now >= deadline and left:
                        return True
                on_completion(0, 0, Completion([], "", [], "stop"))
                return False

            def drop(self, request: int) -> None: ...

        return Sampling()


@pytest.mark.parametrize("reading", [0.0, 5.0])
@pytest.mark.parametrize("piece", [0.01, 0.3, 4.0])
@pytest.mark.parametrize("clients", [1, 4])
def test_chats_and_training_get_half_of_the_time_each(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, reading: float, piece: float, clients: int
) -> None:
    """The bound in ChatQueue's docstring: neither gets ahead by more than one piece of its own."""
    clock = Clock()
    monkeypatch.setattr(chats, "time", clock)
    engine = SlowEngine(clock, reading)
    monkeypatch.setattr(worker.engines, "get", lambda *_, **__: engine)
    made = chats.SampleRequest([1], [(1,)], 50)
    monkeypatch.setattr(chats, "_sample_request", lambda *_: made)
    monkeypatch.setattr(chats.ChatQueue, "_watched", lambda *_: chats.contextlib.nullcontext())
    queue = chats.ChatQueue(worker.store, worker.engines, lambda message: again(message))
    number = 0

    def again(message: dict[str, Any]) -> None:  # each client asks again at once
        nonlocal number
        if "done" in message:
            number += 1
            queue.put(number, ChatRequest("m", []))

    for _ in range(clients):
        again({"done": True})
    training = chatting = 0.0
    queue.share()
    for _ in range(int(400 / piece)):
        clock.now += piece
        training += piece
        before = clock.now
        queue.share()
        chatting += clock.now - before
        longest = max(piece, clients * (reading + 0.1) + chats.GATHER_SECONDS)
        assert chatting - training <= longest + 1e-6
        assert training - chatting <= longest + piece + 1e-6


def test_chats_beside_a_job_change_none_of_its_numbers(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = run(worker, add_job(worker))
    on_tick: Callable[..., Any] = worker._breathe
    numbers = iter(range(1, 10_000))

    def busy(job_id: str) -> Any:
        share = on_tick(job_id)

        def both() -> None:
            ask(worker, next(numbers), tokens=9)
            worker.chats.serve(0.0)
            share()

        return both

    monkeypatch.setattr(worker, "_breathe", busy)
    crowded = run(worker, add_job(worker))
    worker.chats.serve()
    assert len(ended(answers)) > 10
    assert not [message for message in answers if "error" in message]
    assert list(adapters(worker.home, crowded).values()) == list(
        adapters(worker.home, calm).values()
    )


def test_a_text_that_no_context_holds_is_refused_before_it_is_read(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = worker.engines.get("rftkit-tiny")
    monkeypatch.setattr(engine, "encode", lambda *_: pytest.fail("it was read"))
    messages = [{"role": "user", "content": "x" * 5_000_000}]
    worker.chats.put(1, ChatRequest("rftkit-tiny", messages))
    worker.chats.serve()
    assert answers[-1]["error"]["code"] == "context_length_exceeded"
