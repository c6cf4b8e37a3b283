"""Groups of completions as micro-batches, and a micro-batch as one flat line of tokens.

Only what matters is on the line. A beginning that all prompts of a micro-batch share is there once.
Where a grammar left no choice the log-prob is 0 and has no gradient. So the tokens that all
completions of a group had to begin with join the shared prompt, and what a completion had to end
with is not computed at all. Not here: the model, and attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rftkit.server.engine.grammar import Masks, choices
from rftkit.server.engine.values import TrainGroup

__all__ = ["LEAST_OPENING", "Line", "lay_out", "micro_batches", "shared_opening", "with_advantage"]

TRAIN_TOKENS = 4_096  # in one forward-backward pass; more tokens are not faster
LEAST_OPENING = 8  # tokens; computing fewer for each prompt costs less than masks do
FORWARD_BACKWARD, AND_AGAIN = 2, 3  # the work for a token, and when layers are computed again


@dataclass(slots=True)
class Line:
    """Shared beginnings and completions, end to end; and the positions that need log-probs."""

    opening: int = 0
    """Tokens at the start that begin every prompt, and are in each of `prompt_lengths`."""
    tokens: list[int] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    completion_lengths: list[list[int]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    """The position on the line that predicts each wanted token."""
    wanted: list[int] = field(default_factory=list)
    """The tokens that were chosen."""
    places: list[int] = field(default_factory=list)
    """Index of each wanted token among all completion tokens."""
    masks: Masks | None = None
    """Allowed tokens at each wanted one, or None when everything was allowed."""
    num_tokens: int = 0
    """The number of completion tokens, including those without a choice."""


def lay_out(groups: Sequence[TrainGroup], masks: Callable[[TrainGroup], Masks | None]) -> Line:
    """The line of some groups; `masks` gives those of a group's tokens, end to end."""
    beginnings, parts = [], []
    for group in groups:
        of_group = masks(group)
        total = sum(map(len, group.tokens_G_T))
        is_free = np.ones(total, np.bool_) if of_group is None else choices(of_group) != 1
        if group.learnt_G_T:
            is_free &= np.concatenate([np.asarray(each, np.bool_) for each in group.learnt_G_T])
        beginnings.append(_beginning(group, is_free))
        parts.append((of_group, is_free))
    opening = shared_opening(beginnings)
    line = Line(opening, beginnings[0][:opening])
    for group, beginning, (_, is_free) in zip(groups, beginnings, parts, strict=True):
        _add(line, group, beginning, is_free)
    if any(of_group is not None for of_group, _ in parts):
        words = next(of_group.shape[1] for of_group, _ in parts if of_group is not None)
        line.masks = np.concatenate(
            [
                np.full((is_free.sum(), words), -1, np.int32) if each is None else each[is_free]
                for each, is_free in parts
            ]
        )
    return line


def shared_opening(texts: Sequence[list[int]]) -> int:
    """Return how many first tokens some texts share; each keeps at least one of its own."""
    if len(texts) < 2:
        return 0
    first, last = min(texts), max(texts)
    pairs = zip(first, last, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))
    opening = min(same, *(len(text) - 1 for text in texts))
    return opening if opening >= LEAST_OPENING else 0


def _beginning(group: TrainGroup, is_free: np.ndarray) -> list[int]:
    """The prompt, and the tokens that every completion had to begin with."""
    return [*group.prompt_ids, *_longest(group.tokens_G_T)[: _forced(group, is_free)]]


def _forced(group: TrainGroup, is_free: np.ndarray) -> int:
    """Up to here all completions are equal, because there was no choice."""
    if group.learnt_G_T:
        return 0  # they already share their prompt, and untrained tokens may differ
    return min((int(each[0]) for each in _chosen(group, is_free) if len(each)), default=0)


def _chosen(group: TrainGroup, is_free: np.ndarray) -> list[np.ndarray]:
    """For each completion, the positions at which it had a choice."""
    ends = np.cumsum([len(tokens) for tokens in group.tokens_G_T])
    return [np.flatnonzero(each) for each in np.split(is_free, ends[:-1])]


def _add(line: Line, group: TrainGroup, beginning: list[int], is_free: np.ndarray) -> None:
    shared = len(beginning) - len(group.prompt_ids)
    line.tokens += beginning[line.opening :]
    line.prompt_lengths.append(len(beginning))
    last_shared = len(line.tokens) - 1
    lengths = []
    for tokens, chosen in zip(group.tokens_G_T, _chosen(group, is_free), strict=True):
        start = len(line.tokens)
        line.at += [last_shared if i == shared else start + int(i) - shared - 1 for i in chosen]
        line.wanted += [tokens[i] for i in chosen]
        line.places += [line.num_tokens + int(i) for i in chosen]
        needed = tokens[shared : int(chosen[-1])] if len(chosen) else []
        line.tokens += needed
        lengths.append(len(needed))
        line.num_tokens += len(tokens)
    line.completion_lengths.append(lengths)


def _longest(tokens_G_T: Sequence[list[int]]) -> list[int]:
    return max(tokens_G_T, key=len)


def micro_batches(
    groups: Sequence[TrainGroup], max_tokens: int, again_tokens: int = 0
) -> Iterator[list[TrainGroup]]:
    """Groups packed into forward passes, of about the same size.

    A group that is too large for one is split, which repeats its prompt and changes nothing but
    the time: the loss is a sum over tokens. It stays in one piece, or in few, where it is less work
    to compute its layers again than its prompt.

    Args:
        groups: of a step.
        max_tokens: of a pass that keeps everything that its backward pass needs.
        again_tokens: of one that computes layers again instead; 0: none does.
    """
    parts = [
        part
        for group in groups
        for part in _split(group, _part_tokens(group, max_tokens, again_tokens))
    ]
    sizes = [len(part.prompt_ids) + sum(map(len, part.tokens_G_T)) for part in parts]
    max_tokens = min(max_tokens, TRAIN_TOKENS)
    aim = sum(sizes) / max(1, math.ceil(sum(sizes) / max_tokens))
    batch: list[TrainGroup] = []
    used = before = 0  # tokens of this pass, and of those before it
    end = aim  # where this pass should end, counted from the first, so that none is left over
    for part, size in zip(parts, sizes, strict=True):
        if batch and (used + size > max_tokens or before + used + size / 2 > end):
            yield batch
            before, end = before + used, end + aim
            batch, used = [], 0
        batch.append(part)
        used += size
    if batch:
        yield batch


def _part_tokens(group: TrainGroup, max_tokens: int, again_tokens: int) -> int:
    """Into passes of how many tokens a group is split with the least work."""
    own = sum(map(len, group.tokens_G_T))

    def tokens(limit: int) -> int:
        return own + len(group.prompt_ids) * sum(1 for _ in _split(group, limit))

    kept, again = FORWARD_BACKWARD * tokens(max_tokens), AND_AGAIN * tokens(again_tokens)
    return again_tokens if again < kept else max_tokens


def _split(group: TrainGroup, max_tokens: int) -> Iterator[TrainGroup]:
    start, used = 0, len(group.prompt_ids)
    for g, tokens in enumerate(group.tokens_G_T):
        if g > start and used + len(tokens) > max_tokens:
            yield _members(group, start, g)
            start, used = g, len(group.prompt_ids)
        used += len(tokens)
    yield _members(group, start, len(group.tokens_G_T))


def with_advantage(group: TrainGroup) -> TrainGroup:
    """The completions of a group up to the last token that has an advantage; others are left out.

    What comes after it has no gradient, and nothing before it depends on it.
    """
    rows = group.token_advantages()
    ends = [max((t + 1 for t, advantage in enumerate(row) if advantage), default=0) for row in rows]
    some = [(g, end) for g, end in enumerate(ends) if end]

    def cut(rows: Sequence[list[Any]]) -> list[list[Any]]:
        return [rows[g][:end] for g, end in some] if rows else []

    return replace(
        group,
        tokens_G_T=cut(group.tokens_G_T),
        sampling_logprobs_G_T=cut(group.sampling_logprobs_G_T),
        advantages_G=[group.advantages_G[g] for g, _ in some],
        guided_G=[group.guided_G[g] for g, _ in some] if group.guided_G else [],
        advantages_G_T=cut(rows),
        learnt_G_T=cut(group.learnt_G_T),
    )


def _members(group: TrainGroup, start: int, end: int) -> TrainGroup:
    return replace(
        group,
        tokens_G_T=group.tokens_G_T[start:end],
        sampling_logprobs_G_T=group.sampling_logprobs_G_T[start:end],
        advantages_G=group.advantages_G[start:end],
        guided_G=group.guided_G[start:end],
        advantages_G_T=group.advantages_G_T[start:end],
        learnt_G_T=group.learnt_G_T[start:end],
    )
