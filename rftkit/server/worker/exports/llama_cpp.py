"""A GGUF file in llama.cpp itself: what it answers, and the quantizations that only it writes.

llama.cpp comes in the wheel of `cyllama`, so no compiler is needed. Prompts are made as
`llama-server --jinja` makes them: the file's own chat template, tokenized with the file's own
tokenizer, which adds the token that begins texts unless the template has written it. Not here: how
the file is written (`gguf_file`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rftkit.errors import RftkitError
from rftkit.server.worker.exports.tools import Scores, is_installed, version_of

__all__ = ["PACKAGE", "LlamaCpp", "has_llama_cpp", "quantize"]

PACKAGE = "cyllama"
LOGGED_ERROR = 4
"""`GGML_LOG_LEVEL_ERROR`."""


def has_llama_cpp() -> bool:
    """Whether llama.cpp can be loaded here."""
    return is_installed(PACKAGE)


class LlamaCpp:
    """A GGUF file in llama.cpp, on the CPU, with its own tokenizer and chat template."""

    def __init__(self, path: Path, context_tokens: int) -> None:
        """Load a file with room for so many tokens.

        Raises:
            RftkitError: llama.cpp cannot load it.
        """
        self.name = f"llama.cpp ({version_of(PACKAGE)})"
        with _listening(f"load {path.name}") as llama:
            params = llama.LlamaModelParams()
            params.n_gpu_layers = 0
            # cyllama 0.2 reads the size of the vocabulary from an attribute that it never sets
            self._model: Any = type("Model", (llama.LlamaModel,), {"n_vocab": 0})(str(path), params)
            self._vocabulary: Any = self._model.get_vocab()
            self._model.n_vocab = self._vocabulary.n_vocab
            sizes = llama.LlamaContextParams()
            sizes.n_ctx = sizes.n_batch = sizes.n_ubatch = context_tokens
            # its threads spin while they wait, which takes the time of a job beside it
            sizes.n_threads = sizes.n_threads_batch = max(1, (os.cpu_count() or 1) // 2)
            self._context: Any = llama.LlamaContext(self._model, sizes)
            self._batch: Any = llama.LlamaBatch(n_tokens=context_tokens, embd=0, n_seq_max=1)

    def encode(self, messages: Sequence[dict[str, Any]]) -> list[int] | None:
        """See Tool; no tokens where the file has no template."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._model.get_default_chat_template()
        if not template:
            return []
        vocabulary = self._vocabulary
        bos, eos = self._text(vocabulary.token_bos()), self._text(vocabulary.token_eos())
        rendered: Any = render_jinja_template(
            [list(messages)],
            chat_template=template,
            add_generation_prompt=True,
            bos_token=bos,
            eos_token=eos,
        )
        text = str(rendered[0][0])
        if vocabulary.get_add_bos():
            text = text.removeprefix(bos)
        return list(vocabulary.tokenize(text, True, True))

    def answers(self, prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
        """See Tool."""
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def scores(self, prompt: list[int], answer: list[int]) -> Scores:
        """See Tool; token by token, as llama.cpp answers."""
        import numpy as np

        after = enumerate(answer[:-1], start=len(prompt))
        logits = np.stack([self._begin(prompt), *(self._read([each], at) for at, each in after)])
        table = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        given = table[np.arange(len(answer)), answer]
        return given.tolist(), table.max(axis=1).tolist()

    def _answer(self, prompt: list[int], max_tokens: int) -> list[int]:
        """llama.cpp itself knows which tokens end a text."""
        tokens = [int(self._begin(prompt).argmax())]
        while len(tokens) < max_tokens and not self._vocabulary.is_eog(tokens[-1]):
            at = len(prompt) + len(tokens) - 1
            tokens.append(int(self._read(tokens[-1:], at).argmax()))
        return tokens

    def _begin(self, prompt: Sequence[int]) -> Any:
        """Forget the text before, and read a prompt; logits of what follows."""
        self._context.kv_cache_clear()
        return self._read(prompt, 0)

    def _read(self, tokens: Sequence[int], at: int) -> Any:
        """Read tokens that begin at the place `at` of the text; logits of what follows, float64."""
        import numpy as np

        self._batch.set_batch(tokens, at, False)
        self._batch.set_last_logits_to_true()
        self._context.decode(self._batch)
        return np.array(self._context.get_logits())

    def _text(self, token: int) -> str:
        return str(self._vocabulary.get_text(token)) if token >= 0 else ""


def quantize(source: Path, target: Path, file_type: int) -> None:
    """Quantize a whole file; `file_type` is llama.cpp's number, `llama_ftype`.

    Raises:
        RftkitError: llama.cpp could not.
    """
    with _listening(f"quantize {source.name}") as llama:
        params = llama.LlamaModelQuantizeParams()
        params.ftype = file_type
        llama.model_quantize(str(source), str(target), params)


@contextmanager
def _listening(doing: str) -> Iterator[Any]:
    """llama.cpp, whose log is not printed.

    Raises:
        RftkitError: it failed, with what it logged last.
    """
    from cyllama.llama import llama_cpp

    errors: list[str] = []

    def on_log(level: int, text: str) -> None:
        if level == LOGGED_ERROR:
            errors.append(text.strip())

    llama_cpp.set_log_callback(on_log)
    try:
        yield llama_cpp
    except Exception as error:  # the binding can raise anything
        why = "; ".join(errors) or error
        raise RftkitError(f"llama.cpp could not {doing}: {why}") from error
    finally:
        llama_cpp.disable_logging()
