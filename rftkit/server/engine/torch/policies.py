"""Which weights a loaded model computes with: the base's, a saved policy's, or those that learn.

A policy is LoRA adapters, or every weight (`full.py`); what learns and its optimizer are float32.
Saved policies are kept in memory while they are in use, the last few of them. Not here: the update
itself (`update.py`).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from rftkit.errors import InputError
from rftkit.server.engine.torch import lora, memory
from rftkit.server.engine.torch.model import LoadedModel
from rftkit.server.engine.values import FULL_FILE, Adapter, LoraConfig, is_whole

__all__ = ["Policies"]

CACHED_ADAPTERS = 8
MASTERS = "masters.safetensors"  # in a saved state: the weights in float32

_Saved = tuple[dict[str, torch.Tensor], LoraConfig | None]
"""Weights of a saved policy: adapters and their shape, or whole ones and None."""


class Policies:
    """The policy being trained, saved policies on demand, and which of them is in place."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._full_on: dict[str, torch.Tensor] | None = None
        self._policy: dict[str, torch.Tensor] | None = None
        self._config: LoraConfig | None = None  # the policy's adapter; None: every weight learns
        self._optimizer: torch.optim.Optimizer | None = None
        self._cache: OrderedDict[Path, _Saved] = OrderedDict()
        self._use("policy")

    def start(self, config: LoraConfig | None, seed: int, adapter: Path | None = None) -> None:
        """See Engine.start_policy. A saved adapter keeps its own shape, or is merged."""
        saved = None if adapter is None else self._saved(adapter)
        if config is None:
            self._set_policy(self._masters(saved), None)
        elif saved is not None:
            # a job like this was refused earlier
            assert saved[1] is not None, "adapters do not learn on whole weights"
            self._set_policy(*saved)
        else:
            generator = torch.Generator().manual_seed(seed)
            fresh = lora.fresh_adapter(self._model.blocks, config, generator)
            if not fresh:
                raise InputError(
                    f"{self._model.name} has no linear layers to put adapters on; train every "
                    "weight instead (metadata `tuning` = full)",
                    param="metadata.tuning",
                )
            self._set_policy(fresh, config)

    def _masters(self, saved: _Saved | None) -> dict[str, torch.Tensor]:
        """All weights in float32: the base's, saved ones, or the base's with a saved adapter."""
        weights, config = saved or ({}, LoraConfig())
        if config is None:
            return _copied(weights, self._model.device)
        self._use(None)
        masters = self._model.weights.read(torch.float32)
        for name in {key.rpartition(".")[0] for key in weights}:
            change = weights[f"{name}.B"] @ weights[f"{name}.A"]
            masters[f"{name}.weight"] += config.alpha / config.rank * change
        return masters

    def drop(self) -> None:
        """Forget the policy; what remains is the base model."""
        self._model.weights.stop_learning()
        self._policy, self._optimizer = None, None
        self._use("policy")
        self._model.weights.forget_base()
        memory.give_back()

    def save_adapter(self, folder: Path) -> None:
        """See Engine.save_adapter: PEFT's folder format, or all weights in the model's dtype."""
        policy, _ = self.trained()
        if self._config is None:
            with self.using("policy"):
                save_file(self._model.weights.read(), folder / FULL_FILE)
        else:
            lora.save_adapter(
                folder, policy, self._config, self._model.name, self._model.other_linears
            )

    def save(self, folder: Path) -> None:
        """See Engine.save: the trained weights in float32, and the optimizer."""
        policy, optimizer = self.trained()
        if self._config is None:
            save_file({name: each.detach() for name, each in policy.items()}, folder / MASTERS)
        else:
            self.save_adapter(folder)
        state = {}
        for name, tensor in policy.items():
            for key, value in optimizer.state.get(tensor, {}).items():
                state[f"{name}:{key}"] = value.detach().cpu().contiguous()
        save_file(state, folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        """See Engine.load."""
        if (folder / MASTERS).is_file():
            self._set_policy(_copied(load_file(folder / MASTERS), self._model.device), None)
        else:
            self._set_policy(*lora.load_adapter(folder, self._model.device))
        policy, optimizer = self.trained()
        for key, value in load_file(folder / "optimizer.safetensors").items():
            name, field = key.split(":")
            optimizer.state[policy[name]][field] = value.clone().to(self._model.device)

    def _set_policy(self, weights: dict[str, torch.Tensor], config: LoraConfig | None) -> None:
        memory.keep()
        self._config = config
        # A fixed order: the gradient's norm is a sum, and files have another order.
        self._policy = {name: weights[name].requires_grad_() for name in sorted(weights)}
        self._optimizer = torch.optim.AdamW(
            list(self._policy.values()), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self._model.weights.stop_learning()
        if config is None:
            self._model.weights.learn(self._policy)
        self._use("policy")

    def trained(self) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
        """The weights that learn, by name, and their optimizer."""
        if self._policy is None or self._optimizer is None:
            raise RuntimeError("no policy: call start_policy or load first")
        return self._policy, self._optimizer

    def _use(self, adapter: Adapter | Literal["policy"]) -> None:
        self._active = adapter
        weights: dict[str, torch.Tensor] | None = None
        config: LoraConfig | None = None
        if adapter == "policy":
            weights, config = self._policy, self._config
        elif adapter is not None:
            weights, config = self._cached(Path(adapter))
        self._put(weights if config is None else None)
        for block in self._model.blocks:
            if config is None:
                block.use(None, 0.0)
            else:
                block.use(weights, config.alpha / config.rank)

    def _put(self, weights: dict[str, torch.Tensor] | None, *, changed: bool = False) -> None:
        """Have the model compute with whole weights, or with the base's, unless it does."""
        if weights is self._full_on and not changed:
            return
        with torch.no_grad():
            self._model.weights.put(weights)
            if self._model.head is not self._model.head_for_gradients:
                self._model.head.copy_(self._model.head_for_gradients)
        self._full_on = weights

    def _saved(self, folder: Path) -> _Saved:
        if is_whole(folder):
            # load_file maps the file, which takes no memory
            return load_file(folder / FULL_FILE), None
        return lora.load_adapter(folder, self._model.device)

    def _cached(self, folder: Path) -> _Saved:
        if folder not in self._cache:
            self._cache[folder] = self._saved(folder)
            while len(self._cache) > CACHED_ADAPTERS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(folder)
        return self._cache[folder]

    @contextlib.contextmanager
    def using(self, adapter: Adapter | Literal["policy"]) -> Iterator[None]:
        """Compute with these weights inside the block, and with those of before after it."""
        before = self._active
        self._use(adapter)
        try:
            yield
        finally:
            self._use(before)

    def apply_update(self) -> None:
        """Compute with the weights that the optimizer has just changed."""
        if self._config is None:
            self._put(self.trained()[0], changed=True)
        for block in self._model.blocks:
            block.refresh()


def _copied(weights: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A float32 copy at an address of its own: see `lora.load_adapter`."""
    return {name: each.to(device, torch.float32, copy=True) for name, each in weights.items()}
