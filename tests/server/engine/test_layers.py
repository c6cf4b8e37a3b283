"""The written-out layers against transformers' own, the flat line, and a bandit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from server.engine.test_torch import groups_from, moved_policy, requests

from rftkit.server.engine.torch import products
from rftkit.server.engine.torch.batches import lay_out, micro_batches
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.values import LoraConfig, SampleRequest, TrainGroup, TrainSettings


@pytest.fixture(scope="module", params=("Llama", "Qwen2", "Qwen3"))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder = write(tmp_path_factory.mktemp(request.param), request.param)
    return TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)


def back(layout: Packed, kept: Any, grad: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of q, k and v."""
    grads = [torch.empty_like(each) for each in (grad, grad[:, :, 0], grad[:, :, 0])]
    layout.backward(kept, grad, *grads)
    return grads


def gradients(engine: TorchEngine, groups: list[TrainGroup]) -> torch.Tensor:
    policy, _ = engine.policies.trained()
    for tensor in policy.values():
        tensor.grad = None
    (engine.logprobs(groups) ** 2).sum().backward()  # type: ignore[no-untyped-call]
    return torch.cat([t.grad.flatten() for t in policy.values() if t.grad is not None])


def test_a_processor_without_bfloat16_products_takes_bfloat16_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN packs such weights only where it has instructions for them, and raised elsewhere."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    products._has_products.cache_clear()
    try:
        TorchEngine(write(tmp_path, "Llama"), name="test", device="cpu", dtype=torch.bfloat16)
    finally:
        products._has_products.cache_clear()


def test_written_out_layers_give_what_transformers_layers_give(engine: TorchEngine) -> None:
    assert engine._stack is not None
    moved_policy(engine)
    asked = requests(engine)
    answers = engine.sample(asked)
    groups = groups_from(asked, answers)
    with torch.no_grad():
        ours = engine.logprobs(groups)
    grad_scores = gradients(engine, groups)
    stack, engine._stack = engine._stack, None
    try:
        assert [c.tokens for c in engine.sample(asked)[0]] == [c.tokens for c in answers[0]]
        with torch.no_grad():
            torch.testing.assert_close(engine.logprobs(groups), ours, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients(engine, groups), grad_scores, atol=1e-3, rtol=1e-3)
    finally:
        engine._stack = stack


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3"])
def test_the_rounding_of_many_layers_is_not_taken_for_another_form(
    architecture: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, architecture, num_hidden_layers=24)
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.bfloat16)
    assert engine._stack is not None
    assert engine.notes(None, None) == []


def test_layers_computed_again_give_the_same_gradient_to_the_bit(engine: TorchEngine) -> None:
    assert engine._stack is not None
    moved_policy(engine)
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    kept = gradients(engine, groups)
    budget, engine.memory_bytes = engine.memory_bytes, 1
    try:
        assert torch.equal(gradients(engine, groups), kept)
    finally:
        engine.memory_bytes = budget


def test_a_micro_batch_is_as_large_as_what_it_keeps_allows(engine: TorchEngine) -> None:
    assert engine._stack is not None
    group = TrainGroup([5] * 90, [[6] * 10], [[-1.0] * 10], [1.0])
    kept, again = engine._kept_bytes(100)
    budget = engine.memory_bytes
    try:
        for num_bytes, wanted in ((1, 1_024), (2_000 * kept, 2_000), (10_000 * kept, 10_000)):
            engine.memory_bytes = num_bytes
            assert engine.batch_tokens([group]) == (wanted, num_bytes // again)
    finally:
        engine.memory_bytes = budget


def test_micro_batches_are_of_about_the_same_size() -> None:
    groups = [TrainGroup([5] * 60, [[6] * 40], [[-1.0] * 40], [1.0])] * 11
    assert [len(batch) for batch in micro_batches(groups, 500)] == [4, 3, 4]
    assert [len(batch) for batch in micro_batches(groups * 10, 10**6)] == [37, 36, 37]
    lengths = [115 + i % 7 for i in range(32)]  # no small pass is left over at the end
    uneven = [TrainGroup([5] * 40, [[6] * n], [[-1.0] * n], [1.0]) for n in lengths]
    assert [len(batch) for batch in micro_batches(uneven, 4_096)] == [16, 16]


@pytest.mark.parametrize(
    ("prompt", "completion", "max_tokens", "again_tokens", "wanted"),
    [
        (2_000, 32, 1_500, 9_000, [8]),  # else the prompt would be computed for each completion
        (2_000, 32, 2_050, 2_200, [6, 2]),  # that is all the memory there is
        (2_000, 32, 1_500, 0, [1] * 8),
        (2_000, 32, 5_000, 0, [8]),  # more than groups are joined to
        (100, 1_000, 2_500, 9_000, [2] * 4),  # a short prompt costs less than layers computed again
    ],
)
def test_a_large_group_is_split_where_that_is_the_least_work(
    prompt: int, completion: int, max_tokens: int, again_tokens: int, wanted: list[int]
) -> None:
    group = TrainGroup([5] * prompt, [[6] * completion] * 8, [[-1.0] * completion] * 8, [1.0] * 8)
    batches = list(micro_batches([group], max_tokens, again_tokens))
    assert [len(part.tokens_G_T) for [part] in batches] == wanted


def test_a_small_budget_decodes_in_more_waves_and_says_the_same(engine: TorchEngine) -> None:
    asked = requests(engine)
    together = engine.sample(asked, None)
    budget, engine.memory_bytes = engine.memory_bytes, 20 * engine._key_bytes
    passes = 0

    def count() -> None:
        nonlocal passes
        passes += 1

    try:
        apart = engine.sample(asked, None, on_tick=count)
    finally:
        engine.memory_bytes = budget
    assert [[c.tokens for c in group] for group in apart] == [
        [c.tokens for c in group] for group in together
    ]
    assert passes > asked[0].max_tokens


def test_kl_to_the_base_is_measured_though_it_costs_nothing_in_the_loss(
    engine: TorchEngine,
) -> None:
    engine.start_policy(LoraConfig(rank=4, alpha=8.0), seed=1)
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    fresh = engine.train_step(groups, TrainSettings(learning_rate=1e-2))
    moved = engine.train_step(groups, TrainSettings(learning_rate=1e-2))
    assert fresh.kl == pytest.approx(0.0, abs=1e-6)
    assert moved.kl is not None
    assert moved.kl > 1e-5


def test_another_form_keeps_the_layers_of_transformers(tmp_path: Path) -> None:
    folder = write(tmp_path, "Gemma")
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    assert engine._stack is None
    assert "as transformers wrote them" in engine.notes(None, None)[0]
    moved_policy(engine)
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
    with torch.no_grad():
        assert engine.logprobs(groups).tolist() == pytest.approx(stored, abs=1e-4)


def test_long_prompts_are_attended_in_blocks(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_policy(engine)
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    whole = gradients(engine, groups)
    monkeypatch.setattr("rftkit.server.engine.torch.packed.BLOCK", 5)
    torch.testing.assert_close(gradients(engine, groups), whole, atol=1e-3, rtol=1e-3)


SHAPES = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(0, 6), max_size=4)), min_size=1, max_size=6
)


@given(SHAPES)
@example([(7, [3, 2]), (7, [3, 2]), (6, [3, 0, 1]), (7, [])])
@settings(deadline=None)
def test_groups_attend_together_as_each_does_alone(shapes: list[tuple[int, list[int]]]) -> None:
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    together = Packed([p for p, _ in shapes], [lengths for _, lengths in shapes], cpu)
    num = len(together.positions)
    q, grad = torch.randn(2, num, 2, 3, 8)
    k, v = torch.randn(2, num, 2, 8)
    out, kept = together.attend(0, q, k, v)
    grads = back(together, kept, grad)
    start = 0
    for p, lengths in shapes:
        alone = Packed([p], [lengths], cpu)
        of = slice(start, start + len(alone.positions))
        start = of.stop
        torch.testing.assert_close(together.positions[of], alone.positions)
        own, kept = alone.attend(0, q[of], k[of], v[of])
        torch.testing.assert_close(out[of], own)
        for ours, theirs in zip(grads, back(alone, kept, grad[of]), strict=True):
            torch.testing.assert_close(ours[of], theirs)


@given(SHAPES, st.integers(1, 9))
@example([(7, [3, 2]), (7, [3, 2]), (6, [3, 0, 1]), (7, [])], 3)
@settings(deadline=None)
def test_an_opening_of_all_prompts_is_computed_once(
    shapes: list[tuple[int, list[int]]], opening: int
) -> None:
    """Each group attends as if the opening were its own; the opening's gradient is their sum."""
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    prompts, answers = [opening + p for p, _ in shapes], [lengths for _, lengths in shapes]
    together = Packed(prompts, answers, cpu, opening=opening)
    num = len(together.positions)
    q, grad = torch.randn(2, num, 2, 3, 8)
    k, v = torch.randn(2, num, 2, 8)
    grad[:opening] = 0  # as where nothing is asked of it: alone it is there once a group
    out, kept = together.attend(0, q, k, v)
    grads = back(together, kept, grad)
    sums = [torch.zeros_like(each[:opening]) for each in grads]
    start = opening
    for prompt, lengths in zip(prompts, answers, strict=True):
        alone = Packed([prompt], [lengths], cpu)
        end = start + len(alone.positions) - opening
        of = torch.cat([torch.arange(opening), torch.arange(start, end)])
        start = end
        torch.testing.assert_close(together.positions[of], alone.positions)
        own, kept = alone.attend(0, q[of], k[of], v[of])
        torch.testing.assert_close(out[of], own)
        for ours, theirs, total in zip(grads, back(alone, kept, grad[of]), sums, strict=True):
            torch.testing.assert_close(ours[of][opening:], theirs[opening:])
            total += theirs[:opening]
    for ours, total in zip(grads, sums, strict=True):
        torch.testing.assert_close(ours[:opening], total)


def test_prompts_that_begin_alike_give_the_same_numbers_as_each_alone(engine: TorchEngine) -> None:
    """Log-probs, gradients and greedy answers; alone, nothing is shared."""
    moved_policy(engine)
    system = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    asked = [
        replace(each, prompt_ids=[*system, *each.prompt_ids], temperature=0.0)
        for each in requests(engine)
    ]
    together = engine.sample(asked)
    for group, each in zip(together, asked, strict=True):
        assert [c.tokens for c in group] == [c.tokens for c in engine.sample([each])[0]]
    groups = groups_from(asked, together)
    assert lay_out(groups, lambda _: None).opening >= len(system)
    alone = torch.cat([engine.logprobs([group]) for group in groups])
    torch.testing.assert_close(engine.logprobs(groups), alone, atol=1e-5, rtol=1e-4)
    shared = gradients(engine, groups)
    policy, _ = engine.policies.trained()
    for tensor in policy.values():
        tensor.grad = None
    (alone**2).sum().backward()  # type: ignore[no-untyped-call]
    own = torch.cat([t.grad.flatten() for t in policy.values() if t.grad is not None])
    torch.testing.assert_close(shared, own, atol=1e-3, rtol=1e-3)


def test_groups_of_about_one_shape_are_computed_together() -> None:
    cpu = torch.device("cpu")
    assert len(Packed([60, 61, 62], [[8, 9]] * 3, cpu)._groups) == 1
    assert len(Packed([60, 600, 60], [[8, 9]] * 3, cpu)._groups) == 3


def test_a_kl_term_leaves_the_policy_on_for_the_way_back(engine: TorchEngine) -> None:
    moved_policy(engine)
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    stats = engine.train_step(groups, TrainSettings(1e-3, kl_coef=0.1))
    assert stats.kl is not None
    assert stats.kl > 0


def test_what_all_had_to_say_joins_the_prompt_and_what_ends_without_choice_is_left_out() -> None:
    group = TrainGroup([1, 2], [[5, 6, 7, 8, 9], [5, 6, 3]], [[0.0] * 5, [0.0] * 3], [1.0, -1.0])
    free, forced = np.array([3, 0], np.int32), np.array([1, 0], np.int32)
    # Of the first: 5 6 forced, 7 chosen, 8 chosen, 9 forced; of the second: 3 chosen.
    masks = np.stack([forced, forced, free, free, forced, forced, forced, free])
    line = lay_out([group], lambda _: masks)
    assert line.tokens == [1, 2, 5, 6, 7]
    assert line.prompt_lengths == [4]
    assert line.completion_lengths == [[1, 0]]
    assert line.at == [3, 4, 3]
    assert line.wanted == [7, 8, 3]
    assert line.places == [2, 3, 7]
    assert line.num_tokens == 8
    assert line.masks is not None
    assert line.masks.shape == (3, 2)


def test_a_bandit_converges_to_its_best_arm(tmp_path: Path) -> None:
    """One token an answer; one token is paid."""
    engine = TorchEngine(write(tmp_path, "Llama"), name="test", device="cpu", dtype=torch.float32)
    engine.start_policy(LoraConfig(rank=4, alpha=8.0), 0)
    prompt = engine.encode([{"role": "user", "content": "x"}])
    first = engine.sample([SampleRequest(prompt, [(0, g) for g in range(64)], 1)])[0]
    best = first[0].tokens[0]  # an arm that is drawn now and then
    shares = []
    for step in range(25):
        [group] = engine.sample([SampleRequest(prompt, [(step, g) for g in range(64)], 1)])
        rewards = [float(completion.tokens[0] == best) for completion in group]
        mean = sum(rewards) / len(rewards)
        shares.append(mean)
        if mean == 1.0:
            break
        engine.train_step(
            [
                TrainGroup(
                    prompt,
                    [completion.tokens for completion in group],
                    [completion.sampling_logprobs for completion in group],
                    [reward - mean for reward in rewards],
                )
            ],
            TrainSettings(2e-2),
        )
    assert shares[0] < 0.5
    assert max(shares) > 0.95


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [("Gemma", {}), ("Olmo2", {}), ("Mixtral", {"sliding_window": None}), ("Gemma3", {})],
)
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_layers_of_transformers_are_computed_again_where_memory_is_short(
    architecture: str, sizes: dict[str, Any], tuning: str, tmp_path: Path
) -> None:
    """The same gradients to the bit, from less that is kept; Gemma 3 takes the plain path."""
    folder = write(tmp_path, architecture, num_hidden_layers=6, **sizes)
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    assert engine._stack is None
    moved_policy(engine)
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    if tuning == "full":
        engine.start_policy(None, 1)

    def kept_bytes() -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            engine.logprobs(groups)
        return sum(kept.values())

    engine.memory_bytes = None
    whole, much = gradients(engine, groups), kept_bytes()
    engine.memory_bytes = 1
    assert torch.equal(gradients(engine, groups), whole)
    assert kept_bytes() < much / 2
