"""Masks of a grammar: the same with our sets of tokens as without, and each computed once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rftkit import datasets
from rftkit.server.engine import grammar
from rftkit.server.engine.decoding_state import DecodingState
from rftkit.server.engine.grammar import Grammars
from rftkit.server.engine.torch.engine import TorchEngine

PATTERNS = (
    None,
    "^[^.]{1,80}\\.$",
    "^[a-z ]{1,40}$",
    "^[A-Z][a-zA-Z]*( [0-9.,]{1,9})?$",
    "^.{3,12}$",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Of 3,000 pieces of English, as models have it: most tokens are words or parts of words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3_000,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(
        datasets.bundled("security_review").train.read_text().split("\n"), trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def made(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sets_of_tokens_change_no_mask(
    pattern: str | None, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}
    schema = json.dumps(
        {"type": "object", "properties": {"a": text}, "required": ["a"],
         "additionalProperties": False}
    )  # fmt: skip
    ours = made(tokenizer)
    monkeypatch.setattr(grammar, "SLICES", [])
    plain = made(tokenizer)
    chance = np.random.default_rng(0)
    for _ in range(3):
        tokens: list[int] = []
        states = [each.start(schema) for each in (ours, plain)]
        for _ in range(60):
            masks = [each.masks([state]) for each, state in zip((ours, plain), states, strict=True)]
            assert np.array_equal(*masks)
            allowed = np.flatnonzero(grammar.unpack(masks[0], len(tokenizer))[0])
            tokens.append(int(chance.choice(allowed)))
            assert all(state is None or state.consume_token(tokens[-1]) for state in states)
            if tokens[-1] == tokenizer.eos_token_id:
                break


def test_the_trainer_computes_no_mask_that_the_sampler_has_made(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(tiny, name="tiny")
    schema = json.dumps({"type": "string", "enum": ["yes", "no", "needs review"]})
    computed = []
    plain = Grammars.masks

    def masks(self: Grammars, states: Sequence[DecodingState | None]) -> NDArray[np.int32]:
        computed.append(len(states))
        return plain(self, states)

    monkeypatch.setattr(Grammars, "masks", masks)
    given = engine.encode_answer('"needs review"', schema)
    assert given is not None
    assert sum(computed) == len(given)
    engine.grammars.replay(schema, [given, given])
    assert sum(computed) == len(given)


def test_masks_that_were_used_longest_ago_go(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(tiny, name="tiny")
    grammars = engine.grammars
    each = 4 * -(-grammars.vocab_size // 32)
    monkeypatch.setattr(grammar, "KEPT_BYTES", 3 * each)
    for number in (1, 2, 3, 1, 4):
        grammars.distinct([(number, None)])
    assert list(grammars._kept) == [3, 1, 4]
