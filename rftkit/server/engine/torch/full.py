"""Full fine-tuning: every weight of a model learns (norms, embeddings and head too), not adapters.

Masters and AdamW are float32. The model computes with copies of the masters in its own dtype, which
sampler and trainer share and a checkpoint holds. Autograd brings gradients to those tensors; from
there they are added to the masters' in float32, once a micro-batch. Weights are put into the model
in place, the base's aside meanwhile. Not here: the gradients themselves (`lora.py` linear layers,
`stack.py` and `fast.py` norms, `logprobs.py` the head; autograd the rest), and adapters.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rftkit.server.engine.torch.lora import Block

__all__ = ["Weights", "embedded"]

Named = Mapping[str, torch.Tensor]
"""Weights by the names that transformers gives them."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A tensor of the model as autograd knows it; the layers of a block are one."""

    tensor: nn.Parameter
    names: list[str]
    sizes: list[int]
    """Rows of each name."""

    def parts(self, of: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """A tensor of this shape, by name."""
        parts = [of] if len(self.names) == 1 else of.split(self.sizes)
        return list(zip(self.names, parts, strict=True))


class Weights:
    """All weights of one model, in the place where it computes with them."""

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        """Take the weights of a model whose linear layers are already blocks; tied tensors count
        once.
        """
        self._leaves = [_Leaf(tensor, [name], []) for name, tensor in model.named_parameters()]
        self._leaves += [
            _Leaf(tensor, [f"{name}.{kind}" for name in block.names], block.sizes)
            for block in blocks
            for kind, tensor in block.named_parameters()
        ]
        self._blocks = blocks
        self._base: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []

    @property
    def _places(self) -> dict[str, torch.Tensor]:
        """The tensors that the model computes with, by name; adapters may have moved them."""
        return {name: part for leaf in self._leaves for name, part in leaf.parts(leaf.tensor.data)}

    @property
    def num_parameters(self) -> int:
        """How many numbers learn."""
        return sum(part.numel() for part in self._places.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights as the model computes with them."""
        return sum(part.nbytes for part in self._places.values())

    def read(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """A copy of what the model computes with now, in a dtype or in its own."""
        return {name: part.to(dtype, copy=True) for name, part in self._places.items()}

    def put(self, weights: Named | None) -> None:
        """Put these weights into the model, rounded to its dtype; None: those of the base."""
        # Other weights overwrite those of the base where they lie, so they are copied first.
        if weights is not None and not self._base:
            self._base = self.read()
        places = self._places
        for name, wanted in (self._base if weights is None else weights).items():
            places[name].copy_(wanted)
        for block in self._blocks:
            block.moved()  # what it packed was made of the weights before

    def forget_base(self) -> None:
        """Free the copy of the base, which is in its place."""
        self._base = {}

    def learn(self, masters: Named) -> None:
        """Have a backward pass add its gradients to those of the masters."""
        self.stop_learning()
        for leaf in self._leaves:
            leaf.tensor.requires_grad_()
            self._hooks.append(
                leaf.tensor.register_post_accumulate_grad_hook(
                    functools.partial(_hand_on, leaf, masters)
                )
            )

    def stop_learning(self) -> None:
        """Compute no gradients of the weights from now on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for leaf in self._leaves:
            leaf.tensor.requires_grad_(False)


def _hand_on(leaf: _Leaf, masters: Named, tensor: torch.Tensor) -> None:
    assert tensor.grad is not None
    for name, grad in leaf.parts(tensor.grad):
        master = masters[name]
        if master.grad is None:
            master.grad = grad.float()
        else:
            master.grad += grad
    # Not left there: autograd would add the next micro-batch's to it in the dtype of the model.
    tensor.grad = None


def embedded(module: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The embeddings of tokens, in float32. Where the embedding learns, each kind of token is
    looked up once, so that the gradient of a frequent token is summed in float32: in bfloat16 the
    sum would stop growing.
    """
    weight: Any = module.weight
    if not (torch.is_grad_enabled() and weight.requires_grad):
        looked_up: torch.Tensor = module(tokens)
        return looked_up.float()
    kinds, which = tokens.unique(return_inverse=True)
    return nn.functional.embedding(which, module(kinds).float())
