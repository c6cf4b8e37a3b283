"""The update against TRL's own: the same weights and rollouts, its loss and its gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write
from server.engine.test_torch import groups_from, moved_policy, requests

from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import TrainGroup, TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("moved_by", [0.0, 0.05])
def test_loss_and_gradients_are_those_of_trl(
    kl_coef: float, moved_by: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = write(tmp_path / "base", "Llama")
    engine = TorchEngine(folder, name="test", device="cpu", dtype=torch.float32)
    moved_policy(engine)
    asked = requests(engine)
    groups = groups_from(asked, engine.sample(asked))
    # The policy has moved since it sampled: some ratios leave the clip range.
    for tensor in engine.policies.trained()[0].values():
        tensor.data.add_(moved_by)
    for block in engine.blocks:
        block.refresh()
    engine.save_adapter(tmp_path / "adapter")

    stats = engine.train_step(groups, TrainSettings(0.0, kl_coef=kl_coef, max_grad_norm=1e9))
    ours = {
        f"base_model.model.{name[:-2]}.lora_{name[-1]}.default.weight": tensor.grad
        for name, tensor in engine.policies.trained()[0].items()
    }
    loss, theirs = trl_update(folder, tmp_path, groups, kl_coef)
    assert (stats.clip_fraction > 0.02) == (moved_by > 0)
    assert stats.loss == pytest.approx(loss, abs=2e-5, rel=1e-4)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=2e-5, rtol=1e-3, msg=name)


def trl_update(
    folder: Path, tmp_path: Path, groups: list[TrainGroup], kl_coef: float
) -> tuple[float, dict[str, torch.Tensor]]:
    """What TRL's GRPOTrainer makes of the same rollouts: loss, and gradients of the adapter."""
    import trl
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import datasets

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none",
            per_device_train_batch_size=8, num_generations=4, beta=kl_coef, epsilon=0.2,
            loss_type="dapo", gradient_checkpointing=False,
            use_bias_correction_kl=False,  # the plain estimate, as ours
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "x"}] * 8),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    inputs = tensors(groups)
    with torch.no_grad(), model.disable_adapter():
        inputs["ref_per_token_logps"] = logps(trainer, model, inputs)
    model.train()
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    return float(loss), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def tensors(groups: list[TrainGroup]) -> dict[str, Any]:
    """Prompts padded on the left, completions on the right, as TRL has them."""
    rows = [
        (group.prompt_ids, tokens, logprobs, advantage)
        for group in groups
        for tokens, logprobs, advantage in zip(
            group.tokens_G_T, group.sampling_logprobs_G_T, group.advantages_G, strict=True
        )
    ]
    longest_prompt = max(len(prompt) for prompt, *_ in rows)
    longest = max(len(tokens) for _, tokens, *_ in rows)

    def left(values: list[Any]) -> list[Any]:
        return [0] * (longest_prompt - len(values)) + values

    def right(values: list[Any]) -> list[Any]:
        return values + [0] * (longest - len(values))

    return {
        "prompt_ids": torch.tensor([left(prompt) for prompt, *_ in rows]),
        "prompt_mask": torch.tensor([left([1] * len(prompt)) for prompt, *_ in rows]),
        "completion_ids": torch.tensor([right(tokens) for _, tokens, *_ in rows]),
        "completion_mask": torch.tensor([right([1] * len(tokens)) for _, tokens, *_ in rows]),
        "old_per_token_logps": torch.tensor([right(logprobs) for _, _, logprobs, _ in rows]),
        "advantages": torch.tensor([advantage for *_, advantage in rows]),
        "num_items_in_batch": torch.tensor(float(sum(len(tokens) for _, tokens, *_ in rows))),
    }


def logps(trainer: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Log-probs of the completion tokens, (N, T), as TRL computes them."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    found: torch.Tensor = trainer._get_per_token_logps_and_entropies(
        model, ids, mask, inputs["completion_ids"].shape[1]
    )[0]
    return found
