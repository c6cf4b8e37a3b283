"""Whatever the engine computes stands on the model's device: held to on a machine without a GPU.

The model lives on torch's "meta" device, whose tensors have a shape and no numbers. Each operation
is watched: one that mixes tensors of two devices, which a GPU would refuse, is an error here too.
Numbers that are asked of a tensor are made up. Not here: whether results are right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rftkit.server.engine.torch import stack
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import LoraConfig, SampleRequest, TrainGroup, TrainSettings

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "enum": ["x", "yy"]}},
    "required": ["a"],
    "additionalProperties": False,
}
BETWEEN = ("copy_", "_to_copy")  # what may move numbers from one device to another


class MadeUp(TorchFunctionMode):
    """Numbers of tensors that have none."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = False  # "is it further off than rounding?"

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = getattr(func, "__name__", "")
        if name == "tolist":
            return torch.ones(args[0].shape, dtype=args[0].dtype).numpy().tolist()
        known: dict[str, object] = {"allclose": True, "__bool__": self.truth, "__float__": 1.0}
        return known[name] if name in known else func(*args, **kwargs or {})


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of several devices; numbers (0-d) may come from the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        tensors = [each for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)]
        found = {each.device.type for each in tensors if each.dim() or each.is_meta}
        name = func.overloadpacket.__name__
        if len(found) > 1 and name not in BETWEEN:
            shapes = [(each.device.type, tuple(each.shape)) for each in tensors]
            raise AssertionError(f"{func} mixes devices: {shapes}")
        if name == "_local_scalar_dense" and args[0].is_meta:
            return 1
        if name == "_unique2" and args[0].is_meta:
            kinds = args[0].new_empty(args[0].numel())
            return kinds, torch.empty_like(args[0]), kinds
        return func(*args, **kwargs or {})


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[MadeUp]:
    adam = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, fused, **named: adam(*a, **named))
    with MadeUp() as mode, OneDevice():
        yield mode


def trained(engine: TorchEngine, groups: list[TrainGroup]) -> None:
    for settings in (TrainSettings(1e-3), TrainSettings(1e-3, kl_coef=0.1)):
        assert engine.train_step(groups, settings).num_tokens


@pytest.mark.parametrize(
    ("architecture", "are_ours"),
    [("Llama", True), ("Qwen3", True), ("Gemma", False), ("Phi", False), ("Mistral", False)],
)
def test_nothing_is_computed_on_two_devices(
    architecture: str,
    are_ours: bool,
    tmp_path: Path,
    made_up: MadeUp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers of ours, layers of transformers' own, and the plain path (Mistral)."""
    monkeypatch.setattr(stack, "_agrees", lambda *_: are_ours)
    folder = write(tmp_path, architecture)
    engine = TorchEngine(folder, name="test", device="meta", dtype=torch.bfloat16)
    assert (engine._stack is not None) == are_ours
    assert bool(engine._plain_because) == (architecture == "Mistral")
    made_up.truth = True  # "is it finite?"
    prompt = engine.encode([{"role": "user", "content": "hello"}])
    asked = [
        SampleRequest(prompt, [(0,), (1,)], 5),
        SampleRequest(prompt, [(2,)], 4, temperature=0.0, num_top_logprobs=2),
        SampleRequest(prompt, [(3,)], 4, top_p=0.5),
    ]
    said: list[int] = engine.tokenizer('{"a": "x"}')["input_ids"]
    constrained = TrainGroup(
        prompt, [said] * 2, [[-1.0] * len(said)] * 2, [1.0, -1.0], json.dumps(SCHEMA)
    )
    for config in (LoraConfig(4, 8.0), None):
        engine.start_policy(config, 0)
        answers = engine.sample(asked)
        tokens = [[each.tokens for each in group] for group in answers]
        groups = [
            TrainGroup(prompt, rows, [[-1.0] * len(row) for row in rows], [1.0, -1.0][: len(rows)])
            for rows in tokens
        ]
        trained(engine, [*groups, constrained])
        engine.memory_bytes = 1  # layers are computed again
        trained(engine, groups)
        engine.drop_policy()
    assert len(engine.embed([prompt])) == 1
