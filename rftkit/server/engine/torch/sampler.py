"""Draw completions: one prefill a prompt, its keys shared by the completions, no padding rows.

A *wave* is a set of prompts whose completions decode together. Where a grammar leaves no choice
nothing is computed: such tokens are said at once, and the model reads them later, several in one
pass when every row has some; what all completions must begin with is read with the prompt. Rows
that finish leave the wave. Which rows share a wave depends on the requests and the row budget
alone, and each completion draws from a generator of its own key, so the same requests give the
same text. Not here: which adapter is on the model, and what the completions are for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rftkit.errors import RequestError
from rftkit.server.engine.base import Completion, SampleRequest
from rftkit.server.engine.torch.batches import shared_opening
from rftkit.server.engine.torch.decode import BLOCK_ROWS, Decode
from rftkit.server.engine.torch.decoding_state import DecodingState
from rftkit.server.engine.torch.grammar import Grammars, Masks, choices, only_choice
from rftkit.server.engine.torch.logprobs import scores
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.torch.plain import PlainDecode

__all__ = ["Policy", "sample", "token_steps"]

Layout = Decode | PlainDecode
DROPPED = Completion([], "", [], "length")
STRETCH = 256  # tokens whose weights are summed first
SHRINK_BELOW = 0.8  # rows are moved together when fewer than this share is alive


class Policy(Protocol):
    """What the sampler needs of a model."""

    device: torch.device
    head: torch.Tensor
    cap: float | None
    eos_ids: frozenset[int]
    tokenizer: Any

    @property
    def grammars(self) -> Grammars:
        """Compiled schemas."""
        ...

    def hidden(self, tokens: torch.Tensor, layout: Any) -> torch.Tensor:
        """Last hidden states (N, width) of tokens (N,) under a layout."""
        ...

    def decode(self, prefill: Packed, texts: Sequence[list[int]], groups: list[int]) -> Layout:
        """The layout of rows that go on from prefilled texts; row r from that of `groups[r]`."""
        ...


@dataclass(slots=True)
class _Row:
    """One completion on its way."""

    request: int
    index: int
    uniforms: NDArray[np.float64]
    state: DecodingState | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    text: str | None = None
    """Set when a stop text ended the row."""
    sent: int = 0
    """Characters already handed to `on_text`."""
    read: int = 0
    """Tokens that the model has read."""
    mask: NDArray[np.int32] | None = None
    """What may be said next, (V / 32,); None: anything."""
    completion: Completion | None = None


def sample(
    policy: Policy,
    requests: Sequence[SampleRequest],
    *,
    max_rows: int,
    max_keys: int,
    on_tick: Callable[[], None] | None = None,
    on_text: Callable[[int, int, str], None] | None = None,
    on_completion: Callable[[int, int, Completion], None] | None = None,
) -> list[list[Completion]]:
    """Completions of every request, in order.

    Args:
        policy: the model, with the wanted adapter on it.
        requests: prompts and how to draw from them.
        max_rows: most completions that decode together.
        max_keys: most key positions a wave may hold (a prompt once for each block of its
            completions, completions at full length).
        on_tick: called between token steps.
        on_text: called with (request, completion index, new text) as text appears.
        on_completion: called with (request, completion index, completion) as each ends.
    """
    results: list[list[Completion | None]] = [[None] * len(r.seeds) for r in requests]

    def keep(request: int, index: int, completion: Completion) -> None:
        results[request][index] = completion
        if on_completion is not None:
            on_completion(request, index, completion)

    with torch.no_grad():
        for _ in token_steps(
            policy, requests, keep, max_rows=max_rows, max_keys=max_keys, on_text=on_text
        ):
            if on_tick is not None:
                on_tick()
    return [[c for c in group if c is not None] for group in results]


def token_steps(
    policy: Policy,
    requests: Sequence[SampleRequest],
    on_completion: Callable[[int, int, Completion], None],
    *,
    max_rows: int,
    max_keys: int,
    on_text: Callable[[int, int, str], None] | None = None,
    dropped: Collection[int] = (),
) -> Iterator[None]:
    """The same, one token of every row at a time; other work may run between two of them.

    The caller sees to it that gradients are off and the wanted adapter is on at each step. Requests
    in `dropped`, which may grow meanwhile, are drawn no further.
    """
    for wave in _waves(requests, max_rows, max_keys):
        for ended in _decode(policy, requests, wave, on_text, dropped):
            if ended is None:
                yield
            else:
                row, completion = ended
                on_completion(row.request, row.index, completion)


def _waves(
    requests: Sequence[SampleRequest], max_rows: int, max_keys: int
) -> Iterator[list[tuple[int, int]]]:
    """(request, completion index) pairs that decode together; long and short prompts apart."""
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), i))
    wave: list[tuple[int, int]] = []
    keys = 0
    for i in order:
        request = requests[i]
        num = 0  # completions of this prompt in the wave
        for index in range(len(request.seeds)):
            shares = num % BLOCK_ROWS > 0  # the prompt's keys with those before it
            cost = request.max_tokens + (0 if shares else len(request.prompt_ids))
            if wave and (len(wave) >= max_rows or keys + cost > max_keys):
                yield wave
                wave, keys, num = [], 0, 0
                cost = request.max_tokens + len(request.prompt_ids)
            wave.append((i, index))
            keys, num = keys + cost, num + 1
    if wave:
        yield wave


def _decode(
    policy: Policy,
    requests: Sequence[SampleRequest],
    wave: list[tuple[int, int]],
    on_text: Callable[[int, int, str], None] | None,
    dropped: Collection[int],
) -> Iterator[tuple[_Row, Completion] | None]:
    """Rows as they end, and None after each pass of the model."""
    rows = [_start(policy, requests, i, index) for i, index in wave if i not in dropped]
    _say_what_must_be(policy, requests, rows)
    yield from _ended(policy, requests, rows, on_text)
    alive = [row for row in rows if row.completion is None]  # later: the rows of the layout
    if not alive:
        return
    hidden, layout = _prefill(policy, requests, alive)
    while True:
        ready = [
            r
            for r, row in enumerate(alive)
            if row.completion is None and row.read == len(row.tokens)
        ]
        drawn = [alive[r] for r in ready]
        _draw(policy, requests, drawn, hidden[torch.tensor(ready, device=policy.device)])
        _say_what_must_be(policy, requests, drawn)
        yield from _ended(policy, requests, drawn, on_text)
        running = [r for r, row in enumerate(alive) if row.completion is None]
        if not running:
            return
        if len(running) < SHRINK_BELOW * len(alive):
            layout.keep(running)
            alive = [alive[r] for r in running]
        hidden = _read(policy, alive, layout)
        yield None
        for row in alive:
            if row.request in dropped and row.completion is None:
                row.completion = DROPPED
        if all(row.completion is not None for row in alive):
            return


def _read(policy: Policy, rows: list[_Row], layout: Layout) -> torch.Tensor:
    """Let the model read as many tokens of each row as every row has; the last states (R, width).

    Rows that have ended and are still in the layout read anything.
    """
    running = [row for row in rows if row.completion is None]
    num = min(len(row.tokens) - row.read for row in running)
    tokens = [
        row.tokens[row.read : row.read + num] if row.completion is None else [row.tokens[-1]] * num
        for row in rows
    ]
    layout.take(num)
    hidden = policy.hidden(torch.tensor(tokens, device=policy.device).flatten(), layout)
    layout.advance()
    for row in running:
        row.read += num
    last: torch.Tensor = hidden.unflatten(0, (len(rows), num))[:, -1]
    return last


def _say_what_must_be(
    policy: Policy, requests: Sequence[SampleRequest], rows: Sequence[_Row]
) -> None:
    """Append tokens while there is no choice. A row then has ended, or has the mask of a choice."""
    for row in rows:
        if row.tokens:
            row.completion = _finished(policy, requests[row.request], row)
    todo = [row for row in rows if row.state is not None and row.completion is None]
    while todo:
        states = [
            ((request.schema, request.thinking, tuple(row.tokens)), row.state)
            for row in todo
            for request in (requests[row.request],)
        ]
        masks = policy.grammars.distinct(states)
        is_forced = choices(masks) == 1
        tokens = iter(only_choice(masks[is_forced]).tolist())
        for row, mask, forced in zip(todo, masks, is_forced, strict=True):
            row.mask = mask
            if forced:
                _append(row, next(tokens), 0.0)
                if requests[row.request].num_top_logprobs:
                    row.top.append(((row.tokens[-1], 0.0),))
                row.completion = _finished(policy, requests[row.request], row)
        todo = [
            row
            for row, forced in zip(todo, is_forced, strict=True)
            if forced and row.completion is None
        ]


def _ended(
    policy: Policy,
    requests: Sequence[SampleRequest],
    rows: Sequence[_Row],
    on_text: Callable[[int, int, str], None] | None,
) -> Iterator[tuple[_Row, Completion]]:
    """Hand out new text, and the rows among these that have ended."""
    for row in rows:
        if on_text is not None and row.tokens:
            _report(policy, requests[row.request], row, row.completion, on_text)
        if row.completion is not None:
            yield row, row.completion


def _start(policy: Policy, requests: Sequence[SampleRequest], i: int, index: int) -> _Row:
    request = requests[i]
    seed = np.random.SeedSequence([part % 2**32 for part in request.seeds[index]])
    uniforms = np.random.Generator(np.random.Philox(seed)).random(request.max_tokens)
    return _Row(i, index, uniforms, _decoding_state(policy, request))


def _decoding_state(policy: Policy, request: SampleRequest) -> DecodingState | None:
    if request.schema is None and request.thinking is None:
        return None  # grammars take a second to make
    return policy.grammars.start(request.schema, request.thinking)


def _prefill(
    policy: Policy, requests: Sequence[SampleRequest], rows: Sequence[_Row]
) -> tuple[torch.Tensor, Layout]:
    """Hidden state of the last token of every row (R, width), and the decode layout.

    Rows of one prompt have all said the same so far, having had no choice: it is read once.
    """
    first = {row.request: row for row in reversed(rows)}
    order = list(dict.fromkeys(row.request for row in rows))
    texts = [[*requests[i].prompt_ids, *first[i].tokens] for i in order]
    for row in rows:
        row.read = len(row.tokens)
    lengths = [len(text) for text in texts]
    opening = shared_opening(texts)
    packed = Packed(lengths, [[] for _ in texts], policy.device, opening=opening, keep_keys=True)
    line = [*texts[0][:opening], *(token for text in texts for token in text[opening:])]
    hidden = policy.hidden(torch.tensor(line, device=policy.device), packed)
    ends = opening + np.cumsum([length - opening for length in lengths]) - 1
    groups = [order.index(row.request) for row in rows]
    last = torch.from_numpy(ends[groups]).to(policy.device)
    return hidden[last], policy.decode(packed, texts, groups)


def _draw(
    policy: Policy, requests: Sequence[SampleRequest], rows: list[_Row], hidden: torch.Tensor
) -> None:
    """Append one token to every row, each of which has a choice."""
    by_temperature: dict[float, list[int]] = {}
    for r, row in enumerate(rows):
        by_temperature.setdefault(requests[row.request].temperature, []).append(r)
    for temperature, members in sorted(by_temperature.items()):
        index = torch.tensor(members, device=hidden.device)
        some = [rows[r] for r in members]
        _draw_free(policy, requests, some, hidden[index], _masks(some), temperature)


def _masks(rows: Sequence[_Row]) -> Masks | None:
    """What the rows may say next, or None when all may say anything."""
    words = next((len(row.mask) for row in rows if row.mask is not None), None)
    if words is None:
        return None
    anything = np.full(words, -1, np.int32)
    return np.stack([anything if row.mask is None else row.mask for row in rows])


def _draw_free(
    policy: Policy,
    requests: Sequence[SampleRequest],
    rows: list[_Row],
    hidden: torch.Tensor,
    masks: Masks | None,
    temperature: float,
) -> None:
    """Rows of one temperature."""
    values = scores(hidden, policy.head, masks, temperature or 1.0, policy.cap)  # (R, V)
    wanted = max(requests[row.request].num_top_logprobs for row in rows)
    top = torch.topk(values, wanted) if wanted else None
    greedy = values.argmax(dim=-1) if temperature == 0 else None
    probs = torch.softmax(values, dim=-1)
    if greedy is not None:
        tokens = greedy
    else:
        top_p = [requests[row.request].top_p for row in rows]
        uniforms = torch.tensor(
            [row.uniforms[len(row.tokens)] for row in rows], device=hidden.device
        )
        tokens = _inverse_cdf(_nucleus(probs, top_p), uniforms)
    chosen = tokens.tolist()
    of_chosen = torch.log(probs.gather(1, tokens[:, None])[:, 0])
    total = values.gather(1, tokens[:, None])[:, 0] - of_chosen  # the log of the sum
    logprobs = of_chosen.tolist()
    for r, row in enumerate(rows):
        count = requests[row.request].num_top_logprobs
        if count and top is not None:
            values_of_row = (top.values[r, :count] - total[r]).tolist()
            row.top.append(tuple(zip(top.indices[r, :count].tolist(), values_of_row, strict=True)))
        _append(row, chosen[r], logprobs[r])


def _append(row: _Row, token: int, logprob: float) -> None:
    row.tokens.append(token)
    row.logprobs.append(logprob)
    if row.state is not None and not row.state.consume_token(token):
        raise RequestError(
            f"the JSON schema cannot be followed: the grammar refused token {token}, which it had "
            "allowed. Is there an answer that ends, or does a `$ref` need itself for ever?",
            param="response_format",
        )


def _inverse_cdf(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at which the running share of weights (R, V) passes each uniform (R,).

    First the stretch of tokens in which it does, then the token: a running sum over a whole
    vocabulary takes longer than all else that is done to the weights.
    """
    padding = -probs.shape[-1] % STRETCH
    stretches = torch.nn.functional.pad(probs, (0, padding)) if padding else probs
    stretches = stretches.unflatten(-1, (-1, STRETCH))  # (R, V / STRETCH, STRETCH)
    at, rest = _first_above(stretches.sum(-1), uniforms.to(torch.float32)[:, None], share=True)
    rows = torch.arange(len(probs), device=probs.device)
    token, _ = _first_above(stretches[rows, at[:, 0]], rest)
    return (at * STRETCH + token)[:, 0]


def _first_above(
    weights: torch.Tensor, target: torch.Tensor, *, share: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the running sum of weights (R, N) first exceeds the target (R, 1), and what is left.

    With `share` the target is one of the whole sum.
    """
    running = torch.cumsum(weights, dim=-1)
    total = running[:, -1:]
    # Strictly below the total, so that what is found has a weight.
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(target * total if share else target, below)
    at = torch.searchsorted(running, target, right=True)
    # Rounding can put an edge above its target: less than nothing would find what has no weight.
    return at, (target - (running - weights).gather(1, at)).clamp_(min=0)


def _nucleus(probs: torch.Tensor, top_p: list[float]) -> torch.Tensor:
    """Zero what lies outside the smallest set of tokens that holds top_p (Holtzman 2019)."""
    if all(p >= 1.0 for p in top_p):
        return probs
    total = probs.sum(dim=-1, keepdim=True)
    bound = torch.tensor(top_p, device=probs.device)[:, None]
    ordered, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    before = (torch.cumsum(ordered, dim=-1) - ordered) / total
    kept = torch.where((before < bound) | (bound >= 1.0), ordered, 0.0)
    return torch.zeros_like(probs).scatter_(1, order, kept)


def _finished(policy: Policy, request: SampleRequest, row: _Row) -> Completion | None:
    """The completion, if this token ended it."""
    ended = row.tokens[-1] in policy.eos_ids
    if request.stop and not ended:
        text = _said(policy, request, row)[1]
        cuts = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        if cuts:
            row.text, ended = text[: min(cuts)], True
    if not ended and len(row.tokens) < request.max_tokens:
        return None
    reasoning, answer = _said(policy, request, row)
    return Completion(
        tokens=row.tokens,
        text=answer if row.text is None else row.text,
        sampling_logprobs=row.logprobs,
        stop_reason="stop" if ended else "length",
        top_logprobs=row.top,
        reasoning=reasoning,
        reasoning_tokens=_num_thoughts(row),
    )


def _said(policy: Policy, request: SampleRequest, row: _Row) -> tuple[str, str]:
    """Thoughts and answer so far; what follows the end mark in its own token is answer."""
    count = _num_thoughts(row)
    answer: str = policy.tokenizer.decode(row.tokens[count:], skip_special_tokens=True)
    if request.thinking is None:
        return "", answer
    thoughts = policy.tokenizer.decode(row.tokens[:count])
    reasoning, _, rest = thoughts.partition(request.thinking.end)
    return reasoning.strip(), (rest + answer).lstrip()


def _num_thoughts(row: _Row) -> int:
    if row.state is None:
        return 0
    return len(row.tokens) if row.state.num_thoughts is None else row.state.num_thoughts


def _report(
    policy: Policy,
    request: SampleRequest,
    row: _Row,
    completion: Completion | None,
    on_text: Callable[[int, int, str], None],
) -> None:
    """Hand out the part of the answer that can no longer change."""
    if completion is not None:
        text = completion.text
    else:
        text = _said(policy, request, row)[1]
        if text.endswith("\ufffd"):  # the rest of a character is still to come
            return
        held = max(map(len, request.stop), default=1) - 1  # may become a stop text
        text = text[: len(text) - held]
    if len(text) > row.sent:
        on_text(row.request, row.index, text[row.sent :])
        row.sent = len(text)
