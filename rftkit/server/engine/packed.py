"""Groups laid end to end: a prompt, then its completions, each seeing the prompt and itself.

A prompt is computed once for all of its completions, forward and backward; with no completions
this is the prefill of the sampler, which writes no scores down. In training both passes are
written out, one group at a time: its score matrices stay in the processor's cache, nothing is
masked but the diagonal, and the gradient of a shared key is one product over all that saw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Packed"]

BLOCK = 256  # prompt tokens whose scores exist together


class Packed:
    """The layout of some groups."""

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        completion_lengths: Sequence[Sequence[int]],
        device: torch.device,
        *,
        keep_keys: bool = False,
    ) -> None:
        """Lengths in tokens. With `keep_keys`, `keys` and `values` collect what prefill needs.

        Prefill is of prompts without completions.
        """
        assert not (keep_keys and any(any(each) for each in completion_lengths))
        self.device = device
        self.keys: list[torch.Tensor] | None = [] if keep_keys else None
        self.values: list[torch.Tensor] = []
        self._lengths = list(zip(prompt_lengths, completion_lengths, strict=True))
        positions: list[int] = []
        self._groups: list[_Group] = []
        for p, lengths in zip(prompt_lengths, completion_lengths, strict=True):
            self._groups.append(_Group(len(positions), p, lengths, device))
            positions += range(p)
            for length in lengths:
                positions += range(p, p + length)
        self.positions = torch.tensor(positions, device=device)  # (N,)

    def whole(self, tokens: list[int]) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """The texts one by one, and where in them (text, place) each token of the line is."""
        texts: list[list[int]] = []
        places: list[tuple[int, int]] = []
        start = 0
        for p, lengths in self._lengths:
            prompt, start = tokens[start : start + p], start + p
            places += [(len(texts), i) for i in range(p)]
            # One-token answers add no input, but a prompt is a text even when it is alone.
            for length in [each for each in lengths if each] or [0]:
                places += [(len(texts), p + i) for i in range(length)]
                texts.append(prompt + tokens[start : start + length])
                start += length
        return texts, places

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """See Layout."""
        out = q.new_empty(q.shape)
        if self.keys is not None:
            self.keys.append(k)
            self.values.append(v)
            for group in self._groups:
                group.prefill(q, k, v, out)
            return out.view(len(out), -1), None
        kept = [group.forward(q, k, v, out) for group in self._groups]
        return out.view(len(out), -1), kept

    def backward(
        self, kept: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of q, k and v, given that of the output, (N, K, H/K, D)."""
        grad_q = grad.new_empty(grad.shape)
        grad_k = grad.new_empty(grad.shape[0], grad.shape[1], grad.shape[3])
        grad_v = torch.empty_like(grad_k)
        for group, each in zip(self._groups, kept, strict=True):
            group.backward(each, grad, grad_q, grad_k, grad_v)
        return grad_q, grad_k, grad_v


class _Group:
    """One group on the flat line. Inside, the head axis comes first."""

    def __init__(
        self, start: int, prompt: int, lengths: Sequence[int], device: torch.device
    ) -> None:
        self.prompt = slice(start, start + prompt)
        kept = [length for length in lengths if length]  # one-token answers add no input
        self.own = slice(start + prompt, start + prompt + sum(kept))
        self.shape = (len(kept), max(kept, default=0))  # G, T
        longest = self.shape[1]
        starts = [self.own.start + sum(kept[:g]) for g in range(len(kept))]
        gather = [
            s + min(i, n - 1) for s, n in zip(starts, kept, strict=True) for i in range(longest)
        ]
        scatter = [g * longest + i for g, n in enumerate(kept) for i in range(n)]
        self.gather = torch.tensor(gather, device=device, dtype=torch.long)  # (G·T,) on the line
        self.scatter = torch.tensor(scatter, device=device, dtype=torch.long)  # (own,) in G·T
        self.later = _later(max(longest, min(prompt, BLOCK)), device)

    def prefill(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """Fill the rows of a prompt without completions; there will be no backward pass."""
        queries = q[self.prompt].permute(1, 2, 0, 3)  # (K, H/K, P, D)
        keys, values = (
            each[self.prompt].transpose(0, 1)[:, None].expand(queries.shape) for each in (k, v)
        )
        rows = scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=1.0)
        out[self.prompt] = rows.permute(2, 0, 1, 3)

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
    ) -> tuple[Any, ...]:
        """Fill this group's rows of `out`; what the backward pass needs."""
        keys, values = (each[self.prompt].transpose(0, 1).contiguous() for each in (k, v))
        queries, rows = q[self.prompt], out[self.prompt]
        blocks = []
        for start in range(0, len(queries), BLOCK):
            end = min(start + BLOCK, len(queries))
            block, weights = self._prompt_rows(queries[start:end], keys[:, :end], values[:, :end])
            rows[start:end] = block
            blocks.append((start, end, weights))
        own = None
        if self.shape[1]:
            rows, own = self._own_rows(q, k, v, keys, values)
            out[self.own] = rows
        return q, keys, values, blocks, own

    def backward(
        self,
        kept: tuple[Any, ...],
        grad: torch.Tensor,
        grad_q: torch.Tensor,
        grad_k: torch.Tensor,
        grad_v: torch.Tensor,
    ) -> None:
        """Fill this group's rows of the three gradients."""
        q, keys, values, blocks, own = kept
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)  # (K, P, D)
        if own is not None:
            self._own_rows_back(own, keys, values, grad, (grad_q, grad_k, grad_v),
                                grad_keys, grad_values)  # fmt: skip
        for start, end, weights in blocks:
            rows = slice(self.prompt.start + start, self.prompt.start + end)
            queries, out = _heads_first(q[rows]), _heads_first(grad[rows])
            slopes = _softmax_back(out @ values[:, :end].transpose(1, 2), weights)
            grad_keys[:, :end].baddbmm_(slopes.transpose(1, 2), queries)
            grad_values[:, :end].baddbmm_(weights.transpose(1, 2), out)
            grad_q[rows] = _tokens_first(slopes @ keys[:, :end], grad[rows].shape)
        grad_k[self.prompt] = grad_keys.transpose(0, 1)
        grad_v[self.prompt] = grad_values.transpose(0, 1)

    def _prompt_rows(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some prompt tokens (T, K, rep, D), which see `keys` (K, P, D) up to themselves."""
        num, seen = len(q), keys.shape[1]
        scores = _heads_first(q) @ keys.transpose(1, 2)  # (K, rep·T, P)
        last = scores.view(-1, num, seen)[:, :, seen - num :]
        last.masked_fill_(self.later[:num, :num], -torch.inf)
        weights = _softmax(scores)
        return _tokens_first(weights @ values, q.shape), weights

    def _own_rows(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, Any]:
        """Completion tokens, which see the prompt and what came before them in their own text."""
        num, longest = self.shape
        _, kv, rep, size = q.shape
        grid = (kv, num, rep, longest)
        qo = _grid(q[self.gather], num)  # (K, G, rep, T, D)
        ko, vo = (
            _grid(each[self.gather].unsqueeze(2), num).view(-1, longest, size) for each in (k, v)
        )
        shared = qo.view(kv, -1, size) @ keys.transpose(1, 2)  # (K, G·rep·T, P)
        own = qo.view(kv * num, -1, size) @ ko.transpose(1, 2)  # (K·G, rep·T, T)
        own = own.view(*grid, -1).masked_fill_(self.later[:longest, :longest], -torch.inf)
        weights = _softmax(torch.cat([shared.view(*grid, -1), own], dim=-1))
        on_prompt, on_own = self._split(weights)
        out = (on_prompt @ values).view(kv * num, -1, size).baddbmm_(on_own, vo)
        return self._ungrid(out, rep), (qo, ko, vo, weights)

    def _own_rows_back(
        self,
        kept: Any,
        keys: torch.Tensor,
        values: torch.Tensor,
        grad: torch.Tensor,
        into: tuple[torch.Tensor, ...],
        grad_keys: torch.Tensor,
        grad_values: torch.Tensor,
    ) -> None:
        qo, ko, vo, weights = kept
        kv, num, rep, longest, size = qo.shape
        filled = grad.new_zeros(num * longest, *grad.shape[1:])  # cells without a token stay zero
        out = _grid(filled.index_copy_(0, self.scatter, grad[self.own]), num)
        flat, each = out.view(kv, -1, size), out.view(kv * num, -1, size)
        grad_weights = torch.cat(
            [
                (flat @ values.transpose(1, 2)).view(*weights.shape[:-1], -1),
                (each @ vo.transpose(1, 2)).view(*weights.shape[:-1], -1),
            ],
            dim=-1,
        )
        on_prompt, on_own = self._split(weights)
        prompt_slopes, own_slopes = self._split(_softmax_back(grad_weights, weights))
        grad_keys.baddbmm_(prompt_slopes.transpose(1, 2), qo.view(kv, -1, size))
        grad_values.baddbmm_(on_prompt.transpose(1, 2), flat)
        grad_q = (prompt_slopes @ keys).view(kv * num, -1, size).baddbmm_(own_slopes, ko)
        grad_ko = own_slopes.transpose(1, 2) @ qo.view(kv * num, -1, size)  # (K·G, T, D)
        grad_vo = on_own.transpose(1, 2) @ each
        into[0][self.own] = self._ungrid(grad_q, rep)
        into[1][self.own] = self._ungrid(grad_ko, 1).squeeze(2)
        into[2][self.own] = self._ungrid(grad_vo, 1).squeeze(2)

    def _split(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, G, rep, T, P + T) → on the prompt (K, G·rep·T, P), on the own (K·G, rep·T, T)."""
        kv, num, _, longest, seen = weights.shape
        prompt = weights[..., : seen - longest].reshape(kv, -1, seen - longest)
        return prompt, weights[..., seen - longest :].reshape(kv * num, -1, longest)

    def _ungrid(self, grid: torch.Tensor, rep: int) -> torch.Tensor:
        """(K·G, rep·T, D) → (own, K, rep, D), the tokens of the flat line."""
        num, longest = self.shape
        size = grid.shape[-1]
        rows = grid.view(-1, num, rep, longest, size).permute(1, 3, 0, 2, 4)
        return rows.reshape(num * longest, -1, rep, size)[self.scatter]


def _grid(rows: torch.Tensor, num: int) -> torch.Tensor:
    """(G·T, K, rep, D) → (K, G, rep, T, D)."""
    return rows.view(num, -1, *rows.shape[1:]).permute(2, 0, 3, 1, 4).contiguous()


def _heads_first(rows: torch.Tensor) -> torch.Tensor:
    """(T, K, rep, D) → (K, rep·T, D)."""
    return rows.permute(1, 2, 0, 3).reshape(rows.shape[1], -1, rows.shape[3])


def _tokens_first(heads: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(K, rep·T, D) → (T, K, rep, D)."""
    return heads.view(shape[1], shape[2], shape[0], shape[3]).permute(2, 0, 1, 3)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _softmax_back(grad: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


def _later(length: int, device: torch.device) -> torch.Tensor:
    """True where a token would see a later one, (T, T)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
