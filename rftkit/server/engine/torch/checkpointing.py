"""Layers of transformers that are recomputed in the backward pass when memory is short.

`stack.py` does the same for its own layers (Chen et al. 2016, arXiv:1604.06174), by the same rule:
the first layer of a pass shows how much one layer keeps. If all layers would keep more than the
budget, the others keep only their input. Nothing here is random, so the numbers are the same to the
bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Layers"]


class Layers:
    """The layers of a decoder, and how much they may keep for a backward pass."""

    def __init__(self, decoder: nn.Module) -> None:
        """Wrap each layer of the decoder."""
        found = (each for each in decoder.children() if isinstance(each, nn.ModuleList))
        layers: Any = next(found, [])
        self._num = len(layers)
        self._left: float = 0.0
        self._recompute = False
        for index, layer in enumerate(layers):
            layer.forward = functools.partial(self._forward, layer.forward, index == 0)

    def allow(self, memory_bytes: int | None) -> None:
        """Set what the passes until the next backward pass may keep together; None: anything."""
        self._left = float("inf") if memory_bytes is None else memory_bytes

    def _forward(self, plain: Callable[..., Any], is_first: bool, *given: Any, **named: Any) -> Any:
        if torch.is_grad_enabled() and is_first:
            with _counted() as sizes:
                result = plain(*given, **named)
            each = sum(sizes.values())
            self._recompute = each * self._num > self._left
            # Several passes may come before one backward pass, and share what is allowed.
            self._left -= each * (1 if self._recompute else self._num)
            return result
        if torch.is_grad_enabled() and self._recompute:
            return checkpoint(plain, *given, use_reentrant=False, preserve_rng_state=False, **named)
        return plain(*given, **named)


@contextlib.contextmanager
def _counted() -> Iterator[dict[int, int]]:
    """Count the bytes that are kept for a backward pass in this block, without the weights."""
    sizes: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()  # views of one storage count once
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield sizes
