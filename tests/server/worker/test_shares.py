"""Chats beside chats and beside training: who waits for whom; nobody waits for the gone."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import pytest
from in_process import ROWS, adapters, add_job, run

from rftkit.server.engine.decoding_state import DecodingState
from rftkit.server.engine.torch import sampler
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.torch.ragged import Prefill
from rftkit.server.engine.torch.together import Together
from rftkit.server.engine.values import Completion, SampleRequest
from rftkit.server.inference.requests import ChatRequest, EmbedRequest
from rftkit.server.worker import chats
from rftkit.server.worker.worker import Worker

Answers = list[dict[str, Any]]
FORCED = {
    "type": "object",
    "properties": {"letter": {"enum": ["a", "b"]}, "why": {"const": "because it was asked for"}},
    "required": ["letter", "why"],
    "additionalProperties": False,
}
"""Most of such an answer leaves no choice."""


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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_chats_say_the_same_alone_and_between_others(
    worker: Worker, answers: Answers, temperature: float
) -> None:
    def said() -> dict[int, tuple[str, list[float]]]:
        found = {}
        for message in answers:
            if "done" in message:
                [answer] = message["done"]["completions"]
                logprobs = [token["logprob"] for token in answer["logprobs"]]
                found[message["id"]] = answer["text"], logprobs
        answers.clear()
        return found

    def put(number: int) -> None:
        content = f"{ROWS[number % len(ROWS)]['messages'][0]['content']}{'x' * number}"
        opening = "What all of these chats begin with, in many words. " * (number != 2)
        messages = [{"role": "user", "content": opening + content}]
        forced = {"type": "json_schema", "json_schema": {"name": "forced", "schema": FORCED}}
        request = ChatRequest(
            "rftkit-tiny",
            messages,
            max_tokens=20,
            seed=number,
            temperature=temperature,
            response_format=forced if number % 3 == 1 else None,
        )
        worker.chats.put(number, request)

    for number in range(12):
        put(number)
        worker.chats.serve()
    alone = said()
    for number in range(12):  # two of three come with the next one
        put(number)
        if number % 3 == 0:
            worker.chats.serve(0.0)
    worker.chats.serve()
    joined = said()
    assert len(joined) == 12
    for number, (text, logprobs) in joined.items():
        assert text == alone[number][0]
        # the last bits of float32 depend on how many rows a product has
        assert logprobs == pytest.approx(alone[number][1], abs=1e-4)


@pytest.fixture
def passes(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of chats each pass of the model had."""
    found: list[int] = []
    engine: Any = worker.engines.get("rftkit-tiny")
    hidden = engine.hidden

    def counted(tokens: Any, layout: Any) -> Any:
        if isinstance(layout, Together):
            found.append(sum(layout.sizes))
        return hidden(tokens, layout)

    monkeypatch.setattr(engine, "hidden", counted)
    return found


def test_chats_that_wait_are_read_together_and_what_they_all_begin_with_once(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = worker.engines.get("rftkit-tiny")
    read: list[tuple[int, int]] = []  # prompts, tokens
    hidden = engine.hidden

    def counted(tokens: Any, layout: Any) -> Any:
        if isinstance(layout, Prefill):
            read.append((len(layout.lengths), len(tokens)))
        return hidden(tokens, layout)

    monkeypatch.setattr(engine, "hidden", counted)
    system = {"role": "system", "content": "Answer with the letters that were asked for. " * 4}
    for number in range(1, 5):
        user = {"role": "user", "content": f"Which letter is number {number}?"}
        request = ChatRequest("rftkit-tiny", [system, user], max_tokens=3, seed=number)
        worker.chats.put(number, request)
    worker.chats.serve()
    assert len(ended(answers)) == 4
    assert [num for num, _ in read] == [4]
    lengths = [message["done"]["prompt_tokens"] for message in answers if "done" in message]
    assert sum(lengths) - 3 * 200 < read[0][1] < sum(lengths) - 3 * 96


def test_of_chats_that_are_read_together_only_the_broken_one_fails(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sampler.begin

    def begin(policy: Any, rows: Any, **options: Any) -> Any:
        if any(row.request == 2 for row in rows):
            raise RuntimeError("this one cannot be read")
        return real(policy, rows, **options)

    monkeypatch.setattr(sampler, "begin", begin)
    for number in (1, 2, 3):
        ask(worker, number)
    worker.chats.serve()
    assert sorted(ended(answers)) == [1, 3]
    assert [message["id"] for message in answers if "error" in message] == [2]


def test_a_chat_joins_and_leaves_at_the_next_token(
    worker: Worker, answers: Answers, passes: list[int]
) -> None:
    ask(worker, 1, tokens=60)
    worker.chats.serve(0.0)
    ask(worker, 2, tokens=60)
    worker.chats.serve(0.0)
    ask(worker, 3, tokens=4)
    worker.chats.serve(0.0)
    worker.chats.abort(1)
    worker.chats.serve(0.0)
    assert passes == [1, 2, 3, 2]
    worker.chats.serve()
    assert ended(answers) == [3, 2]
    assert len(passes) < 70  # and not one for each token of each chat


def test_a_chat_that_arrives_within_a_turn_does_not_wait_for_its_end(
    worker: Worker, answers: Answers, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chats, "TURN_SECONDS", 600.0)
    ask(worker, 1, tokens=60)
    engine: Any = worker.engines.get("rftkit-tiny")
    hidden = engine.hidden

    def busy(tokens: Any, layout: Any) -> Any:
        if passes == [1, 1, 1]:
            ask(worker, 2, tokens=60)
        return hidden(tokens, layout)

    monkeypatch.setattr(engine, "hidden", busy)
    worker.chats.serve()
    assert passes[:5] == [1, 1, 1, 1, 2]
    assert sorted(ended(answers)) == [1, 2]


def test_a_chat_that_fails_leaves_the_others_alone(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecodingState, "consume_token", lambda *_: False)
    worker.chats.put(1, ChatRequest("rftkit-tiny", ROWS[0]["messages"], max_tokens=9, seed=1, n=2))
    ask(worker, 2, tokens=9)
    worker.chats.serve()
    assert ended(answers) == [1]
    [failed] = [message for message in answers if "error" in message]
    assert failed["id"] == 2
    assert "cannot be followed" in failed["error"]["message"]


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

    def begin(self, adapter: Any) -> Any:
        engine = self

        class Sampling:
            def __init__(self) -> None:
                self.chats: list[tuple[list[float], Any]] = []

            def join(self, number: int, request: Any, listener: Any) -> None:
                self.chats.append(([engine.reading, *[0.1] * request.max_tokens], listener))

            def advance(self, seconds: float, until: Callable[[], bool]) -> bool:
                """Read one new prompt, or sample a token of all chats."""
                deadline = engine.clock.now + seconds
                while self.chats:
                    new = [left for left, _ in self.chats if len(left) == 51]
                    for left in new[:1] or [left for left, _ in self.chats]:
                        took = left.pop(0)
                    engine.clock.now += took
                    for chat in [each for each in self.chats if not each[0]]:
                        self.chats.remove(chat)
                        chat[1].on_completion(0, Completion([], "", [], "stop"))
                    if engine.clock.now >= deadline or until():
                        break
                return bool(self.chats)

            def drop(self, number: int) -> None: ...

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
    made = SampleRequest([1], [(1,)], 50)
    monkeypatch.setattr(chats, "sample_request", lambda *_: made)
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
        longest = max(piece, reading + 0.1)
        assert chatting - training <= longest + 1e-6
        assert training - chatting <= longest + piece + 1e-6


def test_chats_beside_a_job_change_none_of_its_numbers(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = run(worker, add_job(worker))
    on_tick: Callable[..., Any] = worker._on_tick
    numbers = iter(range(1, 10_000))

    def busy(job_id: str) -> Any:
        share = on_tick(job_id)

        def both() -> None:
            ask(worker, next(numbers), tokens=9)
            worker.chats.serve(0.0)
            share()

        return both

    monkeypatch.setattr(worker, "_on_tick", busy)
    crowded = run(worker, add_job(worker))
    worker.chats.serve()
    assert len(ended(answers)) > 10
    assert not [message for message in answers if "error" in message]
    assert list(adapters(worker.home, crowded).values()) == list(
        adapters(worker.home, calm).values()
    )


def put_embedding(worker: Worker, number: int, texts: list[str]) -> None:
    worker.chats.put(number, EmbedRequest("rftkit-tiny", texts))


def test_a_chat_does_not_wait_for_a_request_of_many_texts(worker: Worker, answers: Answers) -> None:
    texts = [f"copy: {number}" for number in range(40)]
    put_embedding(worker, 1, texts)
    worker.chats.serve(0.0)
    put_embedding(worker, 2, texts[:2])
    ask(worker, 3, tokens=3)
    worker.chats.serve()
    assert ended(answers)[-1] == 1
    found = {message["id"]: message["done"] for message in answers if "done" in message}
    assert [len(found[number]["embeddings"]) for number in (1, 2)] == [40, 2]
    assert found[1]["embeddings"][:2] == found[2]["embeddings"]
    assert found[1]["prompt_tokens"] > found[2]["prompt_tokens"] > 0


def test_a_bad_text_at_the_end_is_refused_before_any_is_computed(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[Any] = []
    monkeypatch.setattr(TorchEngine, "embed", lambda self, *given: computed.append(given))
    put_embedding(worker, 1, ["a", "b", "x" * 5_000_000])
    worker.chats.serve()
    assert answers[-1]["error"]["code"] == "context_length_exceeded"
    assert not computed


def test_a_text_that_cannot_be_embedded_and_a_client_that_left_end_their_requests(
    worker: Worker, answers: Answers
) -> None:
    put_embedding(worker, 1, ["a", "x" * 5_000_000, "b"])
    worker.chats.serve()
    assert answers[-1]["error"]["code"] == "context_length_exceeded"
    put_embedding(worker, 2, ["a"] * 40)
    worker.chats.serve(0.0)
    worker.chats.abort(2)
    worker.chats.serve(0.0)
    assert not worker.chats.serve(0.0)
    assert ended(answers) == []


def test_chats_that_are_many_are_prepared_between_the_tokens_of_others(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(chats, "time", clock)
    prepare = chats.sample_request

    def slow(*given: Any) -> Any:
        clock.now += 1.0
        return prepare(*given)

    monkeypatch.setattr(chats, "sample_request", slow)
    ask(worker, 1, tokens=3)
    worker.chats.serve(0.0)
    for number in range(2, 12):
        ask(worker, number, tokens=60)
    worker.chats.abort(11)  # while it waits
    worker.chats.serve()
    assert ended(answers)[0] == 1
    assert clock.now < 1000.0 + 11.0  # the one that was abandoned was not prepared
    assert sorted(ended(answers)) == list(range(1, 11))


def test_a_chat_is_answered_while_another_program_locks_the_database(
    worker: Worker, answers: Answers
) -> None:
    job = add_job(worker)
    with contextlib.closing(sqlite3.connect(worker.home / "platform.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")

        def answered(message: dict[str, Any]) -> None:
            answers.append(message)
            if "done" in message:
                other.rollback()

        worker.chats._send = answered
        ask(worker, 1)
        worker.store.add_event(job.id, "the step has ended")
    assert ended(answers) == [1]


def test_a_text_that_no_context_holds_is_refused_before_it_is_read(
    worker: Worker, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = worker.engines.get("rftkit-tiny")
    monkeypatch.setattr(engine, "encode", lambda *_: pytest.fail("it was read"))
    messages = [{"role": "user", "content": "x" * 5_000_000}]
    worker.chats.put(1, ChatRequest("rftkit-tiny", messages))
    worker.chats.serve()
    assert answers[-1]["error"]["code"] == "context_length_exceeded"
