"""Episodes: turns with observations between them, against the same texts computed again."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from engine_models import write
from server.engine.test_torch import SCHEMA, SETTINGS, moved_policy, plain_logprobs

from rftkit.server.engine.torch import episodes
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import (
    Completion,
    LoraConfig,
    Observation,
    SampleRequest,
    TrainGroup,
)

ARCHITECTURES = ("Llama", "Qwen3", "Gemma2")
"""Gemma 2 takes the plain path."""
STOPS = ("a", "e", "i", "o", "u", "n", "t", "s", "r", "\n", "1", "2")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def engine(folder: Path) -> TorchEngine:
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    moved_policy(engine)
    return engine


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder = write(tmp_path_factory.mktemp("llama"), "Llama")
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    moved_policy(engine)
    return engine


class Answers:
    """Answers up to some turns of each episode with tokens of many lengths, after a while."""

    def __init__(self, turns: int = 3, seconds: Callable[[int], float] = lambda n: 0.0) -> None:
        self.turns, self.seconds = turns, seconds
        self.asked: list[tuple[int, int, list[int]]] = []
        self.idle = 0.0

    def respond(
        self, request: int, index: int, completion: Completion
    ) -> Future[Observation] | None:
        done = len(completion.turns)
        if done >= self.turns or (index == 1 and done == 1):
            return None
        self.asked.append((request, index, list(completion.tokens)))
        number = len(self.asked)
        future: Future[Observation] = Future()
        tokens = [(7 * index + 3 * request + i) % 200 + 10 for i in range(5 + 31 * index % 70)]
        call = {"name": "look", "turn": done}
        work = threading.Timer(
            self.seconds(number), future.set_result, [Observation(tokens, [call])]
        )
        work.start()
        return future

    def observe(
        self, request: int, index: int, completion: Completion, answer: Observation
    ) -> Observation:
        return answer

    def waited(self, seconds: float) -> None:
        self.idle += seconds


def requests(engine: TorchEngine, num: int = 5, **options: object) -> list[SampleRequest]:
    texts = ("hello", "a much longer prompt than that", "and another one, longer than both of them")
    given = {"max_tokens": 60, "room": 400, "stop": STOPS, **options}
    return [
        SampleRequest(
            engine.encode([{"role": "user", "content": text}]),
            seeds=[(1, i) for i in range(num)],
            **given,  # type: ignore[arg-type]
        )
        for text in texts
    ]


def groups_of(
    asked: list[SampleRequest], answers: list[list[Completion]], schema: str | None = None
) -> list[TrainGroup]:
    return [
        TrainGroup(
            request.prompt_ids,
            [each.tokens for each in some],
            [each.sampling_logprobs for each in some],
            [(-1.0) ** g * (g + 1) / 2 for g in range(len(some))],
            schema,
            learnt_G_T=[each.is_sampled for each in some],
        )
        for request, some in zip(asked, answers, strict=True)
    ]


def flat(answers: list[list[Completion]]) -> list[Completion]:
    return [each for some in answers for each in some]


def test_stored_log_probs_of_whole_episodes_are_those_computed_again(
    engine: TorchEngine, folder: Path, tmp_path: Path
) -> None:
    asked = requests(engine)
    answers = engine.sample(asked, environment=Answers())
    num_turns = [len(each.turns) for each in flat(answers)]
    assert max(num_turns) == 3
    assert sum(turn.num_observed for each in flat(answers) for turn in each.turns) > 300
    groups = groups_of(asked, answers)
    stored = torch.tensor([x for g in groups for row in g.sampling_logprobs_G_T for x in row])
    mask = torch.tensor([x for g in groups for row in g.learnt_G_T for x in row])
    with torch.no_grad():
        again = engine.logprobs(groups)
    assert (again - stored).abs().max() < 1e-4
    assert not stored[~mask].any()
    assert not again[~mask].any()

    engine.save_adapter(tmp_path)
    plain = torch.tensor([x for g in groups for x in plain_logprobs(folder, tmp_path, g)])
    assert (plain - stored)[mask].abs().max() < 1e-4


def test_turns_under_a_schema_replay_its_masks_turn_by_turn(llama: TorchEngine) -> None:
    asked = requests(llama, schema=SCHEMA, stop=(), max_tokens=200)
    answers = llama.sample(asked, environment=Answers())
    for each in flat(answers):
        for text in [each.text, *(turn.text for turn in each.turns)]:
            assert set(json.loads(text)) == {"a", "n"}
    groups = groups_of(asked, answers, SCHEMA)
    stored = torch.tensor([x for g in groups for row in g.sampling_logprobs_G_T for x in row])
    with torch.no_grad():
        assert (llama.logprobs(groups) - stored).abs().max() < 1e-4


def test_what_was_observed_is_appended_as_it_is_and_is_not_counted(llama: TorchEngine) -> None:
    asked = requests(llama)
    environment = Answers()
    answers = llama.sample(asked, environment=environment)
    for request, some in enumerate(answers):
        for index, each in enumerate(some):
            assert len(each.tokens) == len(each.sampling_logprobs) == len(each.is_sampled)
            assert each.num_sampled == sum(each.is_sampled) <= 60
            place = 0
            for number, turn in enumerate(each.turns):
                place += turn.num_tokens
                assert (request, index, each.tokens[:place]) in environment.asked
                assert turn.calls == [{"name": "look", "turn": number}]
                place += turn.num_observed
            assert Completion.from_dict(json.loads(json.dumps(each.to_dict()))) == each


def test_how_long_answers_take_changes_nothing(llama: TorchEngine) -> None:
    """A killed job samples the same again, bit for bit."""
    asked = requests(llama, num=9)
    first = llama.sample(asked, environment=Answers())
    slow = Answers(seconds=lambda n: 0.03 * (n * 7 % 5))
    assert llama.sample(asked, environment=slow) == first


def test_other_rows_go_on_while_some_wait(llama: TorchEngine) -> None:
    """All answers take a while, and most of them have come when they are needed."""
    environment = Answers(seconds=lambda n: 0.02)
    started = time.perf_counter()
    llama.sample(requests(llama, num=9), environment=environment)
    assert environment.idle < time.perf_counter() - started
    assert environment.idle < 0.02 * len(environment.asked) / 2


def test_the_prompt_is_read_once_and_nothing_is_read_again(
    llama: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    hidden = llama.hidden

    def counting(tokens: torch.Tensor, layout: object) -> torch.Tensor:
        read.append(len(tokens))
        return hidden(tokens, layout)

    monkeypatch.setattr(llama, "hidden", counting)
    asked = requests(llama)
    answers = llama.sample(asked, environment=Answers())
    own = sum(len(each.tokens) for each in flat(answers))
    prompts = sum(len(each.prompt_ids) for each in asked)
    # Rows that have ended stay in their layout for a while, and read anything.
    assert sum(read) < prompts + 1.5 * own


def test_an_episode_ends_where_its_room_or_its_tokens_end(llama: TorchEngine) -> None:
    [request, *_] = requests(llama, num=6, room=70)
    [some] = llama.sample([request], environment=Answers(turns=50))
    assert all(len(each.tokens) <= 70 for each in some)
    cut = [each for each in some if each.turns and each.turns[-1].num_observed == 0]
    assert cut
    assert {each.stop_reason for each in cut} == {"length"}
    assert {each.text for each in cut} == {""}


def test_a_failed_episode_ends_and_says_why(llama: TorchEngine) -> None:
    class Failing(Answers):
        def respond(
            self, request: int, index: int, completion: Completion
        ) -> Future[Observation] | None:
            if index != 0 or not completion.turns:
                return super().respond(request, index, completion)
            future: Future[Observation] = Future()
            future.set_result(Observation([], [{"name": "look"}], failure="no answer"))
            return future

    answers = llama.sample(requests(llama), environment=Failing())
    failed = [some[0] for some in answers if some[0].turns]
    assert failed
    assert {each.failure for each in failed} <= {"no answer", None}
    assert any(each.failure for each in failed)
    assert not any(each.failure for some in answers for each in some[1:])


def test_a_little_memory_lets_fewer_rows_come_back_at_once(
    llama: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(llama, num=6)
    whole = llama.sample(asked, environment=Answers())
    widths: list[int] = []
    resumed = episodes.Episodes._resumed

    def counting(self: episodes.Episodes, due: list, prompts: object) -> list:  # type: ignore[type-arg]
        widths.append(len(due))
        return resumed(self, due, prompts)  # type: ignore[arg-type]

    monkeypatch.setattr(episodes.Episodes, "_resumed", counting)
    monkeypatch.setattr(type(llama), "max_keys", property(lambda self: 1000))
    few = llama.sample(asked, environment=Answers())
    assert max(widths) < 9
    for a, b in zip(flat(whole), flat(few), strict=True):
        assert a.tokens == b.tokens


@pytest.mark.parametrize("lone", [0, 1, 2])
def test_a_row_that_comes_back_alone_sees_its_own_prompt(llama: TorchEngine, lone: int) -> None:
    """Prompts of other lengths were read with it; once it read its last key again."""

    class Lone(Answers):
        def respond(
            self, request: int, index: int, completion: Completion
        ) -> Future[Observation] | None:
            return super().respond(request, index, completion) if request == lone else None

    asked = requests(llama, num=1)
    answers = llama.sample(asked, environment=Lone())
    assert answers[lone][0].turns
    groups = groups_of(asked, answers)
    stored = torch.tensor([x for g in groups for row in g.sampling_logprobs_G_T for x in row])
    with torch.no_grad():
        assert (llama.logprobs(groups) - stored).abs().max() < 1e-4


def test_only_sampled_tokens_are_trained(llama: TorchEngine) -> None:
    asked = requests(llama)
    groups = groups_of(asked, llama.sample(asked, environment=Answers()))
    stats = llama.train_step(groups, dataclasses.replace(SETTINGS, kl_coef=0.1))
    assert stats.num_tokens == sum(sum(each) for g in groups for each in g.learnt_G_T)
    assert stats.logprob_gap_max < 1e-4
    assert stats.clip_fraction == 0
    sampled = [
        logprob
        for g in groups
        for row, mask in zip(g.sampling_logprobs_G_T, g.learnt_G_T, strict=True)
        for logprob, learns in zip(row, mask, strict=True)
        if learns
    ]
    assert stats.entropy == pytest.approx(-sum(sampled) / len(sampled))


def test_the_gradient_is_that_of_sampled_tokens_alone(llama: TorchEngine) -> None:
    """By hand: the update's loss is the sum over sampled tokens, over their number."""
    asked = requests(llama)[:1]
    llama.start_policy(LoraConfig(rank=4, alpha=8.0), 1)
    [fresh] = groups_of(asked, llama.sample(asked, environment=Answers()))
    stats = llama.train_step([fresh], SETTINGS)
    by_hand = -sum(
        advantage * sum(mask)
        for advantage, mask in zip(fresh.advantages_G, fresh.learnt_G_T, strict=True)
    ) / sum(sum(mask) for mask in fresh.learnt_G_T)
    assert stats.loss == pytest.approx(by_hand, rel=1e-3)
    moved_policy(llama)
