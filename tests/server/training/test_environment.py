"""Jobs with tools: rollouts of several turns, over a toy engine that says what a script has.

Kills at every place where something is written, as in `test_story`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_tools import FakeServer, definition, fails, fake_tools
from server.training.test_story import Bomb, Killed, Toy, arm

from rftkit.graders import compile_grader
from rftkit.graders.outcome import Sample
from rftkit.rows import Row
from rftkit.server.engine.call_forms import attempted_calls_in
from rftkit.server.engine.values import Completion, Turn
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training import loop, metrics, rft
from rftkit.server.training.context import Run, Stopped
from rftkit.server.training.eval_records import make_job_eval
from rftkit.server.training.journal import Journal
from rftkit.server.training.rft_plan import make_plan
from rftkit.tools import Tools

GRADER = {
    "type": "string_check", "name": "even", "operation": "eq", "reference": "0",
    "input": "{{sample.output_text}}",
}  # fmt: skip
SEARCH = definition("search", "query")
ROWS = [
    Row({"messages": [{"role": "user", "content": str(n)}], "tools": [SEARCH]}, line=n + 1)
    for n in range(8)
]


def calls(*queries: Any, name: str = "search") -> str:
    """A turn that calls."""
    return "".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {{"query": "{query}"}}}}\n</tool_call>'
        for query in queries
    )


class Speaker(Toy):
    """The toy engine with turns: what it says is `script(key, turn, policy)`."""

    def __init__(self, script: Callable[[tuple[int, ...], int, int], str]) -> None:
        super().__init__()
        self.script = script

    def observed(
        self, messages: Any, replies: Sequence[Any], tools: Any = None, thinking: Any = None
    ) -> list[int]:
        return [100 + len(messages), *[len(text) for _, text in replies]]

    def sample(
        self, requests: Sequence[Any], adapter: Any = "policy", *, on_completion: Any,
        environment: Any = None, **_: Any,
    ) -> Any:  # fmt: skip
        self.samples += 1
        answers = [
            [self._episode(i, index, key, environment) for index, key in enumerate(request.seeds)]
            for i, request in enumerate(requests)
        ]
        for i, group in enumerate(answers if on_completion else ()):
            for index, completion in enumerate(group):
                on_completion(i, index, completion)
        return answers

    def _episode(self, i: int, index: int, key: tuple[int, ...], environment: Any) -> Completion:
        tokens: list[int] = []
        turns: list[Turn] = []
        while True:
            text = self.script(key, len(turns), self.policy)
            said = [ord(c) % 50 for c in text] + [9]
            tokens = [*tokens, *said]
            done = Completion(tokens, text, [-0.5] * len(tokens), "stop", turns=turns)
            answer = environment.respond(i, index, done) if environment else None
            if answer is None:
                return done
            found = environment.observe(i, index, done, answer.result(timeout=10))
            turns = [*turns, Turn(len(said), len(found.tokens), text, calls=found.calls)]
            tokens = [*tokens, *found.tokens]
            if found.failure:
                return Completion(
                    tokens, "", [-0.5] * len(tokens), "stop", turns=turns, failure=found.failure
                )


def bit(key: tuple[int, ...], policy: int) -> int:
    return (sum(key) + policy) // 4 % 2


def asks_twice(key: tuple[int, ...], turn: int, policy: int) -> str:
    """Two calls at once, then one, then an answer."""
    here = bit(key, policy)
    return [calls(here, sum(key) % 97), calls(f"again {here}"), str(here)][turn]


class World:
    """What outlives a kill."""

    def __init__(
        self, home: Path, tools: Tools, script: Callable[[tuple[int, ...], int, int], str]
    ) -> None:
        self.home, self.store, self.tools = home, Store.open(home), tools
        self.engine = Speaker(script)
        self.jobs = 0
        self.seen: list[Sample] = []

    def add_job(self, *, budget: str = "0.05", **given: Any) -> Job:
        self.jobs += 1
        hyper = {"batch_size": 4, "n_epochs": 3, "eval_interval": 2, "compute_multiplier": 0.5}
        job = Job(
            id=f"ftjob-{self.jobs:04d}", created_at=0, status="running", model="toy", seed=7,
            training_file="f", validation_file="f",
            metadata={"guidance": "none", "error_budget": budget},
            method={
                "reinforcement": {
                    "grader": GRADER, "hyperparameters": hyper,
                    "tools": [{"name": "search", "server_url": "http://x"}], **given,
                }
            },
        )  # fmt: skip
        job = self.store.add_job(job)
        return self.store.update_job(job.id, eval_id=make_job_eval(self.store, job).id)

    def train(self, job: Job) -> Job:
        with compile_grader(GRADER) as grader:
            real = grader.grade

            def seen(sample: Any, item: Any) -> Any:
                self.seen.append(sample)
                return real(sample, item)

            grader.grade = seen  # type: ignore[method-assign]
            run = Run(
                job=job, plan=make_plan(job, len(ROWS)), store=self.store, engine=self.engine,
                compiled_grader=grader, journal=Journal(self.home / "jobs" / job.id), rows=ROWS,
                valid_rows=ROWS[:4], model_base="toy", tools=self.tools,
            )  # fmt: skip
            with contextlib.suppress(Stopped):
                loop.train(run, rft)
        return self.store.job(job.id)

    def final(self, job: Job) -> str:
        return (self.home / "jobs" / job.id / "checkpoints/step-6/policy.json").read_text()

    def record(self, job: Job, kind: str, step: int) -> Any:
        return Journal(self.home / "jobs" / job.id).record(kind, step)

    def messages(self, job: Job) -> list[str]:
        return [event.message for event in self.store.events(job.id, limit=1000)[0][::-1]]


@pytest.fixture
def worlds(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    monkeypatch.setattr(rft, "warn_of_grader", lambda run: None)
    made: list[World] = []

    def make(script: Any = asks_twice, **functions: Callable[..., str]) -> World:
        made.append(World(home, fake_tools(**functions), script))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


def server(tools: Tools, name: str = "search") -> FakeServer:
    found = tools._servers[name]
    assert isinstance(found, FakeServer)
    return found


def test_an_episode_is_in_the_journal_and_in_what_graders_see(
    worlds: Callable[..., World],
) -> None:
    world = worlds(search=lambda query: f"found {query}")
    job = world.train(world.add_job())
    assert job.status == "succeeded", job.error
    record = world.record(job, "steps", 1)
    completion = Completion.from_dict(record["groups"][0]["rollouts"][0]["completion"])
    first, second = completion.turns
    assert [call["text"] for call in second.calls] == [f"found again {completion.text}"]
    assert [call["kind"] for call in first.calls] == ["answer", "answer"]
    assert completion.num_sampled == len(completion.tokens) - 3 - 2
    sample = world.seen[-1].to_dict()
    [choice] = sample["choices"]
    assert [call["function"]["name"] for call in sample["output_tools"]] == ["search"] * 3
    assert choice["message"]["tool_calls"] == sample["output_tools"]
    assert choice["message"]["content"] == sample["output_text"]
    assert [m["role"] for m in choice["messages"]] == [
        "assistant", "tool", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    ids = {call["id"] for call in sample["output_tools"]}
    assert {m["tool_call_id"] for m in choice["messages"] if m["role"] == "tool"} == ids


def test_the_trace_of_a_rollout_is_that_of_its_calls_and_of_its_grader(
    worlds: Callable[..., World],
) -> None:
    world = worlds(search=lambda query: query)
    world.train(world.add_job())
    of_calls: dict[str, int] = {}
    for _, _, trace in server(world.tools).asked:
        of_calls[trace] = of_calls.get(trace, 0) + 1
    assert set(of_calls.values()) == {3}
    assert all(trace.startswith("trace_") for trace in of_calls)
    assert {sample.trace_id for sample in world.seen} == set(of_calls)


def test_a_kill_at_any_write_makes_no_answered_call_again(
    worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds(search=lambda query: f"found {query}")
    calm = world.train(world.add_job())
    asked = server(world.tools).asked
    per_job = len(asked)
    traces = {trace for *_, trace in asked}
    assert per_job == 3 * len(traces)
    for place in (4, 11, 26, 33, 47, 58, 71, 90):
        asked.clear()
        job = world.add_job()
        with monkeypatch.context() as patch:
            arm(patch, Bomb(place), grades=False)
            with pytest.raises(Killed):
                world.train(job)
        job = world.train(job)
        assert job.status == "succeeded", job.error
        assert world.final(job) == world.final(calm)
        assert len(asked) == per_job, place


def test_a_kill_among_the_calls_of_a_step_makes_the_rest(worlds: Callable[..., World]) -> None:
    """Also when the worker dies while calls are under way: only those are made twice."""
    world = worlds(search=lambda query: f"found {query}")
    calm = world.train(world.add_job())
    asked = server(world.tools).asked
    per_job = len(asked)
    for limit in (1, 20, 55, 90):
        asked.clear()
        job = world.add_job()
        real = Journal.add_call
        count = 0

        def dying(*arguments: Any, real: Any = real, limit: int = limit) -> None:
            nonlocal count
            real(*arguments)
            count += 1
            if count == limit:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "add_call", dying)
            with pytest.raises(Killed):
                world.train(job)
        job = world.train(job)
        assert world.final(job) == world.final(calm)
        assert len(asked) <= per_job + 1


def test_a_failed_tool_is_a_missing_grade_and_never_a_zero(worlds: Callable[..., World]) -> None:
    """One rollout in many loses its tool; the job goes on without it."""
    lost = 0

    def search(query: str) -> str:
        nonlocal lost
        if query == "13":
            lost += 1
            return fails()
        return f"found {query}"

    world = worlds(search=search)
    job = world.train(world.add_job(budget="0.9"))
    assert job.status == "succeeded", job.error
    assert lost
    failed = [
        rollout
        for kind, steps in (("steps", range(1, 7)), ("valid", (0, 2, 4, 6)))
        for step in steps
        for group in world.record(job, kind, step)["groups"]
        for rollout in group["rollouts"]
        if rollout["grade"]["outcome"] == "failed"
    ]
    assert len(failed) == lost
    for each in failed:
        assert each["grade"]["reward"] is None
        assert "search" in each["completion"]["failure"]
        assert "status 500" in each["grade"]["errors"]["other_error_details"]


def test_a_broken_tool_pauses_the_job_and_its_repair_goes_on_where_it_was(
    worlds: Callable[..., World],
) -> None:
    calm_world = worlds(search=lambda query: f"found {query}")
    calm = calm_world.train(calm_world.add_job())
    broken = False

    def search(query: str) -> str:
        return fails() if broken else f"found {query}"

    world = worlds(search=search)
    world.jobs = 10
    job = world.add_job()
    real_record = Journal.write_record
    with pytest.MonkeyPatch.context() as patch:

        def write(journal: Journal, kind: str, step: int, data: Any) -> None:
            nonlocal broken
            real_record(journal, kind, step, data)
            broken = broken or (kind, step) == ("steps", 2)

        patch.setattr(Journal, "write_record", write)
        job = world.train(job)
    assert job.status == "paused"
    told = [text for text in world.messages(job) if "The job pauses" in text]
    assert "search (8 times)" in told[-1], told
    assert "grades failed" not in told[-1] or "search" in told[-1]
    broken = False
    world.store.update_job(job.id, status="running")
    job = world.train(world.store.job(job.id))
    assert job.status == "succeeded"
    assert world.final(job) == calm_world.final(calm)


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        (calls(1, 2), ["answer", "answer"]),
        (calls(1, name="find"), ["error"]),
        (calls(1) + calls(1, name="find"), ["answer", "error"]),
        ('<tool_call>\n{"name": "search", "arguments": {"query": \n</tool_call>', ["error"]),
        ("<tool_call>\nsearch for 1\n</tool_call>", ["error"]),
        ('<tool_call>{"name": "search", "arguments": "x"}</tool_call>', ["error"]),
        ('{"name": "search", "arguments": {"query": "1"}}', ["answer"]),
    ],
)
def test_malformed_and_unknown_calls_are_answered_with_an_error(
    worlds: Callable[..., World], said: str, kinds: list[str]
) -> None:
    world = worlds(
        lambda key, turn, policy: said if turn == 0 else str(bit(key, policy)),
        search=lambda query: f"found {query}",
    )
    job = world.train(world.add_job())
    assert job.status == "succeeded", job.error
    [group, *_] = world.record(job, "steps", 1)["groups"]
    completion = Completion.from_dict(group["rollouts"][0]["completion"])
    assert [call["kind"] for call in completion.turns[0].calls] == kinds
    assert all(call["text"] for call in completion.turns[0].calls)


@pytest.mark.parametrize("text", ["0", '{"answer": 1}', "I will search(query) for it", ""])
def test_an_answer_is_no_attempt_at_a_call(text: str) -> None:
    assert attempted_calls_in(text, [SEARCH]) == []


def test_an_episode_ends_after_its_steps_and_the_last_call_is_not_made(
    worlds: Callable[..., World],
) -> None:
    world = worlds(lambda key, turn, policy: calls(turn), search=lambda query: query)
    job = world.train(world.add_job(max_episode_steps=3))
    assert {arguments["query"] for _, arguments, _ in server(world.tools).asked} == {"0", "1"}
    [group, *_] = world.record(job, "steps", 1)["groups"]
    completion = Completion.from_dict(group["rollouts"][0]["completion"])
    assert len(completion.turns) == 2
    assert completion.text == calls(2)
    data = json.dumps(world.store.event(job.id, "step-1").data)  # type: ignore[union-attr]
    assert '"step_limit_share": 1.0' in data


def test_metrics_tell_what_the_tools_did(worlds: Callable[..., World]) -> None:
    def search(query: str) -> str:
        return f"found {query}"

    world = worlds(search=search)
    job = world.train(world.add_job())
    event = world.store.event(job.id, "step-2")
    assert event is not None
    assert event.data is not None
    [line] = event.data["tools"]
    assert line["name"] == "search"
    assert line["train_calls_per_rollout_mean"] == line["valid_calls_per_rollout_mean"] == 3
    assert line["train_error_count"] == line["train_failure_count"] == 0
    assert 0 <= line["train_latency_median"] <= line["train_latency_95"]
    assert line["train_tokens_per_call_mean"] > 1
    csv = metrics.result_csv([event.data]).decode()
    assert "train_error_count_search" in csv
    assert "waiting" in event.data["timing"]["step"]


def test_a_row_may_ask_for_one_call_at_a_time(
    worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds(search=lambda query: query)
    for row in ROWS:
        monkeypatch.setitem(row.item, "parallel_tool_calls", False)
    job = world.train(world.add_job())
    [group, *_] = world.record(job, "steps", 1)["groups"]
    completion = Completion.from_dict(group["rollouts"][0]["completion"])
    assert [call["kind"] for call in completion.turns[0].calls] == ["answer", "error"]
    assert len({trace for *_, trace in server(world.tools).asked}) * 2 == len(
        server(world.tools).asked
    )
