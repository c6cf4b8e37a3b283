"""The libraries that people load an export with, each behind the same four functions.

transformers loads a merged folder, an adapter (through PEFT) and, where llama.cpp is not installed,
the weights of a GGUF file. The check would prove nothing if it used the platform's own engine, so
nothing here does. Not here: llama.cpp (`llama_cpp`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rftkit.server.worker.exports.folders import tokenizer_of

__all__ = ["Scores", "Tool", "Transformers", "is_installed", "version_of"]

TOGETHER = 8
"""Rows that transformers answers at once."""
Scores = tuple[list[float], list[float]]
"""Log-probs of the given tokens, and of the most likely token at the same places, in nats."""


class Tool(Protocol):
    """A loaded export."""

    name: str
    """The name of the tool, with its version."""

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int] | None:
        """Token ids of a chat under the export's own template; None: not this tool's work."""
        ...

    def answers(self, prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy tokens for each, until the tool stops on its own, its end token included."""
        ...

    def scores(self, prompt: list[int], answer: list[int]) -> Scores:
        """Log-probs of an answer that is given."""
        ...


def is_installed(module: str) -> bool:
    """Whether an optional package can be imported."""
    return importlib.util.find_spec(module) is not None


def version_of(*packages: str) -> str:
    """Names and versions, for a report."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


class Transformers:
    """An export in transformers: a merged folder, an adapter folder, or a GGUF file's weights."""

    def __init__(self, folder: Path, kind: str, file: str | None = None) -> None:
        """`kind` is peft, merged or gguf; `file` is the name of the GGUF file in the folder."""
        from transformers import AutoModelForCausalLM, GenerationConfig

        self.name = version_of("transformers", *(["peft"] if kind == "peft" else []))
        self._tokenizer = None if kind == "gguf" else tokenizer_of(folder)
        self._model: Any
        if kind == "peft":
            from peft import AutoPeftModelForCausalLM

            self._model = AutoPeftModelForCausalLM.from_pretrained(
                folder, dtype="auto", trust_remote_code=False
            )
        elif kind == "merged":
            self._model = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", trust_remote_code=False
            )
        else:
            self._model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, dtype="float32", trust_remote_code=False
            )
        self._model.eval()
        # A GGUF file has one end token and no generation config, so the folder has none either.
        config = None if kind == "gguf" else GenerationConfig.from_pretrained(folder)
        self._config = config or self._model.generation_config

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int] | None:
        """See Tool; what transformers makes of a GGUF file's tokenizer is not compared."""
        if self._tokenizer is None:
            return None
        found = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return [int(token) for token in found["input_ids"]]

    def answers(self, prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
        """See Tool; some at once, since a step of one answer takes as long as one of several."""
        parts = [prompts[at : at + TOGETHER] for at in range(0, len(prompts), TOGETHER)]
        return [answer for part in parts for answer in self._together(part, max_tokens)]

    def _together(self, prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
        import torch

        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        pad = self._pad
        ids = [[pad] * num + prompt for num, prompt in zip(pads, prompts, strict=True)]
        mask = [[0] * num + [1] * (longest - num) for num in pads]
        with torch.no_grad():
            found = self._model.generate(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                generation_config=self._greedy(max_tokens),
            )
        return [self._until_end(row) for row in found[:, longest:].tolist()]

    def _until_end(self, tokens: list[int]) -> list[int]:
        """The tokens without the padding after the end of the answer."""
        ends = set(self._ends)
        at = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
        return tokens[: at + 1]

    @property
    def _ends(self) -> list[int]:
        given = self._config.eos_token_id
        return list(given) if isinstance(given, list) else [] if given is None else [given]

    @property
    def _pad(self) -> int:
        """Any token will do where the mask is 0."""
        given = self._config.pad_token_id
        return int(given) if given is not None else next(iter(self._ends), 0)

    def _greedy(self, max_tokens: int) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self._config.eos_token_id,
            pad_token_id=self._pad,
        )

    def scores(self, prompt: list[int], answer: list[int]) -> Scores:
        """See Tool."""
        import torch

        with torch.no_grad():
            logits = self._model(torch.tensor([prompt + answer])).logits[0]
        first = len(prompt) - 1
        table = torch.log_softmax(logits[first : first + len(answer)].float(), dim=-1)
        given = table.gather(1, torch.tensor(answer)[:, None])[:, 0]
        return given.tolist(), table.max(dim=-1).values.tolist()
