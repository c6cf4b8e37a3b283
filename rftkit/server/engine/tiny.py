"""`rftkit-tiny`: a character model of some ten thousand parameters, made in seconds.

A Llama of two layers that reads `copy: bca` and has been taught, for a moment, to repeat letters:
badly enough that reinforcement has something to do, well enough that it is right sometimes. Same
architecture, files and code path as a real model, so that the whole machinery can be tried at once.
Not a language model.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

__all__ = ["make"]

ALPHABET = "abcdefgh"
LETTERS = 3
STEPS = 300
BATCH = 32
PEAK_RATE = 5e-3
NOISE = 0.45
"""Share of letters in the lessons that are wrong: what keeps the base from being perfect."""
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'][0] }}>{{ message['content'] }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SPECIAL = ("<end>", "<s>", "<u>", "<a>", "<t>")


def make(folder: Path) -> None:
    """Write the model as a Hugging Face folder; the same bytes of weights on the same machine."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.eos_token_id,
        )
        model = LlamaForCausalLM(config)
        _teach(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    """A tokenizer with one token for each byte, and the marks of the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    inner = Tokenizer(models.BPE(vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<end>",
        pad_token="<end>",
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _teach(model: Any, tokenizer: Any) -> None:
    """Train it for a few seconds on answers with many mistakes."""
    import torch
    from torch.nn.functional import cross_entropy

    from rftkit.server.engine.prompts import encode

    chance = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    prompts = {}
    model.train()
    for _ in range(STEPS):
        lessons = []
        for _ in range(BATCH):
            letters = "".join(chance.choices(ALPHABET, k=LETTERS))
            text = "".join(
                chance.choice(ALPHABET) if chance.random() < NOISE else c for c in letters
            )
            if letters not in prompts:
                message = {"role": "user", "content": f"copy: {letters}"}
                prompts[letters] = encode(tokenizer, [message])
            answer = tokenizer.convert_tokens_to_ids([*text, "<end>"])
            lessons.append(prompts[letters] + answer)
        tokens = torch.tensor(lessons)
        logits = model(input_ids=tokens[:, :-1], logits_to_keep=LETTERS + 1).logits
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, -LETTERS - 1 :].flatten())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
