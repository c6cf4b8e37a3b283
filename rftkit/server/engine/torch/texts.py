"""Learning from given answers: whole texts (supervised), and pairs of which one is preferred (dpo).

Both are mean losses over the trained tokens or over the pairs of a batch, so splitting a batch
differently changes nothing. A beginning that texts share is computed once: `packed` finds which
texts of a batch to put together, and the layout of groups of completions (`packed.py`) does the
rest. Not here: which tokens of a conversation are trained (`prompts.conversation`), nor the
optimizer.

Sources: DPO is Rafailov et al. 2023, arXiv:2305.18290, eq. 7, without label smoothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import logsigmoid

from rftkit.server.engine.torch.batches import LEAST_OPENING, TRAIN_TOKENS, micro_batches
from rftkit.server.engine.torch.model import LoadedModel
from rftkit.server.engine.torch.policies import Policies
from rftkit.server.engine.torch.update import take_step
from rftkit.server.engine.values import Adapter, Pair, PairStats, Text, TextStats, TrainGroup
from rftkit.server.engine.values import TrainSettings as Settings

__all__ = ["answer_logprobs", "imitate", "packed", "prefer"]

LEAST_SHARED = 16
"""Tokens that texts must begin with together to be computed together."""
PADDED = 1.5
"""The most tokens of a group with padding, as a multiple of those without."""
LOOK = 256
"""Texts among which to find shared beginnings."""

Tick = Callable[[], None] | None


# ── what begins alike ────────────────────────────────────────────────────────────────────────


def packed(texts: Sequence[Text]) -> tuple[list[TrainGroup], list[int]]:
    """Texts as groups with a shared beginning; and which text each completion is, end to end."""
    groups, order = [], []
    for start in range(0, len(texts), LOOK):
        some = range(start, min(start + LOOK, len(texts)))
        ranked = sorted(some, key=lambda index: texts[index].tokens)
        for members, shared in _alike([texts[index] for index in ranked]):
            chosen = [ranked[place] for place in members]
            groups.append(_group([texts[index] for index in chosen], shared))
            order += chosen
    return groups, order


def _group(texts: Sequence[Text], shared: int) -> TrainGroup:
    rests = [text.tokens[shared:] for text in texts]
    return TrainGroup(
        texts[0].tokens[:shared],
        rests,
        [[0.0] * len(rest) for rest in rests],
        [1.0] * len(rests),
        learnt_G_T=[text.trained[shared:] for text in texts],
    )


def _alike(texts: Sequence[Text]) -> list[tuple[range, int]]:
    """Sorted texts cut into runs of neighbours, each with the length of its shared beginning.

    The cuts save the most tokens, found by going through them from the left. What all of the texts
    begin with is computed once in any case (`batches.shared_opening`), and is no saving of a run.
    """
    first = [text.trained.index(True) for text in texts]
    common = [_common(before.tokens, text.tokens) for before, text in itertools.pairwise(texts)]
    opening = min([*common, *first])
    opening = opening if opening >= LEAST_OPENING else 0
    best = [0] + [-1] * len(texts)  # [n]: tokens saved by the first n texts
    cut = [(0, 0)] * (len(texts) + 1)  # where their last run begins, and what it shares
    for end in range(1, len(texts) + 1):
        shared, total, longest = first[end - 1], 0, 0
        for start in range(end - 1, -1, -1):
            # A run shares what all its neighbours share, and no token that one of them learns.
            if start < end - 1:
                shared = min(shared, common[start], first[start])
                if shared < LEAST_SHARED:
                    break
            length = len(texts[start].tokens)
            total, longest = total + length, max(longest, length)
            if not _fit(end - start, total, longest, shared):
                continue
            saved = best[start] + (shared - opening) * (end - start - 1)
            if saved >= best[end]:
                best[end], cut[end] = saved, (start, shared)
    runs = []
    end = len(texts)
    while end:
        start, shared = cut[end]
        runs.append((range(start, end), shared))
        end = start
    return runs[::-1]


def _fit(num: int, total: int, longest: int, shared: int) -> bool:
    """Whether padding the rests of texts to the longest adds little."""
    rests = total - shared * num
    return shared + num * (longest - shared) <= PADDED * (shared + rests)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))


# ── supervised ───────────────────────────────────────────────────────────────────────────────


def imitate(
    model: LoadedModel,
    policies: Policies,
    texts: Sequence[Text],
    settings: Settings | None,
    on_tick: Tick = None,
) -> TextStats:
    """See Engine.imitate."""
    groups, _ = packed(texts)
    num = sum(sum(text.trained) for text in texts)
    total, right = 0.0, 0
    with _gradients(policies, settings):
        for batch in micro_batches(groups, *model.batch_tokens(groups)):
            logprobs, hits = model.learnt(batch)
            loss = -logprobs.sum() / num
            if settings is not None:
                loss.backward()
            total += float(loss.detach())
            right += int(hits.sum())
            if on_tick is not None:
                on_tick()
    norm = None
    if settings is not None:
        losses = [functools.partial(_text_loss, model, text) for text in texts]
        norm = take_step(policies, settings, total, losses)
    return TextStats(total, right / num, num, norm)


def _text_loss(model: LoadedModel, text: Text) -> torch.Tensor:
    return -model.learnt(packed([text])[0])[0].sum()


def _gradients(
    policies: Policies, settings: Settings | None
) -> torch.autograd.grad_mode.set_grad_enabled:
    """Gradients from zero if there is to be an update, else none."""
    if settings is not None:
        policies.trained()[1].zero_grad(set_to_none=True)
    return torch.set_grad_enabled(settings is not None)


# ── preferences ──────────────────────────────────────────────────────────────────────────────


@dataclass
class _Sums:
    """Sums over pairs."""

    loss: float = 0.0
    preferred: float = 0.0
    non_preferred: float = 0.0
    wins: int = 0
    right: int = 0
    norm: float | None = field(default=None)

    def stats(self, pairs: Sequence[Pair]) -> PairStats:
        num = len(pairs)
        tokens = sum(sum(pair.preferred.trained) for pair in pairs)
        others = sum(sum(pair.non_preferred.trained) for pair in pairs)
        return PairStats(
            loss=self.loss,
            preferred_reward=self.preferred / num,
            non_preferred_reward=self.non_preferred / num,
            reward_accuracy=self.wins / num,
            accuracy=self.right / tokens,
            num_tokens=tokens + others,
            grad_norm=self.norm,
        )


def prefer(
    model: LoadedModel,
    policies: Policies,
    pairs: Sequence[Pair],
    beta: float,
    settings: Settings | None,
    on_tick: Tick = None,
) -> PairStats:
    """See Engine.prefer."""
    sums = _Sums()
    with _gradients(policies, settings):
        for batch in _whole_pairs(model, pairs):
            loss = _pair_loss(model, batch, beta, sums) / len(pairs)
            if settings is not None:
                loss.backward()
            sums.loss += float(loss.detach())
            if on_tick is not None:
                on_tick()
    if settings is not None:
        losses = [functools.partial(_pair_loss, model, [pair], beta, _Sums()) for pair in pairs]
        sums.norm = take_step(policies, settings, sums.loss, losses)
    return sums.stats(pairs)


def _pair_loss(model: LoadedModel, pairs: Sequence[Pair], beta: float, sums: _Sums) -> torch.Tensor:
    """Sum over pairs of −log σ(β·((log π⁺ − log ref⁺) − (log π⁻ − log ref⁻)))."""
    answers, right = _answers(model, pairs)
    reference = torch.tensor([pair.reference for pair in pairs], device=model.device)
    rewards = beta * (answers - reference)  # (B, 2)
    margins = rewards[:, 0] - rewards[:, 1]
    found = rewards.detach().double()
    sums.preferred += float(found[:, 0].sum())
    sums.non_preferred += float(found[:, 1].sum())
    sums.wins += int((margins.detach() > 0).sum())
    sums.right += right
    return -logsigmoid(margins).sum()


def answer_logprobs(
    model: LoadedModel,
    policies: Policies,
    pairs: Sequence[Pair],
    adapter: Adapter,
    on_tick: Tick = None,
) -> list[tuple[float, float]]:
    """See Engine.answer_logprobs."""
    found: dict[int, tuple[float, float]] = {}
    for batch in _whole_pairs(model, pairs):
        with torch.no_grad(), policies.using(adapter):
            answers, _ = _answers(model, batch)
        found |= {
            id(pair): (each[0], each[1]) for pair, each in zip(batch, answers.tolist(), strict=True)
        }
        if on_tick is not None:
            on_tick()
    return [found[id(pair)] for pair in pairs]


def _answers(model: LoadedModel, pairs: Sequence[Pair]) -> tuple[torch.Tensor, int]:
    """Log-probs of both answers, (B, 2); and how many tokens of preferred ones were most likely."""
    texts = [text for pair in pairs for text in (pair.preferred, pair.non_preferred)]
    groups, order = packed(texts)
    logprobs, hits = model.learnt(groups)
    of_text = torch.tensor(
        [index for index in order for _ in range(sum(texts[index].trained))], device=model.device
    )
    sums = torch.zeros(len(texts), device=model.device).index_add(0, of_text, logprobs)
    return sums.view(-1, 2), int((hits & (of_text % 2 == 0)).sum())


def _whole_pairs(model: LoadedModel, pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Pairs in passes that fit into memory; both answers of a pair are in the same."""
    texts = [text for pair in pairs for text in (pair.preferred, pair.non_preferred)]
    limit = min(TRAIN_TOKENS, model.batch_tokens(packed(texts)[0])[0])
    batch: list[Pair] = []
    used = 0
    for pair in sorted(pairs, key=lambda pair: pair.preferred.tokens):
        size = _size(pair)
        if batch and used + size > limit:
            yield batch
            batch, used = [], 0
        batch.append(pair)
        used += size
    yield batch


def _size(pair: Pair) -> int:
    """Tokens of a pair; its prompt counts once."""
    prompt = pair.preferred.trained.index(True)
    return len(pair.preferred.tokens) + len(pair.non_preferred.tokens) - prompt
