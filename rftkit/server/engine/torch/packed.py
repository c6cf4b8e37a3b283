"""Groups laid end to end: a prompt, then its completions. Each sees the prompt and itself.

A prompt is computed once for all of its completions, forward and backward. So is the *opening*:
what all prompts begin with, usually a system message. It comes once, before them all. Without
completions this is the prefill of the sampler, which stores no scores. In training both passes are
written by hand, for a few groups at a time: groups of similar shape, padded to the longest, as many
as have score matrices that fit into the processor's cache. Only the diagonal and that padding are
masked. The gradient of a shared key is one product over all queries that saw it; that of the
opening is a sum over groups.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rftkit.server.engine.torch import passes

__all__ = ["Packed", "check_layer"]

BLOCK = 128  # prompt tokens whose scores exist together
CELLS = 2**20  # most scores of one head that exist together, where several groups are
PADDED = 1.25  # most tokens of such groups with padding, over tokens without
VECTOR = 32  # bfloat16 numbers in a vector of a CPU, which takes the remainder one by one
LONG = 256  # in rows with at least this many scores the remainder does not matter

Span = tuple[int, int, list[int]]
"""The position of a group on the line, the number of tokens of its prompt, and of its completions.
"""


class Packed:
    """The layout of some groups."""

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        completion_lengths: Sequence[Sequence[int]],
        device: torch.device,
        *,
        opening: int = 0,
        keep_keys: bool = False,
    ) -> None:
        """Lengths in tokens. With `keep_keys`, `keys` and `values` collect what prefill needs.

        Prefill is of prompts without completions.

        Args:
            prompt_lengths: of whole prompts, each longer than the opening.
            completion_lengths: of each prompt.
            device: where the line is.
            opening: tokens that come once, at the start of the line, and begin every prompt.
            keep_keys: whether this is prefill.
        """
        assert not (keep_keys and any(any(each) for each in completion_lengths))
        assert opening < min(prompt_lengths)
        self.device, self.opening = device, opening
        self.keys: list[torch.Tensor] | None = [] if keep_keys else None
        self.values: list[torch.Tensor] = []
        self._lengths = list(zip(prompt_lengths, completion_lengths, strict=True))
        positions = list(range(opening))
        spans: list[Span] = []
        for p, lengths in self._lengths:
            # The last token is never an input, so a one-token answer adds none.
            spans.append((len(positions), p - opening, [length for length in lengths if length]))
            positions += range(opening, p)
            for length in lengths:
                positions += range(p, p + length)
        self._groups = [
            _Groups(some, device, opening) for some in _alike(spans, opening, writes=not keep_keys)
        ]
        # The opening is a group without completions. It comes first, so that in the backward pass
        # its rows are filled before the gradients that the other groups add to it are summed.
        if opening:
            self._groups.insert(0, _Groups([(0, opening, [])], device))
        self.positions = torch.tensor(positions, device=device)  # (N,)

    def whole(self, tokens: list[int]) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """The texts one by one, and where in them (text, place) each token of the line is."""
        texts: list[list[int]] = []
        opening = tokens[: self.opening]
        places = [(0, i) for i in range(self.opening)]
        start = self.opening
        for p, lengths in self._lengths:
            rest, start = tokens[start : start + p - len(opening)], start + p - len(opening)
            prompt = opening + rest
            places += [(len(texts), i) for i in range(len(opening), p)]
            # A prompt is a text even when it is alone.
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
            check_layer(layer, len(self.keys))
            self.keys.append(k)
            self.values.append(v)
            for groups in self._groups:
                groups.prefill(q, k, v, out)
            return out.view(len(out), -1), None
        kept = [groups.forward(q, k, v, out) for groups in self._groups]
        return out.view(len(out), -1), kept

    def backward(
        self,
        kept: Any,
        grad: torch.Tensor,
        grad_q: torch.Tensor,
        grad_k: torch.Tensor,
        grad_v: torch.Tensor,
    ) -> None:
        """Fill the gradients of q, k and v, given that of the output, (N, K, H/K, D)."""
        # In float32: many groups add to what they share.
        shape = (grad_k.shape[1], self.opening, grad_k.shape[2])  # (K, O, D)
        of_opening = tuple(torch.zeros(shape, device=grad.device) for _ in range(2))
        for groups, each in zip(self._groups, kept, strict=True):
            groups.backward(each, grad, (grad_q, grad_k, grad_v), of_opening)
        if self.opening:
            for into, more in zip((grad_k, grad_v), of_opening, strict=True):
                into[: self.opening] += more.transpose(0, 1).to(into.dtype)


def check_layer(layer: int, num_done: int) -> None:
    """Check that each layer has attention once.

    Raises:
        NotImplementedError: when one has none, or more than one.
    """
    if layer != num_done:
        raise NotImplementedError(
            "attention of which a layer has none, or more than one, is not supported by this engine"
        )


class _Groups:
    """Some groups of the flat line. Inside, group and head come first.

    Keys and values of a prompt are those of the opening, O, and its own, P.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device, opening: int = 0) -> None:
        self.opening = opening
        self.num, longest_prompt, self.answers, longest = _shape(spans)
        prompts = [(start, p) for start, p, _ in spans]
        self.prompts = _Cells(self.num, prompts, longest_prompt, device)
        own = []
        for start, p, lengths in spans:
            starts = [start + p + sum(lengths[:g]) for g in range(len(lengths))]
            own += list(zip(starts, lengths, strict=True))
            own += [(start, 0)] * (self.answers - len(lengths))
        self.own = _Cells(self.num, own, longest, device)
        self.later = _later(max(longest, min(longest_prompt, BLOCK)), device)
        self.ends: torch.Tensor | None = None  # where padding begins among prompt keys, (B,)
        if any(p < longest_prompt for _, p, _ in spans):
            self.ends = torch.tensor([opening + p for _, p, _ in spans], device=device)
        self.keys = opening + longest_prompt

    @functools.cached_property
    def padding(self) -> torch.Tensor | None:
        """Which prompt keys are padding, (B, 1, O + P)."""
        if self.ends is None:
            return None
        steps = torch.arange(self.keys, device=self.ends.device)
        return (steps >= self.ends[:, None])[:, None]

    def prefill(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """Fill the rows of prompts without completions; there will be no backward pass."""
        queries = self.prompts.heads(q)[:, 0]  # (B·K, rep, P, D)
        keys, values = (
            heads[:, None].expand(-1, queries.shape[1], -1, -1)
            for heads in (self._heads(k), self._heads(v))
        )
        num, seen = queries.shape[2], keys.shape[2]
        mask = None
        if self.opening:
            mask = torch.ones(num, seen, dtype=torch.bool, device=q.device).tril(self.opening)
        rows = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=1.0
        )
        self.prompts.put(out, rows[:, None])

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
    ) -> tuple[Any, ...]:
        """Fill these groups' rows of `out`; what the backward pass needs."""
        keys, values = self._heads(k), self._heads(v)
        queries = self.prompts.heads(q)[:, 0]  # (B·K, rep, P, D)
        blocks = []
        of_blocks: list[torch.Tensor] = []
        for start in range(0, queries.shape[2], BLOCK):
            end = min(start + BLOCK, queries.shape[2])
            seen = self.opening + end
            block, weights = self._prompt_rows(
                queries[:, :, start:end], keys[:, :seen], values[:, :seen]
            )
            of_blocks.append(block)
            blocks.append((start, end, weights))
        self.prompts.put(out, _one_after_another(of_blocks)[:, None])
        own = None
        if self.answers:
            rows, own = self._own_rows(q, k, v, keys, values)
            self.own.put(out, rows)
        return q, keys, values, blocks, own

    def backward(
        self,
        kept: tuple[Any, ...],
        grad: torch.Tensor,
        into: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        of_opening: tuple[torch.Tensor, ...],
    ) -> None:
        """Fill these groups' rows of the gradients of q, k and v.

        What the opening's keys and values get is added to `of_opening`, (K, O, D) each.
        """
        q, keys, values, blocks, own = kept
        # A prompt's keys and values were seen by its completions and by its own later tokens: both
        # add to the same two tensors, so each shared key gets its whole gradient before it is put.
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)  # (B·K, O+P, D)
        if own is not None:
            self._own_rows_back(own, keys, values, grad, into, grad_keys, grad_values)
        queries = self.prompts.heads(q)[:, 0]
        # Padding has no gradient, while its queries are those of a real token.
        grad_out = self.prompts.heads(grad, padding_is_zero=True)[:, 0]
        rows: list[torch.Tensor] = []
        # out = P V with P = softmax(S), S = Q Kᵀ. So grad V = Pᵀ grad out, and from the gradient of
        # S: grad K = (grad S)ᵀ Q, grad Q = (grad S) K.
        for start, end, weights in blocks:
            some, out = (each[:, :, start:end].flatten(1, 2) for each in (queries, grad_out))
            seen = self.opening + end
            grad_scores = out @ values[:, :seen].transpose(1, 2)
            if passes.has_kernels(grad_scores):
                passes.softmax_gradient(grad_scores, weights)
            else:
                grad_scores = _softmax_gradient(grad_scores, weights)
            grad_keys[:, :seen].baddbmm_(grad_scores.transpose(1, 2), some)
            grad_values[:, :seen].baddbmm_(weights.transpose(1, 2), out)
            rows.append((grad_scores @ keys[:, :seen]).unflatten(1, (queries.shape[1], -1)))
        grad_q, *others = into
        self.prompts.put(grad_q, _one_after_another(rows)[:, None])
        for line, heads, shared in zip(others, (grad_keys, grad_values), of_opening, strict=True):
            self.prompts.put(line[:, :, None], heads[:, None, None, self.opening :])
            if self.opening:  # every group saw it, so its gradient is a sum over groups
                opening = heads[:, : self.opening].unflatten(0, (self.num, -1))
                shared += opening.sum(0, dtype=torch.float32)

    def _heads(self, rows: torch.Tensor) -> torch.Tensor:
        """Keys or values of the line (N, K, D) → those that the prompts see (B·K, O + P, D)."""
        own = self.prompts.heads(rows[:, :, None])[:, 0, 0]
        if not self.opening:
            return own
        opening = rows[: self.opening].transpose(0, 1)
        return torch.cat([opening.repeat(self.num, 1, 1), own], dim=1)

    def _prompt_rows(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some prompt tokens (B·K, rep, T, D), which see keys (B·K, S, D) up to themselves."""
        num, seen = q.shape[2], keys.shape[1]
        scores = q.flatten(1, 2) @ keys.transpose(1, 2)  # (B·K, rep·T, S)
        if passes.has_kernels(scores):
            weights = passes.softmax(scores, steps=num, seen=seen - num)
        else:
            last = scores.view(-1, num, seen)[:, :, seen - num :]
            last.masked_fill_(self.later[:num, :num], -torch.inf)
            weights = _softmax(scores)
        return (weights @ values).view(q.shape), weights

    def _own_rows(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, Any]:
        """Completion tokens, which see the prompt and what came before them in their own text."""
        # All G·rep·T queries of a group meet the prompt's keys in one product: those keys are read
        # once, not once for each completion. Only the second product is one for each completion.
        qo = self.own.heads(q)  # (B·K, G, rep, T, D)
        heads, num, rep, longest, size = qo.shape
        grid = (heads, num, rep, longest)
        ko, vo = (self.own.heads(each[:, :, None]).view(-1, longest, size) for each in (k, v))
        shared = qo.view(heads, -1, size) @ keys.transpose(1, 2)  # (B·K, G·rep·T, P)
        own = qo.view(heads * num, -1, size) @ ko.transpose(1, 2)  # (B·K·G, rep·T, T)
        # One softmax over both: the prompt's scores and the completion's own.
        weights: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
        if passes.has_kernels(shared):
            passes.softmax(shared, own, steps=longest, seen=0, limits=self.ends)
            weights = on_prompt, on_own = shared, own
        else:
            if self.padding is not None:
                of_group = shared.view(self.num, -1, shared.shape[-1])
                of_group.masked_fill_(self.padding, -torch.inf)
            own = own.view(*grid, -1).masked_fill_(self.later[:longest, :longest], -torch.inf)
            weights = _softmax(_joined(shared.view(*grid, -1), own, -torch.inf))
            on_prompt, on_own = _split(weights, keys.shape[1])
        out = (on_prompt @ values).view(heads * num, -1, size).baddbmm_(on_own, vo)
        return out.view(qo.shape), (qo, ko, vo, weights)

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
        """Add to the gradients of the prompt's keys and values; fill those of completions."""
        qo, ko, vo, weights = kept
        heads, num, _, _, size = qo.shape
        # The same gradient in two shapes: for products with the prompt (all completions together)
        # and with each completion's own keys and values.
        out = self.own.heads(grad, padding_is_zero=True)
        flat, each = out.view(heads, -1, size), out.view(heads * num, -1, size)
        grads = flat @ values.transpose(1, 2), each @ vo.transpose(1, 2)
        if isinstance(weights, tuple):
            on_prompt, on_own = weights
            passes.softmax_gradient(grads[0], on_prompt, grads[1], on_own)
            grad_prompt_scores, grad_own_scores = grads
        else:
            grid = weights.shape[:-1]
            joined = _joined(grads[0].view(*grid, -1), grads[1].view(*grid, -1), 0.0)
            prompt = keys.shape[1]
            on_prompt, on_own = _split(weights, prompt)
            joined = _softmax_gradient(joined, weights)
            grad_prompt_scores, grad_own_scores = _split(joined, prompt)
        grad_keys.baddbmm_(grad_prompt_scores.transpose(1, 2), qo.view(heads, -1, size))
        grad_values.baddbmm_(on_prompt.transpose(1, 2), flat)
        grad_q = (
            (grad_prompt_scores @ keys).view(heads * num, -1, size).baddbmm_(grad_own_scores, ko)
        )
        grad_ko = grad_own_scores.transpose(1, 2) @ qo.view(heads * num, -1, size)  # (B·K·G, T, D)
        grad_vo = on_own.transpose(1, 2) @ each
        self.own.put(into[0], grad_q.view(qo.shape))
        for line, heads_of in zip(into[1:], (grad_ko, grad_vo), strict=True):
            self.own.put(line[:, :, None], heads_of.view(heads, num, 1, -1, size))


class _Cells:
    """Stretches of the line as rows of one length, each group with as many; a short one is padded
    with its last token.
    """

    def __init__(
        self,
        num: int,
        stretches: Sequence[tuple[int, int]],
        longest: int,
        device: torch.device,
    ) -> None:
        """A stretch is where it begins and its length; `num` is the number of groups."""
        self._shape = (num, len(stretches) // num, longest)  # B, G, T
        held = [
            start + max(0, min(i, length - 1))
            for start, length in stretches
            for i in range(longest)
        ]
        full = [
            row * longest + i for row, (_, length) in enumerate(stretches) for i in range(length)
        ]
        tokens = [held[cell] for cell in full]
        self._held = _index(held, device)  # on the line, of each cell
        self._tokens = _index(tokens, device)  # positions of the real tokens, each once
        self._full: torch.Tensor | None = None  # their cells; None: all of them
        places = torch.tensor(held, device=device, dtype=torch.long)
        real = places
        if len(full) < len(held):
            self._full = torch.tensor(full, device=device, dtype=torch.long)
            real = torch.full_like(places, -1).index_copy_(0, self._full, places[self._full])
        self._places = places, real
        """The same for kernels: the place of each cell on the line, and -1 where it is padding."""

    def heads(self, line: torch.Tensor, *, padding_is_zero: bool = False) -> torch.Tensor:
        """Tokens of the line (N, K, rep, D), group and head first: (B·K, G, rep, T, D)."""
        if passes.has_kernels(line):
            return passes.gather(line, self._places[padding_is_zero], self._shape)
        if padding_is_zero and self._full is not None:
            num = self._shape[0] * self._shape[1] * self._shape[2]
            cells = line.new_zeros(num, *line.shape[1:])
            cells.index_copy_(0, self._full, line[self._tokens])
        else:
            cells = line[self._held]
        cells = cells.view(*self._shape, *line.shape[1:])
        return cells.permute(0, 3, 1, 4, 2, 5).contiguous().flatten(0, 1)

    def put(self, line: torch.Tensor, heads: torch.Tensor) -> None:
        """Write what `heads` gives where it belongs on the line, padding left out."""
        if passes.has_kernels(line):
            passes.scatter(line, self._places[1], self._shape, heads)
            return
        cells = heads.unflatten(0, (self._shape[0], -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        line[self._tokens] = cells if self._full is None else cells[self._full]


def _alike(spans: Sequence[Span], opening: int, *, writes: bool) -> Iterator[list[Span]]:
    """Neighbouring groups to compute together; `writes` is whether their scores are stored."""
    some: list[Span] = []
    for span in spans:
        if some and not _fit([*some, span], opening, writes=writes):
            yield some
            some = []
        some.append(span)
    if some:
        yield some


def _fit(spans: Sequence[Span], opening: int, *, writes: bool) -> bool:
    """Whether groups together have few enough scores, if written, and little enough padding."""
    num, prompt, answers, longest = _shape(spans)
    own = answers * longest
    tokens = sum(p + sum(lengths) for _, p, lengths in spans)
    cells = num * (own * (opening + prompt + longest) + prompt * (opening + min(prompt, BLOCK)))
    is_small = cells <= CELLS or not writes
    return is_small and num * (prompt + own) <= PADDED * tokens


def _shape(spans: Sequence[Span]) -> tuple[int, int, int, int]:
    """Groups, and the most of: tokens of a prompt, completions, tokens of a completion."""
    return (
        len(spans),
        max(p for _, p, _ in spans),
        max(len(lengths) for _, _, lengths in spans),
        max((length for _, _, lengths in spans for length in lengths), default=0),
    )


def _index(places: list[int], device: torch.device) -> slice | torch.Tensor:
    """Some places as an index; a slice, which copies nothing, where each follows the last."""
    start = places[0] if places else 0
    if places == list(range(start, start + len(places))):
        return slice(start, start + len(places))
    return torch.tensor(places, device=device)


def _joined(prompt: torch.Tensor, own: torch.Tensor, fill: float) -> torch.Tensor:
    """Numbers for prompt tokens (…, P) and own ones (…, T) in one row, filled up to vectors."""
    num = -(prompt.shape[-1] + own.shape[-1]) % VECTOR
    rest = own.new_full((1,), fill).expand(*own.shape[:-1], num)
    return torch.cat([prompt, own, rest], dim=-1)


def _split(rows: torch.Tensor, prompt: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (B·K, G, rep, T, …) → for prompts (B·K, G·rep·T, P), for the own (B·K·G, rep·T, T).

    Both are copies: a product would make one of each that is not, and a slower one.
    """
    heads, num, _, longest, _ = rows.shape
    own = rows[..., prompt : prompt + longest].contiguous()
    return rows[..., :prompt].contiguous().view(heads, -1, prompt), own.view(
        heads * num, -1, longest
    )


def _one_after_another(blocks: list[torch.Tensor]) -> torch.Tensor:
    """Blocks of tokens (B·K, rep, T, D) in one."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    num = scores.shape[-1]
    if num % VECTOR == 0 or num >= LONG:
        return torch.softmax(scores, dim=-1)  # float32 inside
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _softmax_gradient(grad: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


def _later(length: int, device: torch.device) -> torch.Tensor:
    """True where a token would see a later one, (T, T)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
