"""The embedding call that `cosine` graders get, over an OpenAI client.

Not here: which endpoint that is, and the comparison itself (`leaves`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["LOCAL_EMBEDDING_MODEL", "EmbeddingCall", "embedding_call"]

EmbeddingCall = Callable[[str, list[str]], list[list[float]]]
"""(model, texts) -> one vector a text."""

LOCAL_EMBEDDING_MODEL = "smollm2-135m-instruct"
"""Used instead of the hosted service's embedding model, which the local platform does not have. One
for all, so that a grade is the same number in a notebook, in graders/run and in training."""


def embedding_call(client: Any, model: str | None = None) -> EmbeddingCall:
    """An embedding call over a client that has `embeddings.create` (an `openai.OpenAI`).

    `model` is asked whatever a grader names.
    """

    def embed(named: str, texts: list[str]) -> list[list[float]]:
        answer = client.embeddings.create(model=model or named, input=texts)
        return [entry.embedding for entry in answer.data]

    return embed
