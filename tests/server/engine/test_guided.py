"""Completions that were given, not sampled: their tokens, and what an update learns from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rftkit.server.engine.torch.batches import micro_batches
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.torch.update import _loss, _Sums
from rftkit.server.engine.values import LoraConfig, SampleRequest, TrainGroup, TrainSettings
from tests.engine_models import write

SETTINGS = TrainSettings(learning_rate=1e-3)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"enum": ["yes", "no"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder: Path = write(tmp_path_factory.mktemp("guided"), "Llama")
    return TorchEngine(folder, name="llama")


def group(engine: TorchEngine, text: str, advantages: list[float]) -> TrainGroup:
    """Sampled completions and, last, a given one."""
    prompt = engine.encode([{"role": "user", "content": "is it so?"}])
    request = SampleRequest(prompt, [(1, i) for i in range(len(advantages) - 1)], 12, schema=SCHEMA)
    [completions] = engine.sample([request])
    tokens = engine.encode_answer(text, SCHEMA)
    assert tokens is not None
    return TrainGroup(
        prompt,
        [*(each.tokens for each in completions), tokens],
        [*(each.sampling_logprobs for each in completions), [0.0] * len(tokens)],
        advantages,
        SCHEMA,
        guided_G=[False] * len(completions) + [True],
    )


def test_an_answer_becomes_what_could_have_been_sampled(engine: TorchEngine) -> None:
    tokens = engine.encode_answer('{"a": "yes"}', SCHEMA)
    assert tokens is not None
    assert tokens[-1] in engine.eos_ids
    assert engine.tokenizer.decode(tokens[:-1]) == '{"a": "yes"}'
    assert engine.encode_answer('{"a": "maybe"}', SCHEMA) is None
    assert engine.encode_answer("maybe", SCHEMA) is None
    assert engine.encode_answer("maybe", None) is not None


def gradient(
    engine: TorchEngine, groups: list[TrainGroup], settings: TrainSettings
) -> torch.Tensor:
    """What an update sees, as one line of numbers."""
    policy, optimizer = engine.policies.trained()
    optimizer.zero_grad(set_to_none=True)
    num_tokens = sum(len(tokens) for each in groups for tokens in each.tokens_G_T)
    for batch in micro_batches(groups, 4096):
        _loss(engine, engine.policies, batch, settings, num_tokens, _Sums()).backward()  # type: ignore[no-untyped-call]
    return torch.cat([t.grad.flatten() for t in policy.values() if t.grad is not None])


@pytest.mark.parametrize("loss", ["clipped", "importance_sampling", "reinforce"])
def test_its_gradient_is_its_log_probs_times_the_advantage(engine: TorchEngine, loss: str) -> None:
    """Whatever the loss, and however unlikely the policy finds it: nothing is clipped."""
    engine.start_policy(LoraConfig(rank=4, alpha=8.0), 0)
    mixed = group(engine, '{"a": "no"}', [0.0, 0.0, 2.0])
    alone = replace(
        mixed,
        tokens_G_T=mixed.tokens_G_T[2:],
        sampling_logprobs_G_T=mixed.sampling_logprobs_G_T[2:],
        advantages_G=[2.0],
        guided_G=[],
    )
    found = gradient(engine, [mixed], replace(SETTINGS, loss=loss))
    policy, optimizer = engine.policies.trained()
    optimizer.zero_grad(set_to_none=True)
    num_tokens = sum(map(len, mixed.tokens_G_T))
    (-2.0 * engine.logprobs([alone]).sum() / num_tokens).backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([t.grad.flatten() for t in policy.values() if t.grad is not None])
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-3)


def test_it_is_in_no_measure_of_what_was_sampled(engine: TorchEngine) -> None:
    advantages = [0.5, -0.5, 0.0]
    mixed = group(engine, '{"a": "no"}', advantages)
    sampled = replace(
        mixed,
        tokens_G_T=mixed.tokens_G_T[:2],
        sampling_logprobs_G_T=mixed.sampling_logprobs_G_T[:2],
        advantages_G=advantages[:2],
        guided_G=[],
    )
    stats = []
    for each in (mixed, sampled):
        engine.start_policy(LoraConfig(rank=4, alpha=8.0), 0)
        stats.append(engine.train_step([each], SETTINGS))
    with_it, without = stats
    assert with_it.entropy == pytest.approx(without.entropy, abs=1e-5)
    assert with_it.logprob_gap_mean == pytest.approx(without.logprob_gap_mean, abs=1e-5)
    assert with_it.clip_fraction == without.clip_fraction == 0.0
    assert with_it.num_tokens > without.num_tokens  # it was learnt from


def test_it_becomes_more_likely_than_what_is_never_sampled(engine: TorchEngine) -> None:
    engine.start_policy(LoraConfig(rank=4, alpha=8.0), 0)
    mixed = group(engine, '{"a": "no"}', [-0.2, -0.2, 0.4])
    with torch.no_grad():
        before = engine.logprobs([mixed])[-len(mixed.tokens_G_T[-1]) :].sum()
    for _ in range(5):
        engine.train_step([mixed], replace(SETTINGS, learning_rate=1e-2))
    with torch.no_grad():
        after = engine.logprobs([mixed])[-len(mixed.tokens_G_T[-1]) :].sum()
    assert after > before


def test_a_group_that_is_split_keeps_what_is_given(engine: TorchEngine) -> None:
    mixed = group(engine, '{"a": "no"}', [0.5, -0.5, 0.0])
    parts = [part for batch in micro_batches([mixed], 1) for part in batch]
    assert [part.guided_G for part in parts] == [[False], [False], [True]]
    assert [part.is_guided(0) for part in parts] == [False, False, True]
