"""Low-rank adapters on frozen linear layers: y = x Wᵀ + (alpha/rank) (x Aᵀ) Bᵀ.

A and B are float32 masters; the arithmetic runs in the dtype of the base weight. Layers that read
the same input (q, k, v; gate, up) are computed as one, and B with W: [x | x Aᵀ] [W | B]ᵀ. Fewer,
larger products. Saved in the folder format of the PEFT library, which can load them. No dropout:
the policy that samples and the policy that is trained are the same function (Hu et al. 2021,
arXiv:2106.09685). Where W itself learns (`full.py`) there is no adapter, and a block gives the
gradient of W.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import linear

from rftkit.server.engine.torch import passes, products
from rftkit.server.engine.values import LoraConfig

__all__ = ["AdapterWeights", "Block", "add_blocks", "fresh_adapter", "load_adapter", "save_adapter"]

AdapterWeights = dict[str, torch.Tensor]
"""Layer name + ".A" (rank, in) or ".B" (out, rank) → float32 tensor."""

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one parent that read the same input."""
FUSED = "gate_up_proj"
"""The weights of all experts of a layer in one, as transformers 5 has them."""
LIKE_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Linear layers that PEFT mistakes for experts where a model has fused experts: it cannot put
adapters on them alone, so they get none here."""
MAMBAS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
"""Model types whose `out_proj` PEFT refuses."""
PACKED_ROWS = 640
"""Up to this many rows a product is faster with bfloat16 weights packed beforehand."""
PACKED_FLOAT32_ROWS = 256
"""The same for float32 weights, whose packed copy is large: as many rows as decode together. A pass
of more than `PACKED_ROWS` may need the memory of these copies."""
Part = Literal["W", "A", "W | B"]
"""The weight; [A | 0], which takes the same inputs as [W | B]."""


class Block(nn.Module):
    """One or more linear layers with the same input, each with at most one adapter."""

    def __init__(self, names: Sequence[str], layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.names = list(names)
        self.sizes = [layer.out_features for layer in layers]
        self.adapts = True
        """Whether adapters are put on these layers."""
        weight = torch.cat([layer.weight.data for layer in layers])
        self.weight = nn.Parameter(weight, requires_grad=False)  # (out, in)
        self.bias: torch.Tensor | None = None
        if layers[0].bias is not None:
            bias = torch.cat([layer.bias.data for layer in layers])
            self.bias = nn.Parameter(bias, requires_grad=False)
        self._adapter: tuple[list[torch.Tensor], list[torch.Tensor], float] | None = None
        self._inputs = weight.shape[1]
        # Of the adapter that was on last: a master, [A | 0] (ranks, in + ranks), B (out, ranks).
        self._of: torch.Tensor | None = None
        self._low_a: torch.Tensor | None = None
        self._low_b: torch.Tensor | None = None
        self._wide = self.weight.data  # [W | B] (out, in + ranks); the weight is a part of it
        self.packs = True
        """Whether there is memory for packed copies of float32 weights."""
        self._packed: dict[Part, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    def use(self, weights: AdapterWeights | None, scale: float) -> None:
        """Put an adapter on (None: the base alone)."""
        self._last = self._adapter = None
        if weights is None or f"{self.names[0]}.A" not in weights:
            return
        down = [weights[f"{name}.A"] for name in self.names]
        if down[0] is not self._of:
            self._of, self._low_a = down[0], None
        self._adapter = (down, [weights[f"{name}.B"] for name in self.names], scale)

    def refresh(self) -> None:
        """Forget what was derived from the masters, after they have changed."""
        self._last = self._low_a = None

    def moved(self) -> None:
        """Forget what was derived from the weight, after it has changed."""
        self._last, self._packed = None, {}

    def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of each layer for x (..., in), computed once for the same tensor."""
        # transformers calls the layers of a block one after the other with the same tensor. The
        # first call computes the outputs of all.
        if self._last is None or self._last[0] is not x:
            y = self._product(x.reshape(-1, x.shape[-1]))
            parts = y.view(*x.shape[:-1], -1).split(self.sizes, dim=-1)
            self._last = (x, list(parts)) if len(parts) > 1 else None
            return list(parts)
        return self._last[1]

    def served(self) -> None:
        """All layers have taken their outputs: free the tensors."""
        self._last = None

    def room(self, num: int) -> torch.Tensor:
        """A buffer for `num` inputs (num, in); with an adapter, x Aᵀ has its place after them.

        Whoever fills it puts zeros there, which the zeros of [A | 0] multiply (`passes.py`).
        """
        self._derive()
        columns = self._inputs if self._adapter is None else self._wide.shape[1]
        return self._wide.new_empty(num, columns)

    def product(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, out) of inputs in their `room`, and (N, ranks) for backward; without autograd.

        What follows the inputs is zero.
        """
        if self._adapter is None:
            return self._times(rows, "W"), None
        hidden = self._times(rows, "A")
        if rows.dtype == torch.float32 and self._is_packed(len(rows), self.weight):
            # One copy serves all adapters. One of [W | B] would be made again for each of two that
            # chat in turns, and is large.
            assert self._low_b is not None
            y = self._times(rows[:, : self._inputs], "W")
            return y.addmm_(hidden, self._low_b.T), hidden
        rows[:, self._inputs :] = hidden
        return self._times(rows, "W | B"), hidden

    def gradients(
        self,
        grad: torch.Tensor,
        flat: torch.Tensor,
        hidden: torch.Tensor | None,
        *,
        of_input: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Gradient of the input, and those of `trained`, given that of the output (N, out).

        `flat` is the input, which may be in its `room`.
        """
        if hidden is None:
            of_weight = [grad.T @ flat, *([] if self.bias is None else [grad.sum(0)])]
            return grad @ self.weight if of_input else None, of_weight
        self._derive()
        assert self._low_a is not None
        assert self._low_b is not None
        # With h = x Aᵀ and y = x Wᵀ + s h Bᵀ (s is the scale): grad h = s grad B, grad x = grad W +
        # grad h A, grad A = (grad h)ᵀ x, grad B = s gradᵀ h. `_low_b` holds s B.
        grad_hidden = grad @ self._low_b
        grad_input = None
        if of_input:
            grad_input = (grad @ self.weight).addmm_(grad_hidden, self._low_a[:, : self._inputs])
        # On a CPU a product whose left side is transposed takes longer, and one whose left side
        # is the large one several times as long.
        of_a = (grad_hidden.T.contiguous() @ flat)[:, : self._inputs]
        grads = list(of_a.float().chunk(len(self.sizes)))
        turned = (hidden.T.contiguous() @ grad).float().mul_(self._scale)  # (ranks, out)
        # Each layer of the block has its own columns of h and of y. The other parts of the product
        # pair the h of one layer with the y of another and are no gradients.
        rank, start = len(turned) // len(self.sizes), 0
        for index, size in enumerate(self.sizes):
            grads.append(turned[index * rank : (index + 1) * rank, start : start + size].T)
            start += size
        return grad_input, grads

    def _derive(self) -> None:
        """A, and B next to W, in the dtype of the base."""
        if self._adapter is None or self._low_a is not None:
            return
        a, b, scale = self._adapter
        weight, inputs = self.weight.data, self._inputs
        # Rounded after scaling. Layers of a block share an input but not their B: off the diagonal
        # are zeros.
        self._low_b = torch.block_diag(*(part.detach() * scale for part in b)).to(weight.dtype)
        ranks = self._low_b.shape[1]
        self._low_a = weight.new_zeros(ranks, inputs + ranks)
        self._low_a[:, :inputs] = torch.cat([part.detach() for part in a])
        # W moves into [W | B] once and the parameter becomes a view of it, so that W is not in
        # memory twice. After an update only the columns of B are written.
        if self._wide.shape[1] != inputs + ranks:
            self._wide = weight.new_empty(len(weight), inputs + ranks)
            self._wide[:, :inputs] = weight
            self.weight.data = self._wide[:, :inputs]
        self._wide[:, inputs:] = self._low_b
        self._packed.pop("A", None)
        self._packed.pop("W | B", None)

    @property
    def _scale(self) -> float:
        return 0.0 if self._adapter is None else self._adapter[2]

    @property
    def trained(self) -> list[torch.Tensor]:
        """The A of each layer, then the B of each, float32; or weight and bias, if they learn."""
        if self._adapter is not None:
            return [*self._adapter[0], *self._adapter[1]]
        return list(self.parameters()) if self.weight.requires_grad else []

    def _product(self, flat: torch.Tensor) -> torch.Tensor:
        flat = flat.to(self.weight.dtype)
        if torch.is_grad_enabled() and (trained := self.trained):
            result = _BlockFunction.apply(flat, self, *trained)  # type: ignore[no-untyped-call]
            return cast(torch.Tensor, result)
        if flat.requires_grad:  # nothing of this block learns, but something before it
            return linear(flat, self.weight, self.bias)
        return self._moved_in(flat)[0]

    def _moved_in(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the product of inputs (N, in) that are elsewhere in memory."""
        rows = self.room(len(flat))
        passes.copy(flat, rows)
        return self.product(rows)

    def _times(self, rows: torch.Tensor, part: Part) -> torch.Tensor:
        """Multiply without a gradient of the weight; packed for few rows on a CPU."""
        matrix = {"W": self.weight, "A": self._low_a, "W | B": self._wide}[part]
        assert matrix is not None
        bias = None if part == "A" else self.bias
        if matrix.dtype == torch.float32 and len(rows) > PACKED_ROWS:
            self._packed.clear()
        if not self._is_packed(len(rows), matrix):
            # W becomes a part of [W | B] when an adapter is put on, and oneDNN is no choice for a
            # part. Its numbers must not depend on whether that has happened: a resumed job
            # computes with the base alone first.
            return (linear if part == "W" else products.linear)(rows, matrix, bias)
        if part not in self._packed:
            self._packed[part] = products.pack(matrix)
        return products.linear(rows, self._packed[part], bias)

    def _is_packed(self, num: int, matrix: torch.Tensor) -> bool:
        """Whether a product of `num` rows takes a packed copy of a matrix."""
        most = PACKED_ROWS
        if matrix.dtype == torch.float32:
            most = PACKED_FLOAT32_ROWS if self.packs else 0
        return num <= most and products.is_packable(matrix)


class _Member(nn.Module):
    """Replaces a linear layer and returns its part of the block."""

    def __init__(self, block: Block, index: int) -> None:
        super().__init__()
        # Not registered as a child: the block belongs to the model once.
        object.__setattr__(self, "block", block)
        self.index = index

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight of this layer (out, in), for code that reads it past the layer."""
        block = cast(Block, self.block)
        part: torch.Tensor = block.weight.split(block.sizes)[self.index]
        return part

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias of this layer, likewise."""
        block = cast(Block, self.block)
        if block.bias is None:
            return None
        part: torch.Tensor = block.bias.split(block.sizes)[self.index]
        return part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to x (..., in)."""
        block = cast(Block, self.block)
        part = block.outputs(x)[self.index]
        if self.index == len(block.sizes) - 1:
            block.served()
        return part


class _BlockFunction(torch.autograd.Function):
    """A block for models whose layers are transformers' own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, block: Block, *trained: torch.Tensor) -> torch.Tensor:
        y, hidden = block._moved_in(x)
        ctx.save_for_backward(x, hidden)
        ctx.block = block
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, hidden = ctx.saved_tensors
        of_input = ctx.needs_input_grad[0]
        grad, trained_grads = ctx.block.gradients(grads[0], x, hidden, of_input=of_input)
        return grad, None, *trained_grads


def add_blocks(model: nn.Module, decoder: Any) -> list[Block]:
    """Replace every linear layer of a decoder by blocks, in place."""
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    linears = {n: m for n, m in decoder.named_modules() if _is_linear(m)}
    blocks = []
    done: set[str] = set()
    for name in linears:
        if name in done:
            continue
        parent, _, short = name.rpartition(".")
        group = next((names for names in SIBLINGS if short in names), (short,))
        full = [f"{parent}.{each}" if parent else each for each in group]
        biased = {each in linears and linears[each].bias is not None for each in full}
        members = full if all(each in linears for each in full) and len(biased) == 1 else [name]
        block = Block(
            [f"{prefix}.{each}" if prefix else each for each in members],
            [linears[each] for each in members],
        )
        for index, each in enumerate(members):
            owner = decoder.get_submodule(parent) if parent else decoder
            setattr(owner, each.rpartition(".")[2], _Member(block, index))
        blocks.append(block)
        done.update(members)
    unfit = _unfit(decoder)
    for block in blocks:
        block.adapts = not unfit & {name.rpartition(".")[2] for name in block.names}
    return blocks


def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes what a linear layer does. A router may inherit one and do more
    (Llama 4); Falcon's layers inherit one and do the same.
    """
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return isinstance(module, nn.Linear)
    x = module.weight.new_ones(1, module.in_features)
    try:
        with torch.no_grad():
            own = module(x)
    except RuntimeError:  # it takes other shapes: a linear layer for each group of inputs
        return False
    plain = linear(x, module.weight, module.bias)
    return torch.is_tensor(own) and torch.allclose(own, plain, rtol=0.02, atol=0.02)


def _unfit(decoder: Any) -> set[str]:
    """Names of linear layers on which PEFT would not put adapters, or would put them elsewhere."""
    names = {name.rpartition(".")[2] for name, _ in decoder.named_parameters()}
    unfit = set(LIKE_EXPERTS) if FUSED in names else set()
    return unfit | ({"out_proj"} if decoder.config.model_type in MAMBAS else set())


def fresh_adapter(
    blocks: Sequence[Block], config: LoraConfig, generator: torch.Generator
) -> AdapterWeights:
    """A uniform as PEFT draws it (Kaiming, a = √5), B zero: the policy starts at the base."""
    weights: AdapterWeights = {}
    for block in blocks:
        if not block.adapts:
            continue
        num_inputs, device = block.weight.shape[1], block.weight.device
        bound = math.sqrt(1.0 / num_inputs)
        for name, size in zip(block.names, block.sizes, strict=True):
            a = torch.empty(config.rank, num_inputs).uniform_(-bound, bound, generator=generator)
            weights[f"{name}.A"] = a.to(device)
            weights[f"{name}.B"] = torch.zeros(size, config.rank, device=device)
    return weights


def save_adapter(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: LoraConfig,
    base: str,
    others: Sequence[str] = (),
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT reads them.

    `others` are linear layers of the base outside its decoder, such as those that see: PEFT would
    put adapters on the ones that have a name of ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name[:-2]}.lora_{name[-1]}.weight": tensor.detach().cpu().contiguous()
        for name, tensor in weights.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = {_target(name[:-2]) for name in weights}
    excluded = sorted(name for name in others if _target(name) in targets)
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        **({"exclude_modules": excluded} if excluded else {}),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n")


def _target(name: str) -> str:
    """The name by which PEFT finds a layer: its last part, and the numbered part before it.

    `layers.0` ends in `0` as well, so a number alone would be a whole layer of the decoder.
    """
    parent, _, short = name.rpartition(".")
    return f"{_target(parent)}.{short}" if short.isdigit() and parent else short


def load_adapter(folder: Path, device: torch.device) -> tuple[AdapterWeights, LoraConfig]:
    """Read what `save_adapter` wrote."""
    description = json.loads((folder / "adapter_config.json").read_text())
    config = LoraConfig(rank=description["r"], alpha=description["lora_alpha"])
    tensors = load_file(folder / "adapter_model.safetensors")
    weights = {}
    for key, tensor in tensors.items():
        name, letter = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        # A copy: the file's own bytes may be at any address, and products of unaligned matrices
        # differ in their last bits from those of the straight run.
        weights[f"{name}.{letter.removeprefix('lora_')}"] = tensor.to(
            device, torch.float32, copy=True
        )
    return weights, config
