"""Log-probs in chunks, and a draw by stretches, are those of the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rftkit.server.engine.torch import logprobs
from rftkit.server.engine.torch.draw import _inverse_cdf

WIDTH, VOCABULARY, ROWS = 64, 4_096, 600


@pytest.mark.parametrize("is_masked", [False, True])
def test_chunks_give_what_the_plain_formula_gives(is_masked: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    head = (torch.randn(VOCABULARY, WIDTH, generator=chance) * 0.2).bfloat16()
    hidden = torch.randn(ROWS, WIDTH, generator=chance).bfloat16().float().requires_grad_()
    tokens = torch.randint(0, VOCABULARY, (ROWS,), generator=chance)
    grad_logprobs = torch.randn(ROWS, generator=chance)
    allowed = torch.ones(ROWS, VOCABULARY, dtype=torch.bool)
    masks = None
    if is_masked:
        allowed = torch.rand(ROWS, VOCABULARY, generator=chance) < 0.1
        allowed[torch.arange(ROWS), tokens] = True
        masks = np.packbits(allowed.numpy(), axis=1, bitorder="little").view(np.int32)

    found = logprobs.token_logprobs(hidden, head.float(), tokens, masks, 0.8, head)
    [grad] = torch.autograd.grad(found, hidden, grad_logprobs)
    scores = (hidden @ head.float().T / 0.8).masked_fill(~allowed, -torch.inf)
    plain = torch.log_softmax(scores, dim=-1).gather(1, tokens[:, None])[:, 0]
    [plain_grad] = torch.autograd.grad(plain, hidden, grad_logprobs)
    torch.testing.assert_close(found, plain, atol=2e-4, rtol=0)
    assert (grad - plain_grad).norm() < 0.01 * plain_grad.norm()


@pytest.mark.parametrize("size", [300, 512, 5_000])
def test_tokens_are_drawn_by_their_weights(size: int) -> None:
    chance = torch.Generator().manual_seed(1)
    weights = torch.softmax(2 * torch.randn(1, size, generator=chance), dim=-1)
    weights[:, ::3] = 0
    uniforms = torch.linspace(0, 1, 100_001)[:-1]
    drawn = _inverse_cdf(weights.expand(len(uniforms), -1), uniforms)
    shares = torch.bincount(drawn, minlength=size) / len(uniforms)
    torch.testing.assert_close(shares, weights[0] / weights.sum(), atol=5e-5, rtol=0)
    assert drawn.diff().min() >= 0
    assert not shares[::3].any()


def test_the_ends_of_a_draw_have_weights() -> None:
    weights = torch.zeros(3, 600)
    weights[:, [7, 300, 599]] = torch.tensor([0.2, 0.3, 0.5])
    uniforms = torch.tensor([0.0, 0.5, 1.0])
    assert _inverse_cdf(weights, uniforms).tolist() == [7, 599, 599]


def test_a_draw_on_the_edge_of_a_stretch_has_a_weight() -> None:
    chance = torch.Generator().manual_seed(2)
    weights = torch.softmax(torch.randn(400, 2_048, generator=chance), dim=-1)
    weights[:, ::256] = 0  # a rounding below the edge would find these
    running = weights.unflatten(-1, (-1, 256)).sum(-1).cumsum(-1)
    edges = (running / running[:, -1:])[:, :-1]
    for uniforms in (edges, edges.nextafter(torch.zeros(())), edges.nextafter(torch.ones(()))):
        for column in uniforms.unbind(1):
            drawn = _inverse_cdf(weights, column)
            assert weights.gather(1, drawn[:, None]).min() > 0
