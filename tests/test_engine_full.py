"""Full fine-tuning: every gradient against autograd on transformers' model, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write
from test_engine_torch import groups_from, policy_of, requests

from rftkit.server.engine.base import TrainGroup
from rftkit.server.engine.batches import micro_batches
from rftkit.server.engine.torch import TorchEngine

FORMS: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen2": {},  # biases, a head of its own
    "Qwen3": {"tie_word_embeddings": True},  # a norm for each head
    "Gemma": {},  # layers of transformers, scaled embeddings
    "Starcoder2": {"sliding_window": None},  # layers of transformers, norms with biases
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},  # experts
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
    policy, _ = engine._trained()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in policy.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    engine._put(policy, changed=True)


def some_groups(engine: TorchEngine) -> list[TrainGroup]:
    asked = requests(engine)
    return groups_from(asked, engine.sample(asked))


def gradients(engine: TorchEngine, batches: list[list[TrainGroup]]) -> dict[str, torch.Tensor]:
    policy, optimizer = engine._trained()
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
