"""Whether the engine computes what the model's own code does: checked on load and before a job.

The model's own code runs first, before anything of it is replaced, on a few short texts: as rows of
one batch, and one of them alone. What the engine makes of the same texts, laid out as it trains and
as it samples, is then compared with that, token by token. The bound does not depend on how large
the weights are: where rounding is small it is a share of what the context adds to the state of a
token. One more test needs no bound: what a token's layout hides from it may not change its state at
all. For 135 million parameters all of it takes 0.7 s of one core. Not here: what happens when the
two disagree (`model.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rftkit.server.engine.torch.decode import Decode
from rftkit.server.engine.torch.packed import Packed

__all__ = [
    "Hidden",
    "Logits",
    "Reference",
    "agreement",
    "depends_on_neighbours",
    "leak",
    "logits_of",
    "looks_ahead",
    "own_states",
    "states_of_line",
]

PROMPTS, COMPLETIONS = (11, 4, 6), ((5, 8), (3, 4), (3,))
DECODED = 3
"""Tokens that each completion is decoded for."""
OF_CONTEXT = 0.02  # share of what context adds to a state; a different formula differs by more
ROUNDING = 5e-5  # of a state, in float32
ROUNDING_BFLOAT16 = 0.25  # it grows from layer to layer
LEAKED, LEAKED_BFLOAT16 = 1e-5, 0.02  # of a state: experts sum in another order

Hidden = Callable[[torch.Tensor, Any], torch.Tensor]
"""Last hidden states (N, width) of tokens (N,) under a layout."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Some texts, and the last hidden states that the model's own code gives for each."""

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    states: list[torch.Tensor]
    """The states of each prompt with each of its completions, (tokens, width)."""

    @property
    def texts(self) -> list[list[int]]:
        """A prompt with one completion each."""
        return [
            prompt + completion
            for prompt, some in zip(self.prompts, self.completions, strict=True)
            for completion in some
        ]

    @property
    def groups(self) -> list[int]:
        """The prompt of each text."""
        return [i for i, some in enumerate(self.completions) for _ in some]

    def line(self) -> list[int]:
        """All tokens in the order of the packed layout."""
        pairs = zip(self.prompts, self.completions, strict=True)
        return [token for prompt, some in pairs for part in (prompt, *some) for token in part]

    def layout(self, device: torch.device) -> Packed:
        """The layout of that line."""
        lengths = [list(map(len, some)) for some in self.completions]
        return Packed(list(map(len, self.prompts)), lengths, device)


def own_states(decoder: Any, num_tokens: int, device: torch.device) -> Reference:
    """Run the model's own code on all texts in one batch, which is faster than a pass for each.

    Few tokens are used, and each text begins with another one: the state of that first token is
    what the token has without any context.
    """
    alphabet = [(7 + 11 * i) % num_tokens for i in range(len(PROMPTS))]
    drawn = torch.Generator().manual_seed(0)

    def some(num: int) -> list[int]:
        return [alphabet[i] for i in torch.randint(len(alphabet), (num,), generator=drawn).tolist()]

    prompts = [[alphabet[i], *some(num - 1)] for i, num in enumerate(PROMPTS)]
    completions = [[some(num) for num in lengths] for lengths in COMPLETIONS]
    reference = Reference(prompts, completions, [])
    texts = reference.texts
    longest = max(map(len, texts))
    # After its end a text may be padded with any token: no token sees later ones (`looks_ahead`).
    grid = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    with torch.no_grad():
        states = decoder(input_ids=grid, use_cache=False).last_hidden_state
    reference.states.extend(row[: len(text)] for row, text in zip(states, texts, strict=True))
    return reference


def depends_on_neighbours(reference: Reference, decoder: Any, device: torch.device) -> bool:
    """Whether the model's own code gives a text another state alone than in a batch."""
    shortest = min(range(len(reference.texts)), key=lambda i: len(reference.texts[i]))
    text = reference.texts[shortest]
    with torch.no_grad():
        ids = torch.tensor([text], device=device)
        alone = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
    places = list(range(len(text)))
    return _over_bound(reference, [shortest] * len(text), alone, places, alone.dtype) > 1


def looks_ahead(reference: Reference) -> bool:
    """Whether a token's state depends on what comes after it."""
    first, second = reference.states[:2]
    at = list(range(len(reference.prompts[0])))
    return _over_bound(reference, [0] * len(at), second[: len(at)], at, first.dtype) > 1


def states_of_line(reference: Reference, hidden: Hidden, device: torch.device) -> torch.Tensor:
    """The engine's states of the texts, laid out as for training."""
    line = torch.tensor(reference.line(), device=device)
    with torch.no_grad():
        return hidden(line, reference.layout(device))


def agreement(
    reference: Reference,
    hidden: Hidden,
    device: torch.device,
    found: torch.Tensor,
    *,
    decodes: bool,
) -> float:
    """The largest difference to the model's own states, as a share of its bound; 1 is the most.

    `found` is `states_of_line`. With `decodes` the texts are sampled too: prompts prefilled,
    completions token by token.
    """
    dtype = reference.states[0].dtype
    with torch.no_grad():
        texts, places = _places(reference)
        worst = _over_bound(reference, texts, found, places, dtype)
        if decodes:
            worst = max(worst, *_decoded(reference, hidden, device, dtype))
    return worst


def leak(reference: Reference, hidden: Hidden, device: torch.device, before: torch.Tensor) -> bool:
    """Whether a completion depends on its neighbour; `before` are the states of the whole line."""
    line = torch.tensor(reference.line(), device=device)
    start = len(reference.prompts[0])
    others = line.clone()
    own = slice(start, start + len(reference.completions[0][0]))
    alphabet = line.unique()
    others[own] = alphabet[(torch.searchsorted(alphabet, line[own]) + 1) % len(alphabet)]
    before = before.float()
    with torch.no_grad():
        after = hidden(others, reference.layout(device)).float()
    bound = LEAKED if reference.states[0].dtype == torch.float32 else LEAKED_BFLOAT16
    changed = (after - before).norm(dim=-1) > bound * before.norm(dim=-1)
    changed[own] = False
    return bool(changed.any())


@dataclass(frozen=True, slots=True)
class Logits:
    """How a model computes logits from its last hidden states: head(states) · scale, then a soft
    cap.
    """

    scale: float
    cap: float | None

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The logits, given the output of the head."""
        values = values * self.scale
        return values if self.cap is None else self.cap * torch.tanh(values / self.cap)


def logits_of(model: Any, decoder: Any) -> Logits | None:
    """Find it by putting known numbers in place of what the head gives; None: it is more than that.

    The answer does not depend on how large the model's own logits are.
    """
    head, width = model.get_output_embeddings(), model.get_output_embeddings().weight.shape[0]
    # Dense near zero, where the slope is the scale; large at the ends, where a cap shows.
    known = 200.0 * torch.linspace(-1.0, 1.0, width, device=head.weight.device) ** 3
    ids = torch.arange(3, device=head.weight.device)[None]
    states: list[torch.Tensor] = []
    hooks = [
        decoder.register_forward_hook(
            lambda _module, _inputs, output: states.append(output.last_hidden_state)
        ),
        head.register_forward_pre_hook(lambda _module, inputs: states.append(inputs[0])),
        head.register_forward_hook(lambda *_: known.expand(1, 3, -1).clone()),
    ]
    try:
        with torch.no_grad():
            capped = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        for hook in hooks:
            hook.remove()
    before, given = states[-2].float(), states[-1].float()
    ratio = float((given * before).sum() / (before * before).sum())
    if capped.shape != (1, 3, width) or given.shape != before.shape:
        return None
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(3, head.weight.shape[1], generator=drawn).to(head.weight)
    with torch.no_grad():
        product = torch.nn.functional.linear(x, head.weight).float()
        if (head(x).float() - product).norm() > 0.01 * product.norm():
            return None  # the head does more than one matrix product
    if (given - ratio * before).norm() > 0.01 * given.norm():
        return None
    found = Logits(*_form(known, capped[0, 0]))
    if (found.of(known) - capped).abs().max() > 0.01 * capped.abs().max():
        return None
    return Logits(found.scale * ratio, found.cap)


def _form(known: torch.Tensor, capped: torch.Tensor) -> tuple[float, float | None]:
    """The scale and cap of a soft cap, found from its results near zero and far from it."""
    half = len(known) // 2
    near = float((capped[half] - capped[half - 1]) / (known[half] - known[half - 1]))
    far = float(capped[-1])
    if abs(near * float(known[-1]) - far) < 1e-3 * abs(far):
        return near, None
    return near, far


def _places(reference: Reference) -> tuple[list[int], list[int]]:
    """Text and place in it of each token of the packed line."""
    texts: list[int] = []
    places: list[int] = []
    number = 0
    for prompt, some in zip(reference.prompts, reference.completions, strict=True):
        texts += [number] * len(prompt)
        places += range(len(prompt))
        for completion in some:
            texts += [number] * len(completion)
            places += range(len(prompt), len(prompt) + len(completion))
            number += 1
    return texts, places


def _decoded(
    reference: Reference, hidden: Hidden, device: torch.device, dtype: torch.dtype
) -> list[float]:
    lengths = list(map(len, reference.prompts))
    prefill = Packed(lengths, [[] for _ in lengths], device, keep_keys=True)
    line = [token for prompt in reference.prompts for token in prompt]
    hidden(torch.tensor(line, device=device), prefill)
    groups, found = reference.groups, []
    layout = Decode(prefill, lengths, groups)
    for step in range(DECODED):
        at = [lengths[group] + step for group in groups]
        tokens = [text[place] for text, place in zip(reference.texts, at, strict=True)]
        layout.take(1)
        states = hidden(torch.tensor(tokens, device=device), layout)
        layout.advance()
        found.append(_over_bound(reference, list(range(len(at))), states, at, dtype))
    return found


def _over_bound(
    reference: Reference,
    texts: Sequence[int],
    found: torch.Tensor,
    places: Sequence[int],
    dtype: torch.dtype,
) -> float:
    """The largest difference of these states to the reference's, over what is allowed there."""
    all_texts = reference.texts
    own = torch.stack([reference.states[t][i] for t, i in zip(texts, places, strict=True)]).float()
    off = (found.float() - own).norm(dim=-1)
    if dtype != torch.float32:
        return float(
            (off / (ROUNDING_BFLOAT16 * own.norm(dim=-1))).mean().nan_to_num(nan=torch.inf)
        )
    alone = {
        all_texts[t][0]: reference.states[t][0].float() for t in range(len(all_texts))
    }  # without any context
    base = torch.stack([alone[all_texts[t][i]] for t, i in zip(texts, places, strict=True)])
    allowed = OF_CONTEXT * (own - base).norm(dim=-1) + ROUNDING * own.norm(dim=-1)
    return float((off / allowed).max().nan_to_num(nan=torch.inf))
