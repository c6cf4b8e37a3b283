"""Homes with a small random base model and a random adapter, for exports and their table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_models
import pytest
import torch

from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import LoraConfig
from rftkit.server.store.store import Store

PLAIN = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NAME = "ft:mine:local::1"


def char_base(folder: Path, **sizes: Any) -> None:
    """A Llama with `tokenizer.json`."""
    engine_models.write(folder, "Llama", **sizes)


def two_files_base(folder: Path, **sizes: Any) -> None:
    """A Qwen2 whose tokenizer is `vocab.json` and `merges.txt`."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = ["<|endoftext|>", *letters, "He", "ll", "Hell", "Hello"]
    write_model(folder, "Qwen2", len(vocab), end=0, **sizes)
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\nH e\nl l\nHe ll\nHell o\n")
    (folder / "chat_template.jinja").write_text(PLAIN)


def sentencepiece_base(folder: Path, rule: str = "identity", **sizes: Any) -> None:
    """A Llama whose tokenizer is a sentencepiece model, which keeps texts as they are, as Llama's
    and Mistral's do.
    """
    sentencepiece = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    pytest.importorskip("google.protobuf", reason="pip install protobuf")
    folder.mkdir()
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["hello there", "copy the letters", "say hello again"] * 20),
            model_writer=file,
            vocab_size=320,
            model_type="bpe",
            byte_fallback=True,
            hard_vocab_limit=False,
            normalization_rule_name=rule,
            remove_extra_whitespaces=rule != "identity",
            minloglevel=2,
        )
    size = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).vocab_size()
    write_model(folder, "Llama", size, end=2, bos_token_id=1, **sizes)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + PLAIN)


def write_model(folder: Path, architecture: str, num: int, *, end: int, **sizes: Any) -> None:
    import transformers

    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=num, eos_token_id=end, initializer_range=0.2, **(engine_models.SIZES | sizes)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = getattr(transformers, f"{architecture}ForCausalLM")(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)


BASES: dict[str, Callable[[Path], None]] = {
    "tokenizer.json, tied head": lambda folder: char_base(folder, tie_word_embeddings=True),
    "tokenizer.json, own head": lambda folder: char_base(folder, tie_word_embeddings=False),
    "vocab and merges, tied head": lambda folder: two_files_base(folder, tie_word_embeddings=True),
    "vocab and merges, own head": lambda folder: two_files_base(folder, tie_word_embeddings=False),
    "sentencepiece, tied head": lambda folder: sentencepiece_base(folder, tie_word_embeddings=True),
    "sentencepiece, own head": lambda folder: sentencepiece_base(folder, tie_word_embeddings=False),
}


def home_with(tmp_path: Path, make: Callable[[Path], None], scale: float = 0.2) -> Path:
    """A home with a base model `mine` and a random adapter on it, of this deviation."""
    home, base, saved = tmp_path / "rk", tmp_path / "base", tmp_path / "saved"
    home.mkdir()
    make(base)
    (home / "bases.json").write_text(json.dumps({"mine": str(base)}))
    engine = TorchEngine(base, name="mine")
    engine.start_policy(LoraConfig(4, 8.0), seed=1)
    chance = torch.Generator().manual_seed(1)
    for tensor in engine.policies.trained()[0].values():
        tensor.data = scale * torch.randn(tensor.shape, generator=chance)
    saved.mkdir()
    engine.save_adapter(saved)
    store = Store.open(home)
    store.add_model(NAME, "mine", None, str(saved), None)
    store.close()
    return home
