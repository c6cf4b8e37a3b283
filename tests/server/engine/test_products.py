"""Which library multiplies on a CPU: the numbers are the same, and a packed copy does not outlive
what it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import write
from torch import nn
from torch.nn import functional

from rftkit.server.engine.torch import lora, passes, products
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.torch.lora import PACKED_FLOAT32_ROWS, PACKED_ROWS, Block
from rftkit.server.engine.values import LoraConfig

WIDE = (640, 512)  # out, in: large enough for oneDNN
needs_onednn = pytest.mark.skipif(
    not products.is_packable(torch.zeros(WIDE)), reason="this processor takes MKL for float32"
)


def block(*, adapts: bool = True) -> Block:
    """A block of one large float32 layer, with an adapter."""
    torch.manual_seed(0)
    made = Block(["layer"], [nn.Linear(WIDE[1], WIDE[0])])
    if adapts:
        weights = lora.fresh_adapter([made], LoraConfig(8, 16), torch.Generator().manual_seed(0))
        weights["layer.B"].normal_()
        made.use(weights, 2.0)
    return made


def multiplied(made: Block, rows: torch.Tensor) -> torch.Tensor:
    """The product of a block, with its inputs where it wants them."""
    room = made.room(len(rows))
    passes.copy(rows, room)
    return made.product(room)[0]


def expected(made: Block, rows: torch.Tensor) -> torch.Tensor:
    """The same by autograd's own operators."""
    y = functional.linear(rows, made.weight, made.bias)
    if made._adapter is None:
        return y
    [a], [b], scale = made._adapter
    return y + scale * (rows @ a.T) @ b.T


@pytest.mark.parametrize("rows", [1, 7, PACKED_FLOAT32_ROWS + 1, PACKED_ROWS + 1])
@pytest.mark.parametrize("adapts", [True, False])
def test_a_large_layer_gives_the_numbers_of_a_plain_product(rows: int, adapts: bool) -> None:
    made, x = block(adapts=adapts), torch.randn(rows, WIDE[1])
    torch.testing.assert_close(multiplied(made, x), expected(made, x), atol=1e-4, rtol=1e-4)


@needs_onednn
def test_one_packed_copy_serves_every_adapter_and_outlives_their_updates() -> None:
    """Two checkpoints that chat in turns would else pack all weights at each turn."""
    made, x = block(), torch.randn(4, WIDE[1])
    multiplied(made, x)
    assert list(made._packed) == ["W"]
    copy = made._packed["W"]
    assert made._adapter is not None
    made._adapter[1][0].mul_(3)
    made.refresh()
    torch.testing.assert_close(multiplied(made, x), expected(made, x), atol=1e-4, rtol=1e-4)
    made.use(None, 0.0)
    torch.testing.assert_close(multiplied(made, x), expected(made, x), atol=1e-4, rtol=1e-4)
    assert made._packed == {"W": copy}


@needs_onednn
def test_a_packed_copy_is_made_again_when_the_weight_changes() -> None:
    made, x = block(adapts=False), torch.randn(4, WIDE[1])
    multiplied(made, x)
    made.weight.mul_(3)
    made.moved()
    torch.testing.assert_close(multiplied(made, x), expected(made, x), atol=1e-4, rtol=1e-4)


@needs_onednn
def test_a_pass_of_many_rows_frees_the_packed_copies_of_float32_weights() -> None:
    """They are as large as the weights, and such a pass keeps much for its backward pass."""
    made = block()
    multiplied(made, torch.randn(4, WIDE[1]))
    assert made._packed
    multiplied(made, torch.randn(PACKED_ROWS + 1, WIDE[1]))
    assert not made._packed


@needs_onednn
def test_nothing_is_packed_where_the_copies_would_not_fit(tmp_path: Path) -> None:
    engine = TorchEngine(write(tmp_path, "Llama"), name="test", device="cpu", dtype=torch.float32)
    wanted = sum(each.weight.nbytes for each in engine.blocks)
    for room, packs in ((wanted, True), (wanted - 1, False), (None, True)):
        engine.memory_bytes = room
        assert {each.packs for each in engine.blocks} == {packs}
    made, x = block(), torch.randn(4, WIDE[1])
    made.packs = False
    torch.testing.assert_close(multiplied(made, x), expected(made, x), atol=1e-4, rtol=1e-4)
    assert not made._packed


def test_a_part_of_a_wider_matrix_is_left_to_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN has no fast code for it: one product took it longer than a hundred of MKL's."""

    def refuse(*_: Any) -> None:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", refuse)
    x, wider = torch.randn(4, WIDE[1]), torch.randn(WIDE[0], WIDE[1] + 16)
    part = wider[:, : WIDE[1]]
    torch.testing.assert_close(products.linear(x, part), x @ part.T)


@pytest.mark.parametrize("rows", [4, PACKED_FLOAT32_ROWS + 1, PACKED_ROWS + 1])
def test_the_base_gives_the_same_bits_before_and_after_it_had_an_adapter(rows: int) -> None:
    """A resumed job computes its reference before its adapter; the job that ran through, after."""
    made, x = block(adapts=False), torch.randn(rows, WIDE[1])
    before = multiplied(made, x)
    weights = lora.fresh_adapter([made], LoraConfig(8, 16), torch.Generator().manual_seed(0))
    made.use(weights, 2.0)
    multiplied(made, x)
    made.use(None, 0.0)
    assert torch.equal(multiplied(made, x), before)
