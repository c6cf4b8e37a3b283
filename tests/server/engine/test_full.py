"""Full fine-tuning: every gradient against autograd on transformers' model, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write
from safetensors.torch import load_file
from server.engine.test_torch import groups_from, moved_policy, policy_of, requests

from rftkit.server.engine.torch.batches import micro_batches
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.torch.full import embedded
from rftkit.server.engine.values import LoraConfig, TrainGroup, TrainSettings

FORMS: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen2": {},  # biases, a head of its own
    "Qwen3": {"tie_word_embeddings": True},  # a norm for each head
    "Gemma": {},  # layers of transformers, scaled embeddings
    "Starcoder2": {"sliding_window": None},  # layers of transformers, norms with biases
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},  # experts
    "Gemma2": {"final_logit_softcapping": 3.0},  # logits with a cap
    "Cohere": {"logit_scale": 0.3},  # scaled logits
    "Gemma3": {"sliding_window": 8},  # the plain path, embeddings that scale themselves
}


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(request.param), request.param, **FORMS[request.param])


@pytest.fixture(scope="module")
def engine(folder: Path) -> TorchEngine:
    return TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder = write(tmp_path_factory.mktemp("llama"), "Llama", tie_word_embeddings=True)
    return TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)


def move(engine: TorchEngine, seed: int = 3) -> None:
    """A policy trained in full that is not the base any more."""
    engine.start_policy(None, seed)
    policy, _ = engine.policies.trained()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in policy.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    engine.policies.apply_update()


def some_groups(engine: TorchEngine) -> list[TrainGroup]:
    asked = requests(engine)
    return groups_from(asked, engine.sample(asked))


def gradients(engine: TorchEngine, batches: list[list[TrainGroup]]) -> dict[str, torch.Tensor]:
    policy, optimizer = engine.policies.trained()
    optimizer.zero_grad()
    for batch in batches:
        (engine.logprobs(batch, 0.7) ** 2).sum().backward()  # type: ignore[no-untyped-call]
    return {name: t.grad.clone() for name, t in policy.items() if t.grad is not None}


def plain_gradients(
    folder: Path, policy: dict[str, torch.Tensor], groups: list[TrainGroup]
) -> dict[str, torch.Tensor]:
    """The same by autograd on the model as transformers loads it, one text at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    named = dict(model.named_parameters())
    assert named.keys() == policy.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(policy[name])
    for group in groups:
        for tokens in group.tokens_G_T:
            ids = torch.tensor([group.prompt_ids + tokens])
            logits = model(ids).logits[0, len(group.prompt_ids) - 1 : -1] / 0.7
            picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])
            (picked**2).sum().backward()
    return {name: p.grad for name, p in named.items() if p.grad is not None}


def test_every_gradient_is_that_of_autograd(folder: Path, engine: TorchEngine) -> None:
    move(engine)
    groups = some_groups(engine)
    ours = gradients(engine, [groups])
    apart = gradients(engine, list(micro_batches(groups, 1)))
    plain = plain_gradients(folder, policy_of(engine), groups)
    assert ours.keys() == plain.keys()
    for name, wanted in plain.items():
        assert wanted.abs().max() > 0, name
        for found in (ours[name], apart[name]):
            assert (found - wanted).norm() < 1e-4 * wanted.norm(), name


def test_sampler_and_trainer_agree_and_an_update_raises_what_was_rewarded(
    engine: TorchEngine,
) -> None:
    move(engine)
    groups = some_groups(engine)
    stored = [x for group in groups for row in group.sampling_logprobs_G_T for x in row]
    with torch.no_grad():
        before = engine.logprobs(groups)
    assert before.tolist() == pytest.approx(stored, abs=1e-4)
    stats = engine.train_step(groups, TrainSettings(1e-4, kl_coef=0.01))
    with torch.no_grad():
        after = engine.logprobs(groups)
    weights = torch.tensor(
        [a for g in groups for a, t in zip(g.advantages_G, g.tokens_G_T, strict=True) for _ in t]
    )
    assert ((after - before) * weights).sum() > 0
    assert stats.kl is not None
    assert stats.kl > 1e-5


def test_layers_computed_again_give_the_same_gradient_to_the_bit(llama: TorchEngine) -> None:
    move(llama)
    groups = some_groups(llama)
    kept = gradients(llama, [groups])
    budget, llama.memory_bytes = llama.memory_bytes, 1
    try:
        again = gradients(llama, [groups])
    finally:
        llama.memory_bytes = budget
    assert all(torch.equal(again[name], kept[name]) for name in kept)


def test_the_gradient_of_a_token_that_stands_often_is_not_lost_in_bfloat16() -> None:
    table = torch.nn.Embedding(3, 2, dtype=torch.bfloat16)
    tokens = torch.tensor([1] * 1_000 + [2])
    embedded(table, tokens).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[:, 0].tolist() == [0.0, 1_000.0, 1.0]


@pytest.mark.parametrize("max_grad_norm", [1.0, 1e-3])
def test_saved_and_loaded_goes_on_bit_for_bit(
    llama: TorchEngine, tmp_path: Path, max_grad_norm: float
) -> None:
    settings = TrainSettings(1e-3, max_grad_norm=max_grad_norm)
    llama.start_policy(None, 5)
    groups = some_groups(llama)
    llama.train_step(groups, settings)
    llama.save(tmp_path)

    def four_more_steps() -> dict[str, torch.Tensor]:
        for _ in range(4):
            llama.train_step(groups, settings)
        return policy_of(llama)

    straight = four_more_steps()
    llama.drop_policy()
    llama.load(tmp_path)
    resumed = four_more_steps()
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [*((name, torch.float32) for name in FORMS), ("Llama", torch.bfloat16)],
)
def test_a_checkpoint_is_the_policy_and_the_base_stays_the_base(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = write(tmp_path / "base", architecture, **FORMS[architecture])
    engine = TorchEngine(folder, name="test", device="cpu", dtype=dtype)
    asked = requests(engine)
    base = engine.sample(asked, None)
    move(engine)
    engine.train_step(some_groups(engine), TrainSettings(1e-3))
    nested = []

    def on_tick() -> None:
        if not nested:
            nested.append(engine.sample(asked, None))

    policy = engine.sample(asked, on_tick=on_tick)
    assert nested == [base]
    assert engine.sample(asked) == policy
    saved = tmp_path / "saved"
    saved.mkdir()
    engine.save_adapter(saved)
    masters = policy_of(engine)
    for name, tensor in load_file(saved / "weights.safetensors").items():
        assert torch.equal(tensor, masters[name].to(dtype)), name
    assert engine.sample(asked, None) == base
    engine.start_policy(LoraConfig(), 1)
    assert engine.sample(asked, saved) == policy
    fresh = engine.sample(asked)  # adapters that change nothing, but are computed with
    assert [[c.tokens for c in g] for g in fresh] == [[c.tokens for c in g] for g in base]
    engine.start_policy(None, 1, saved)
    assert engine.sample(asked) == policy
    engine.drop_policy()
    assert engine.sample(asked) == base


def test_adapters_are_merged_when_every_weight_goes_on_from_them(
    engine: TorchEngine, tmp_path: Path
) -> None:
    moved_policy(engine)
    groups = some_groups(engine)
    engine.save_adapter(tmp_path)
    with torch.no_grad():
        adapted = engine.logprobs(groups)
        engine.start_policy(None, 1, tmp_path)
        torch.testing.assert_close(engine.logprobs(groups), adapted, atol=1e-4, rtol=1e-4)


def test_what_learns_is_said(llama: TorchEngine) -> None:
    [note] = llama.notes(None, None, full=True)
    assert note.startswith("Every weight of test learns")
    assert f"{sum(t.numel() for t in policy_of(llama).values()):,} parameters" in note
